"""U-LiRA: by hand, and on simulated models whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from jaxunlearn.evaluation import lira
from jaxunlearn.evaluation.privacy import auc

ENTITIES = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=2, max_size=12)


def test_log_odds():
    found = lira.log_odds(np.log([0.5, 0.2, 1e-9]))
    np.testing.assert_allclose(found, [0, np.log(0.25), np.log(1e-9)], atol=1e-8)
    assert np.isnan(lira.log_odds(np.array([np.nan]))[0])


def test_log_odds_of_certainty_are_finite():
    """log((1 - 1e-6) / 1e-6), also where float32 has made a probability larger than 1."""
    found = lira.log_odds(np.array([-1e-9, 0.0, 1e-7]))
    np.testing.assert_allclose(found, 13.815510, atol=1e-5)


@given(ENTITIES, st.integers(1, 5), st.integers(0, 3))
def test_halves_are_balanced_and_keep_entities_together(entities, pairs, seed):
    inside = lira.halves(entities, 2 * pairs, seed)
    assert inside.shape == (2 * pairs, len(entities))
    assert (inside.sum(axis=0) == pairs).all()
    for name in set(entities) - {""}:
        columns = inside[:, [i for i, other in enumerate(entities) if other == name]]
        assert (columns == columns[:, :1]).all()
    groups = [i for i, name in enumerate(entities) if not name or name not in entities[:i]]
    sizes = inside[:, groups].sum(axis=1)
    assert set(sizes) <= {len(groups) // 2, len(groups) - len(groups) // 2}


@given(ENTITIES, st.integers(1, 9), st.integers(0, 3))
def test_more_shadows_begin_with_the_same_ones(entities, shadows, seed):
    more = lira.halves(entities, 10, seed)
    np.testing.assert_array_equal(lira.halves(entities, shadows, seed), more[:shadows])


def test_halves_differ_by_seed_and_from_pair_to_pair():
    names = [f"person {i}" for i in range(20)]
    first, second = (lira.halves(names, 6, seed) for seed in (0, 1))
    assert (first[0] != first[2]).any() and (first != second).any()


# Two candidates in four shadows. The first: in 1, 3 and out -1, 1; the second the other way about:
# in 10, 14 and out 0, 4.
VALUES = np.array([[1.0, 0], [3, 4], [-1, 10], [1, 14]])
INSIDE = np.array([[True, False], [True, False], [False, True], [False, True]])


def test_likelihood_ratio_by_hand():
    """Pooled variances: in (2 + 8) / 2 = 5, out (2 + 8) / 2 = 5; means 2 and 0, 12 and 2.

    The constants cancel: ((x - mu_out)² - (x - mu_in)²) / 10.
    """
    found = lira.likelihood_ratio(VALUES, INSIDE, np.array([2.0, 2.0]))
    np.testing.assert_allclose(found, [4 / 10, -100 / 10])


def test_a_deviation_of_its_own_with_many_shadows(monkeypatch):
    """Of the first both variances are 2, of the second 8."""
    monkeypatch.setattr(lira, "OWN_DEVIATION", 2)
    found = lira.likelihood_ratio(VALUES, INSIDE, np.array([2.0, 2.0]))
    np.testing.assert_allclose(found, [4 / 4, -100 / 16])


def test_in_and_out_have_different_deviations():
    """In: mean 0, variance 2; out: mean 0, variance 8; so far out it is rather not a member."""
    values, inside = (
        np.array([[-1.0], [1], [-2], [2]]),
        np.array([[True], [True], [False], [False]]),
    )
    found = lira.likelihood_ratio(values, inside, np.array([3.0]))
    wanted = norm.logpdf(3, 0, 2**0.5) - norm.logpdf(3, 0, 8**0.5)
    np.testing.assert_allclose(found, wanted)
    assert wanted < 0


def test_a_candidate_without_values_says_nothing_and_spoils_nothing():
    values = np.column_stack([VALUES, np.full(4, np.nan)])
    inside = np.column_stack([INSIDE, INSIDE[:, :1]])
    found = lira.likelihood_ratio(values, inside, np.array([2.0, 2.0, np.nan]))
    np.testing.assert_allclose(found, [0.4, -10, np.nan])


def test_values_that_never_differ_say_nothing():
    found = lira.likelihood_ratio(np.ones((4, 2)), INSIDE, np.ones(2))
    np.testing.assert_array_equal(found, 0)


def test_too_few_shadows_of_one_kind():
    with pytest.raises(ValueError, match="2 shadows of either kind"):
        lira.likelihood_ratio(VALUES[:3], INSIDE[:3], np.zeros(2))


def simulated(shift, shadows, *, seed=0, members_shift=None):
    """Candidates of different difficulty; unlearning leaves `shift` behind. The first half of them
    are members of the attacked model, in which `members_shift` is left (default: the same)."""
    rng, n = np.random.default_rng(seed), 400
    hard = rng.normal(0, 5, n)
    inside = lira.halves([f"{i}" for i in range(n)], shadows, seed)
    values = hard + shift * inside + rng.normal(size=(shadows, n))
    members = np.arange(n) < n // 2
    left = shift if members_shift is None else members_shift
    attacked = hard + left * members + rng.normal(size=n)
    scores = lira.likelihood_ratio(values, inside, attacked)
    return scores[members], scores[~members], attacked


@pytest.mark.parametrize("shadows", [8, 64])
def test_the_calibrated_attack_finds_what_the_plain_one_does_not(shadows):
    """Best possible: P(N(2, 1) > N(0, 1)) = Phi(sqrt 2) = 0.92; the plain value is hardly better
    than chance, because how hard a row is hides the rest: Phi(2 / sqrt 52) = 0.61."""
    members, others, attacked = simulated(2.0, shadows)
    best = norm.cdf(2**0.5)
    assert best - (0.06 if shadows == 8 else 0.03) < auc(members, others) < best + 0.03
    assert auc(attacked[:200], attacked[200:]) < 0.68


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_model_that_kept_nothing_is_at_chance(shift):
    """As the retrained model is, whatever unlearning leaves behind in the shadows. The deviation of
    an AUC of 200 and 200 is sqrt(401 / (12 * 200 * 200)) = 0.029, of the mean of 100 a tenth."""
    areas = [auc(*simulated(shift, 8, seed=s, members_shift=0.0)[:2]) for s in range(100)]
    assert abs(np.mean(areas) - 0.5) < 3 * 0.0029
    assert 0.02 < np.std(areas) < 0.04


def test_measure_says_how_sure_it_is():
    found = lira.measure(*simulated(2.0, 8)[:2])
    assert list(found) == ["auc", "tpr_at_1", "tpr_at_0.1"]
    low, high = found["auc"]["ci"]
    assert low < found["auc"]["value"] < high and found["auc"]["n"] == 400
    assert found["tpr_at_0.1"]["value"] <= found["tpr_at_1"]["value"] < found["auc"]["value"]
    assert found == lira.measure(*simulated(2.0, 8)[:2])
