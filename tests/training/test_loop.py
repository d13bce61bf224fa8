"""The loop: resume is exact, chunks do not matter, faults stop it."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.errors import UserError
from jaxunlearn.methods import losses, registry
from jaxunlearn.methods.orthogonality import orthogonality_penalty
from jaxunlearn.models import lora
from jaxunlearn.training import loop
from jaxunlearn.training.loop import DivergedError, train
from jaxunlearn.training.watching import Watch

TEMPLATE = "Question: {question}\nAnswer:"
TRAINING = TrainingConfig(epochs=4, batch_size=8, learning_rate=1e-3, checkpoint_every=3)


@pytest.fixture(scope="module")
def job(tiny, world):
    """Tables, schedule and objective of an NPO run of twelve steps."""

    def table(rows):
        pairs = [(row.question, row.answer) for row in rows]
        return tokens.encode(tiny.tokenizer, pairs, template=TEMPLATE, max_length=128).table

    forget, retain = tokens.same_width(table(world.forget), table(world.retain))
    pool = pool_of(world.forget, world.retain)
    schedule = sampling.schedule("random", pool, epochs=4, batch_size=8, seed=0)
    objective, hyper = registry.objective(MethodConfig(name="npo"))
    tables = {"forget": forget, "retain": retain}
    return tables, {"forget": schedule.forget, "retain": schedule.retain}, objective, hyper


def same(a, b):
    return jax.tree.all(jax.tree.map(jnp.array_equal, a, b))


class Killed(Exception):
    pass


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)])
def test_resume_is_exact(tiny, job, tmp_path, adapter):
    whole = train(tiny, *job, TRAINING, adapter=adapter)
    log = []

    def stop_at(limit):
        def on_steps(done, total, new):
            log.extend(new)
            if done >= limit:
                raise Killed

        return on_steps

    for limit in (2, 4, 8, 100):
        try:
            resumed = train(
                tiny, *job, TRAINING, adapter=adapter, checkpoints=tmp_path / "c",
                on_steps=stop_at(limit),
            )  # fmt: skip
        except Killed:
            continue
    trees = [m.params if adapter is None else m.adapter.factors for m in (resumed, whole)]
    assert same(*trees)
    assert log[-1]["step"] == 12 and len(log) > 12  # some steps were done twice


def test_a_finished_stage_is_not_trained_again(tiny, job, tmp_path):
    first = train(tiny, *job, TRAINING, checkpoints=tmp_path / "c")
    again = train(tiny, *job, TRAINING, checkpoints=tmp_path / "c", on_steps=pytest.fail)
    assert same(first.params, again.params)


def test_chunks_do_not_matter(tiny, job, monkeypatch):
    one = train(tiny, *job, TRAINING)
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    assert same(one.params, train(tiny, *job, TRAINING).params)


def test_start_model_is_left_as_it_is(tiny, job):
    before = jax.tree.map(np.array, tiny.params)
    train(tiny, *job, TRAINING)
    assert same(before, tiny.params)


def test_foreign_checkpoint_is_refused(tiny, job, tmp_path):
    train(tiny, *job, TRAINING, checkpoints=tmp_path / "c")
    other = dataclasses.replace(TRAINING, learning_rate=2e-3)
    with pytest.raises(UserError, match="belongs to a run with other data or settings"):
        train(tiny, *job, other, checkpoints=tmp_path / "c")


def test_damaged_checkpoint_is_refused(tiny, job, tmp_path):
    train(tiny, *job, TRAINING, checkpoints=tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "12" / "state")
    with pytest.raises(UserError, match="12: the checkpoint is damaged"):
        train(tiny, *job, TRAINING, checkpoints=tmp_path / "c")


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tiny, job, tmp_path):
    wild = dataclasses.replace(TRAINING, learning_rate=1e30, warmup=1.0, checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"npo: the grad_norm is nan at step 2 of 12; lower"):
        train(tiny, *job, wild, checkpoints=tmp_path / "c")
    kept = sorted(int(place.name) for place in (tmp_path / "c").glob("[0-9]*"))
    assert kept and kept[-1] < 12


def fragile(log_probs):
    """Gradient ascent that breaks once it has come some way."""
    return jnp.where(jnp.mean(log_probs) < -7.9, jnp.nan, log_probs)


def broken_gradient(log_probs):
    """Finite, 0, with a gradient that is not."""
    return jnp.sqrt(0.0 * log_probs)


def forgetting(job, loss, watch=None, **options):
    tables, schedule, _, _ = job
    objective = registry.Objective("mine", (registry.Term("forget", loss),))
    parts = [{"forget": part["forget"]} for part in (tables, schedule)]
    return lambda model: train(model, *parts, objective, {}, TRAINING, watch=watch, **options)


def test_a_break_between_two_looks_rolls_back(tiny, job):
    said, good = [], []

    def run(rollback):
        watch = Watch(
            3, lambda now: good.append(now) or 0.0, lambda _: False, rollback, said.append
        )
        return forgetting(job, fragile, watch)(tiny)

    result = run(True)
    found = re.fullmatch(
        r"mine: the loss is nan at step (\d+) of 12; lower training.learning_rate; "
        r"the result is that of step (\d+)", said[0],
    )  # fmt: skip
    broken, kept = map(int, found.groups())
    assert kept == 3 * len(good) > 0 and kept < broken <= kept + 3
    assert same(result.params, good[-1].params)
    with pytest.raises(DivergedError, match=f"nan at step {broken}"):
        run(False)


def test_a_break_at_the_first_step_is_the_losses_own(tiny, job):
    with pytest.raises(DivergedError, match="the grad_norm is nan at step 1 of 12") as caught:
        forgetting(job, broken_gradient)(tiny)
    assert "the method's own loss" in str(caught.value)
    assert "learning_rate" not in str(caught.value)


def test_another_function_of_the_same_name_is_another_run(tiny, job, tmp_path):
    def nll(log_probs):
        return -log_probs

    forgetting(job, losses.nll, checkpoints=tmp_path / "c")(tiny)
    with pytest.raises(UserError, match="belongs to a run with other data or settings"):
        forgetting(job, nll, checkpoints=tmp_path / "c")(tiny)


def test_training_by_pattern(tiny, job):
    some = dataclasses.replace(TRAINING, train_only="mlp/down/kernel$")
    trained = train(tiny, *job, some).params
    old, new = tiny.params["layers"], trained["layers"]
    assert not jnp.array_equal(old["mlp"]["down"]["kernel"], new["mlp"]["down"]["kernel"])
    assert same(old["attention"], new["attention"]) and same(old["mlp"]["up"], new["mlp"]["up"])
    assert same(tiny.params["embed"], trained["embed"])


def test_an_adapter_on_some_layers(tiny, job):
    trained = train(
        tiny, *job, TRAINING, adapter=AdapterConfig(2, targets="layers/1/mlp/(up|down)")
    )
    factors = trained.adapter.factors["layers"]
    assert set(factors) == {"mlp"} and set(factors["mlp"]) == {"up", "down"}
    for pair in factors["mlp"].values():
        for factor in pair.values():
            assert not factor[0].any() and factor[1].any()


def test_bad_patterns(tiny, job):
    with pytest.raises(UserError, match="matches no parameter; there are"):
        train(tiny, *job, dataclasses.replace(TRAINING, train_only="nothing"))
    with pytest.raises(UserError, match="not a regular expression"):
        train(tiny, *job, dataclasses.replace(TRAINING, train_only="("))
    with pytest.raises(UserError, match=r"adapter\.targets: 'nothing' matches no parameter"):
        train(tiny, *job, TRAINING, adapter=AdapterConfig(targets="nothing"))
    both = dataclasses.replace(TRAINING, train_only="mlp")
    with pytest.raises(UserError, match="cannot be combined with adapter"):
        train(tiny, *job, both, adapter=AdapterConfig())


def test_bfloat16_model_keeps_its_dtype_and_still_learns(tiny, job):
    half = dataclasses.replace(
        tiny, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    )
    trained = train(half, *job, TRAINING)
    assert {x.dtype for x in jax.tree.leaves(trained.params)} == {jnp.dtype(jnp.bfloat16)}
    assert not same(trained.params, half.params)


def test_npo_forgets_and_finetuning_learns(tiny, job):
    tables = job[0]
    log = []
    train(tiny, *job, TRAINING, on_steps=lambda d, t, new: log.extend(new))
    assert log[-1]["forget_loss"] < 0.5 * log[0]["forget_loss"]
    assert {"loss", "forget_loss", "retain_loss", "grad_norm", "learning_rate", "step",
            "tokens_per_second"} == set(log[0])  # fmt: skip
    log.clear()
    index = sampling.epochs(len(tables["retain"].tokens), 10, 8, seed=0)
    train(
        tiny, {"train": tables["retain"]}, {"train": index}, registry.FINETUNE, {}, TRAINING,
        on_steps=lambda d, t, new: log.extend(new),
    )  # fmt: skip
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_kl_keeps_the_start_model_as_reference_after_a_resume(tiny, job, tmp_path):
    tables, schedule, _, _ = job
    objective, hyper = registry.objective(MethodConfig(name="kl"))
    whole = train(tiny, tables, schedule, objective, hyper, TRAINING)

    def stop(done, total, log):
        if done >= 5:
            raise Killed

    with pytest.raises(Killed):
        train(tiny, tables, schedule, objective, hyper, TRAINING, checkpoints=tmp_path / "c",
              on_steps=stop)  # fmt: skip
    resumed = train(tiny, tables, schedule, objective, hyper, TRAINING, checkpoints=tmp_path / "c")
    assert same(whole.params, resumed.params)


def test_an_adapter_is_kept_apart_from_others(tiny, job, tmp_path):
    """The penalty brings what both adapters read apart, and is part of what a checkpoint is of."""
    tables, schedule, _, _ = job
    one = ({"train": tables["forget"]}, {"train": schedule["forget"]})
    adapter = AdapterConfig(rank=2)
    other = lora.init(tiny.params, 2, key=jax.random.key(9))
    objective = dataclasses.replace(registry.FINETUNE, orthogonality="abs_sum")

    def trained(weight, apart_from=other, checkpoints=None):
        log = []
        model = train(
            tiny, *one, objective, {"orthogonality_weight": weight}, TRAINING, adapter=adapter,
            apart_from=apart_from, seed=1, checkpoints=checkpoints,
            on_steps=lambda done, total, new: log.extend(new),
        )  # fmt: skip
        return model.adapter.factors, log

    free, _ = trained(0.0)
    apart, log = trained(0.01, checkpoints=tmp_path / "here")
    before, after = (float(orthogonality_penalty(other, factors)) for factors in (free, apart))
    assert after < 0.9 * before
    assert log[-1]["orthogonality_loss"] < log[0]["orthogonality_loss"]
    with pytest.raises(UserError, match="another"):
        trained(0.01, lora.init(tiny.params, 2, key=jax.random.key(8)), tmp_path / "here")
