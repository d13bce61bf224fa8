"""PEFT adapters: ours load there, theirs load here, and the function is the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.errors import UserError
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.adapter_algebra import add, concatenate
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.peft_adapter import export_adapter, read_adapter

TOKENS = np.random.default_rng(0).integers(3, 90, (2, 24))
logits_of = jax.jit(transformer.logits, static_argnums=0)


def with_adapter(model, rank=4, alpha=6.0, targets=None, seed=0):
    factors = lora.init(model.params, rank, key=jax.random.key(seed), targets=targets)
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(factors))))
    adapted = jax.tree.leaves(factors)[0].any((1, 2), keepdims=True)
    factors = jax.tree.map(
        lambda x: x + adapted * 0.1 * jax.random.normal(next(keys), x.shape), factors
    )
    return dataclasses.replace(model, adapter=lora.Adapter(factors, alpha / rank))


def adapted_logits(model):
    return logits_of(model.config, model.params, TOKENS, lora=model.lora)


def test_round_trip(tiny, tiny_folder, tmp_path):
    model = with_adapter(tiny)
    out = export_adapter(model, tmp_path / "adapter", base=tiny_folder)
    back = load_model(out)
    assert back.adapter.scale == 1.5
    jax.tree.map(np.testing.assert_array_equal, back.adapter.factors, model.adapter.factors)
    merged = logits_of(model.config, model.merged().params, TOKENS)
    np.testing.assert_allclose(adapted_logits(back), merged, atol=1e-4)


@pytest.fixture
def adapter_folder(tiny, tiny_folder, tmp_path):
    return export_adapter(with_adapter(tiny), tmp_path / "adapter", base=tiny_folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"r": 0}, "r must be a number above 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number above 0"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern q_proj must be a number"),
        ({"rank_pattern": ["a"]}, "rank_pattern cannot be ['a']"),
        ({"rank_pattern": {"(": 3}}, "'(' is no regular expression"),
        ({"rank_pattern": {"q_proj": 3}}, "self_attn.q_proj has rank 4, adapter_config.json says"),
        ({"r": 7}, "has rank 4, adapter_config.json says 7"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number above 0"),
        ({"use_rslora": "no"}, "use_rslora cannot be 'no'"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' is not supported"),
        ({"target_modules": ["q_proj"]}, "which its target_modules, exclude_modules or layers_to"),
        ({"exclude_modules": ["q_proj"]}, "has tensors for model.layers.0.self_attn.q_proj"),
        ({"layers_to_transform": [0]}, "has tensors for model.layers.1."),
        ({"base_model_name_or_path": "gone"}, "gone: no such folder"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
    ],
)
def test_settings_that_cannot_be_taken(adapter_folder, change, words):
    path = adapter_folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        load_model(adapter_folder)
    assert words in str(caught.value)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(Q0), f"tensor {Q0} is missing"),
        (lambda t: t.update({Q0: t[Q0][:, :5].copy()}), "layers.0.self_attn.q_proj has factors"),
        (lambda t: t.update({Q0: t[Q0][0]}), "is float32 [32]; factors are matrices"),
        (lambda t: t.update({Q0: t[Q0].astype(np.int8)}), "is int8 [4, 32]; factors are matrices"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit(adapter_folder, change, words):
    path = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        load_model(adapter_folder)
    assert words in str(caught.value)


def test_an_adapter_is_read_without_the_weights_of_its_base(adapter_folder, tiny, tmp_path):
    """From config.json alone; and its faults show before the weights are looked for."""
    adapter = read_adapter(adapter_folder, tiny.hf_config)
    expected = load_model(adapter_folder).adapter
    assert adapter.scale == expected.scale
    jax.tree.map(np.testing.assert_array_equal, adapter.factors, expected.factors)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(tiny.hf_config))
    path = adapter_folder / "adapter_config.json"
    changed = {"base_model_name_or_path": str(tmp_path / "base")}
    for change, words in (({}, "safetensors"), ({"r": 7}, "adapter_config.json says 7")):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed, **change}))
        with pytest.raises(UserError, match=words):
            load_model(adapter_folder)


def test_an_adapter_on_an_adapter(adapter_folder):
    path = adapter_folder / "adapter_config.json"
    changed = {**json.loads(path.read_text()), "base_model_name_or_path": str(adapter_folder)}
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="is an adapter itself"):
        load_model(adapter_folder)


def test_no_adapter_to_export(tiny, tmp_path):
    with pytest.raises(UserError, match="no adapter to export"):
        export_adapter(tiny, tmp_path / "none", base=".")
    assert not (tmp_path / "none").exists()


# From here on with the PEFT library itself.

ATTENTION, ALL = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
SETTINGS = {
    "plain": {"target_modules": ATTENTION},
    "every linear layer": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "ranks": {"target_modules": ALL, "rank_pattern": {"q_proj": 2, "up_proj": 5}},
    "alphas": {"target_modules": ALL, "alpha_pattern": {"self_attn.v_proj": 1, "up_proj": 20}},
    "ranks and alphas of one layer, rslora": {
        "target_modules": ALL,
        "rank_pattern": {r".*layers\.1\.self_attn\.q_proj": 6, "model.layers.0.mlp.up_proj": 1},
        "alpha_pattern": {"k_proj": 7},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def base_folders(tmp_path_factory):
    torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
    import transformers

    common = {"vocab_size": 96, "initializer_range": 0.2}
    llama_like = {
        **common, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    neox = {**llama_like, "num_key_value_heads": 4}
    configs = {
        "qwen2": transformers.Qwen2Config(**llama_like),
        "phi3": transformers.Phi3Config(**llama_like, pad_token_id=0),
        "gpt_neox": transformers.GPTNeoXConfig(**neox),
        "gpt2": transformers.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def torch_base(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def torch_logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def made_by_peft(base, folder, **settings):
    peft = pytest.importorskip("peft")
    import torch

    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **settings)
    model = peft.get_peft_model(torch_base(base), config)
    model.save_pretrained(folder)
    return torch_logits(model)


def loaded_by_peft(base, folder):
    peft = pytest.importorskip("peft")
    return torch_logits(peft.PeftModel.from_pretrained(torch_base(base), folder))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_theirs_here_and_back(base_folders, tmp_path, settings):
    base = base_folders["qwen2"]
    expected = made_by_peft(base, tmp_path / "theirs", **settings)
    assert np.abs(expected - torch_logits(torch_base(base))).max() > 0.1
    mine = load_model(tmp_path / "theirs")
    np.testing.assert_allclose(adapted_logits(mine), expected, atol=1e-4)
    merged = logits_of(mine.config, mine.merged().params, TOKENS)
    np.testing.assert_allclose(merged, expected, atol=1e-4)
    export_adapter(mine, tmp_path / "ours", base=base)
    np.testing.assert_allclose(loaded_by_peft(base, tmp_path / "ours"), expected, atol=1e-4)


FUSED = {
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections_here_and_back(base_folders, tmp_path, name):
    base = base_folders[name]
    expected = made_by_peft(base, tmp_path / "theirs", target_modules=FUSED[name])
    mine = load_model(tmp_path / "theirs")
    np.testing.assert_allclose(adapted_logits(mine), expected, atol=1e-4)
    out = export_adapter(mine, tmp_path / "ours", base=base)
    # One matrix A served all parts; it is written as the one that it was.
    theirs, ours = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("theirs", "ours")
    )
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    np.testing.assert_allclose(loaded_by_peft(base, out), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", *FUSED])
def test_ours_there_and_back(base_folders, tmp_path, name):
    base = base_folders[name]
    model = with_adapter(load_model(base), rank=2, alpha=3.0)
    out = export_adapter(model, tmp_path / "adapter", base=base)
    expected = adapted_logits(model)
    assert np.abs(expected - torch_logits(torch_base(base))).max() > 0.1
    np.testing.assert_allclose(loaded_by_peft(base, out), expected, atol=1e-4)
    np.testing.assert_allclose(adapted_logits(load_model(out)), expected, atol=1e-4)


TARGETS = {
    # Target pattern: target_modules of each base.
    "attention/(q|v)": {
        "qwen2": ["q_proj", "v_proj"], "phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"],
        "gpt2": ["c_attn"],
    },
    "layers/1/mlp/down": {
        "qwen2": ["model.layers.1.mlp.down_proj"], "phi3": ["model.layers.1.mlp.down_proj"],
        "gpt_neox": ["gpt_neox.layers.1.mlp.dense_4h_to_h"],
        "gpt2": ["transformer.h.1.mlp.c_proj"],
    },
}  # fmt: skip


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["qwen2", *FUSED])
def test_targets_there_and_back(base_folders, tmp_path, name, targets):
    base = base_folders[name]
    model = with_adapter(load_model(base), targets=targets)
    out = export_adapter(model, tmp_path / "adapter", base=base)
    written = json.loads((out / "adapter_config.json").read_text())
    assert written["target_modules"] == TARGETS[targets][name]
    expected = adapted_logits(model)
    assert np.abs(expected - torch_logits(torch_base(base))).max() > 0.01
    np.testing.assert_allclose(loaded_by_peft(base, out), expected, atol=1e-4)
    np.testing.assert_allclose(adapted_logits(load_model(out)), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", *FUSED])
def test_concatenated_adapters_there_and_back(base_folders, tmp_path, name):
    base = base_folders[name]
    bare = load_model(base)
    rows = [
        with_adapter(bare, rank=2),
        with_adapter(bare, rank=3, targets="attention/(q|v)", seed=5),
        with_adapter(bare, rank=1, targets="layers/0/mlp", seed=7),
    ]
    weights = [1.0, -0.5, 0.8]
    adapters = [model.adapter for model in rows]
    model = dataclasses.replace(bare, adapter=concatenate(adapters, weights))
    out = export_adapter(model, tmp_path / "adapter", base=base)
    params = bare.params
    for adapter, weight in zip(adapters, weights, strict=True):
        params = add(params, adapter, weight)
    expected = logits_of(bare.config, params, TOKENS)
    np.testing.assert_allclose(adapted_logits(model), expected, atol=1e-4)
    np.testing.assert_allclose(loaded_by_peft(base, out), expected, atol=1e-4)
    np.testing.assert_allclose(adapted_logits(load_model(out)), expected, atol=1e-4)


def test_an_adapter_of_zeros_is_still_one(tiny, tiny_folder, tmp_path):
    model = with_adapter(tiny)
    zeros = jax.tree.map(jnp.zeros_like, model.adapter.factors)
    model = dataclasses.replace(model, adapter=lora.Adapter(zeros, 1.5))
    back = load_model(export_adapter(model, tmp_path / "adapter", base=tiny_folder))
    jax.tree.map(np.testing.assert_array_equal, back.adapter.factors, zeros)


def test_an_adapter_on_the_head_is_refused(base_folders, tmp_path):
    made_by_peft(base_folders["qwen2"], tmp_path / "theirs", target_modules=["lm_head"])
    with pytest.raises(UserError, match=r"lm_head.*has no place in the base model's layers"):
        load_model(tmp_path / "theirs")
