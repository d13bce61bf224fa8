"""Quantised weights: hand-computed blocks, and what holds of every kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.evaluation import quantize
from jaxunlearn.evaluation.quantize import FORMATS, Format, integers, quantise

ALL = {**FORMATS, "int8 blocks": integers(8, 4), "int4 blocks": integers(4, 3)}


def kernel(seed, shape=(2, 12, 5)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_block_by_hand():
    """Max 7: int4 has steps of 1; each output (column) has its own scale."""
    found = quantise(jnp.array([[7.0, 0.7], [-3.4, -0.16], [2.6, 0.04]]), integers(4))
    np.testing.assert_allclose(found, [[7.0, 0.7], [-3.0, -0.2], [3.0, 0.0]], rtol=1e-6)


def test_blocks_run_along_the_inputs_of_an_output_and_on():
    """Inputs 3, blocks of 2: (a, b), (c of the first output, a of the second), (b, c)."""
    weights = jnp.array([[1.0, 8.0], [0.6, 0.9], [0.2, 2.0]])
    ternary = Format((-1.0, 0.0, 1.0), 2)
    assert quantise(weights, ternary).tolist() == [[1.0, 8.0], [1.0, 0.0], [0.0, 2.0]]
    last_is_short = Format((-1.0, 0.0, 1.0), 4)
    assert quantise(weights, last_is_short).tolist() == [[0.0, 8.0], [0.0, 0.0], [0.0, 2.0]]


def test_levels():
    assert FORMATS["int8"].levels == tuple(k / 127 for k in range(-127, 128))
    assert len(FORMATS["int4"].levels) == 15
    levels = np.array(FORMATS["nf4"].levels)
    assert len(levels) == 16 and (np.diff(levels) > 0).all()
    assert {-1.0, 0.0, 1.0} <= set(levels)


def test_nf4_levels_are_those_that_it_is_made_from():
    """QLoRA, section 3: a zero, and quantiles of the normal at even steps to either side."""
    from scipy.stats import norm

    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    above = norm.ppf(np.linspace(offset, 0.5, 9))[:-1]
    below = -norm.ppf(np.linspace(offset, 0.5, 8))[:-1]
    wanted = np.sort([*above, 0.0, *below]) / above.max()
    np.testing.assert_allclose(quantize.NF4_LEVELS, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_levels_are_fixed_points(name):
    levels = np.float32(ALL[name].levels)
    column = jnp.asarray(3 * levels)[:, None]
    whole = Format(ALL[name].levels, None)
    np.testing.assert_array_equal(quantise(column, whole), column)


@given(
    name=st.sampled_from(sorted(ALL)),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=25, deadline=None)
def test_twice_is_once(name, seed, dtype):
    once = quantise(jnp.asarray(kernel(seed), dtype), ALL[name])
    assert once.dtype == dtype and once.shape == (2, 12, 5)
    np.testing.assert_array_equal(quantise(once, ALL[name]), once)


@given(name=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_no_weight_moves_more_than_half_a_step(name, seed):
    weights = kernel(seed)
    levels = np.array(FORMATS[name].levels)
    whole = Format(FORMATS[name].levels, None)
    largest = np.abs(weights).max(axis=-2, keepdims=True)
    moved = np.abs(np.asarray(quantise(jnp.asarray(weights), whole)) - weights) / largest
    assert moved.max() <= np.diff(levels).max() / 2 + 1e-6
    # The nearest level, and no other.
    nearest = np.abs((weights / largest)[..., None] - levels).min(axis=-1)
    np.testing.assert_allclose(moved, nearest, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_zeros_and_constants(name):
    for value in (0.0, 0.3, -2.0):
        same = jnp.full((6, 5), value)
        np.testing.assert_array_equal(quantise(same, ALL[name]), same)


@pytest.mark.parametrize("name", ALL)
def test_jit_gives_the_same(name):
    weights = jnp.asarray(kernel(0))
    fast = jax.jit(quantise, static_argnums=1)(weights, ALL[name])
    np.testing.assert_array_equal(fast, quantise(weights, ALL[name]))


def test_only_linear_kernels_of_the_layers_change(tiny):
    before = flatten_dict(dict(tiny.params))
    after = flatten_dict(dict(quantize.quantised(tiny, FORMATS["int4"]).params))
    assert after.keys() == before.keys()
    changed = {"/".join(path) for path in before if (before[path] != after[path]).any()}
    projections = [*(f"attention/{name}" for name in "qkvo"), "mlp/gate", "mlp/up", "mlp/down"]
    assert changed == {f"layers/{name}/kernel" for name in projections}


def test_layers_are_quantised_one_by_one():
    weights = jnp.asarray(kernel(3))
    for name, chosen in ALL.items():
        one_by_one = jnp.stack([quantise(layer, chosen) for layer in weights])
        np.testing.assert_array_equal(quantise(weights, chosen), one_by_one, err_msg=name)
