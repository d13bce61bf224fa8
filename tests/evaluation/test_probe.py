"""The linear probe: the closed forms against what they stand for, and who is told from whom."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.evaluation import aggregation, probe, robustness
from jaxunlearn.evaluation.probe import STRENGTHS, fit_ridge, retrieval_ranks


def plain_ridge(x, y, strength):
    """By the normal equations; the strength is relative to the mean squared singular value."""
    x, y_mean = x - x.mean(axis=0), y.mean(axis=0)
    gram = x.T @ x
    unit = np.trace(gram) / min(x.shape)
    return np.linalg.solve(gram + strength * unit * np.eye(len(gram)), x.T @ (y - y_mean))


@pytest.mark.parametrize("shape", [(12, 4), (5, 9)])
def test_weights_solve_the_normal_equations(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    ridge = fit_ridge(x, y)
    np.testing.assert_allclose(ridge.weights, plain_ridge(x, y, ridge.strength), rtol=1e-8)
    np.testing.assert_allclose(ridge(x.mean(axis=0)[None]), y.mean(axis=0)[None])


def test_the_strength_is_the_best_on_rows_that_were_really_left_out():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(15, 6))
    y = x @ rng.normal(size=(6, 2)) + 2 * rng.normal(size=(15, 2))
    gram = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2

    def error(strength):
        """Each row predicted from a fit without it, the lambda kept as it is."""
        total = 0.0
        for row in range(len(x)):
            rest = np.arange(len(x)) != row
            a, b = x[rest] - x[rest].mean(axis=0), y[rest] - y[rest].mean(axis=0)
            weights = np.linalg.solve(a.T @ a + strength * gram.mean() * np.eye(6), a.T @ b)
            told = (x[row] - x[rest].mean(axis=0)) @ weights + y[rest].mean(axis=0)
            total += ((y[row] - told) ** 2).sum()
        return total

    assert fit_ridge(x, y).strength == min(STRENGTHS, key=error)


def test_noise_is_not_believed():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 30)), rng.normal(size=(40, 2))
    assert fit_ridge(x, y).strength >= 1
    assert fit_ridge(x, x @ rng.normal(size=(30, 2))).strength == min(STRENGTHS)


def test_inputs_without_spread_predict_the_mean():
    y = np.array([[1.0], [2.0], [6.0]])
    np.testing.assert_array_equal(fit_ridge(np.ones((3, 2)), y)(np.ones((1, 2))), [[3.0]])


def test_one_row_is_too_few():
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        fit_ridge(np.ones((1, 2)), np.ones((1, 2)))


def test_known_answers_are_found_and_random_ones_by_chance():
    rng = np.random.default_rng(3)
    turn = rng.normal(size=(16, 16))
    vectors = rng.normal(size=(300, 16))
    answers = [str(i) for i in range(200)]
    ridge = fit_ridge(vectors[200:] @ turn, vectors[200:])
    ranks, among = retrieval_ranks(ridge(vectors[:200] @ turn), vectors[:200], answers)
    assert among == 200 and (ranks == 1).all()
    ranks, _ = retrieval_ranks(rng.normal(size=(200, 16)), vectors[:200], answers)
    assert (ranks == 1).mean() < 0.03
    # The mean place of a guess is the middle one, 100.5, up to 4 standard errors of it.
    assert abs(ranks.mean() - 100.5) < 4 * 200 / np.sqrt(12 * 200)


def test_ranks_by_hand():
    """Two rows have the same answer; a prediction of nothing is equally near to all of them."""
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    predicted = np.array([[0.9, 1.0], [5.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    ranks, among = retrieval_ranks(predicted, vectors, ["a", "b", "b", "c"])
    assert among == 3
    np.testing.assert_array_equal(ranks, [2, 2, 1, 2])


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_places_are_places_whatever_the_scale(n, seed, scale):
    rng = np.random.default_rng(seed)
    predicted, vectors = rng.normal(size=(2, n, 3))
    answers = list(map(str, range(n)))
    ranks, among = retrieval_ranks(predicted, vectors, answers)
    assert among == n and ((1 <= ranks) & (ranks <= n)).all()
    np.testing.assert_array_equal(retrieval_ranks(scale * predicted, vectors, answers)[0], ranks)


@pytest.mark.parametrize("module", [probe, aggregation, robustness])
def test_doctests(module):
    failures, count = doctest.testmod(module)
    assert failures == 0 and count > 0
