"""Entries of summary.json: values, intervals, and always valid JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.evaluation import entries


def test_confidence_interval_covers_and_repeats():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = entries.confidence_interval(values, seed=3)
    assert (low, high) == entries.confidence_interval(values, seed=3)
    assert low < values.mean() < high
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([values.mean() - low, high - values.mean()], half_width, rtol=0.15)


def test_confidence_interval_of_few_values():
    assert entries.confidence_interval(np.array([0.3])) == (0.3, 0.3)
    assert entries.confidence_interval(np.array([np.nan, 0.3])) == (0.3, 0.3)
    assert np.isnan(entries.confidence_interval(np.array([]))).all()


def test_summarise_counts_only_rows_with_a_value():
    entry = entries.summarise(np.array([0.0, 1.0, np.nan]))
    assert entry["value"] == 0.5 and entry["n"] == 2
    assert entry["ci"][0] <= 0.5 <= entry["ci"][1]
    assert entries.summarise(np.array([np.nan])) == {"value": None, "n": 0, "ci": None}


def test_a_row_with_a_missing_number_is_counted_out():
    values = np.array([[0.2, 0.4], [np.nan, 1.0], [0.6, 0.8]])
    entry = entries.summarise(values, statistic=lambda rows: rows[:, 0].mean() - rows[:, 1].mean())
    assert entry["value"] == pytest.approx(-0.2) and entry["n"] == 2
    np.testing.assert_allclose(entry["ci"], [-0.2, -0.2])


def test_an_interval_of_a_statistic_is_that_of_its_resampled_rows():
    rows = np.random.default_rng(0).random((30, 3))
    low, high = entries.confidence_interval(rows, 5, statistic=np.max, resamples=50)
    rng = np.random.default_rng(5)
    found = [rows[rng.integers(0, 30, 30)].max() for _ in range(50)]
    np.testing.assert_allclose([low, high], np.percentile(found, [2.5, 97.5]))


def test_infinity_is_counted_but_not_written():
    values = np.array([1.0, 2.0, np.inf])
    assert entries.summarise(values) == {"value": None, "n": 3, "ci": None}
    assert entries.summarise(values, statistic=np.median)["value"] == 2.0


@given(st.lists(st.floats(), max_size=6), st.sampled_from([np.mean, np.median, np.std]))
def test_entries_are_valid_json(values, statistic):
    entry = entries.summarise(np.array(values), statistic=statistic)
    json.dumps(entry, allow_nan=False)
    assert entry["n"] == np.isfinite(values).sum() + np.isinf(values).sum()


def test_two_samples_are_resampled_each_by_itself():
    left, right = np.array([1.0, 2.0, np.nan, 5.0]), np.array([3.0, 0.0])
    seen = []

    def statistic(a, b):
        seen.append((len(a), len(b)))
        assert set(a) <= {1.0, 2.0, 5.0} and set(b) <= {3.0, 0.0}
        return a.mean() - b.mean()

    entry = entries.summarise_two(left, right, 5, statistic=statistic, resamples=50)
    assert set(seen) == {(3, 2)} and len(seen) == 51
    assert entry["n"] == 5 and entry["value"] == pytest.approx(8 / 3 - 1.5)
    rng = np.random.default_rng(5)
    sides = left[[0, 1, 3]], right
    found = [-np.diff([rng.choice(s, len(s)).mean() for s in sides])[0] for _ in range(50)]
    np.testing.assert_allclose(entry["ci"], np.percentile(found, [2.5, 97.5]))
    nothing = entries.summarise_two(left, np.array([np.nan]), statistic=statistic)
    assert nothing == {"value": None, "n": 3, "ci": None}


def test_several_runs_are_a_mean_with_both_ends():
    known = [{"value": value, "n": n, "ci": None} for value, n in ((2.0, 9), (1.0, 8), (6.0, 9))]
    found = entries.over_runs(known)
    assert found == {
        "value": 3.0, "n": 8, "seeds": 3, "ci": [1.0, 6.0], "sd": pytest.approx(7**0.5),
    }  # fmt: skip
    alone = entries.over_runs(known[:1])
    assert alone == {"value": 2.0, "n": 9, "seeds": 1, "ci": [2.0, 2.0], "sd": None}
