"""Attention by other kernels: the same numbers where they run, and a note where they do not."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
import yaml

from jaxunlearn.config import ModelConfig
from jaxunlearn.models import attention, transformer
from jaxunlearn.models.decoder_config import LayerKind
from jaxunlearn.models.starting import attention_note, computed
from tests.conftest import run
from tests.test_cli import SMALL


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 50])
def test_the_kernel_of_tpus_gives_the_same(window):
    """Interpreted: what its compiled form gives is to be seen on a TPU only."""
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 4, 150, 16)) / 4
    k, v = (jax.random.normal(key, (2, 2, 150, 16)) for key in keys[1:3])
    weights = jax.random.normal(keys[3], (2, 150, 64))
    ago = jnp.arange(150)[:, None] - jnp.arange(150)
    mask = ((ago >= 0) & (ago < (window or 150)))[None]

    def with_gradient(attend):
        total = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(weights * attend(*x)), (0, 1, 2)))
        return total(q, k, v)

    chex.assert_trees_all_close(
        with_gradient(partial(attention._splash, window=window, interpret=True)),
        with_gradient(partial(attention.attend, mask_BTS=mask)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(("name", "why"), [("cudnn", "needs an NVIDIA GPU"), ("splash", "a TPU")])
def test_a_kernel_of_other_devices_is_replaced_and_named(tiny, name, why):
    settings = ModelConfig(attention=name)
    model = computed(tiny, settings)
    assert model.config.attention == "xla"
    note = attention_note(model, settings)
    assert f"model.attention: {name} cannot be used here" in note and why in note
    assert attention_note(computed(tiny, ModelConfig()), ModelConfig()) is None


def test_a_model_whose_layers_differ_is_not_for_a_kernel(tiny):
    kinds = (LayerKind(), LayerKind(window=8))
    for changes in ({"kinds": kinds}, {"attention_softcap": 5.0}):
        config = dataclasses.replace(tiny.config, attention="splash", **changes)
        assert "soft-cap, or windows in some layers" in attention.refusal(config)


def test_without_a_gpu_its_kernel_is_not_called_unseen(tiny):
    """What reaches the kernel is the call for it: on a CPU JAX refuses that."""
    config = dataclasses.replace(tiny.config, attention="cudnn", dtype="bfloat16")
    tokens = jnp.ones((2, 8), jnp.int32)
    with pytest.raises(RuntimeError, match="cuDNN"):
        transformer.token_log_probs(config, tiny.params, tokens)


def test_a_run_says_so_once(capsys, tmp_path):
    settings = {**SMALL, "output": str(tmp_path / "runs"), "finetune": {"epochs": 1}}
    settings["model"] = {**SMALL["model"], "attention": "cudnn"}
    settings["training"] = {"epochs": 1, "batch_size": 10}
    settings["retrain"] = False
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    status, out, _ = run(capsys, "run", tmp_path / "a.yaml")
    assert status == 0
    assert out.count("note: model.attention: cudnn cannot be used here") == 1
