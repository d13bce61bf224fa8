"""Several runs from one command, and what is said of them together."""

import json

import pytest
import yaml

from jaxunlearn import sweep
from jaxunlearn.cli import main
from jaxunlearn.errors import UserError

SMALL = {
    "data": {"people": 4, "forget_people": 1},
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2,
              "vocab_size": 300},
    "finetune": {"epochs": 1},
    "training": {"epochs": 1, "batch_size": 4},
    "evaluation": {"max_new_tokens": 2, "limit": 2},
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_a_run_for_each_combination(config):
    runs = sweep.expand(config, {"method.beta": [0.1, 1], "seed": [0, 1]}, {"name": "many"})
    assert [one.name for _, one in runs] == [
        "beta-0.1-seed-0", "beta-0.1-seed-1", "beta-1-seed-0", "beta-1-seed-1",
    ]  # fmt: skip
    assert {one.output for _, one in runs} == {"runs/many"}
    assert [(one.method.hyper["beta"], one.seed) for _, one in runs] == [
        (0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "nothing to vary"),
        ({"seed": [0, 0]}, "--grid seed"),
        ({"seed": []}, "--grid seed"),
        ({"seeds": [0, 1]}, "unknown key seeds"),
        ({"training.epochs": [1, "many"]}, "training.epochs"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(config, grid, words):
    with pytest.raises(UserError, match=words):
        sweep.expand(config, grid, {})
    assert not (config.parent / "runs").exists()


def summary(seed, value, spread=None):
    entry = {"value": value, "n": 7, "ci": spread}
    training = {"npo": {"steps": 3, "tokens_per_second": 10, "selected_step": seed}}
    return {"seed": seed}, {"models": {"npo": {"rouge": entry}}, "training": training, "config": {}}


def test_means_over_seeds_by_hand():
    told = sweep.over_seeds("s", [summary(0, 0.1), summary(1, 0.4), summary(2, None)])
    entry = told["models"]["npo"]["rouge"]
    assert entry["value"] == pytest.approx(0.25)
    assert (entry["n"], entry["seeds"], told["seeds"]) == (7, 2, ["0", "1", "2"])
    assert entry["ci"] == [0.1, 0.4] and entry["sd"] == pytest.approx(0.3 / 2**0.5)
    assert told["training"]["npo"] == {"steps": 3, "tokens_per_second": 10}
    assert "3 runs: means over seeds 0, 1, 2" in told["notes"][0]


def test_other_settings_stay_apart():
    done = [
        ({"seed": seed, "method.beta": beta}, summary(seed, beta + seed)[1])
        for beta in (1, 5)
        for seed in (0, 1)
    ]
    models = sweep.over_seeds("s", done)["models"]
    assert {name: m["rouge"]["value"] for name, m in models.items()} == {
        "npo beta-1": 1.5, "npo beta-5": 5.5,
    }  # fmt: skip


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(config, capsys):
    """The second rate sends every weight out of bounds."""
    command = ["sweep", str(config), "--grid", "training.learning_rate=1e-4,1e30"]
    assert main([*command, "--training.epochs", "4"]) == 2
    out, err = capsys.readouterr()
    assert "1 of 2 runs failed" in err and "learning_rate-1e30: npo" in err
    folder = config.parent / "runs" / "small"
    assert (folder / "report.html").is_file() and (folder / "comparison.html").is_file()
    for name in ("report", "comparison"):
        assert (folder / f"{name}.md").is_file() and (folder / f"{name}.csv").is_file()
    (label,) = [name for name in json.loads((folder / "sweep.json").read_text())["models"]
                if name.startswith("npo")]  # fmt: skip
    assert label == "npo learning_rate-1e-4"
    kept = json.loads((folder / "learning_rate-1e-4" / "summary.json").read_text())
    assert "npo learning_rate-1e-4" in out and kept["models"]["npo"]
