"""The residual stream of all layers at once, and the logit lens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import lens, transformer
from jaxunlearn.models.families import read_config

TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)


def model(family, **changes):
    """Three layers with random weights."""
    hf_config = {
        "model_type": family,
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    config = dataclasses.replace(read_config(hf_config, "a test"), **changes)
    params = transformer.init_params(config, jax.random.key(0))
    return config, jax.tree.map(lambda x: x * 4, params)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_every_layer_is_that_of_a_shorter_model(remat):
    config, params = model("llama", remat=remat)
    streams = lens.residual_streams(config, params, TOKENS)
    assert streams.shape == (3, 2, 9, 16)
    for layer in range(3):
        alone = lens.residual_stream(config, params, TOKENS, layer)
        np.testing.assert_allclose(streams[layer], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"logit_softcap": 3.0}])
def test_the_last_layer_is_the_model(changes):
    config, params = model("llama", **changes)
    read = jax.jit(lens.lens_log_probs, static_argnums=0)(config, params, TOKENS)
    known = transformer.token_log_probs(config, params, TOKENS)
    np.testing.assert_allclose(read[-1], known, rtol=1e-6, atol=2e-6)
    assert read.shape == (3, 2, 9) and jnp.abs(read[0] - read[1]).max() > 0.1


def test_a_lower_layer_is_read_by_norm_and_head():
    """By hand: the log-softmax of the normed first layer times the head."""
    config, params = model("llama")
    x = np.asarray(lens.residual_stream(config, params, TOKENS, 0), np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    x = x * np.asarray(params["final_norm"]["scale"], np.float64)
    logits = x @ np.asarray(params["embed"]["embedding"], np.float64).T
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.take_along_axis(logits[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    read = lens.lens_log_probs(config, params, TOKENS)
    np.testing.assert_allclose(read[0, :, 1:], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(read[:, :, 0], 0)


def test_an_adapter_counts():
    config, params = model("llama")
    key = jax.random.key(2)
    factors = {
        "layers": {
            "mlp": {
                "up": {
                    "a": jax.random.normal(key, (3, 16, 2)),
                    "b": jax.random.normal(key, (3, 2, 24)),
                }
            }
        }
    }
    read = lens.lens_log_probs(config, params, TOKENS, lora=factors)
    known = transformer.token_log_probs(config, params, TOKENS, lora=factors)
    np.testing.assert_allclose(read[-1], known, rtol=1e-6, atol=2e-6)
