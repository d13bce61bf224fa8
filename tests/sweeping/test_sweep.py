"""Several runs from one command, by one process or by several."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxunlearn import experiment
from jaxunlearn.cli import main
from jaxunlearn.errors import UserError
from jaxunlearn.sweeping import grouped, shared
from jaxunlearn.sweeping.running import run
from jaxunlearn.sweeping.settings import expand
from jaxunlearn.training.step import steps_in_jit
from jaxunlearn.training.together import run_steps_together

SMALL = {
    "data": {"people": 4, "forget_people": 1},
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2,
              "vocab_size": 300},
    "finetune": {"epochs": 1},
    "adapter": {"rank": 2, "alpha": 4},
    "training": {"epochs": 1, "batch_size": 4},
    "evaluation": {"max_new_tokens": 2, "limit": 2},
}  # fmt: skip
GIVEN = {
    "finetune": None,
    "model": {"path": "folder"},
    "data": {"format": "jsonl", "forget": "forget.jsonl", "retain": "retain.jsonl"},
}
COMMAND = [sys.executable, "-c", "import sys; from jaxunlearn.cli import main; sys.exit(main())"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def sweep(config, *options):
    return main(["sweep", str(config), *options])


def start(config, output, *options):
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [*COMMAND, "sweep", str(config), "--output", str(output), *options]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def steps_of(folder):
    """(model, step) of all logged lines."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(line["model"], line["step"]) for line in map(json.loads, lines)]


def table(output):
    return json.loads((output / "small" / "sweep.json").read_text())


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(config, capsys):
    """The second rate sends every weight out of bounds."""
    options = ["--grid", "training.learning_rate=1e-4,1e38", "--training.epochs", "4"]
    assert sweep(config, *options) == 2
    out, err = capsys.readouterr()
    assert "1 of 2 runs failed" in err and "learning_rate-1e38: npo" in err
    folder = config.parent / "runs" / "small"
    for name in ("report", "comparison"):
        assert all((folder / f"{name}.{kind}").is_file() for kind in ("html", "md", "csv"))
    told = json.loads((folder / "sweep.json").read_text())
    assert list(told["models"]) == ["target", "retrained", "npo learning_rate-1e-4"]
    assert "npo learning_rate-1e-4" in out and "learning_rate-1e38: npo" in told["failed"][0]
    # Once more: it is known, and neither is done again.
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*/summary.json"))]
    assert sweep(config, *options) == 2
    assert "1 of 2 runs failed" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*/summary.json"))] == times


@pytest.mark.slow
def test_what_comes_before_unlearning_is_made_once(config, monkeypatch):
    """A run that takes it from the others ends as one that makes it itself."""
    made = []
    prepare = experiment.prepare
    monkeypatch.setattr(experiment, "prepare", lambda one: (made.append(one.name), prepare(one)))
    runs = expand(config, {"method.beta": [0.1, 1.0], "finetune.epochs": [1, 2]}, {})
    run(runs)
    assert made == ["beta-0.1-epochs-1", "beta-0.1-epochs-2"]
    whole = expand(config, {"method.beta": [1.0], "finetune.epochs": [2]}, {"output": "whole"})
    experiment.run(whole[0][1])
    taken, own = Path("runs/small/beta-1.0-epochs-2"), Path("whole/small/beta-1.0-epochs-2")
    assert steps_of(taken) == steps_of(own)
    for name in ("hf", "target"):
        weights = [(folder / name / "model.safetensors").read_bytes() for folder in (taken, own)]
        assert weights[0] == weights[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (taken, own)]
    assert summaries[0]["models"] == summaries[1]["models"]
    assert summaries[0]["timing"].keys() == summaries[1]["timing"].keys()
    # It stands for itself: without what is shared the same run has nothing to do but its report.
    (taken / "summary.json").unlink()
    (taken / "evaluations" / "npo.json").unlink()
    for path in sorted(Path("runs/small/shared").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    monkeypatch.setattr("jaxunlearn.training.loop._advance", pytest.fail)
    again = experiment.run(runs[3][1])
    assert again["models"] == summaries[1]["models"]


def test_what_decides_the_models_before_unlearning(config):
    def prints(grid, **overrides):
        return len({shared.fingerprint(one) for _, one in expand(config, grid, overrides)})

    later = {"method.beta": [1, 2], "training.epochs": [1, 2], "adapter.rank": [1, 2],
             "sampling.name": ["random", "melu"]}  # fmt: skip
    assert prints(later) == 1
    assert prints({"seed": [0, 1]}) == 2
    for key in ("data.people", "finetune.epochs", "evaluation.limit", "model.intermediate_size"):
        assert prints({key: [4, 5]}) == 2, key
    assert prints({"retrain": [True, False]}) == 2
    assert prints({"seed": [0, 1]}, **GIVEN) == 1
    assert prints({"seed": [0, 1]}, **{**GIVEN, "data": {}}) == 2


@pytest.mark.slow
def test_side_by_side_as_in_sequence(config, capsys):
    """Rates, betas and (with one base model) seeds; the one that diverges is alone in that."""
    grid = ["--grid", "training.learning_rate=1e-3,1e38", "--grid", "method.beta=0.1,1"]
    grid += ["--training.epochs", "3"]
    assert sweep(config, *grid, "--output", "alone") == 2
    run_steps_together.clear_cache()
    assert sweep(config, *grid, "--output", "together", "--vectorize", "4") == 2
    out, err = capsys.readouterr()
    assert "training 4 runs side by side" in out and "2 of 4 runs failed" in err
    assert "npo x 4" in err and "preparing" not in err  # no bar of what was done before
    assert run_steps_together._cache_size() == 1
    told = [table(Path(name)) for name in ("alone", "together")]
    assert told[0]["failed"] == told[1]["failed"] and len(told[0]["failed"]) == 2
    assert told[0]["models"].keys() == told[1]["models"].keys()
    for beta in ("0.1", "1"):
        runs = [
            Path(name, f"small/learning_rate-1e-3-beta-{beta}") for name in ("alone", "together")
        ]
        assert steps_of(runs[0]) == steps_of(runs[1])
        adapters = [load_file(one / "adapter" / "adapter_model.safetensors") for one in runs]
        norm = np.sqrt(sum((leaf**2).sum() for leaf in adapters[0].values()))
        apart = sum(((leaf - adapters[1][name]) ** 2).sum() for name, leaf in adapters[0].items())
        assert np.sqrt(apart) < 1e-5 * norm


def test_which_runs_can_be_trained_side_by_side(config):
    def why(**changes):
        ((_, one),) = expand(config, {"seed": [0]}, changes)
        return grouped.why_alone(one)

    assert why() is None
    assert "not an adapter" in why(adapter=None)
    assert "section requests" in why(requests={"size": 1})
    assert "section stop" in why(stop={"above": 3.0})
    assert "section select" in why(select={"metric": "forget_rouge", "goal": "min"})
    assert "section attribution" in why(**{"method.name": "dareu"})
    assert "reveal_release does not" in why(baselines=[{"name": "reveal_release"}])
    assert "second model" in why(**{"method.name": "whp"})

    def groups(*, given=None, **grid):
        return len({grouped.alike(one) for _, one in expand(config, grid, given or {})})

    numbers = {"training.learning_rate": [1e-4, 1e-3], "training.warmup": [0.1, 0.2],
               "method.beta": [0.1, 1], "method.training": [{}, {"weight_decay": 0.0}]}  # fmt: skip
    assert groups(**numbers) == 1
    for key, values in {"adapter.rank": [1, 2], "training.decay": ["linear", "cosine"],
                        "method.name": ["npo", "simnpo"], "seed": [0, 1]}.items():  # fmt: skip
        assert groups(**{key: values}) == 2, key
    assert groups(seed=[0, 1], given=GIVEN) == 1


@pytest.mark.slow
def test_what_cannot_be_side_by_side_is_said_in_one_line(config, capsys):
    options = ["--grid", "seed=0,1", "--vectorize", "2"]
    config.write_text(yaml.safe_dump({k: v for k, v in SMALL.items() if k != "adapter"}))
    assert sweep(config, *options) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--vectorize" in line]
    assert line.endswith("2 because it trains parameters of the model itself, not an adapter")


@pytest.mark.slow
def test_one_compile_for_rates_betas_and_seeds(config):
    """32 runs on the quickstart's people; each seed has other people, and so another model."""
    model = {**SMALL["model"], "vocab_size": 1024}
    config.write_text(yaml.safe_dump({**SMALL, "data": {}, "model": model}))
    steps_in_jit.clear_cache()
    options = ["--search", "training.learning_rate=1e-4:1e-2:log"]
    options += ["--search", "method.beta=0.1:1.0"]
    assert sweep(config, *options, "--samples", "8", "--grid", "seed=0,1,2,3") == 0
    assert steps_in_jit._cache_size() == 2  # of fine-tuning and of unlearning
    assert len(table(Path("runs"))["models"]) == 2 + 8
    assert len(list(Path("runs/small").glob("*/summary.json"))) == 32


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", ["1", "2"])
def test_two_processes_share_the_runs(config, tmp_path, vectorize):
    options = ["--grid", "method.beta=0.1,1", "--grid", "seed=0,1", "--vectorize", vectorize]
    processes = [start(config, tmp_path / "both", *options) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    done = [line for text in texts for line in text.splitlines() if line.startswith("run ")]
    assert len(done) == len(set(done)) == 4
    # The same table at the end of both, but for what they said before.
    ends = [text[text.index("forget      model") :] for text in texts]
    assert ends[0] == ends[1]
    assert sweep(config, *options, "--output", "one") == 0
    assert table(tmp_path / "both")["models"] == table(Path("one"))["models"]


@pytest.mark.slow
def test_two_processes_agree_on_who_goes_on(config, tmp_path):
    """Of two settings with two seeds each, whose seeds go on together."""
    options = [
        "--grid",
        "training.learning_rate=1e-4,0.1",
        "--grid",
        "seed=0,1",
        "--vectorize",
        "2",
    ]
    options += ["--halving", "2", "--halving-by", "forget_probability", "--training.epochs", "2"]
    processes = [start(config, tmp_path / "both", *options) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    done = [line for text in texts for line in text.splitlines() if line.startswith("run ")]
    assert len(done) == len(set(done)) == 6
    ends = [text[text.index("forget      model") :] for text in texts]
    assert ends[0] == ends[1]
    assert sweep(config, *options, "--output", "one") == 0
    told = [table(output) for output in (tmp_path / "both", Path("one"))]
    assert told[0]["models"] == told[1]["models"] and told[0]["seeds"] == ["0", "1"]
    assert told[0]["halving"] == told[1]["halving"]


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", ["1", "2"])
def test_the_work_of_a_killed_process_is_taken_over(config, tmp_path, vectorize):
    """In the middle of an unlearning; the other process waits for nothing."""
    options = ["--grid", "method.beta=0.1,1", "--vectorize", vectorize]
    options += ["--training.epochs", "16", "--training.checkpoint_every", "2"]
    folder = tmp_path / "cut" / "small"
    first = start(config, tmp_path / "cut", *options)
    end = time.monotonic() + 300
    while not (folder / "beta-0.1/checkpoints/npo/4").exists() and time.monotonic() < end:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and not (folder / "sweep.json").exists()
    second = start(config, tmp_path / "cut", *options)
    text = second.communicate()[0]
    assert second.returncode == 0, text
    assert "waiting" not in text
    assert sweep(config, *options, "--output", "whole") == 0
    assert table(tmp_path / "cut")["models"] == table(Path("whole"))["models"]
    for name in ("beta-0.1", "beta-1"):
        assert steps_of(folder / name) == steps_of(Path("whole/small") / name)


def test_bad_options_are_refused(config, capsys):
    for options, words in {
        ("--search", "method.beta"): "write KEY=LOW:HIGH",
        ("--search", "method.beta=0:1", "--search", "method.beta=0:2"): "given twice",
        ("--grid", "seed=0,1", "--vectorize", "0"): "--vectorize",
        ("--search", "method.beta=0.1:1.0", "--samples", "0"): "--samples",
        ("--grid", "seed=0,1", "--samples", "16"): "--samples: is for --search",
        ("--grid", "seed=0,1", "--sampler", "sobol"): "--sampler: is for --search",
        ("--grid", "seed=0,1", "--halving-by", "forget_rouge"): "--halving-by: is for --halving",
        ("--grid", "parallel={fsdp: 2, tensor: 0},jit"): "tensor",
    }.items():
        assert sweep(config, *options) == 2
        assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_sweep_of_nothing_but_failures(config):
    runs = expand(config, {"method.layer": [7, 8]}, {"method.name": "rmu"})
    told = []
    with pytest.raises(UserError, match=r"every run failed; layer-7: method rmu: layer is 7"):
        run(runs, say=told.append)
    assert sum(line.startswith("failed") for line in told) == 2
