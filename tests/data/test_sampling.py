import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data import sampling

sizes = {
    "n_forget": st.integers(1, 40),
    "n_retain": st.integers(1, 60),
    "epochs": st.integers(1, 4),
    "batch_size": st.integers(1, 16),
    "seed": st.integers(0, 2**31 - 1),
}
samplers = pytest.mark.parametrize("name", sampling.SAMPLERS)


@samplers
@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_each_forget_row_comes_once_per_epoch(name, n_forget, n_retain, epochs, batch_size, seed):
    schedule = sampling.SAMPLERS[name](n_forget, n_retain, epochs, batch_size, seed)
    steps = -(-n_forget // batch_size)
    assert schedule.forget.shape == schedule.retain.shape == (epochs * steps, batch_size)
    assert schedule.forget.dtype == schedule.retain.dtype == np.int32
    np.testing.assert_array_equal(schedule.forget == -1, schedule.retain == -1)
    assert schedule.retain.max() < n_retain
    for epoch in schedule.forget.reshape(epochs, -1):
        assert sorted(epoch[:n_forget]) == list(range(n_forget))
        assert (epoch[n_forget:] == -1).all()


@samplers
@given(**sizes)
@settings(max_examples=40, deadline=None)
def test_more_epochs_begin_like_fewer(name, n_forget, n_retain, epochs, batch_size, seed):
    sampler = sampling.SAMPLERS[name]
    short = sampler(n_forget, n_retain, epochs, batch_size, seed)
    long = sampler(n_forget, n_retain, epochs + 2, batch_size, seed)
    np.testing.assert_array_equal(short.forget, long.forget[: len(short.forget)])
    np.testing.assert_array_equal(short.retain, long.retain[: len(short.retain)])


@samplers
@given(**sizes, other_size=st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_pairs_do_not_depend_on_the_batch_size(
    name, n_forget, n_retain, epochs, batch_size, seed, other_size
):
    def pairs(size):
        schedule = sampling.SAMPLERS[name](n_forget, n_retain, epochs, size, seed)
        real = schedule.forget >= 0
        return schedule.forget[real].tolist(), schedule.retain[real].tolist()

    assert pairs(batch_size) == pairs(other_size)


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_random_repeats_no_retain_row_while_others_wait(
    n_forget, n_retain, epochs, batch_size, seed
):
    schedule = sampling.random(n_forget, n_retain, epochs, batch_size, seed)
    for epoch in schedule.retain.reshape(epochs, -1):
        counts = np.bincount(epoch[epoch >= 0], minlength=n_retain)
        assert counts.max() - counts.min() <= 1
        assert counts.max() == -(-n_forget // n_retain)


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_cyclic_shows_all_retain_rows_equally_often(n_forget, n_retain, epochs, batch_size, seed):
    schedule = sampling.cyclic(n_forget, n_retain, epochs, batch_size, seed)
    seen = schedule.retain[schedule.retain >= 0]
    np.testing.assert_array_equal(seen, np.arange(n_forget * epochs) % n_retain)


def test_random_reaches_nearly_all_retain_rows_over_epochs():
    schedule = sampling.random(400, 3600, 10, 32, seed=0)
    # Uniform draws: 1 - (1 - 1/9)^10 = 69 %.
    assert 0.66 < len(np.unique(schedule.retain[schedule.retain >= 0])) / 3600 < 0.72


@samplers
def test_seed_and_epoch_change_the_order(name):
    sampler = sampling.SAMPLERS[name]
    first, second = sampler(30, 50, 2, 30, 0).forget
    assert first.tolist() != second.tolist()
    assert first.tolist() != sampler(30, 50, 1, 30, 1).forget[0].tolist()


def test_the_draws_of_a_seed_are_fixed():
    schedule = sampling.random(5, 7, 1, 5, seed=3)
    assert schedule.forget.tolist() == [[0, 1, 2, 4, 3]]
    assert schedule.retain.tolist() == [[6, 4, 3, 5, 2]]


def test_another_process_makes_the_same_schedule():
    code = (
        "from jaxunlearn.data import sampling as s;"
        "print(s.random(9, 11, 3, 4, 5).retain.tolist(), s.epochs(9, 2, 4, 5).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = sampling.random(9, 11, 3, 4, 5).retain.tolist(), sampling.epochs(9, 2, 4, 5).tolist()
    assert out.stdout.strip() == f"{mine[0]} {mine[1]}"


@given(n=st.integers(1, 50), batch_size=st.integers(1, 16), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_epochs_cover_all_rows(n, batch_size, seed):
    table = sampling.epochs(n, 3, batch_size, seed)
    assert table.dtype == np.int32
    for epoch in table.reshape(3, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(n))


@pytest.mark.parametrize("counts", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
@samplers
def test_counts_below_one_are_refused(name, counts):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sampling.SAMPLERS[name](*counts, seed=0)


@samplers
def test_first_docstring_line_is_a_sentence(name):
    line = inspect.getdoc(sampling.SAMPLERS[name]).splitlines()[0]
    assert line.endswith(".") and len(line) < 100
