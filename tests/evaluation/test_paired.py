"""Paired comparisons: by hand, against all sign flips, and what cannot depend on anything else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.evaluation import paired
from jaxunlearn.evaluation.paired import paired_difference

SMALL = st.lists(st.integers(-8, 8), min_size=2, max_size=9)


def test_rows_without_a_value_on_either_side_are_counted_out():
    ours = [1.0, None, 3.0, float("nan"), 5.0]
    theirs = [0.0, 1.0, None, 2.0, 1.0]
    found = paired_difference(ours, theirs)
    assert found == {"value": 2.5, "n": 2, "ci": [1.0, 4.0], "p": 0.5}


def test_too_few_pairs_have_no_p():
    assert paired_difference([1.0], [0.5]) == {"value": 0.5, "n": 1, "ci": [0.5, 0.5], "p": None}
    nothing = {"value": None, "n": 0, "ci": None, "p": None}
    assert paired_difference([None], [1.0]) == nothing
    assert paired_difference([], []) == nothing


def test_other_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="2 against 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


@settings(deadline=None, max_examples=40)
@given(SMALL)
def test_p_counts_all_sign_flips(differences):
    """Two-sided: twice the smaller tail, at most 1."""
    flips = itertools.product((-1, 1), repeat=len(differences))
    sums = [np.dot(signs, differences) for signs in flips]
    tails = [np.mean(np.sign(side) * np.array(sums) >= side * sum(differences)) for side in (1, -1)]
    found = paired_difference(differences, [0.0] * len(differences))
    assert found["p"] == pytest.approx(min(1.0, 2 * min(tails)))


@settings(deadline=None, max_examples=40)
@given(SMALL)
def test_the_other_way_round_only_the_sign_is_another(differences):
    zeros = [0.0] * len(differences)
    one, other = paired_difference(differences, zeros), paired_difference(zeros, differences)
    assert one["value"] == -other["value"] and one["p"] == pytest.approx(other["p"])
    np.testing.assert_allclose(one["ci"], [-end for end in other["ci"][::-1]], atol=1e-12)


def test_pairs_tell_what_two_samples_would_not():
    """Rows differ far more than the models: only together in a row do they say anything."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 10, 200)
    found = paired_difference(rows + 0.1 + rng.normal(0, 0.1, 200), rows)
    low, high = found["ci"]
    assert low < 0.1 < high and high - low < 0.04
    assert found["p"] <= 2 / paired.RESAMPLES * 1.01


def test_the_same_seed_gives_the_same_numbers():
    ours, theirs = np.random.default_rng(1).normal(size=(2, 40))
    assert paired_difference(ours, theirs, seed=3) == paired_difference(ours, theirs, seed=3)
    assert paired_difference(ours, theirs, seed=3)["ci"] != paired_difference(ours, theirs)["ci"]


def test_p_is_below_its_level_as_often_as_it_says():
    """200 comparisons of equals: 10 false alarms at 5 %, with a deviation of 3.1."""
    rng = np.random.default_rng(0)
    found = [paired_difference(*rng.normal(size=(2, 10)))["p"] for _ in range(200)]
    assert 1 <= sum(p <= 0.05 for p in found) <= 20


def test_adjusted_by_hand():
    """p_(k) m / k, and none smaller than that of a smaller p."""
    found = paired.adjusted([0.04, None, 0.01, 0.03])
    assert found[1] is None
    np.testing.assert_allclose([found[i] for i in (0, 2, 3)], [0.04, 0.03, 0.04])
    assert paired.adjusted([None]) == [None]


ROWS = {
    "a": {"rouge": [1.0, 0.5, 0.0, 1.0], "probability": [0.5, 0.5, 0.25, None]},
    "b": {"rouge": [0.0, 0.0, 0.0, 0.5]},
    "c": {"rouge": [0.5, 0.5, 0.5, 0.5], "probability": [0.25, 0.0, 0.0, 0.5]},
}


def test_comparisons_are_of_what_both_have():
    assert list(paired.comparisons(ROWS["a"], ROWS["b"])) == ["rouge"]
    found = paired.comparisons(ROWS["a"], ROWS["c"])
    assert {name: one["n"] for name, one in found.items()} == {"rouge": 4, "probability": 3}
    assert found["rouge"] == paired_difference(ROWS["a"]["rouge"], ROWS["c"]["rouge"])


def test_a_table_has_every_pair_and_one_family():
    lines = paired.table(ROWS)
    places = [(line["first"], line["second"], line["metric"]) for line in lines]
    assert places == [
        ("a", "b", "rouge"), ("a", "c", "rouge"), ("a", "c", "probability"), ("b", "c", "rouge"),
    ]  # fmt: skip
    assert lines[0]["value"] == 0.5
    assert [line["p_adjusted"] for line in lines] == paired.adjusted([line["p"] for line in lines])
    assert paired.table({"a": ROWS["a"]}) == []


def test_a_table_of_one_against_the_others():
    lines = paired.table(ROWS, main="c")
    assert [(line["second"], line["metric"]) for line in lines] == [
        ("a", "rouge"), ("a", "probability"), ("b", "rouge"),
    ]  # fmt: skip
    assert {line["first"] for line in lines} == {"c"}
    assert lines[0]["value"] == -paired.table(ROWS)[1]["value"]
