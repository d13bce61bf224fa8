"""The O-LoRA penalty and overlap measures, against loops and closed forms."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.methods import orthogonality
from jaxunlearn.methods.orthogonality import orthogonality_penalty, overlaps
from jaxunlearn.models.lora import Adapter

TARGETS = {"q": (20, 12), "down": (8, 20)}


def random_factors(seed, rank=3, targets=TARGETS):
    rng = np.random.default_rng(seed)
    return {
        "layers": {
            name: {
                "a": jnp.asarray(rng.normal(size=(2, rows, rank)), jnp.float32),
                "b": jnp.asarray(rng.normal(size=(2, rank, columns)), jnp.float32),
            }
            for name, (rows, columns) in targets.items()
        }
    }


def double_sum(first, second, rho):
    """Over targets, layers and pairs of rows of A; and how many pairs there are."""
    total, count = 0.0, 0
    for name in first["layers"].keys() & second["layers"].keys():
        one, two = (np.asarray(f["layers"][name]["a"], np.float64) for f in (first, second))
        for layer in range(2):
            for j in range(one.shape[-1]):
                for k in range(two.shape[-1]):
                    total += rho(one[layer, :, j] @ two[layer, :, k])
                    count += 1
    return total, count


@pytest.mark.parametrize("form", ["abs_sum", "sq_sum", "abs_mean"])
def test_penalty_is_the_double_sum(form):
    frozen, trained = random_factors(0, rank=4), random_factors(1)
    del trained["layers"]["down"]["b"]  # B is not looked at
    total, count = double_sum(frozen, trained, np.square if form == "sq_sum" else np.abs)
    assert count == 2 * 2 * 4 * 3
    expected = total / count if form == "abs_mean" else total
    penalty = jax.jit(orthogonality_penalty, static_argnames="form")
    np.testing.assert_allclose(penalty(frozen, trained, form=form), expected, rtol=1e-6)


def test_only_shared_targets_count():
    frozen, trained = random_factors(0), random_factors(1, targets={"q": (20, 12)})
    expected, _ = double_sum(frozen, trained, np.abs)
    np.testing.assert_allclose(orthogonality_penalty(frozen, trained), expected, rtol=1e-6)
    none = orthogonality_penalty(random_factors(0, targets={"k": (4, 4)}), trained, form="abs_mean")
    assert float(none) == 0.0


@pytest.mark.parametrize("form", ["abs_sum", "sq_sum", "abs_mean"])
def test_gradient_reaches_the_trained_a_only(form):
    frozen, trained = random_factors(0), random_factors(1)
    to_frozen, to_trained = jax.grad(
        lambda x, y: orthogonality_penalty(x, y, form=form), argnums=(0, 1)
    )(frozen, trained)
    for leaf in jax.tree.leaves(to_frozen):
        np.testing.assert_array_equal(leaf, 0.0)
    for name in TARGETS:
        np.testing.assert_array_equal(to_trained["layers"][name]["b"], 0.0)
        old = np.asarray(frozen["layers"][name]["a"], np.float64)
        across = np.einsum("lir,lis->lrs", old, np.asarray(trained["layers"][name]["a"]))
        slope = 2 * across if form == "sq_sum" else np.sign(across)
        slope = slope / 36 if form == "abs_mean" else slope
        expected = np.einsum("lir,lrs->lis", old, slope)
        np.testing.assert_allclose(to_trained["layers"][name]["a"], expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_zeros_feels_no_penalty():
    frozen, trained = random_factors(0), jax.tree.map(jnp.zeros_like, random_factors(1))
    for form in ("abs_sum", "sq_sum", "abs_mean"):
        slope = jax.grad(lambda x, form=form: orthogonality_penalty(frozen, x, form=form))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope(trained)))


def test_following_the_penalty_makes_the_subspaces_orthogonal():
    frozen, trained = random_factors(0), random_factors(1)
    slope = jax.jit(jax.grad(lambda x: orthogonality_penalty(frozen, x, form="sq_sum")))
    before = overlaps(Adapter(frozen, 1.0), Adapter(trained, 1.0))
    for _ in range(300):
        trained = jax.tree.map(lambda x, g: x - 0.01 * g, trained, slope(trained))
    after = overlaps(Adapter(frozen, 1.0), Adapter(trained, 1.0))
    for path in before["a_subspace"]:
        assert (before["a_subspace"][path] > 0.01).all()
        assert (after["a_subspace"][path] < 1e-3).all()
        np.testing.assert_array_equal(before["b_subspace"][path], after["b_subspace"][path])


def test_random_subspaces_overlap_by_rank_over_width():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(400, 96, 4)), jnp.float32) for _ in range(2))
    overlap = orthogonality.subspace_overlap(x, y)
    assert overlap.shape == (400,)
    assert abs(float(overlap.mean()) - 4 / 96) < 0.005


def test_subspace_overlap_in_closed_form():
    angles = np.array([0.3, 1.2])
    x = np.zeros((6, 2))
    y = np.zeros((6, 2))
    x[[0, 1], [0, 1]] = 1
    y[[0, 1], [0, 1]] = np.cos(angles)
    y[[2, 3], [0, 1]] = np.sin(angles)
    mixed = y @ np.array([[2.0, 1.0], [-3.0, 0.5]])  # another basis of the same space
    expected = np.mean(np.cos(angles) ** 2)
    overlap = orthogonality.subspace_overlap
    np.testing.assert_allclose(overlap(jnp.array(x), jnp.array(mixed)), expected, rtol=1e-5)
    # One vector of x's plane lies in it wholly; a doubled column adds no dimension.
    inside = jnp.array(x @ np.array([[1.0], [2.0]]))
    np.testing.assert_allclose(overlap(jnp.array(x), inside), 1.0, rtol=1e-5)
    np.testing.assert_allclose(overlap(jnp.hstack([inside, inside]), jnp.array(x)), 1.0, rtol=1e-5)
    assert float(overlap(jnp.zeros((6, 2)), jnp.array(x))) == 0.0


def test_relative_product_in_closed_form():
    x = jnp.array([[3.0, 0.0], [0.0, 2.0]])
    y = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(
        orthogonality.relative_product(x, y), (3 + 2) / ((3 + 2) * 2**0.5), rtol=1e-6
    )
    np.testing.assert_allclose(orthogonality.relative_product(y, -4 * y), 1.0, rtol=1e-6)
    assert float(orthogonality.relative_product(x, jnp.zeros((2, 1)))) == 0.0


def product_of(adapter, name):
    target = adapter.factors["layers"][name]
    return adapter.scale * np.asarray(target["a"]) @ np.asarray(target["b"])


def test_overlaps_of_adapters():
    first, second = Adapter(random_factors(0), 0.5), Adapter(random_factors(1, rank=2), -2.0)
    found = overlaps(first, second)
    assert set(found) == {"a_subspace", "b_subspace", "a_product", "delta_cosine"}
    for name in TARGETS:
        one, two = (product_of(adapter, name) for adapter in (first, second))
        norms = np.linalg.norm(one, axis=(1, 2)) * np.linalg.norm(two, axis=(1, 2))
        expected = (one * two).sum((1, 2)) / norms
        np.testing.assert_allclose(found["delta_cosine"]["layers", name], expected, atol=1e-5)
        # Principal angles by the projectors: trace(P_1 P_2) = sum of cos^2.
        for measure, axis in (("a_subspace", 1), ("b_subspace", 2)):
            for layer in range(2):
                spaces = [d[layer] if axis == 1 else d[layer].T for d in (one, two)]
                projectors = [s @ np.linalg.pinv(s, rcond=1e-4) for s in spaces]
                cosines = np.trace(projectors[0] @ projectors[1]) / 2
                value = found[measure]["layers", name][layer]
                np.testing.assert_allclose(value, cosines, atol=1e-4)


def test_an_adapter_overlaps_itself_wholly_and_a_fresh_one_not_at_all():
    adapter = Adapter(random_factors(0), 1.0)
    for measure, by_target in overlaps(adapter, adapter).items():
        for values in by_target.values():
            if measure != "a_product":  # 1 for parallel rows only
                np.testing.assert_allclose(values, 1.0, rtol=1e-4)
    fresh = random_factors(1)
    for target in fresh["layers"].values():
        target["b"] = jnp.zeros_like(target["b"])
    found = overlaps(adapter, Adapter(fresh, 1.0))
    for measure in ("b_subspace", "delta_cosine"):
        assert not any(np.asarray(v).any() for v in found[measure].values())


def test_doctests():
    failures, count = doctest.testmod(orthogonality)
    assert failures == 0 and count >= 2
