"""Every family equals PyTorch transformers: logits, gradients, greedy text, files both ways."""

import copy
import functools
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.models import transformer
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.families import family_of
from jaxunlearn.models.generate import generate
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.weights import named_tensors

torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402


def _neighbour(name):
    """A module of this folder, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo = _neighbour("zoo")
SINGLE = "model.safetensors"
TOKENS = zoo.random_tokens(2, 48)
only_length_dependent = pytest.mark.parametrize("case", zoo.LENGTH_DEPENDENT, indirect=True)
only_longrope = pytest.mark.parametrize("case", ["phi3_longrope"], indirect=True)


class Case:
    """One variant: the torch model, its saved folder, and what we read from it."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self._pristine = zoo.make(name)
        self._pristine.save_pretrained(folder)

    @property
    def theirs(self):
        """A copy: with `dynamic` RoPE a torch model remembers how long its last input was."""
        return copy.deepcopy(self._pristine)

    @functools.cached_property
    def ours(self):
        return load_model(self.folder)

    @functools.cached_property
    def results(self):
        """Of `our_results` on TOKENS."""
        return our_results(self.ours.config, self.ours.params, TOKENS)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Models this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(zoo.ZOO))
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


# Quick compilation, slower code: these programs run once or twice.
@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={"xla_llvm_disable_expensive_passes": True},
)
def our_results(config, params, tokens):
    """Logits, log-probabilities and gradients of the mean NLL, in one program."""

    def loss(params):
        log_probs = transformer.token_log_probs(config, params, tokens)
        return -log_probs[:, 1:].mean(), log_probs

    gradients, log_probs = jax.grad(loss, has_aux=True)(params)
    return transformer.logits(config, params, tokens), log_probs, gradients


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, tokens):
    return transformer.logits(config, params, tokens)


def their_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def their_log_probs(model, tokens):
    ids = torch.from_numpy(tokens).long()
    log_probs = model(ids).logits[:, :-1].log_softmax(dim=-1)
    return log_probs.gather(-1, ids[:, 1:, None])[..., 0]


def their_model(folder):
    """What transformers reads from a folder, without a key too few, too many or misshapen."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[fault], (fault, found[fault])
    return model.eval()


def their_greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0
    )[0].tolist()
    return out[len(prompt) :]


def prompts_of(*lengths):
    return [zoo.random_tokens(1, n, seed=i + 1)[0].tolist() for i, n in enumerate(lengths)]


def file_tensors(folder):
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        found.update(load_file(path))
    return found


def assert_same_tensors(folder, source):
    ours, theirs = file_tensors(folder), file_tensors(source)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def assert_same_greedy_text(case, lengths, count):
    prompts = prompts_of(*lengths)
    mine = generate(
        case.ours.config,
        case.ours.params,
        prompts,
        max_new_tokens=count,
        stop_tokens=[],
        batch_size=len(prompts),
    )
    assert mine == [their_greedy(case.theirs, prompt, count) for prompt in prompts]


def test_logits(case):
    assert case.results[0].dtype == jnp.float32
    np.testing.assert_allclose(case.results[0], their_logits(case.theirs), atol=1e-4, rtol=0)


@only_length_dependent
@pytest.mark.parametrize("length", [24, 32, 33])
def test_logits_where_the_scaling_begins(case, length):
    tokens = zoo.random_tokens(2, length)
    mine = our_logits(case.ours.config, case.ours.params, tokens)
    np.testing.assert_allclose(mine, their_logits(case.theirs, tokens), atol=1e-4, rtol=0)


def test_token_log_probs(case):
    mine = case.results[1]
    assert mine.shape == TOKENS.shape
    np.testing.assert_array_equal(mine[:, 0], 0)
    theirs = their_log_probs(case.theirs, TOKENS).detach().numpy()
    np.testing.assert_allclose(mine[:, 1:], theirs, atol=1e-4, rtol=0)


def test_torch_attention_kernels_agree(case):
    """The reference does not hang on the eager code path."""
    if case.name.startswith("gemma2"):
        pytest.skip("transformers has no sdpa for Gemma 2")
    model = case.theirs
    model.set_attn_implementation("sdpa")
    np.testing.assert_allclose(their_logits(model), their_logits(case.theirs), atol=1e-4, rtol=0)


def their_gradients(case):
    """Gradients of the mean NLL by file tensor name."""
    model = case.theirs
    (-their_log_probs(model, TOKENS).mean()).backward()
    found = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    if case.name.startswith("gpt_neox") and "lm_head.weight" in found:
        found["embed_out.weight"] = found.pop("lm_head.weight")  # renamed in transformers 5
    return found


def test_gradients(case):
    table = family_of(case.ours.hf_config, "test").weights(case.ours.config)
    mine = dict(named_tensors(table, case.results[2]))
    theirs = their_gradients(case)
    assert mine.keys() == theirs.keys() == file_tensors(case.folder).keys()
    for name, gradient in theirs.items():
        error = np.linalg.norm(mine[name] - gradient)
        # 1e-6: without positions a key's bias shifts all scores alike and has no gradient.
        assert error <= 1e-3 * np.linalg.norm(gradient) + 1e-6, name


def test_greedy_text(case):
    if case.name in zoo.LENGTH_DEPENDENT:
        assert_same_greedy_text(case, (3, 7, 12, 16), 16)
    else:
        assert_same_greedy_text(case, (3, 7, 12, 20), 48)


@only_longrope
def test_greedy_text_of_short_and_long_prompts_in_one_batch(case):
    """Every row scales by its own length: two stay below the original length, two begin above."""
    assert_same_greedy_text(case, (3, 12, 36, 40), 16)


def test_bfloat16(case, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    case.theirs.to(torch.bfloat16).save_pretrained(source)
    model = load_model(source)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.params)
    mine = our_results(model.config, params, TOKENS)[0]
    np.testing.assert_allclose(mine, their_logits(their_model(source)), atol=1e-4, rtol=0)
    assert_same_tensors(export_model(model, out), source)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_round_trip(case, tmp_path):
    source = tmp_path / "source_in_shards"
    case.theirs.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    single = export_model(case.ours, tmp_path / "out")
    shards = export_model(load_model(source), tmp_path / "shards", max_shard_bytes=20_000)
    assert [path.name for path in single.glob("*.safetensors")] == [SINGLE]
    assert len(list(shards.glob("*.safetensors"))) > 2
    for folder in (single, shards):
        assert_same_tensors(folder, case.folder)
        # The same torch code on the same bytes: equal to the bit.
        np.testing.assert_array_equal(their_logits(their_model(folder)), their_logits(case.theirs))
        assert load_model(folder).config == case.ours.config


def older_spelling(saved):
    """The config.json that transformers 4 would have written."""
    old = {key: value for key, value in saved.items() if key != "rope_parameters"}
    old["torch_dtype"] = old.pop("dtype")
    if old["model_type"] == "gemma":
        old["hidden_act"] = "gelu"  # as released; transformers takes it for the tanh form
    rope = dict(saved.get("rope_parameters") or {})
    if old["model_type"] == "gemma3_text":
        pattern = old.pop("layer_types").index("full_attention") + 1
        old["sliding_window_pattern"] = pattern
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    if old["model_type"] in ("qwen2", "qwen3", "gemma2"):
        old.pop("layer_types")
    if old["model_type"] == "gpt_neox":
        old["rotary_emb_base"] = rope.pop("rope_theta")
        old["rotary_pct"] = rope.pop("partial_rotary_factor")
    if rope:
        old |= {
            key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope
        }
        kind = rope.pop("rope_type")
        # transformers 5 would overlook `type` in a Gemma 3.
        key = "rope_type" if old["model_type"] == "gemma3_text" else "type"
        old["rope_scaling"] = None if kind == "default" else {key: kind, **rope}
    return old


def test_older_config_spelling(case, tmp_path):
    """transformers 4 wrote RoPE and layer types under other keys; the weights are the same."""
    saved = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(older_spelling(saved)))
    (tmp_path / SINGLE).symlink_to(case.folder / SINGLE)
    old, new = (AutoConfig.from_pretrained(folder) for folder in (tmp_path, case.folder))
    for key in ("rope_parameters", "layer_types", "hidden_act"):
        assert _without_type(getattr(old, key, None)) == _without_type(getattr(new, key, None))
    assert load_model(tmp_path).config == case.ours.config


def _without_type(value):
    """Without the older name of `rope_type`, which transformers keeps beside the newer."""
    if not isinstance(value, dict):
        return value
    return {key: _without_type(item) for key, item in value.items() if key != "type"}


OLD_BUFFERS = {
    "llama": "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "gpt_neox": "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    "gpt2": "transformer.h.{}.attn.bias",
}


@pytest.mark.parametrize("case", OLD_BUFFERS, indirect=True)
def test_buffers_in_older_files_are_passed_over(case, tmp_path):
    tensors = file_tensors(case.folder)
    buffers = [OLD_BUFFERS[case.name].format(layer) for layer in range(3)]
    save_file(tensors | dict.fromkeys(buffers, np.ones(4, np.float32)), tmp_path / SINGLE)
    shutil.copy(case.folder / "config.json", tmp_path)
    assert_same_tensors(export_model(load_model(tmp_path), tmp_path / "out"), case.folder)


@pytest.mark.parametrize("case", ["gpt2"], indirect=True)
def test_names_of_the_released_gpt2(case, tmp_path):
    """Its files hold the bare model, `h.0.` and not `transformer.h.0.`."""
    tensors = file_tensors(case.folder)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / SINGLE, metadata={"format": "pt"})
    shutil.copy(case.folder / "config.json", tmp_path)
    model = load_model(tmp_path)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, model.params, case.ours.params))
    out = export_model(model, tmp_path / "out")
    np.testing.assert_array_equal(their_logits(their_model(out)), their_logits(case.theirs))
