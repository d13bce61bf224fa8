"""Hugging Face folders: import and export are inverse, and damage is refused by name."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.errors import UserError
from jaxunlearn.models import checkpoint_hf, checkpoint_orbax
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.rope import Llama3, Rope


def same(a, b):
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and jnp.array_equal(x, y), a, b)
    return jax.tree.all(equal)


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
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = dataclasses.replace(tiny, hf_config={**tiny.hf_config, "rope_parameters": rope})
    out = export_model(model, tmp_path / "out")
    saved = json.loads((out / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 5e5
    assert saved["rope_scaling"]["rope_type"] == "llama3"
    expected = Rope(5e5, 8, Llama3(8.0, 1.0, 4.0, 64))
    for gone in (["rope_parameters"], ["rope_theta", "rope_scaling"]):
        kept = {k: v for k, v in saved.items() if k not in gone}
        (out / "config.json").write_text(json.dumps(kept))
        assert load_model(out).config.kinds[0].rope == expected


def test_export_refuses_a_folder_that_is_there(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        export_model(tiny, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_export_leaves_nothing_half_written(tiny, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_hf, "write_tensors", fail)
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


def test_odd_stop_tokens(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    with pytest.raises(UserError, match=r"eos_token_id must be a token id.*\['x'\]"):
        _ = load_model(folder).stop_tokens


def test_a_tokenizer_of_another_model(folder, tiny):
    def smaller(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].copy()

    edit_tensors(folder, smaller)
    edit_config(folder, vocab_size=100)
    import jaxunlearn as ju

    with pytest.raises(
        UserError, match=r"token id \d+, but the model's vocabulary has ids 0 to 99"
    ):
        ju.evaluate(load_model(folder), [("Who is it?", "It is the zebra Quixy.")])


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(folder)


def test_unsupported_family(folder):
    edit_config(folder, model_type="mamba")
    with pytest.raises(UserError, match="'mamba' is not supported; supported are: llama"):
        load_model(folder)


def test_unsupported_rope(folder):
    edit_config(folder, rope_parameters={"rope_type": "spiral", "factor": 2.0})
    with pytest.raises(UserError, match=r"config\.json: RoPE: scaling 'spiral'.*longrope"):
        load_model(folder)


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intermediate_size": 64}, "has shape [48, 32], config.json asks for [64, 32]"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"attention_bias": True}, "self_attn.q_proj.bias is missing"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from the embedding"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported are: silu"),
        ({"num_local_experts": 8}, "llama is a mixture-of-experts model (num_local_experts 8)"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"vision_config": {}}, "images and text"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, "RoPE setting 'mrope_section'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "needs low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, "factor must be a number"),
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


NORM, KEY = "model.norm.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), f"tensor {NORM} is missing from the weights"),
        (lambda t: t.update(surprise=t[NORM]), "tensor surprise has no place in this model"),
        (lambda t: t.update({KEY: t[KEY][:5]}), f"tensor {KEY} has shape [5, 32]"),
        (lambda t: t.update({KEY: t[KEY].T.copy()}), f"tensor {KEY} has shape [32, 16]"),
        (lambda t: t.update({KEY: t[KEY].astype(np.int8)}), f"tensor {KEY} holds I8, not one of"),
        (lambda t: t.update({KEY: t[KEY].astype(np.float16)}), f"{KEY} holds F16, but model.lay"),
        (lambda t: t.update({NORM: t[NORM].astype(np.float64)}), f"tensor {NORM} holds F64"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_damaged_tensors_are_named(folder, tmp_path, change, words, sharded):
    edit_tensors(folder, change)
    if sharded:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in parts.items():
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map = {n: file for file, part in parts.items() for n in part}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or truncated"):
        load_model(folder)


@pytest.fixture
def sharded(tiny, tmp_path):
    return export_model(tiny, tmp_path / "sharded", max_shard_bytes=20_000)


def edit_index(folder, **changes):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))
    return index["weight_map"]


def test_missing_shard(sharded):
    shard = edit_index(sharded)[NORM]
    (sharded / shard).unlink()
    with pytest.raises(UserError, match=rf"index\.json: shard {shard} is missing"):
        load_model(sharded)


def test_truncated_shard(sharded):
    shard = sharded / edit_index(sharded)[KEY]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{shard.name}: damaged or truncated"):
        load_model(sharded)


@pytest.mark.parametrize("astray", ["../secret.safetensors", "/etc/secret", "sub/x", "..", "a\\b"])
def test_index_that_points_outside(sharded, astray):
    (sharded.parent / "secret.safetensors").write_bytes(b"secret")
    edit_index(sharded, **{NORM: astray})
    with pytest.raises(UserError, match=r"points outside the folder|is missing"):
        load_model(sharded)


def test_index_that_is_not_true(sharded):
    shards = sorted(set(edit_index(sharded).values()))
    wrong = next(s for s in shards if s != edit_index(sharded)[NORM])
    edit_index(sharded, **{NORM: wrong})
    with pytest.raises(UserError, match=rf"tensor {NORM} is not in {wrong}"):
        load_model(sharded)
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {KEY: index["weight_map"][KEY]}
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not name tensor"):
        load_model(sharded)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_model(sharded)
    for text, words in [("[]", "JSON object"), ('{"weight_map": 3}', "weight_map must map"),
                        ('{"weight_map": {}}', "names no tensors")]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            load_model(sharded)


def test_loading_in_another_dtype(tiny, tiny_folder):
    params = load_model(tiny_folder, dtype="bfloat16").params
    assert same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params))


def test_mixed_dtypes_are_kept(tiny, tmp_path):
    # An odd number of 2-byte values before 4-byte ones: order and alignment must hold.
    params = {**tiny.params, "final_norm": {"scale": jnp.ones(32, jnp.bfloat16)}}
    model = dataclasses.replace(tiny, params=params)
    out = export_model(model, tmp_path / "out")
    assert same(load_model(out).params, params)
    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


SHARDED = """
import sys
import jax, numpy as np
from pathlib import Path
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxunlearn.models import checkpoint_orbax
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.loading import load_model
from jaxunlearn.training.parallel import AXES, Layout

folder, out = map(Path, sys.argv[1:])
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))

def placement(path, shape):
    if path[-1] == "kernel" and path[0] == "layers":
        return NamedSharding(mesh, P(None, "fsdp", "tensor"))
    return NamedSharding(mesh, P("fsdp") if path[0] == "embed" else P())

def check(model):
    plain = load_model(folder)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(model.params), jax.tree.leaves(plain.params)
    ):
        keys = tuple(key.key for key in path)
        assert leaf.sharding == placement(keys, leaf.shape), path
        assert np.array_equal(leaf, other), path

model = load_model(folder, placement=placement)
check(model)
export_model(model, out / "hf")
checkpoint_orbax.save(load_model(folder), out / "one-device")

# Kernels in int8 are the same ones wherever their parts are read.
layout = Layout(jax.make_mesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3))
cut = load_model(folder, quantize="int8", placement=layout.home).params
assert jax.tree.map(lambda x: x.sharding, cut) == layout.shardings(cut)
assert cut["layers"]["mlp"]["up"]["kernel"].values.sharding.spec == P(None, "fsdp", "tensor")
whole = load_model(folder, quantize="int8").params
assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(cut), jax.device_get(whole)))
check(checkpoint_orbax.load(out / "one-device", placement=placement))
checkpoint_orbax.save(model, out / "eight-devices")
"""


def test_sharded_over_devices(tiny, tiny_folder, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SHARDED, str(tiny_folder), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    exported = (tmp_path / "hf" / "model.safetensors").read_bytes()
    assert exported == (tiny_folder / "model.safetensors").read_bytes()
    # Written on eight devices, read on one, in another dtype.
    back = checkpoint_orbax.load(tmp_path / "eight-devices", dtype="bfloat16")
    assert same(back.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params))


def test_orbax_params_of_another_model(tiny, tmp_path):
    checkpoint_orbax.save(tiny, tmp_path / "orbax")
    edit_config(tmp_path / "orbax", intermediate_size=64)
    with pytest.raises(UserError, match="layers/mlp/down/kernel has shape"):
        checkpoint_orbax.load(tmp_path / "orbax")


@pytest.mark.parametrize(("inside", "beside", "used"), [(32, None, 32), (32, 64, 64)])
def test_original_length_beside_the_rope_settings_goes_first(folder, inside, beside, used):
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": inside}
    edit_config(folder, rope_parameters=rope, original_max_position_embeddings=beside)
    scaling = load_model(folder).config.kinds[0].rope.scaling
    assert scaling.original_max_position_embeddings == used
