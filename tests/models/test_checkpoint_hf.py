"""Hugging Face folders: import and export are inverse, and damage is refused by name."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.errors import UserError
from jaxunlearn.models import checkpoint_hf, checkpoint_orbax, lora, transformer
from jaxunlearn.models.checkpoint_hf import export_adapter, export_model, load_model


def same(a, b):
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and jnp.array_equal(x, y), a, b)
    return jax.tree.all(equal)


def with_adapter(model, rank=4, alpha=6.0):
    factors = lora.init(model.params, rank, key=jax.random.key(0))
    noise = jax.random.key(1)
    factors = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(noise, x.shape), factors)
    return dataclasses.replace(model, adapter=lora.Adapter(factors, rank, alpha))


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_stories260k_round_trip_is_bit_identical(stories260k, tmp_path):
    out = export_model(load_model(stories260k), tmp_path / "out")
    ours = load_file(out / "model.safetensors")
    theirs = load_file(stories260k / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].tobytes() == theirs[name].tobytes()


def test_bfloat16_round_trip(shared, tmp_path):
    source = shared / "models" / "hf_llama_random"
    model = load_model(source)
    assert model.params["embed"]["embedding"].dtype == jnp.bfloat16
    assert model.tokenizer is None
    out = export_model(model, tmp_path / "out")
    ours, theirs = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_sharded_round_trip(tiny, tmp_path):
    out = export_model(tiny, tmp_path / "out", max_shard_bytes=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert not (out / "model.safetensors").exists()
    assert same(load_model(out).params, tiny.params)


def test_orbax_round_trip(tiny, tmp_path):
    checkpoint_orbax.save(tiny, tmp_path / "orbax")
    back = checkpoint_orbax.load(tmp_path / "orbax")
    assert checkpoint_orbax.is_orbax(tmp_path / "orbax")
    assert same(back.params, tiny.params) and back.config == tiny.config


def test_config_carries_both_rope_spellings(tiny, tmp_path):
    scaling = transformer.RopeScaling(8.0, 1.0, 4.0, 64)
    config = dataclasses.replace(tiny.config, rope_scaling=scaling, rope_theta=5e5)
    out = export_model(dataclasses.replace(tiny, config=config), tmp_path / "out")
    saved = json.loads((out / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 5e5
    assert saved["rope_scaling"]["rope_type"] == "llama3"
    for gone in (["rope_parameters"], ["rope_theta", "rope_scaling"]):
        kept = {k: v for k, v in saved.items() if k not in gone}
        (out / "config.json").write_text(json.dumps(kept))
        assert load_model(out).config == config


def test_export_refuses_a_folder_that_is_there(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        export_model(tiny, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_export_leaves_nothing_half_written(tiny, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_hf, "_write_shards", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")


def test_pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only a pickle \(pytorch_model.bin\).*safe_serialization"):
        load_model(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(folder)


def test_unsupported_family(folder):
    edit_config(folder, model_type="mamba")
    with pytest.raises(UserError, match="'mamba' is not supported; supported are: llama"):
        load_model(folder)


def test_unsupported_rope(folder):
    edit_config(folder, rope_parameters={"rope_type": "yarn", "factor": 2.0}, rope_scaling=None)
    with pytest.raises(UserError, match="RoPE scaling 'yarn'"):
        load_model(folder)


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intermediate_size": 64}, "has shape [48, 32], config.json asks for [64, 32]"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"attention_bias": True}, "self_attn.q_proj.bias is missing"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from the embedding"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be a whole number"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"rope_parameters": [1]}, "RoPE settings must be a mapping"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)  # fmt: skip
def test_config_that_does_not_fit_the_weights(folder, change, words):
    edit_config(folder, **change)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert words in str(caught.value)


def test_missing_and_extra_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        load_model(folder)
    extra = {"model.norm.weight": np.ones(32, np.float32), "surprise": np.ones(3, np.float32)}
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    with pytest.raises(UserError, match="surprise has no place"):
        load_model(folder)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or truncated"):
        load_model(folder)


def test_index_that_points_astray(tiny, tmp_path):
    out = export_model(tiny, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    (out / index["weight_map"]["model.norm.weight"]).unlink()
    with pytest.raises(UserError, match=r"shard model-.* is missing"):
        load_model(out)
    index["weight_map"]["model.norm.weight"] = "../secret.safetensors"
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="points outside the folder"):
        load_model(out)


def test_adapter_round_trip(tiny, tiny_folder, tmp_path):
    model = with_adapter(tiny)
    out = export_adapter(model, tmp_path / "adapter", base=tiny_folder)
    back = load_model(out)
    assert same(back.adapter.factors, model.adapter.factors)
    tokens = jnp.arange(12).reshape(1, 12)
    np.testing.assert_allclose(
        transformer.logits(back.config, back.params, tokens, lora=back.lora),
        transformer.logits(model.config, model.merged().params, tokens),
        atol=1e-4,
    )


def test_adapter_faults(tiny, tiny_folder, tmp_path):
    with pytest.raises(UserError, match="no adapter to export"):
        export_adapter(tiny, tmp_path / "none", base=tiny_folder)
    out = export_adapter(with_adapter(tiny), tmp_path / "adapter", base=tiny_folder)
    settings = json.loads((out / "adapter_config.json").read_text())
    for change, words in [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"base_model_name_or_path": "gone"}, "gone: no such folder"),
    ]:
        (out / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(UserError, match=words):
            load_model(out)
