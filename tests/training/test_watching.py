"""Which state of a training is its result: values by hand, the loop on scripted looks, resume."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.config import TrainingConfig
from jaxunlearn.data import sampling, tokens
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from jaxunlearn.training.loop import DivergedError, train
from jaxunlearn.training.watching import Look, Selection, Watch

NAN = math.nan
TRAINING = TrainingConfig(epochs=5, batch_size=8, learning_rate=1e-3)
STEPS = 10


def select(values=(), goal="min", **options):
    """A selection whose n-th look finds the n-th of (value, utility)."""
    found = iter(values)
    options = {"every": 2, "say": lambda text: None, **options}
    return Selection(measure=lambda step, model: next(found), metric="score", goal=goal, **options)


def looks(*found):
    return [Look(10 * (place + 1), *one) for place, one in enumerate(found)]


@pytest.mark.parametrize(
    ("goal", "least", "found", "step"),
    [
        ("min", None, [(3, 0.9), (1, 0.1), (2, 0.5)], 20),
        ("max", None, [(3, 0.9), (1, 0.1), (2, 0.5)], 10),
        ("min", 0.5, [(3, 0.9), (1, 0.1), (2, 0.5)], 30),
        ("min", 0.5, [(2, 0.6), (1, 0.7), (1, 0.9)], 20),
        ("max", 0.5, [(2, 0.6), (2, 0.9), (9, 0.4)], 10),
        ("min", 0.5, [(3, 0.1), (1, 0.4), (2, 0.4)], 20),
        ("min", None, [(NAN, 0.9), (5, 0.1), (6, NAN)], 20),
        ("min", 0.5, [(1, NAN), (2, 0.3), (NAN, 0.9)], 30),
        ("max", None, [(NAN, NAN), (NAN, NAN)], 10),
    ],
)
def test_the_best_look_by_hand(goal, least, found, step):
    """With a bound none of which passes, the greatest utility; of equals the first."""
    chosen = select(goal=goal, least_utility=least)
    assert chosen.best(looks(*found)).step == step


@pytest.mark.parametrize(
    ("values", "ended"),
    [([], False), ([1], False), ([1, 2], False), ([1, 2, 3], True), ([1, 1, 1], True),
     ([3, 4, 2, 5], False), ([3, 4, 2, 5, 2], True)],
)  # fmt: skip
def test_patience_of_two_looks_by_hand(values, ended):
    found = looks(*((value, 1.0) for value in values))
    assert select(patience=2).exhausted(found) is ended
    assert not select().exhausted(found)


numbers = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), numbers, st.integers(1, 3))
def test_no_look_is_better_than_the_best(found, least, patience):
    least = None if math.isnan(least) else least
    chosen = select(least_utility=least, patience=patience)
    known = looks(*found)
    best = chosen.best(known)
    enough = [k for k in known if k.value >= 0 and (least is None or k.utility >= least)]
    if enough:
        assert best in enough and all(best.value <= one.value for one in enough)
        assert all(best.value < one.value for one in enough if one.step < best.step)
    else:
        assert all(not one.utility > best.utility for one in known)
    # Exhausted as soon as the same look was the best for so many looks more.
    same = [
        chosen.best(known[:end]) is best for end in range(known.index(best) + 1, len(known) + 1)
    ]
    assert all(same) and chosen.exhausted(known) == (len(same) > patience)


def test_what_is_told():
    found = looks((3, 0.9), (1, 0.1), (2, 0.5))
    assert select().told(found, 40) == (
        "the result is that of step 20 of 40: the least score (1) of those"
    )
    bound = select(least_utility=0.5, patience=1)
    assert bound.told(found[:2], 40) == (
        "the result is that of step 10 of 40: the least score (3) of those with a model utility of"
        " at least 0.5; training ended at step 20, after 1 look without a better one"
    )
    assert select(least_utility=0.95, goal="max").told(found, 30) == (
        "no step has a model utility of at least 0.95; the result is that of step 10 of 30, with"
        " the greatest model utility (0.9)"
    )
    assert select().told(looks((NAN, 0.5)), 10) == (
        "score could not be measured; the result is that of step 10 of 10, with the greatest model"
        " utility (0.5)"
    )


@pytest.fixture(scope="module")
def job(tiny, world):
    """Ten steps of gradient ascent."""
    rows = [(row.question, row.answer) for row in world.forget]
    template = "Question: {question}\nAnswer:"
    table = tokens.encode(tiny.tokenizer, rows, template=template, max_length=128).table
    schedule = sampling.epochs(len(rows), 10, 8, seed=0)[:STEPS]
    objective, hyper = registry.objective(registry.MethodConfig("grad_ascent"))
    return {"forget": table}, {"forget": schedule}, objective, hyper, TRAINING


def same(a, b):
    return jax.tree.all(jax.tree.map(jnp.array_equal, a.params, b.params))


class Scripted:
    """Looks that find what is scripted for their step, and remember the model that they saw."""

    def __init__(self, script, **options):
        self.script, self.seen, self.said, self.ends = script, {}, [], []
        self.selection = Selection(2, self.measure, "score", "min", say=self.said.append, **options)

    def measure(self, step, model):
        self.seen[step] = jax.tree.map(np.array, dict(model.params))
        return self.script[step], 1.0

    def train(self, tiny, job, place, **options):
        return train(
            tiny, *job, selection=self.selection, checkpoints=place,
            on_end=lambda *steps: self.ends.append(steps), **options,
        )  # fmt: skip

    def saw(self, model, step):
        return jax.tree.all(jax.tree.map(np.array_equal, self.seen[step], dict(model.params)))


@pytest.mark.parametrize(
    ("values", "best"),
    [([5, 4, 3, 2, 1], 10), ([5, 1, 3, 2, 4], 4), ([1, 2, 3, 4, 5], 2), ([3, 4, 2, 5, 2], 6)],
)
def test_the_result_is_the_state_of_the_best_look(tiny, job, tmp_path, values, best):
    run = Scripted(dict(zip(range(2, 11, 2), values, strict=True)))
    result = run.train(tiny, job, tmp_path / "c")
    assert list(run.seen) == [2, 4, 6, 8, 10] and run.ends == [(10, best)]
    assert run.saw(result, best) and not run.saw(result, 8)
    kept = {int(place.name) for place in (tmp_path / "c").glob("[0-9]*")}
    assert {8, 10, best} <= kept and len(kept) <= 4
    # Finished: nothing is trained or looked at again, and the same is told.
    again = Scripted({})
    assert same(again.train(tiny, job, tmp_path / "c", on_steps=pytest.fail), result)
    assert again.said == run.said and again.ends == run.ends


def test_a_best_state_that_is_damaged_or_has_no_place(tiny, job, tmp_path):
    run = Scripted(dict(zip(range(2, 11, 2), range(5), strict=True)))
    run.train(tiny, job, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "2" / "state")
    with pytest.raises(
        UserError, match=r"2: the checkpoint is damaged .* remove .*c to train anew"
    ):
        run.train(tiny, job, tmp_path / "c")
    with pytest.raises(ValueError, match="needs a folder of checkpoints"):
        run.train(tiny, job, None)


def test_patience_ends_the_training(tiny, job, tmp_path):
    run = Scripted({2: 3, 4: 1, 6: 2, 8: 1}, patience=2)
    result = run.train(tiny, job, tmp_path / "c")
    assert run.ends == [(8, 4)] and run.saw(result, 4)
    again = Scripted({}, patience=2)
    assert same(again.train(tiny, job, tmp_path / "c", on_steps=pytest.fail), result)
    assert again.said == run.said and again.ends == run.ends


class Killed(Exception):
    pass


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5], [3, 1, 2, 4, 5], [5, 4, 3, 2, 1]])
def test_kills_between_and_in_looks_change_nothing(tiny, job, tmp_path, values):
    script = dict(zip(range(2, 11, 2), values, strict=True))
    whole = Scripted(script)
    result = whole.train(tiny, job, tmp_path / "whole")
    seen = {}

    def cut_after(step):
        def on_steps(done, total, log):
            if done > step:
                raise Killed

        return on_steps

    for step in (2, 4, 5, 8):
        run = Scripted(script)
        with pytest.raises(Killed):
            run.train(tiny, job, tmp_path / "cut", on_steps=cut_after(step))
        seen |= run.seen
        broken = Scripted({})  # its next look fails
        with pytest.raises(KeyError):
            broken.train(tiny, job, tmp_path / "cut")
    last = Scripted(script)
    assert same(last.train(tiny, job, tmp_path / "cut"), result)
    assert last.said == whole.said and last.ends == whole.ends
    assert list({**seen, **last.seen}) == [2, 4, 6, 8, 10] and list(last.seen) == [10]


def watch(values, every, **options):
    found = iter(values)
    return Watch(every, lambda model: next(found), lambda value: value > 9, **options)


@pytest.mark.parametrize("rollback", [True, False])
def test_a_watch_ends_what_a_selection_chooses_from(tiny, job, tmp_path, rollback):
    """Crossed at step 6, which is the best: with a rollback it is none of those to choose from."""
    told = []
    ends = watch([1, 10], 3, rollback=rollback, say=told.append)
    run = Scripted({2: 2, 4: 3, 6: 1})
    result = run.train(tiny, job, tmp_path / "c", watch=ends)
    best = 2 if rollback else 6
    assert run.ends == [(6, best)] and run.saw(result, best)
    assert len(told) == 1 and "10 after step 6 of 10; training ends here" in told[0]
    assert list(run.seen) == [2, 4] if rollback else [2, 4, 6]


def test_a_rollback_before_the_first_look(tiny, job, tmp_path):
    run = Scripted({})
    ends = watch([10], 1, rollback=True, say=lambda text: None)
    assert same(run.train(tiny, job, tmp_path / "c", watch=ends), tiny)
    assert run.ends == [(1, 0)] and not run.said


def fragile(log_probs):
    """Breaks once it has come some way."""
    return jnp.where(jnp.mean(log_probs) < -7.5, jnp.nan, log_probs)


def test_a_break_is_an_error_unless_a_watch_rolls_back(tiny, job, tmp_path):
    tables, schedule, _, hyper, training = job
    objective = registry.Objective("mine", (registry.Term("forget", fragile),))
    job = tables, schedule, objective, hyper, TrainingConfig(**{**vars(training), "warmup": 0.0,
                                                                "learning_rate": 3e-3})  # fmt: skip
    script = {2: 1, 4: 2, 6: 3, 8: 4, 10: 5}
    with pytest.raises(DivergedError):
        Scripted(script).train(tiny, job, tmp_path / "a")
    run = Scripted(script)
    ends = watch([0] * 10, 2, rollback=True, say=lambda text: None)
    result = run.train(tiny, job, tmp_path / "b", watch=ends)
    assert run.seen and run.saw(result, 2) and run.ends[0][1] == 2
