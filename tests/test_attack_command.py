"""The command that attacks runs, on whole ones."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml

import jaxunlearn as ju
from jaxunlearn import cli, config
from jaxunlearn.attacks import models, running

SMALL = {
    "data": {"people": 6, "forget_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 2, "learning_rate": 3e-3},
    "training": {"epochs": 2, "batch_size": 10},
    "baselines": [{"name": "grad_diff"}],
    "evaluation": {"max_new_tokens": 4},
}  # fmt: skip


def test_only_a_finished_run_is_attacked(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    for place in (tmp_path, tmp_path / "gone"):
        assert cli.main(["attack", str(place)]) == 2
        assert f"error: {place}: not a finished run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with a baseline; tests copy it before they attack it."""
    place = tmp_path_factory.mktemp("runs")
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(place)}))
    assert cli.main(["run", str(path)]) == 0
    return place / "small"


@pytest.fixture
def run_folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "small"))


def attack(*words):
    """With little work."""
    return cli.main(["attack", *map(str, words), "--steps", "2", "--rows", "5", "--samples", "1"])


def read(folder):
    return json.loads((folder / "attacks.json").read_text())


@pytest.mark.slow
def test_the_command_from_start_to_end(run_folder, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}
    assert cli.main(["attack", str(run_folder), "--rows", "99999"]) == 2
    assert "--rows: is 99999" in capsys.readouterr().err
    assert not (run_folder / "attacks.json").exists()

    assert attack(run_folder) == 0
    out = capsys.readouterr().out
    assert "nf4" in out and "HM" in out and "layer 2" in out
    result = read(run_folder)
    assert [name for name in result if name in running.ATTACKS] == list(running.ATTACKS)
    for name in running.ATTACKS:
        known = ["target"] if name in running.INSIDE else []
        assert list(result[name]) == [*known, "retrained", "npo"]
    n = result["settings"]["forget_rows"]
    assert result["before"]["npo"]["probability"]["n"] == n
    assert all(0 <= v["value"] <= 1 for v in result["aggregates"]["npo"]["probability"].values())
    last, now = result["lens"]["target"][-1], result["before"]["target"]
    assert math.isclose(last["probability"]["value"], now["probability"]["value"], rel_tol=1e-6)
    page = (run_folder / "attacks.html").read_text()
    assert "quantisation: nf4" in page and "Layer by layer" in page and "src=" not in page
    # The retrained model is the run's own: it was restored, and nothing of the run was changed.
    assert {p: p.read_bytes() for p in before} == before

    # The run may have been moved since; what was found is not looked for again.
    moved = run_folder.rename(tmp_path / "elsewhere")
    time = (moved / "attacks.json").stat().st_mtime_ns
    assert attack(moved, "--only", "quantisation") == 0
    assert "attacked already" in capsys.readouterr().out
    assert (moved / "attacks.json").stat().st_mtime_ns == time


@pytest.mark.slow
def test_only_adds_to_what_was_made_with_the_same_settings(run_folder, capsys):
    assert attack(run_folder, "--only", "lens") == 0
    first = read(run_folder)
    assert attack(run_folder, "--only", "quantisation", "--only", "lens") == 0
    both = read(run_folder)
    assert list(both["quantisation"]) == ["retrained", "npo"]
    assert (both["lens"], both["before"]) == (first["lens"], first["before"])
    names = [name for name in both if name in running.ATTACKS]
    assert names == ["quantisation", "lens"]  # in the order of reports
    capsys.readouterr()

    # Other settings would lose what is there; of an older run it means nothing.
    assert attack(run_folder, "--only", "lens", "--method", "grad_diff") == 2
    told = capsys.readouterr().err
    assert "made with methods ['npo'], now methods ['grad_diff']; move it away" in told
    assert read(run_folder) == both
    later = (run_folder / "attacks.json").stat().st_mtime_ns + 10**9
    os.utime(run_folder / "summary.json", ns=(later, later))
    assert attack(run_folder, "--only", "probe", "--method", "grad_diff") == 0
    assert "older than the run" in capsys.readouterr().out
    assert "lens" not in read(run_folder)

    (run_folder / "attacks.json").write_text("[]")
    os.utime(run_folder / "attacks.json", ns=(later, later))
    assert attack(run_folder, "--only", "lens") == 2
    assert "attacks.json: damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_baselines_come_from_their_checkpoints(run_folder, capsys):
    """The numbers of the run itself come back."""
    words = ["--only", "lens", "--method", "grad_diff", "--method", "npo"]
    shutil.rmtree(run_folder / "checkpoints" / "retrained")
    stages = {p.name for p in (run_folder / "checkpoints").iterdir()}
    assert attack(run_folder, *words) == 0
    # The retrained model was trained again, but not into the run.
    assert {p.name for p in (run_folder / "checkpoints").iterdir()} == stages
    models = json.loads((run_folder / "summary.json").read_text())["models"]
    before = read(run_folder)["before"]
    assert list(before) == list(models) == ["target", "retrained", "grad_diff", "npo"]
    for label, one in before.items():
        known = models[label]["forget_probability"]
        assert known["n"] == one["probability"]["n"]
        assert math.isclose(known["value"], one["probability"]["value"], rel_tol=1e-4), label
    capsys.readouterr()

    assert attack(run_folder, "--method", "magic") == 2
    assert f"{run_folder} has no 'magic'; it has grad_diff, npo" in capsys.readouterr().err
    for gone in ("grad_diff", "target"):
        shutil.rmtree(run_folder / "checkpoints" / gone)
        assert attack(run_folder, *words) == 2
        told = capsys.readouterr().err
        assert f"checkpoints/{gone}: is not there any more" in told and "--name NEW" in told
    # The main one is in hf; without the target's checkpoint there is no upper bound.
    (run_folder / "attacks.json").unlink()
    assert attack(run_folder, "--only", "lens") == 0
    assert list(read(run_folder)["lens"]) == ["retrained", "npo"]


@pytest.mark.slow
def test_several_runs_are_attacked_in_turn(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name)
    only = ["--only", "lens", "--only", "quantisation"]
    assert attack("a", "b", *only, "--output", "b/all.html") == 2
    assert "b/all.html is in the folder of one of the runs" in capsys.readouterr().err
    assert attack("a", *only, "--output", "all.html") == 2
    assert "--output: is for several runs" in capsys.readouterr().err
    assert attack("a", "b", *only, "--output", "all") == 2
    assert "must end in .html" in capsys.readouterr().err
    assert attack("a", "nothing", *only) == 2
    assert not Path("a/attacks.json").exists()

    capsys.readouterr()
    assert attack("a", *only) == 0
    assert attack("a", "b", "a", *only) == 0
    out = capsys.readouterr().out
    assert "a: attacked already" in out and "b: attacked already" not in out
    both, one = read(tmp_path), read(tmp_path / "b")
    assert both["runs"] == ["a", "b"]
    # The same run twice: means and both ends are its own numbers.
    ours, theirs = (r["aggregates"]["npo"]["probability"]["Q"] for r in (both, one))
    assert ours["value"] == theirs["value"] and ours["ci"] == [theirs["value"]] * 2
    assert "least and greatest value of the seeds" in Path("attacks.html").read_text()


def test_models_after_requests(tmp_path, monkeypatch):
    """The checkpoints that a label needs are those of all its requests."""
    experiment = dataclasses.replace(
        config.Experiment(), finetune=None, baselines=(config.MethodConfig("grad_diff"),),
        requests=config.RequestsConfig(),
    )  # fmt: skip
    monkeypatch.setattr(models.requests, "split", lambda data, asked: [None, None])
    (tmp_path / "checkpoints" / "grad_diff@1" / "5").mkdir(parents=True)
    with pytest.raises(ju.UserError, match="grad_diff@2: is not there"):
        models.check(tmp_path, experiment, None, ["grad_diff"])
    (tmp_path / "checkpoints" / "grad_diff@2" / "5").mkdir(parents=True)
    models.check(tmp_path, experiment, None, ["grad_diff"])


@pytest.mark.slow
def test_a_baseline_after_requests_is_the_one_after_the_last(tmp_path):
    path = tmp_path / "asked.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path), "requests": {}}))
    assert cli.main(["run", str(path)]) == 0
    folder = tmp_path / "asked"
    assert attack(folder, "--only", "lens", "--method", "grad_diff") == 0
    known = json.loads((folder / "summary.json").read_text())["models"]["grad_diff"]
    found = read(folder)["lens"]["grad_diff"][-1]["probability"]
    assert found["n"] == known["forget_probability"]["n"]
    assert math.isclose(found["value"], known["forget_probability"]["value"], rel_tol=1e-4)
