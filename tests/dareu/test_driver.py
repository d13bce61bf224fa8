"""Training by reward: known optima, exact resume, guards, and what must not change."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.dareu import driver, iteration
from jaxunlearn.errors import UserError
from jaxunlearn.models import transformer
from tests.dareu import on_devices
from tests.dareu.conftest import by_token, job_of, small

ROOT = Path(__file__).parents[2]
SETTINGS = (
    {},
    {"algorithm": "grpo", "samples": 3, "old_refresh": "epoch"},
    {"algorithm": "rloo", "samples": 2, "level": "sequence"},
    {"schedule": "alternate", "kappa": 2, "against": "any", "entropy_weight": 0.01},
    {"adapter": None, "train_only": "mlp/down", "micro_batches": 2, "kl_estimator": "k3"},
)
"""Each is a program of its own, which takes seconds to compile; so tests share them."""


def trained(job, **options):
    """The model, and the numbers of every iteration."""
    log = []
    model = driver.train(
        job, on_steps=lambda done, total, rows: log.extend(rows), say=lambda text: None, **options
    )
    return model, log


def leaves(model):
    tree = model.params if model.adapter is None else model.adapter.factors
    return jax.tree.leaves(tree)


def same(one, other):
    return all(bool((a == b).all()) for a, b in zip(leaves(one), leaves(other), strict=True))


def choices(model, prompt, temperature):
    """Probabilities of the token after a prompt."""
    logits = transformer.logits(model.config, model.params, jnp.array([prompt]), lora=model.lora)
    return np.asarray(jax.nn.softmax(logits[0, -1] / temperature))


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "ppo", "whiten": False, "value_learning_rate": 5e-2},
        {"algorithm": "grpo", "group_std": False},
        {"algorithm": "rloo"},
    ],
)
def test_the_optimum_of_a_bandit_is_found(tiny, options):
    """One token of three; with KL weight w the best policy is p0 exp(r / w), normalised."""
    model = small(tiny, 3)
    shares, weight = np.array([0.6, 0.3, 0.05]), 0.5
    job = job_of(
        model,
        shares=shares,
        prompts=[[1]] * 4,
        retain=[([1], [0])],
        iterations=150,
        adapter=None,
        **options,
        samples=64,
        updates=1,
        max_new_tokens=1,
        kl_weight=weight,
        distill_weight=0.0,
        temperature=0.8,
        learning_rate=2e-3,
    )
    found, log = trained(job)
    rewards = np.clip(np.log1p(-shares) / 1.05, -1, 0)
    best = choices(model, [1], 0.8) * np.exp(rewards / weight)
    np.testing.assert_allclose(choices(found, [1], 0.8), best / best.sum(), atol=0.06)
    assert log[-1]["reward"] > log[0]["reward"]


def test_missing_tokens_cost_what_they_are_said_to(job):
    """Responses have at most 6 tokens, answers 6: a mean of L tokens lacks 6 - L of them."""

    def told(cost, seed):
        return trained(job(answer=6, missing_cost=cost, seed=seed, iterations=1))[1][0]

    # The first seed with which a response ends before its limit.
    seed, free = next((s, one) for s in range(500) if (one := told(0.0, s))["length"] < 6)
    charged, length = told(0.5, seed), free["length"]
    assert charged["length"] == length
    lower = free["reward"] - charged["reward"]
    assert lower == pytest.approx(0.5 * (6 - length) / length, rel=1e-4)


def test_ratios_are_exactly_1_before_the_first_update(job):
    """With updates too small for float32, all of them are the first."""
    for options in SETTINGS[0], SETTINGS[-1]:
        _, log = trained(job(learning_rate=1e-30, **options))
        for row in log:
            assert row["ratio_min"] == row["ratio_max"] == row["ratio_mean"] == 1.0
            assert row["clip_fraction"] == row["old_policy_kl"] == 0.0
            assert row["distill_loss"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("options", SETTINGS)
def test_every_setting_trains_and_resumes_exactly(job, tmp_path, options):
    whole, log = trained(job(**options))
    assert len(log) == 4
    assert not same(whole, driver._finished(job(**options), driver._begin(job(**options))[1]))
    assert all(np.isfinite(list(row.values())).all() for row in log)

    class Killed(Exception):
        pass

    def kill(done, total, rows):
        if done == 3:
            raise Killed

    # The third iteration is in the middle of the second epoch.
    with pytest.raises(Killed):
        driver.train(job(**options, checkpoint_every=1), checkpoints=tmp_path, on_steps=kill)
    resumed, rest = trained(job(**options, checkpoint_every=1), checkpoints=tmp_path)
    assert [row["step"] for row in rest] == [4]
    assert same(whole, resumed)
    for name in log[-1]:
        if name != "tokens_per_second":
            assert rest[-1][name] == log[-1][name]


def test_the_same_twice_and_another_seed(job):
    one, other = trained(job())[0], trained(job())[0]
    assert same(one, other)
    assert not same(one, trained(job(seed=4))[0])


def test_an_adapter_leaves_the_model_as_it_was(tiny, job):
    before = jax.tree.map(np.array, tiny.params)
    model, _ = trained(job())
    assert model.params is tiny.params
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, tiny.params))
    factors = jax.tree.leaves(model.adapter.factors)
    assert max(float(jnp.abs(leaf).max()) for leaf in factors) > 0


def test_only_the_chosen_parameters_train(job):
    model, _ = trained(job(**SETTINGS[-1]))
    start = job().start
    changed = {
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(model.params),
            jax.tree.leaves(start.params),
            strict=True,
        )
        if not bool((a == b).all())
    }
    assert changed == {"['layers']['mlp']['down']['kernel']"}


def test_one_program_for_all_iterations_and_numbers(job):
    trained(job())
    before = iteration.iterate_in_jit._cache_size()
    trained(job(learning_rate=3e-3, clip=0.3, temperature=0.7, kl_weight=0.0, iterations=3))
    assert iteration.iterate_in_jit._cache_size() == before > 0


def test_equal_rewards_teach_nothing(job):
    """Advantages in a group are 0, and so are all gradients; k1 would tell responses apart."""
    plain = job(**SETTINGS[2], kl_weight=0.0, distill_weight=0.0)
    flat = by_token(np.full(plain.start.config.vocab_size, 0.4))
    plain = dataclasses.replace(plain, attributors=(flat, flat))
    _, log = trained(plain)
    assert [row["grad_norm"] for row in log] == [0.0] * 4


def test_empty_slots_count_nothing(job):
    full = job(iterations=2)
    padded = {
        group: np.pad(rows, ((0, 0), (0, 2)), constant_values=-1)
        for group, rows in full.schedule.items()
    }
    one, log = trained(full)
    other, padded_log = trained(dataclasses.replace(full, schedule=padded))
    for a, b in zip(log, padded_log, strict=True):
        for name in ("reward", "loss", "attribution", "entropy", "length"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6)
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_guards_end_a_training(job):
    said = []
    start = driver._finished(job(), driver._begin(job())[1])
    model = driver.train(job(max_kl=1e-9, learning_rate=0.05), say=said.append)
    # The second batch tells what the first updates did; what is left is the start.
    assert "more than max_kl" in said[-1] and "the result is that of 0 iterations" in said[-1]
    assert same(start, model)
    model = driver.train(job(target_attribution=1.0), say=said.append)
    assert "in iteration 1 of 4 the held-out attribution is" in said[-1]
    guarded = job(max_repetition=0.1).settings
    assert driver._crossed(guarded, {"repetition": 0.1}) == ("", False)
    why, undone = driver._crossed(guarded, {"repetition": 0.2})
    assert undone and why == "repetition is 0.2, more than max_repetition, 0.1"


def test_a_training_that_reached_its_target_stays_where_it_is(job, tmp_path):
    said = []
    done = job(target_attribution=1.0)
    one = driver.train(done, checkpoints=tmp_path, say=said.append)
    ended = []
    other = driver.train(done, checkpoints=tmp_path, say=said.append, on_end=ended.append)
    assert same(one, other)
    assert ended == [1] and len(said) == 1


def test_a_foreign_checkpoint_is_refused(job, tmp_path):
    trained(job(), checkpoints=tmp_path)
    with pytest.raises(UserError, match="belongs to a run with other data or settings"):
        trained(job(clip=0.3), checkpoints=tmp_path)


def test_a_loss_that_is_not_finite_is_named(job):
    bad = job()
    shares = jnp.full_like(bad.attributors[0].shares, jnp.nan)
    broken = dataclasses.replace(bad.attributors[0], shares=shares)
    with pytest.raises(driver.DivergedError, match="iteration 1 of 4"):
        trained(dataclasses.replace(bad, attributors=(broken, broken)))


@pytest.mark.slow
def test_eight_devices_say_what_one_says():
    """Uneven batches too; in a process of their own, as JAX counts its devices once."""
    run = subprocess.run(
        [sys.executable, Path(on_devices.__file__)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["devices"] == 8
    names = ("reward", "loss", "attribution", "entropy", "kl", "length", "distill_loss")
    for algorithm, bound in (("grpo", 1e-5), ("ppo", 5e-4)):
        one = found[algorithm]["one"]
        for layout in ("mesh", "pmap"):
            other = found[algorithm][layout]
            for a, b in zip(one["log"], other["log"], strict=True):
                for name in names:
                    assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), (layout, name)
            np.testing.assert_allclose(one["trained"], other["trained"], atol=bound)
