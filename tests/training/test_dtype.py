"""bfloat16 computes, float32 remembers: master weights, log-probabilities, and small updates."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import AdapterConfig, ModelConfig, TrainingConfig
from jaxunlearn.methods import registry
from jaxunlearn.models import transformer
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.starting import computed
from jaxunlearn.training.loop import prepare, trained_model
from jaxunlearn.training.step import _gradients, init_state, update
from tests.training.test_step import problem, rows


def halved(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """The tiny model from a bfloat16 folder, computed as the config's default says."""
    folder = tmp_path_factory.mktemp("half") / "model"
    export_model(dataclasses.replace(tiny, params=halved(tiny.params)), folder)
    return computed(load_model(folder), ModelConfig())


def dtypes(tree):
    return {str(x.dtype) for x in jax.tree.leaves(tree)}


def test_the_default_is_what_the_folder_has(tiny, half):
    assert (half.config.dtype, dtypes(half.params)) == ("bfloat16", {"bfloat16"})
    assert computed(tiny, ModelConfig()).config.dtype == "float32"
    assert computed(half, ModelConfig(dtype="float32")).config.dtype == "float32"
    assert computed(tiny, ModelConfig(dtype="bfloat16")).config.dtype == "bfloat16"


def test_log_probs_are_float32_and_near_the_exact_ones(tiny):
    config = computed(tiny, ModelConfig(dtype="bfloat16")).config
    tokens = rows(tiny.config).tokens
    found = transformer.token_log_probs(config, tiny.params, tokens)
    assert found.dtype == jnp.float32
    exact = transformer.token_log_probs(tiny.config, tiny.params, tokens)
    assert jnp.abs(found - exact).mean() < 0.05
    # Not rounded to bfloat16 anywhere on their way out.
    assert not jnp.array_equal(found, found.astype(jnp.bfloat16).astype(jnp.float32))


def step(model, adapter=None, rate=1e-5):
    """One update of a fine-tuning of the model: what trained, what did not, and the metrics."""
    training = TrainingConfig(learning_rate=rate, warmup=0, decay="constant", weight_decay=0)
    spec, trainable, frozen, numbers = prepare(
        model, registry.FINETUNE, {}, training, 10, adapter, 0
    )
    state = init_state(trainable)
    batch = {"train": rows(model.config)}
    return state, *jax.jit(update, static_argnums=0)(spec, state, frozen, batch, numbers), frozen


def test_master_weights_are_float32_and_small_updates_are_not_lost(half):
    assert jnp.bfloat16(1) - jnp.bfloat16(1e-5) == 1  # the trap
    before, after, _, _ = step(half)
    assert dtypes(after.trainable) == {"float32"}
    assert dtypes([x for x in jax.tree.leaves(after.opt_state) if x.ndim > 1]) == {"float32"}
    scales = (state.trainable["params"]["final_norm"]["scale"] for state in (before, after))
    moved = np.abs(np.subtract(*map(np.asarray, scales)))
    np.testing.assert_allclose(moved, 1e-5, rtol=0.05)


def test_gradients_of_bfloat16_are_near_those_of_float32(tiny):
    models = (tiny, computed(tiny, ModelConfig(dtype="bfloat16")))
    gradient = jax.jit(lambda spec, *rest: _gradients(spec, *rest)[1], static_argnums=0)
    exact, rough = (gradient(*problem(model, "npo")) for model in models)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert b.dtype == jnp.float32
        assert jnp.vdot(a, b) > 0.97 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def test_an_adapter_trains_in_float32_beside_a_base_that_stays_bfloat16(half):
    before, after, metrics, frozen = step(half, AdapterConfig(rank=2), 1e-3)
    assert dtypes(frozen["params"]) == {"bfloat16"}
    # The very arrays that were loaded: no second copy of the base.
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x.unsafe_buffer_pointer(), frozen["params"]),
        jax.tree.map(lambda x: x.unsafe_buffer_pointer(), dict(half.params)),
    )
    assert dtypes(after.trainable) == {"float32"} and jnp.isfinite(metrics["loss"])
    assert not jnp.array_equal(*(jax.tree.leaves(s.trainable)[1] for s in (before, after)))


def test_the_export_has_the_dtype_of_the_start(half, tmp_path):
    _, after, _, frozen = step(half, rate=1e-2)
    model = trained_model(half, after.trainable, frozen, None)
    again = load_model(export_model(model, tmp_path / "out"))
    assert dtypes(again.params) == {"bfloat16"}
    chex.assert_trees_all_equal(dict(again.params), dict(model.params))
    assert not jnp.array_equal(
        again.params["embed"]["embedding"], half.params["embed"]["embedding"]
    )
