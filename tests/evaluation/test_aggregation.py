"""Aggregations by hand, and where there is nothing to aggregate."""

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation.aggregation import ALL, CHANGES, NUMBERS, ROWS, SAMPLES, find
from jaxunlearn.evaluation.entries import entry

ROWS_OF_TWO = [Row("", "", entity) for entity in ("A", "A", "B", "")]
VALUES = np.array([0.25, 0.75, 0.95, np.nan])


def of_rows(name, values, rows=None):
    return ROWS[name](np.asarray(values), rows or [Row("", "")] * len(values))["value"]


def test_means_and_truth_ratios():
    assert of_rows("mean", [1.0, 2.0, np.nan]) == 1.5
    assert of_rows("median", [1.0, 2.0, 9.0]) == 2
    assert of_rows("closer_to_1", [0.5, 4.0]) == pytest.approx((0.5 + 0.25) / 2)
    assert of_rows("true_better", [0.5, 4.0]) == pytest.approx(0.25)
    # p / (p + w) with w / p = R.
    assert of_rows("right_better", [1.0, 3.0]) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_entities_count_once():
    assert of_rows("entity_mean", VALUES, ROWS_OF_TWO) == pytest.approx((0.5 + 0.95) / 2)
    assert of_rows("entity_sd", VALUES, ROWS_OF_TWO) == pytest.approx(np.std([0.5, 0.95]))
    assert of_rows("entity_min", VALUES, ROWS_OF_TWO) == 0.5
    assert of_rows("entities_forgotten", VALUES, ROWS_OF_TWO) == 1
    assert ROWS["entity_mean"](VALUES, ROWS_OF_TWO)["n"] == 2


def test_texts():
    said = np.array(["a b", "a b", "c d"], object)
    assert ROWS["distinct_2"](said, [])["value"] == pytest.approx(2 / 3)
    assert ROWS["identical"](said, []) == {"value": pytest.approx(2 / 3), "n": 3, "ci": None}


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"distinct_2", "identical"}))
def test_no_value_is_no_number(name):
    values = np.full((2, 3) if name in ("efficacy", "utility") else 2, np.nan)
    found = ROWS[name](values, ROWS_OF_TWO[:2])
    assert found["value"] is None and found["n"] == 0


def test_two_samples():
    left, right = np.array([3.0, 2.0]), np.array([2.0, 1.0])
    assert SAMPLES["auc"](left, right)["value"] == 0.875
    many = np.arange(2000.0)
    # 1 % of 2000 others may be accused, and 0.1 %: the members above the 20 and the 2 highest.
    members = np.array([1980.5, 1985.0, 1998.5, 0.0])
    assert SAMPLES["tpr_at_1"](members, many)["value"] == 0.75
    assert SAMPLES["tpr_at_0.1"](members, many)["value"] == 0.25
    p = SAMPLES["ks_test"](left, many)
    assert p["value"] == pytest.approx(ks_2samp(left, many).pvalue) and p["n"] == 2


def test_of_other_metrics():
    known, gone = [entry(0.5, 9), entry(0.25, 9)], entry(np.nan, 0)
    for name in ("harmonic_mean", ALL):
        found = NUMBERS[name]([*known, gone])
        assert found == {"value": pytest.approx(hmean([0.5, 0.25])), "n": 2, "ci": None}
    assert NUMBERS["harmonic_mean"]([entry(0.0, 1), known[0]])["value"] == 0
    assert NUMBERS["mean"]([*known, gone])["value"] == 0.375
    assert NUMBERS["first"]([gone, known[1]]) == known[1]
    assert NUMBERS["first"]([gone])["value"] is None
    for area, score in ((0.5, 1), (1.0, 0), (0.0, 0), (0.4, 0.8)):
        assert NUMBERS["from_chance"]([entry(area, 4)])["value"] == pytest.approx(score)
    assert NUMBERS["from_chance"]([gone])["value"] is None


def test_relative_to_the_retrained_model():
    for name in ("priv_leak", "similarity_to_retrained", "rel_diff"):
        assert CHANGES[name](0.5, 0.5) == (1 if name == "similarity_to_retrained" else 0)
    close = CHANGES["similarity_to_retrained"]
    assert close(0.75, 0.5) == close(0.25, 0.5) == 0.5 and close(1.0, 0.5) == close(1.0, 0.3) == 0
    assert np.isnan(close(0.5, 0.0))


def test_compat_changes_what_it_names_and_nothing_else():
    for table in (ROWS, CHANGES):
        apart = {n for n in table if find(table, n, "open-unlearning") is not table[n]}
        assert apart == ({"closer_to_1"} if table is ROWS else {"priv_leak"})
        assert all(find(table, n, "paper") is table[n] for n in table)
