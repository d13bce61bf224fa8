"""`jaxunlearn plan`: a mesh that fits, or what is too large and what would mend it."""

import json
import shutil

import pytest
import yaml

from tests.conftest import refused, run
from tests.test_cli import SMALL


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    """A config of a large model, of which only the small files are there."""
    folder = tmp_path_factory.mktemp("plan")
    large = shutil.copytree(tiny_folder, folder / "large")
    (large / "model.safetensors").unlink()
    settings = json.loads((large / "config.json").read_text())
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12,
             "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
    (large / "config.json").write_text(json.dumps({**settings, **sizes, "head_dim": 64}))
    path = folder / "plan.yaml"
    config = {"model": {"path": str(large)}, "data": SMALL["data"], "method": {"name": "npo"}}
    path.write_text(yaml.safe_dump({**config, "training": {"batch_size": 8}}))
    return path


def test_a_training_that_fits_is_laid_out(capsys, config):
    status, out, _ = run(capsys, "plan", config, "--devices", 1, "--device-memory", "80GB")
    assert status == 0
    first, *terms, last = out.splitlines()
    assert first.startswith("npo: ") and "mesh data 1 x fsdp 1 x tensor 1" in first
    assert len(terms) == 8 and last.strip() == "fits"
    assert "74.51 GiB" in first


def test_parameters_are_cut_where_copies_would_not_fit(capsys, config):
    words = ("plan", config, "--devices", 8, "--device-memory", "1.2GiB")
    first, *_, fits, hint = run(capsys, *words)[1].splitlines()
    assert fits.strip() == "fits"
    assert "fsdp 1 " not in first
    # What `auto` would not do by itself is to be asked for, and then it is taken.
    asked = hint.split("parallel: ")[-1]
    first, *_, fits = run(capsys, *words, "--parallel", asked)[1].splitlines()
    assert fits.strip() == "fits" and "fsdp 1 " not in first


def test_one_that_does_not_fit_says_what_would_mend_it(capsys, config):
    words = ("plan", config, "--device-memory", "3GiB")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "does not fit, by" in out and "the largest part: optimiser state" in out
    adapter = next(line for line in out.splitlines() if "adapter: {rank: 8}" in line)
    assert adapter.endswith(", fits")
    # What it says is so.
    again = run(capsys, *words, "--adapter.rank", 8)[1]
    assert again.splitlines()[-1].strip() == "fits"
    assert adapter.split(": ")[-1].split(",")[0] in again.splitlines()[0]


def test_a_base_in_int8_mends_what_an_adapter_leaves(capsys, config):
    words = ("plan", config, "--device-memory", "0.5GiB", "--adapter.rank", 8)
    out = run(capsys, *words)[1]
    said = next(line for line in out.splitlines() if "model.quantize: int8" in line)
    again = run(capsys, *words, "--model.quantize", "int8")[1]
    # What it says is so, and it is not said twice.
    assert said.split(": ")[-1].split(",")[0] in again.splitlines()[0]
    assert "model.quantize" not in again
    # Without an adapter it could not be had.
    assert "model.quantize" not in run(capsys, *words[:-2])[1]


def test_a_mesh_of_the_config_is_taken(capsys, config):
    words = ("plan", config, "--parallel", "{fsdp: 2, tensor: 2}")
    assert "mesh data 2 x fsdp 2 x tensor 2" in run(capsys, *words, "--devices", 8)[1]
    assert "is 4 devices, but --devices is 6" in refused(capsys, *words, "--devices", 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "0"], "--devices: is 0"),
        (["--device-memory", "much"], "--device-memory: is 'much'"),
        (["--device-memory", "0GiB"], "--device-memory"),
        (["--device-memory", "16XB"], "16GiB or 80GB"),
        (["--method.name", "dareu"], "method dareu: plan knows"),
        (["--method.beta", "-1"], "beta"),
    ],
)
def test_bad_sizes_give_one_line(capsys, config, words, said):
    assert said in refused(capsys, "plan", config, *words)


def test_the_quickstart_has_three_trainings(capsys):
    out = run(capsys, "plan")[1]
    starts = [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert starts == ["finetune", "grad_diff", "npo"]
