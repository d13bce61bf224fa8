"""Adapter modules: what is written comes back to the bit, and a kill leaves the old or the new."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import modules
from jaxunlearn.errors import UserError
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.adapter_algebra import add, choose, concatenate
from jaxunlearn.models.generate import generate
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import Module, ModuleStore, composed

logits_of = jax.jit(transformer.logits, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(3, 90, (3, 12))


def random_adapter(model, rank=4, scale=1.5, targets=None, seed=0):
    """Both factors random wherever the adapter is."""
    flat = flatten_dict(lora.init(model.params, rank, key=jax.random.key(seed), targets=targets))
    rng = np.random.default_rng(seed)
    made = {}
    for path, leaf in flat.items():
        adapted = np.asarray(flat[(*path[:-1], "a")]).any((1, 2), keepdims=True)
        made[path] = jnp.asarray(adapted * rng.normal(size=leaf.shape) * 0.2, jnp.float32)
    return Adapter(unflatten_dict(made), scale)


def assert_same(ours, theirs):
    """Factors and scale, to the bit."""
    assert ours.scale == theirs.scale
    ours, theirs = flatten_dict(ours.factors), flatten_dict(theirs.factors)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, theirs[path])


@pytest.fixture
def store(tmp_path):
    return ModuleStore(tmp_path / "modules")


def test_an_empty_store(store):
    assert store.modules() == []
    with pytest.raises(UserError, match="no module 'x'; there are: none"):
        store.adapter("x")
    assert not store.folder.exists()


KINDS = {
    "all": {},
    "odd rank, scale 1": {"rank": 5, "scale": 1.0},
    "odd rank, odd scale": {"rank": 7, "scale": 0.3 / 7},
    "rank-stabilised": {"rank": 4, "scale": 3.0 / 4**0.5},
    "some targets": {"targets": "attention/(q|v)"},
    "one layer, odd rank, scale 1": {"rank": 3, "scale": 1.0, "targets": "layers/1/mlp/down"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_comes_back_to_the_bit(store, tiny, tiny_folder, kind):
    adapter = random_adapter(tiny, **KINDS[kind])
    store.write(Module("one", -0.5, "Ada, Bo"), adapter, tiny, tiny_folder)
    assert_same(store.adapter("one"), adapter)
    assert store.modules() == [Module("one", -0.5, "Ada, Bo")]
    assert store.rank("one") == KINDS[kind].get("rank", 4)


def test_a_concatenated_adapter_comes_back_to_the_bit(store, tiny, tiny_folder):
    """Ranks differ from target to target, and layers that only one part has."""
    parts = [random_adapter(tiny, 3), random_adapter(tiny, 2, targets="layers/0/attention/q")]
    adapter = concatenate(parts, [1.0, -0.25])
    store.write(Module("one", 1.0), adapter, tiny, tiny_folder)
    assert_same(store.adapter("one"), adapter)
    assert store.rank("one") == 5


@settings(max_examples=8, deadline=None)
@given(
    rank=st.integers(1, 9),
    alpha=st.integers(1, 64),
    rslora=st.booleans(),
    targets=st.sampled_from([None, "attention/q", "layers/0/mlp", "layers/1/attention/o"]),
)
def test_what_an_adapter_does_comes_back_to_the_bit(tmp_path_factory, tiny, rank, alpha, rslora,
                                                    targets):  # fmt: skip
    """The scale of a rank-stabilised one is rounded in the file, but not in float32."""
    adapter = random_adapter(tiny, rank, alpha / (rank**0.5 if rslora else rank), targets)
    store = ModuleStore(tmp_path_factory.mktemp("store"))
    store.write(Module("one", 1.0), adapter, tiny, "base")
    back = store.adapter("one")
    jax.tree.map(np.testing.assert_array_equal, back.factors, adapter.factors)
    jax.tree.map(np.testing.assert_array_equal, back.scaled, adapter.scaled)


def test_a_store_needs_no_base(store, tiny):
    """The factors come back where the base is gone; PEFT and `load_model` need it."""
    adapter = random_adapter(tiny)
    store.write(Module("one", 1.0), adapter, tiny, "gone/model")
    assert_same(store.adapter("one"), adapter)
    told = json.loads((store.path("one") / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "gone/model"


def test_order_and_replacement(store, tiny, tiny_folder):
    adapters = [random_adapter(tiny, seed=seed) for seed in range(4)]
    for name, adapter in zip("abc", adapters, strict=False):
        store.write(Module(name, 1.0, f"about {name}"), adapter, tiny, tiny_folder)
    store.write(Module("b", -0.5, "other"), adapters[3], tiny, tiny_folder)
    assert store.modules() == [
        Module("a", 1.0, "about a"), Module("b", -0.5, "other"), Module("c", 1.0, "about c"),
    ]  # fmt: skip
    for name, number in {"a": 0, "b": 3, "c": 2}.items():
        assert_same(store.adapter(name), adapters[number])
    store.write(Module("b", 2.0), adapters[1], tiny, tiny_folder)
    assert_same(store.adapter("b"), adapters[1])
    # Nothing of what was replaced is left.
    names = {entry.name for entry in store.folder.iterdir()}
    assert names == {"a", "b", "c", "index.json", "config.json"}


def test_what_is_there_is_not_written_again(store, tiny, tiny_folder):
    adapter = random_adapter(tiny)
    for _ in range(2):
        store.write(Module("a", 1, "x"), adapter, tiny, tiny_folder)
        assert store.path("a") == store.folder / "a"
        assert {e.name for e in store.folder.iterdir()} == {"a", "index.json", "config.json"}


@pytest.mark.parametrize(
    "changed",
    [Module("a", 1.0, "y"), Module("a", 2.0, "x")],
)
def test_a_new_weight_or_text_is_written(store, tiny, tiny_folder, changed):
    adapter = random_adapter(tiny)
    for module in (Module("a", 1.0, "x"), changed):
        store.write(module, adapter, tiny, tiny_folder)
    assert store.modules() == [changed]
    assert_same(store.adapter("a"), adapter)


class Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


def killed_at(monkeypatch, call, name):
    """A function of `modules` that stops everything at its first call, or right after it."""
    true = getattr(modules, name)

    def cut(*arguments, **options):
        if call == "after":
            true(*arguments, **options)
        raise Killed

    monkeypatch.setattr(modules, name, cut)


@pytest.mark.parametrize(
    ("name", "call", "kept"),
    [
        ("export_adapter", "before", "old"),
        ("export_adapter", "after", "old"),
        ("write_text", "before", "old"),
        ("write_text", "after", "new"),
        ("rmtree", "before", "new"),
    ],
)
def test_a_kill_leaves_the_old_or_the_new(store, tiny, tiny_folder, monkeypatch, name, call, kept):
    adapters = {"old": random_adapter(tiny), "new": random_adapter(tiny, rank=2, seed=1)}
    known = {"old": Module("a", 1.0, "old"), "new": Module("a", -1.0, "new")}
    store.write(known["old"], adapters["old"], tiny, tiny_folder)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at(patched, call, name)
        store.write(known["new"], adapters["new"], tiny, tiny_folder)
    assert store.modules() == [known[kept]]
    assert_same(store.adapter("a"), adapters[kept])
    # Written again, it is there.
    store.write(known["new"], adapters["new"], tiny, tiny_folder)
    assert store.modules() == [known["new"]]
    assert_same(store.adapter("a"), adapters["new"])


def test_a_first_module_that_is_cut_off_is_not_there(store, tiny, tiny_folder, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at(patched, "after", "export_adapter")
        store.write(Module("a", 1.0), random_adapter(tiny), tiny, tiny_folder)
    assert store.modules() == []
    adapter = random_adapter(tiny, seed=1)
    store.write(Module("a", 1.0), adapter, tiny, tiny_folder)
    assert_same(store.adapter("a"), adapter)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "index.json", "config.json", "a~"])
def test_names_that_are_no_folder_names(store, tiny, tiny_folder, name):
    with pytest.raises(UserError, match="must be a plain folder name"):
        store.write(Module(name, 1.0), random_adapter(tiny), tiny, tiny_folder)
    assert not store.folder.exists()


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(store, tiny, tiny_folder, weight):
    with pytest.raises(UserError, match="module a: its weight is"):
        store.write(Module("a", weight), random_adapter(tiny), tiny, tiny_folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '[{"name": "a"}]'])
def test_a_damaged_index_is_named(store, text):
    store.folder.mkdir()
    (store.folder / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index.json: damaged \(.*remove .*modules"):
        store.modules()


def test_a_missing_folder_is_named(store, tiny, tiny_folder):
    store.write(Module("a", 1.0), random_adapter(tiny), tiny, tiny_folder)
    shutil.rmtree(store.path("a"))
    with pytest.raises(UserError, match=r"modules/a: adapter_config.json is missing"):
        store.adapter("a")


def logits(model):
    return logits_of(model.config, model.params, TOKENS, lora=model.lora)


def test_a_composed_model_is_the_sum(tiny):
    parts = [(0.5, random_adapter(tiny)), (-2.0, random_adapter(tiny, 3, targets="mlp", seed=1))]
    own = random_adapter(tiny, 2, seed=2)
    params = tiny.params
    for weight, adapter in parts:
        params = add(params, adapter, weight)
    np.testing.assert_allclose(
        logits(composed(tiny, parts)), logits_of(tiny.config, params, TOKENS), atol=1e-4
    )
    with_own = composed(dataclasses.replace(tiny, adapter=own), parts)
    params = add(params, own)
    np.testing.assert_allclose(logits(with_own), logits_of(tiny.config, params, TOKENS), atol=1e-4)


def test_parts_that_add_nothing_leave_the_model(tiny):
    own = dataclasses.replace(tiny, adapter=random_adapter(tiny))
    for model in (tiny, own):
        assert composed(model, []) is model
        assert composed(model, [(0.0, random_adapter(tiny, seed=3))]) is model


def test_one_part_of_weight_one_merges_as_the_adapter_does(tiny):
    """To the bit: what a run exports is what its only module gives."""
    adapter = random_adapter(tiny)
    ours = composed(tiny, [(1.0, adapter)]).merged().params
    theirs = dataclasses.replace(tiny, adapter=adapter).merged().params
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def generated(model, prompts, **options):
    return generate(
        model.config, model.params, prompts, max_new_tokens=8, stop_tokens=(), **options
    )


@pytest.fixture
def three(store, tiny, tiny_folder):
    """A store of three modules of different ranks, weights and targets."""
    for seed, weight in enumerate((1.0, -0.5, 0.7)):
        targets = "mlp" if seed == 2 else None
        adapter = random_adapter(tiny, seed + 2, targets=targets, seed=seed)
        store.write(Module(f"m{seed}", weight), adapter, tiny, tiny_folder)
    return store


READERS = [["m0"], ["m2", "m0"], ["m1", "m2"]]


def allowed(store, model, names):
    """The model of one reader alone; merged, so that all run as one compiled program."""
    parts = [(store.module(name).weight, store.adapter(name)) for name in names]
    return composed(model, parts).merged()


def test_each_row_of_a_stack_is_what_its_modules_alone_give(three, tiny):
    tokens, choice = TOKENS[[0, 0, 0, 0]], [1, -1, 2, 0]
    lora_of_rows = choose(three.stacked(READERS), jnp.asarray(choice))
    together = logits_of(tiny.config, tiny.params, tokens, lora=lora_of_rows)
    for row, reader in enumerate(choice):
        alone = allowed(three, tiny, [] if reader < 0 else READERS[reader])
        np.testing.assert_allclose(together[row], logits(alone)[0], atol=1e-4)
    assert np.abs(np.diff(together, axis=0)).max((1, 2)).min() > 1e-2
    # Without readers, each module is one.
    singly = logits_of(
        tiny.config, tiny.params, tokens, lora=choose(three.stacked(), jnp.arange(4) - 1)
    )
    np.testing.assert_allclose(singly[0], logits(tiny)[0], atol=1e-4)
    for number in range(3):
        expected = logits(allowed(three, tiny, [f"m{number}"]))[0]
        np.testing.assert_allclose(singly[number + 1], expected, atol=1e-4)


@pytest.mark.slow
def test_readers_with_different_rights_generate_in_one_batch(three, tiny):
    prompts = [list(row) for row in TOKENS[:, :6]] + [list(TOKENS[0, :4])]
    choice = [1, -1, 2, 0]
    together = generated(tiny, prompts, lora=three.stacked(READERS), choice=choice)
    for row, reader in enumerate(choice):
        alone = allowed(three, tiny, [] if reader < 0 else READERS[reader])
        assert generated(alone, [prompts[row]]) == [together[row]]
    assert len({tuple(row) for row in together}) == 4


def test_stacks_that_cannot_be(store, tiny, tiny_folder):
    store.write(Module("a", 1.0), random_adapter(tiny), tiny, tiny_folder)
    with pytest.raises(UserError, match="reader 1 has no module"):
        store.stacked([["a"], []])
    with pytest.raises(UserError, match="no module 'b'; there are: a"):
        store.stacked([["a", "b"]])


@pytest.mark.parametrize("targets", [None, "attention/(q|v)", "layers/1/mlp/down"])
def test_peft_loads_a_module(store, tiny_folder, targets):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
    from transformers import AutoModelForCausalLM

    from jaxunlearn.models.loading import load_model

    model = load_model(tiny_folder)
    adapter = random_adapter(model, rank=3, scale=1.0, targets=targets)
    store.write(Module("one", 1.0), adapter, model, tiny_folder)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), store.path("one")
    )
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(TOKENS)).logits.numpy()
    ours = composed(model, [(1.0, store.adapter("one"))])
    assert np.abs(expected - np.asarray(logits(model))).max() > 1e-2
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)
    np.testing.assert_allclose(logits(load_model(store.path("one"))), expected, atol=1e-4)
