"""Vendi score and harmonic mean: values by hand, and what cannot change them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxunlearn.reveal import diversity
from jaxunlearn.reveal.diversity import joint_diversity, normalised_vendi_score, vendi_score
from jaxunlearn.reveal.reward import weighted_harmonic_mean

matrices = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False),
)


@pytest.mark.parametrize("dual", [False, True, None])
def test_vendi_of_identical_orthogonal_and_grouped_rows(dual):
    assert vendi_score(np.tile([3.0, 4.0], (8, 1)), dual=dual) == pytest.approx(1, abs=1e-6)
    assert vendi_score(5 * np.eye(8), dual=dual) == pytest.approx(8, abs=1e-6)
    assert vendi_score(np.repeat(np.eye(2), 4, axis=0), dual=dual) == pytest.approx(2, abs=1e-6)


def test_vendi_of_two_rows_by_hand():
    # cos 60 degrees: eigenvalues 3/4 and 1/4.
    expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert vendi_score([[1, 0], [0.5, 3**0.5 / 2]]) == pytest.approx(expected, abs=1e-9)


@given(matrices)
def test_primal_equals_dual_and_stays_in_its_range(x):
    primal = vendi_score(x, dual=False)
    assert primal == pytest.approx(vendi_score(x, dual=True), abs=1e-6)
    assert 1 <= primal <= len(x)
    assert 0 <= normalised_vendi_score(x) <= 1


@given(matrices, st.integers(0, 99))
def test_lengths_and_order_of_rows_change_nothing(x, seed):
    rng = np.random.default_rng(seed)
    scaled = rng.permutation(x * rng.uniform(0.5, 2, (len(x), 1)))
    assert vendi_score(scaled) == pytest.approx(vendi_score(x), abs=1e-6)


def test_rows_without_direction_are_one_kind():
    x = np.array([[1.0, 0], [0, 0], [0, 0], [1.0, 0]])
    for dual in (False, True):
        assert vendi_score(x, dual=dual) == pytest.approx(2, abs=1e-6)


def test_one_row_has_no_diversity_and_no_rows_are_an_error():
    assert normalised_vendi_score(np.ones((1, 3))) == 0
    assert normalised_vendi_score(np.eye(3)) == pytest.approx(1)
    for bad in (np.zeros((0, 3)), np.ones(3), [[np.nan, 1.0]]):
        with pytest.raises(ValueError, match="give finite vectors"):
            normalised_vendi_score(bad)


def test_a_batch_that_says_what_is_there_is_less_diverse_than_a_new_one():
    e = np.eye(6)
    there, old, new = e[:3], e[:3], e[3:]
    rng = np.random.default_rng(0)
    assert joint_diversity(old, there, size=9, rng=rng) == pytest.approx(2 / 5)
    assert joint_diversity(new, there, size=9, rng=rng) == pytest.approx(1)
    assert joint_diversity(old, there[:0], size=9, rng=rng) == pytest.approx(1)


def test_the_sample_of_what_is_there_is_bounded_and_drawn_by_the_generator(monkeypatch):
    seen = []
    monkeypatch.setattr(diversity, "normalised_vendi_score", lambda x: seen.append(x) or 0.0)
    there = np.arange(20.0).reshape(10, 2)
    for _ in range(2):
        joint_diversity(-np.ones((3, 2)), there, size=4, rng=np.random.default_rng(5))
    one, other = seen
    np.testing.assert_array_equal(one, other)
    assert one.shape == (7, 2) and len(np.unique(one[3:, 0])) == 4
    assert np.isin(one[3:, 0], there[:, 0]).all()


def test_harmonic_mean_by_hand():
    assert weighted_harmonic_mean(0.8, 0.8) == pytest.approx(0.8)
    assert weighted_harmonic_mean(0.9, 0.1) == pytest.approx(0.18)
    assert weighted_harmonic_mean(0.5, 1.0, weight=0.75) == pytest.approx(1 / 1.75)
    for x in (0.0, 0.5, 1.0):
        assert weighted_harmonic_mean(x, 0.0) < 1e-5
        assert weighted_harmonic_mean(0.0, x) < 1e-5
    np.testing.assert_allclose(weighted_harmonic_mean([0.9, 0.8], [0.1, 0.8]), [0.18, 0.8])


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.floats(0, 1))
def test_harmonic_mean_lies_between_its_parts(r, d, weight):
    found = weighted_harmonic_mean(r, d, weight=weight)
    assert min(r, d) * (1 - 1e-9) <= found <= max(r, d) * (1 + 1e-9)
    assert weighted_harmonic_mean(d, r, weight=1 - weight) == pytest.approx(found)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_its_range(weight):
    with pytest.raises(ValueError, match="weight is"):
        weighted_harmonic_mean(0.5, 0.5, weight=weight)
