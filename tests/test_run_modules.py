"""`jaxunlearn adapter` and `generate --modules` on a run folder, and what a run keeps of itself."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxunlearn import config_file
from jaxunlearn.models import lora
from jaxunlearn.models.adapter_algebra import add, concatenate
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import Module, ModuleStore, modules_folder
from jaxunlearn.run_modules import listing, open_run
from tests.conftest import refused, run

CONFIG = {
    "name": "small",
    "data": {"people": 6, "forget_people": 2, "holdout_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 2, "learning_rate": 3e-3},
    "adapter": {"rank": 3, "alpha": 5},
    "method": {"name": "npo"},
    "baselines": [{"name": "grad_diff"}],
    "training": {"epochs": 2, "batch_size": 10},
    "evaluation": {"max_new_tokens": 4, "limit": 6},
}  # fmt: skip
PROMPT = ["--prompt", "Who is", "--max-new-tokens", 4]


def random_adapter(model, rank, seed, targets=None):
    flat = flatten_dict(lora.init(model.params, rank, key=jax.random.key(seed), targets=targets))
    rng = np.random.default_rng(seed)
    made = {p: jnp.asarray(rng.normal(size=x.shape) * 0.2, jnp.float32) for p, x in flat.items()}
    return Adapter(unflatten_dict(made), 5 / 3)


@pytest.fixture
def place(tiny, tmp_path):
    """A run folder with a bfloat16 target, two modules of the main method and one of the other."""
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "output": str(folder.parent)}))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    target = dataclasses.replace(tiny, params=narrow)
    export_model(target, folder / "target")
    store = ModuleStore(modules_folder(folder, "npo"))
    for number in (1, 2):
        module = Module(f"request_{number}", 1.0, f"Person {number}")
        adapter = random_adapter(tiny, 3, number, targets=None if number == 1 else "attention")
        store.write(module, adapter, target, folder / "target")
    other = ModuleStore(modules_folder(folder, "grad_diff"))
    other.write(Module("request_1", 1.0), random_adapter(tiny, 2, 7), target, folder / "target")
    return folder


@pytest.fixture(autouse=True)
def left_as_it_is(request):
    """No command changes a run folder."""
    if "place" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("place")
    before = contents(folder)
    yield
    assert contents(folder) == before


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def tensors(folder):
    return load_file(folder / "model.safetensors")


def assert_same_tensors(ours, theirs):
    """Names, dtypes and bytes."""
    ours, theirs = tensors(ours), tensors(theirs)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.tobytes() == theirs[name].tobytes()


def expected(place, weights, method="npo"):
    """float32 sum, rounded once: by a product of the whole sum, in NumPy."""
    target, store = load_model(place / "target"), ModuleStore(modules_folder(place, method))
    one = concatenate([store.adapter(name) for name in weights], list(weights.values()))
    return add(target.params, one)


def assert_weights(folder, params):
    jax.tree.map(np.testing.assert_array_equal, load_model(folder).params, params)


def test_list(capsys, place):
    status, out, err = run(capsys, "adapter", "list", place)
    assert status == 0, err
    first, second = out.splitlines()
    # Seven kernels in each of two layers; four of them are attention's.
    assert first.startswith("request_1 weight 1, rank 3, 14 kernels, norm ")
    assert second.startswith("request_2 weight 1, rank 3, 8 kernels, norm ")
    assert f"with request_2, {place / 'modules' / 'npo' / 'request_1'}; Person 1" in first
    assert "rank 2" in run(capsys, "adapter", "list", place, "--method", "grad_diff")[1]


def test_the_numbers_of_a_listing(place):
    rows = listing(open_run(place))
    store = ModuleStore(modules_folder(place, "npo"))
    deltas = []
    for module in store.modules():
        flat = flatten_dict(store.adapter(module.name).factors)
        found = {}
        for path in flat:
            a, b = (np.asarray(flat[(*path[:-1], f)], np.float64) for f in "ab")
            found[path[:-1]] = 5 / 3 * a @ b
        deltas.append(found)
    for row, delta in zip(rows, deltas, strict=True):
        norm = sum(np.square(kernel).sum() for kernel in delta.values()) ** 0.5
        np.testing.assert_allclose(row["norm"], norm, rtol=1e-5)
    cosines = []
    for path in deltas[0].keys() & deltas[1].keys():
        for x, y in zip(deltas[0][path], deltas[1][path], strict=True):
            cosines.append((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))
    for row in rows:
        np.testing.assert_allclose(row["overlap"], np.mean(cosines), atol=1e-6)
    assert [row["overlaps_with"] for row in rows] == ["request_2", "request_1"]
    (alone,) = listing(open_run(place, "grad_diff"))
    assert (alone["overlap"], alone["overlaps_with"]) == (0.0, "")


def test_merge(capsys, place, tmp_path):
    status, out, err = run(capsys, "adapter", "merge", place, "-o", tmp_path / "out")
    assert status == 0, err
    assert f"model: {tmp_path / 'out'}" in out and "+1 request_1 +1 request_2" in out
    assert_weights(tmp_path / "out", expected(place, {"request_1": 1.0, "request_2": 1.0}))
    assert {str(t.dtype) for t in tensors(tmp_path / "out").values()} == {"bfloat16"}
    assert "+1 request_1 +1 request_2" in (tmp_path / "out" / "README.md").read_text()
    assert load_model(tmp_path / "out").tokenizer is not None


def test_merge_of_another_method_at_another_weight(capsys, place, tmp_path):
    options = ["--method", "grad_diff", "--set", "request_1=-0.5"]
    assert run(capsys, "adapter", "merge", place, "-o", tmp_path / "out", *options)[0] == 0
    assert_weights(tmp_path / "out", expected(place, {"request_1": -0.5}, "grad_diff"))


def test_subtract(capsys, place, tmp_path):
    words = ["subtract", place, "request_2", "-o", tmp_path / "out", "--weight", 0.25]
    assert run(capsys, "adapter", *words)[0] == 0
    assert_weights(tmp_path / "out", expected(place, {"request_1": 1.0, "request_2": 0.75}))


def test_remove(capsys, place, tmp_path):
    words = ["remove", place, "request_1", "-o", tmp_path / "out", "--set", "request_2=2"]
    assert run(capsys, "adapter", *words)[0] == 0
    assert_weights(tmp_path / "out", expected(place, {"request_2": 2.0}))


@pytest.mark.parametrize("kind", ["remove", "subtract"])
def test_without_its_only_module_the_target_is_back_to_the_bit(capsys, place, tmp_path, kind):
    words = [kind, place, "request_1", "-o", tmp_path / "out", "--method", "grad_diff"]
    assert run(capsys, "adapter", *words)[0] == 0
    assert_same_tensors(tmp_path / "out", place / "target")


def test_peft(capsys, place, tmp_path):
    words = ["--peft", "--set", "request_1=0.5"]
    status, out, err = run(capsys, "adapter", "merge", place, "-o", tmp_path / "out", *words)
    assert status == 0, err
    assert "adapter: " in out
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(place / "target")
    params = expected(place, {"request_1": 0.5, "request_2": 1.0})
    jax.tree.map(
        np.testing.assert_array_equal, load_model(tmp_path / "out").merged().params, params
    )


@pytest.mark.slow
def test_generate_with_some_modules(capsys, place, tmp_path):
    """What a reader with these rights gets is what the merged folder gives."""
    run(capsys, "adapter", "remove", place, "request_2", "-o", tmp_path / "one")
    given = {
        "none": place / "target",
        "request_1": place / "modules" / "npo" / "request_1",
        "request_2,request_1": tmp_path / "both",
    }
    run(capsys, "adapter", "merge", place, "-o", tmp_path / "both", "--peft")
    texts = set()
    for names, folder in given.items():
        status, out, err = run(capsys, "generate", place, "--modules", names, *PROMPT)
        assert status == 0, err
        assert out == run(capsys, "generate", folder, *PROMPT)[1]
        texts.add(out)
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "RUN", "-o", "THERE"], "there: already there; choose another folder"),
        (["remove", "RUN", "request_1", "-o", "THERE"], "there: already there"),
        (["merge", "RUN", "-o", "RUN/new"], "is in "),
        (["merge", "GONE", "-o", "OUT"], "no config.yaml here; give a run folder"),
        (["list", "GONE"], "no config.yaml here; give a run folder"),
        (["list", "RUN", "--method", "x"], "has no 'x'; it has grad_diff, npo"),
        (["remove", "RUN", "x", "-o", "OUT"], "no module 'x'; there are: request_1, request_2"),
        (["subtract", "RUN", "x", "-o", "OUT"], "no module 'x'; there are: request_1, request_2"),
        (["subtract", "RUN", "request_1", "-o", "OUT", "--weight", "nan"], "--weight: is nan"),
        (["merge", "RUN", "-o", "OUT", "--set", "x=1"], "no module 'x'; there are: request_1"),
        (["merge", "RUN", "-o", "OUT", "--set", "request_1"], "--set request_1: write NAME=WEIGHT"),
        (["merge", "RUN", "-o", "OUT", "--set", "=1"], "--set =1: write NAME=WEIGHT"),
        (["merge", "RUN", "-o", "OUT", "--set", "request_1=inf"], "write NAME=WEIGHT"),
        (
            ["remove", "RUN", "request_1", "-o", "OUT", "--set", "request_2=0", "--peft"],
            "no module is left, so there is no adapter; leave out --peft",
        ),
    ],
)
def test_bad_words_are_one_line_and_write_nothing(capsys, place, tmp_path, words, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("mine")
    names = {"RUN": place, "OUT": tmp_path / "out", "THERE": tmp_path / "there",
             "GONE": tmp_path / "gone", "RUN/new": place / "new"}  # fmt: skip
    assert message in refused(capsys, "adapter", *(names.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()
    assert [entry.name for entry in (tmp_path / "there").iterdir()] == ["precious"]


@pytest.mark.parametrize("names", ["x", "", "request_1,"])
def test_generate_with_modules_that_are_not_there(capsys, place, names):
    message = refused(capsys, "generate", place, "--modules", names, *PROMPT)
    assert "there are: request_1, request_2" in message


def test_generate_with_modules_wants_a_run(capsys, tiny_folder):
    message = refused(capsys, "generate", tiny_folder, "--modules", "none", *PROMPT)
    assert "give a run folder" in message


def edited(place, tmp_path, **changes):
    """A run folder of the same config with changes, without anything else."""
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    return folder


def test_a_run_without_modules_says_why(capsys, tmp_path, place):
    bare = edited(place, tmp_path, adapter=None)
    assert "its config has no adapter section" in refused(capsys, "adapter", "list", bare)


def test_an_unfinished_run_says_so(capsys, tmp_path, place):
    unfinished = edited(place, tmp_path)
    message = refused(capsys, "adapter", "list", unfinished)
    assert "no modules yet" in message and str(unfinished / "config.yaml") in message


def with_module(folder, tiny, base):
    store = ModuleStore(modules_folder(folder, "npo"))
    store.write(Module("request_1", 1.0), random_adapter(tiny, 2, 0), tiny, base)
    return folder


def test_a_target_that_is_gone_is_not_replaced_by_the_start_model(
    capsys, tmp_path, place, tiny, tiny_folder
):
    settings = {**CONFIG["model"], "path": str(tiny_folder)}
    folder = with_module(edited(place, tmp_path, model=settings), tiny, tiny_folder)
    assert "target: is gone" in refused(capsys, "adapter", "merge", folder, "-o", tmp_path / "out")


def test_without_finetune_the_base_is_the_start_model(capsys, tmp_path, place, tiny, tiny_folder):
    settings = {"model": {"path": str(tiny_folder)}, "finetune": None}
    folder = with_module(edited(place, tmp_path, **settings), tiny, tiny_folder)
    status, _, err = run(capsys, "adapter", "remove", folder, "request_1", "-o", tmp_path / "out")
    assert status == 0, err
    assert_same_tensors(tmp_path / "out", tiny_folder)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "output": str(tmp_path / "runs")}))
    return path


@pytest.mark.slow
def test_a_run_keeps_an_adapter_of_each_method(capsys, small, tmp_path):
    """What all modules give is what the run exports, to the bit, and without them the target."""
    assert run(capsys, "run", small)[0] == 0
    place = tmp_path / "runs" / "small"
    experiment = config_file.load(place / "config.yaml")
    assert experiment.adapter.rank == 3
    for label in ("grad_diff", "npo"):
        (row,) = listing(open_run(place, label))
        assert (row["name"], row["weight"], row["rank"]) == ("request_1", 1.0, 3)
        assert row["norm"] > 0 and len(row["about"].split(", ")) == 2
    before = contents(place)
    assert run(capsys, "adapter", "merge", place, "-o", tmp_path / "all")[0] == 0
    assert_same_tensors(tmp_path / "all", place / "hf")
    assert run(capsys, "adapter", "remove", place, "request_1", "-o", tmp_path / "none")[0] == 0
    assert_same_tensors(tmp_path / "none", place / "target")
    ours = load_model(place / "modules" / "npo" / "request_1").adapter
    theirs = load_model(place / "adapter").adapter
    jax.tree.map(np.testing.assert_array_equal, ours.factors, theirs.factors)
    assert run(capsys, "generate", place, "--modules", "request_1", *PROMPT)[0] == 0
    assert contents(place) == before


@pytest.mark.slow
def test_each_request_of_a_run_is_a_module(capsys, small, tmp_path):
    words = ["--requests.by", "entity", "--baselines", "[]"]
    assert run(capsys, "run", small, *words)[0] == 0
    place = tmp_path / "runs" / "small"
    assert not (place / "adapter").exists()
    rows = listing(open_run(place))
    summary = json.loads((place / "summary.json").read_text())
    told = summary["requests"]["npo"]["requests"]
    assert [row["name"] for row in rows] == ["request_1", "request_2"]
    assert [row["about"] for row in rows] == told
    # The run rounds after each request, all modules together are rounded once.
    assert run(capsys, "adapter", "merge", place, "-o", tmp_path / "all")[0] == 0
    result, again = tensors(place / "hf"), tensors(tmp_path / "all")
    for name, tensor in result.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-5, atol=1e-6)
    # The second request's adapter belongs on the first's result.
    first = open_run(place).model({"request_1": 1.0}).merged()
    second = ModuleStore(modules_folder(place, "npo")).adapter("request_2")
    for path, kernel in flatten_dict(add(first.params, second)).items():
        np.testing.assert_array_equal(kernel, flatten_dict(load_model(place / "hf").params)[path])
