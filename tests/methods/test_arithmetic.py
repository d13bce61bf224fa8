"""Arithmetic on gradients and weights, against NumPy in float64."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.methods import arithmetic


def make_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    leaves = {"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}
    return jax.tree.map(lambda x: jnp.asarray(scale * x, jnp.float32), leaves)


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def times(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


FORGET, RETAIN = make_tree(0), make_tree(1)
TOWARDS = 1.0 if flat(FORGET) @ flat(RETAIN) > 0 else -1.0
# Gradients of forgetting and retaining, and whether they are in conflict.
CASES = {
    "in conflict": (FORGET, times(RETAIN, -TOWARDS), True),
    "in agreement": (FORGET, times(RETAIN, TOWARDS), False),
    "opposite": (FORGET, times(FORGET, -0.3), True),
    "almost opposite": (FORGET, jax.tree.map(lambda f, r: 1e-3 * r - f, FORGET, RETAIN), True),
    "retain tiny": (FORGET, times(RETAIN, -TOWARDS * 1e-12), True),
    "retain huge": (FORGET, times(RETAIN, -TOWARDS * 1e12), True),
    "retain 0": (FORGET, times(RETAIN, 0.0), False),
    "forget 0": (times(FORGET, 0.0), RETAIN, False),
}


@pytest.mark.parametrize("case", CASES)
def test_rectify_removes_what_harms_retention_and_no_more(case):
    forget, retain, conflict = CASES[case]
    result = jax.jit(arithmetic.rectify)(forget, retain)
    f, r, g = flat(forget), flat(retain), flat(result)
    assert np.all(np.isfinite(g))
    assert g @ r >= -1e-6 * np.linalg.norm(g) * np.linalg.norm(r)
    if conflict:
        np.testing.assert_allclose(g, f - (f @ r) / (r @ r) * r, atol=1e-6)
    else:
        np.testing.assert_array_equal(g, f)


def test_rectify_looks_at_the_whole_tree():
    # In conflict on one leaf, but not altogether.
    forget = {"a": jnp.array([1.0]), "b": jnp.array([3.0])}
    retain = {"a": jnp.array([-1.0]), "b": jnp.array([1.0])}
    result = arithmetic.rectify(forget, retain)
    np.testing.assert_array_equal(flat(result), flat(forget))


def test_rectify_sums_halves_in_float32():
    ones = {"w": jnp.full(4096, 1.0, jnp.bfloat16)}
    result = arithmetic.rectify(ones, times(ones, -1.0))
    assert result["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(flat(result), 0.0)


@pytest.mark.parametrize(("loss", "expected"), [(0.5, 11.0), (0.3, 10.0), (-9.0, 0.0)])
def test_dual_ascent(loss, expected):
    np.testing.assert_allclose(
        arithmetic.dual_ascent(10.0, loss, tolerance=0.3, dual_rate=5.0), expected, rtol=1e-6
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_negate_subtracts_what_training_added(alpha, dtype):
    start = jax.tree.map(lambda x: x.astype(dtype), make_tree(2))
    trained = make_tree(3)
    result = arithmetic.negate(start, trained, alpha=alpha)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
    by_hand = flat(start) - alpha * (flat(trained) - flat(start))
    np.testing.assert_allclose(flat(result), by_hand, rtol=1e-6 if dtype == "float32" else 8e-3,
                               atol=1e-6)  # fmt: skip
    if alpha == 0:
        np.testing.assert_array_equal(flat(result), flat(start))


def test_doctests():
    failures, count = doctest.testmod(arithmetic)
    assert failures == 0 and count >= 3
