"""Adapters: they start at nothing, scale, and merge."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.models import lora, transformer

TOKENS = jnp.arange(24).reshape(2, 12)


def noisy(params, rank=3):
    factors = lora.init(params, rank, key=jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), factors)


def test_a_fresh_adapter_changes_nothing(tiny):
    factors = lora.init(tiny.params, 3, key=jax.random.key(0))
    with_it = transformer.logits(tiny.config, tiny.params, TOKENS, lora=factors)
    np.testing.assert_array_equal(with_it, transformer.logits(tiny.config, tiny.params, TOKENS))


def test_every_linear_layer_is_adapted(tiny):
    factors = lora.init(tiny.params, 3, key=jax.random.key(0))["layers"]
    assert set(factors["attention"]) == {"q", "k", "v", "o"}
    assert set(factors["mlp"]) == {"gate", "up", "down"}
    assert factors["mlp"]["down"]["a"].shape == (2, 48, 3)
    assert float(jnp.abs(factors["mlp"]["down"]["a"]).max()) <= 48**-0.5


def test_branch_equals_merge(tiny):
    factors = lora.scale(noisy(tiny.params), 0.7)
    branch = transformer.logits(tiny.config, tiny.params, TOKENS, lora=factors)
    merged = transformer.logits(tiny.config, lora.merge(tiny.params, factors), TOKENS)
    assert float(jnp.abs(branch - transformer.logits(tiny.config, tiny.params, TOKENS)).max()) > 0.1
    np.testing.assert_allclose(branch, merged, atol=2e-4)


def test_minus_the_adapter_takes_it_away(tiny):
    factors = noisy(tiny.params)
    there = lora.merge(tiny.params, factors)
    back = lora.merge(there, lora.scale(factors, -1.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back, tiny.params)


def test_merging_keeps_the_dtype(tiny):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    merged = lora.merge(params, noisy(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
