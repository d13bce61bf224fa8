"""Trainings side by side: what they come to is what each comes to alone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from jaxunlearn.training import together
from jaxunlearn.training.loop import DivergedError, train
from jaxunlearn.training.together import Member, run_steps_together, train_together

TEMPLATE = "Question: {question}\nAnswer:"
TRAINING = TrainingConfig(batch_size=8, learning_rate=1e-3, checkpoint_every=5)
ADAPTER = AdapterConfig(rank=2)


@pytest.fixture(scope="module")
def tables(tiny, world):
    def table(rows):
        pairs = [(row.question, row.answer) for row in rows]
        return tokens.encode(tiny.tokenizer, pairs, template=TEMPLATE, max_length=128).table

    forget, retain = tokens.same_width(table(world.forget), table(world.retain))
    return {"forget": forget, "retain": retain}


@pytest.fixture(scope="module")
def member(tables, world):
    """A function that makes one, of twelve steps."""

    def make(folder, *, seed=0, method="npo", training=TRAINING, on_steps=lambda *_: None, **hyper):
        pool = pool_of(world.forget, world.retain)
        made = sampling.schedule("random", pool, epochs=4, batch_size=8, seed=seed)
        schedule = {"forget": made.forget, "retain": made.retain}
        objective, numbers = registry.objective(MethodConfig(name=method, hyper=hyper))
        return Member(
            tables, schedule, objective, numbers, training, seed, folder / f"{seed}", on_steps
        )

    return make


def alone(model, one, folder=None, **options):
    return train(
        model, one.tables, one.schedule, one.objective, one.hyper, one.training, adapter=ADAPTER,
        seed=one.seed, checkpoints=folder, **options,
    )  # fmt: skip


def distance(one, other):
    """Of all factors, relative to their norm."""
    difference = jax.tree.map(jnp.subtract, one, other)
    return float(optax.tree.norm(difference) / optax.tree.norm(other))


def with_rate(rate, **changes):
    return dataclasses.replace(TRAINING, learning_rate=rate, **changes)


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("npo", "adamw"), pytest.param("pdu", "lion", marks=pytest.mark.slow)],
)
def test_as_alone(tiny, member, tmp_path, method, optimizer):
    """Different seeds, rates, warm-ups and hyper-parameters, each with its own log."""
    logs = {}

    def log(place):
        return lambda done, total, new: logs.setdefault(place, []).extend(new)

    members = [
        member(
            tmp_path, seed=seed, method=method, on_steps=log(seed), retain_weight=1.0 + seed,
            training=with_rate((1e-3, 3e-4)[seed], warmup=0.3 * seed, optimizer=optimizer),
        )
        for seed in range(2)
    ]  # fmt: skip
    assert train_together(tiny, members, ADAPTER) == [True, True]
    ends = []
    for one in members:
        own = []
        there = alone(tiny, one, one.checkpoints, on_steps=pytest.fail)  # nothing is left to do
        here = alone(tiny, one, on_steps=lambda done, total, new, own=own: own.extend(new))
        assert distance(there.adapter.factors, here.adapter.factors) < 1e-5
        assert [line["step"] for line in logs[one.seed]] == list(range(1, 13))
        assert own[0].keys() == logs[one.seed][0].keys()
        for key in ("loss", "grad_norm", "learning_rate"):
            losses = [[line[key] for line in lines] for lines in (logs[one.seed], own)]
            np.testing.assert_allclose(*losses, rtol=1e-5)
        ends.append(there.adapter.factors)
    assert distance(*ends) > 1e-2


def test_one_program_for_all(tiny, member, tmp_path):
    run_steps_together.clear_cache()
    for turn in range(2):
        folder = tmp_path / str(turn)
        train_together(
            tiny,
            [member(folder, seed=s, training=with_rate(1e-3 * (1 + s + turn))) for s in range(2)],
            ADAPTER,
        )
    assert run_steps_together._cache_size() == 1


def test_a_diverging_one_takes_no_other_down(tiny, member, tmp_path):
    bad = member(tmp_path, seed=1, training=with_rate(1e38))
    good = member(tmp_path, seed=0)
    assert train_together(tiny, [bad, good], ADAPTER) == [False, True]
    kept = alone(tiny, good, good.checkpoints, on_steps=pytest.fail)
    assert distance(kept.adapter.factors, alone(tiny, good).adapter.factors) < 1e-5
    with pytest.raises(DivergedError, match=r"lower training\.learning_rate"):
        alone(tiny, bad, bad.checkpoints)


def test_it_goes_on_where_it_was_stopped(tiny, member, tmp_path):
    """Cut off between the second checkpoint and the end; one of the two is further then."""

    class Killed(Exception):
        pass

    def kill(done, total, log):
        if done == 10:
            raise Killed

    parts = [member(tmp_path, seed=0, on_steps=kill), member(tmp_path, seed=1)]
    with pytest.raises(Killed):
        train_together(tiny, parts, ADAPTER)
    alone(tiny, parts[1], parts[1].checkpoints)
    steps = []
    again = [
        dataclasses.replace(one, on_steps=lambda done, total, log: steps.append(log[0]["step"]))
        for one in parts
    ]
    assert train_together(tiny, again, ADAPTER) == [True, True]
    assert steps[0] == 11
    for one in parts:
        there = alone(tiny, one, one.checkpoints, on_steps=pytest.fail)
        assert distance(there.adapter.factors, alone(tiny, one).adapter.factors) < 1e-5


def test_others_than_alike_are_parts_of_their_own(tiny, member, tmp_path):
    members = [
        member(tmp_path / "one"),
        member(tmp_path / "other", training=with_rate(1e-3, checkpoint_every=4)),
    ]
    assert train_together(tiny, members, ADAPTER) == [True, True]
    for one in members:
        there = alone(tiny, one, one.checkpoints, on_steps=pytest.fail)
        assert distance(there.adapter.factors, alone(tiny, one).adapter.factors) < 1e-5


def test_a_foreign_checkpoint_is_refused(tiny, member, tmp_path):
    train_together(tiny, [member(tmp_path)], ADAPTER)
    with pytest.raises(UserError, match="other data or settings"):
        train_together(tiny, [member(tmp_path, beta=3.0)], ADAPTER)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices; the next test brings them")
def test_devices_exchange_nothing(tiny, member, tmp_path, monkeypatch):
    """Each device has its trainings, and the base model whole."""
    texts, lanes = [], []

    def spy(*arguments):
        texts.append(run_steps_together.lower(*arguments).compile().as_text())
        lanes.append(arguments[1].step.sharding)
        return run_steps_together(*arguments)

    monkeypatch.setattr(together, "run_steps_together", spy)
    train_together(tiny, [member(tmp_path, seed=seed) for seed in range(9)], ADAPTER)
    assert lanes[0].shard_shape((16,)) == (2,)
    for text in texts:
        assert not any(f"{word}(" in text or f"{word}-start(" in text for word in (
            "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter",
        ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() > 1, reason="it is what runs now")
def test_on_eight_devices():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "npo or devices_exchange"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
