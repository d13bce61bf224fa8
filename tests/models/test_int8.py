"""Kernels in a byte a weight: what they are, and that all else sees the kernels that they mean."""

import dataclasses
import doctest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxunlearn.evaluation.quantize import FORMATS, quantise_params
from jaxunlearn.models import adapter_algebra, checkpoint_orbax, int8, lens, lora, transformer
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.int8 import (
    Int8,
    is_layer_kernel,
    to_int8,
    with_float_kernels,
    with_int8_kernels,
)
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.lora import Adapter
from jaxunlearn.models.peft_adapter import export_adapter
from tests.models.test_goldens import GOLDENS, unpack
from tests.models.test_lora import TOKENS, noisy


def quantised(tree):
    """Params in int8, as they are when they are read."""
    return jax.tree.map(jnp.asarray, with_int8_kernels(jax.device_get(dict(tree))))


def in_int8(model):
    return dataclasses.replace(model, params=quantised(model.params))


def halved(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


@pytest.fixture(scope="module")
def models(tiny):
    """The tiny model in int8, and one that has the kernels that it means."""
    return in_int8(tiny), in_int8(tiny).plain()


def test_a_kernel_by_hand():
    assert doctest.testmod(int8) == (0, 2)
    # Scales 0.02 and 0.5; 1.5 and 2.5 of a scale go to the even number.
    kernel = jnp.array([[2.54, -63.5, 0.0], [0.515, 0.75, 0.0], [-0.019, 1.25, 0.0]])
    found = to_int8(kernel)
    assert found.values.dtype == jnp.int8 and found.scale.dtype == jnp.float32
    np.testing.assert_array_equal(found.values, [[127, -127, 0], [26, 2, 0], [-1, 2, 0]])
    np.testing.assert_allclose(found.scale, [[0.02, 0.5, 0.0]], rtol=1e-6)
    floats = [[2.54, -63.5, 0.0], [0.52, 1.0, 0.0], [-0.02, 1.0, 0.0]]
    np.testing.assert_allclose(found.astype(jnp.float32), floats, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_weight_is_off_by_more_than_half_a_scale(dtype):
    sizes = 10.0 ** jax.random.randint(jax.random.key(1), (3, 1, 24), -6, 2)
    kernel = (jax.random.normal(jax.random.key(0), (3, 40, 24)) * sizes).astype(dtype)
    found = to_int8(kernel)
    assert found.shape == kernel.shape and found.dtype == kernel.dtype
    errors = jnp.abs(found.astype(jnp.float32) - kernel.astype(jnp.float32))
    assert (errors <= found.scale * (0.5 + 1e-4)).all()
    assert jnp.abs(found.values.astype(int)).max(axis=1).min() == 127


def test_the_smallest_numbers_stay_in_range():
    tiny = np.array([[1e-43, 1e-45, 3e-38], [-1e-43, 0.0, -1e-38]], np.float32)
    found = to_int8(tiny)
    assert np.isfinite(found.astype(np.float32)).all()
    assert np.abs(found.astype(np.float32)).max() <= 3.1e-38


def test_a_stack_is_quantised_as_its_layers_are():
    kernel = jax.random.normal(jax.random.key(0), (3, 40, 24))
    whole, layer = to_int8(kernel), to_int8(np.asarray(kernel)[1])
    chex.assert_trees_all_equal_shapes_and_dtypes(whole[1], jax.tree.map(jnp.asarray, layer))
    assert np.abs(whole[1].values.astype(int) - layer.values).max() <= 1
    np.testing.assert_allclose(whole[1].scale, layer.scale, rtol=1e-6)


def test_the_attack_by_quantisation_simulates_the_same(tiny):
    simulated = quantise_params(tiny.params, FORMATS["int8"])
    ours = with_float_kernels(quantised(tiny.params))
    chex.assert_trees_all_close(ours, simulated, rtol=1e-6)


def test_only_the_kernels_of_the_layers_change(tiny):
    found = flatten_dict(with_int8_kernels(jax.tree.map(np.asarray, tiny.params)))
    for path, leaf in flatten_dict(dict(tiny.params)).items():
        if is_layer_kernel(path):
            assert isinstance(found[path], Int8)
        else:
            np.testing.assert_array_equal(found[path], leaf)
    assert sum(isinstance(leaf, Int8) for leaf in found.values()) == 7


def test_everything_computes_with_the_kernels_that_are_meant(models):
    def numbers(model):
        arguments = model.config, model.params, TOKENS
        return (
            transformer.logits(*arguments),
            transformer.token_log_probs(*arguments),
            lens.residual_stream(*arguments, 0),
            lens.lens_log_probs(*arguments),
        )

    chex.assert_trees_all_close(*map(numbers, models), atol=1e-5)


def test_it_is_another_model_than_before(tiny, models):
    before, after = (transformer.logits(m.config, m.params, TOKENS) for m in (tiny, models[0]))
    assert 1e-3 < jnp.abs(before - after).max() < 0.3 * jnp.abs(before).max()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8)])
def test_generation(models, sampling):
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    said = [
        generate(
            model.config,
            model.params,
            prompts,
            lora=lora.scale(noisy(models[1].params), 0.1),
            max_new_tokens=12,
            stop_tokens=[2],
            sampling=sampling,
        )
        for model in models
    ]
    assert said[0] == said[1] and any(said[0])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_loading(tiny_folder, dtype):
    found = load_model(tiny_folder, dtype=dtype, quantize="int8")
    expected = quantised(load_model(tiny_folder, dtype=dtype).params)
    chex.assert_trees_all_equal(dict(found.params), expected)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_family_has_its_outputs_last(path, tmp_path):
    unpack(path, tmp_path)
    found = load_model(tmp_path, quantize="int8").params
    expected = quantised(load_model(tmp_path).params)
    chex.assert_trees_all_equal(dict(found), expected)


@pytest.mark.parametrize("change", [lambda tree: tree, halved], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [None, "attention/(q|v)"])
def test_the_export_is_what_was_measured(tiny, tmp_path, change, targets):
    source = export_model(dataclasses.replace(tiny, params=change(tiny.params)), tmp_path / "start")
    start = load_model(source, quantize="int8")
    factors = lora.init(start.params, 3, key=jax.random.key(0), targets=targets)
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    model = dataclasses.replace(start, adapter=Adapter(factors, 0.7))
    again = load_model(export_model(model, tmp_path / "out"))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        dict(again.params), dict(load_model(source).params)
    )
    chex.assert_trees_all_close(dict(again.params), dict(model.plain().params), rtol=1e-6)
    before, after = (
        transformer.logits(m.config, m.params, TOKENS, lora=m.lora) for m in (model, again)
    )
    # Of bfloat16 the sum of kernel and adapter is rounded once more.
    kind = str(start.params["embed"]["embedding"].dtype)
    mean, error = float(jnp.abs(before).mean()), jnp.abs(before - after)
    assert error.mean() < {"float32": 1e-6, "bfloat16": 0.03}[kind] * mean
    assert error.max() < {"float32": 1e-5, "bfloat16": 1.0}[kind] * mean


def test_an_adapter_can_be_had_beside_its_base(tiny_folder, tmp_path):
    start = load_model(tiny_folder, quantize="int8")
    model = dataclasses.replace(start, adapter=Adapter(noisy(start.params), 0.5))
    folder = export_adapter(model, tmp_path / "adapter", base=tiny_folder)
    again = load_model(folder, quantize="int8")
    chex.assert_trees_all_equal(dict(again.params), dict(model.params))
    chex.assert_trees_all_close(again.lora, model.lora, rtol=1e-6)


def test_merging_makes_floats_of_what_is_adapted(models):
    inside, plain = models
    factors = lora.init(inside.params, 3, key=jax.random.key(0), targets="attention/q")
    adapter = Adapter(jax.tree.map(lambda x: x + 0.1, factors), 0.7)
    merged = dataclasses.replace(inside, adapter=adapter).merged().params
    kinds = {path for path, leaf in flatten_dict(dict(merged)).items() if isinstance(leaf, Int8)}
    assert ("layers", "attention", "q", "kernel") not in kinds and len(kinds) == 6
    expected = adapter_algebra.add(plain.params, adapter)
    chex.assert_trees_all_close(with_float_kernels(merged), expected, rtol=1e-6)
    chex.assert_trees_all_close(
        with_float_kernels(adapter_algebra.add(inside.params, adapter)), expected, rtol=1e-6
    )


def test_orbax_holds_floats(models, tmp_path):
    checkpoint_orbax.save(models[0], tmp_path / "orbax")
    chex.assert_trees_all_equal(checkpoint_orbax.load(tmp_path / "orbax").params, models[1].params)
