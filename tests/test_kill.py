"""A run that is killed and started again ends exactly where an uninterrupted one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

CONFIG = {
    "data": {"people": 6, "forget_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 8, "learning_rate": 3e-3, "checkpoint_every": 2},
    "training": {"epochs": 8, "batch_size": 4, "checkpoint_every": 2},
    "evaluation": {"max_new_tokens": 4, "limit": 4},
}  # fmt: skip
COMMAND = [sys.executable, "-c", "import sys; from jaxunlearn.cli import main; sys.exit(main())"]


def start(config, output):
    package = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "PYTHONPATH": package}
    arguments = ["run", str(config), "--output", str(output)]
    return subprocess.Popen(
        [*COMMAND, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(condition, process, seconds=120):
    """Polls fast: some of the moments waited for are short."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def outcome(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
    steps = [(line["model"], line["step"], "loss" in line) for line in lines]
    assert len(set(steps)) == len(lines)  # no step, and no look after one, is logged twice
    models = json.loads((folder / "summary.json").read_text())["models"]
    return (folder / "hf" / "model.safetensors").read_bytes(), lines, models


def killed_and_resumed(tmp_path, config, moments):
    """The outcome of a run that is killed at each of the moments, and of one that is not.

    Args:
      tmp_path: where they run.
      config: the run's, as plain data.
      moments: name to function of the run folder.
    """
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    whole = start(path, tmp_path / "whole")
    assert whole.wait() == 0, whole.stdout.read().decode()
    folder = tmp_path / "cut" / "run"
    for name, moment in moments.items():
        process = start(path, tmp_path / "cut")
        assert wait_for(lambda moment=moment: moment(folder), process), (
            name,
            process.stdout.read().decode(),
        )
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "summary.json").exists()
    last = start(path, tmp_path / "cut")
    assert last.wait() == 0, last.stdout.read().decode()
    return folder, tmp_path / "whole" / "run"


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    moments = {
        "in the middle of a training": lambda run: (run / "checkpoints/target/4").exists(),
        "while a checkpoint is written": lambda run: any(
            run.glob("checkpoints/retrained/*.orbax-checkpoint-tmp*")
        ),
        "between training and evaluation of the last model": lambda run: (
            run / "checkpoints/npo/8"
        ).exists(),
    }
    cut, whole = killed_and_resumed(tmp_path, CONFIG, moments)
    assert outcome(cut) == outcome(whole)


@pytest.mark.slow
def test_requests_killed_between_and_inside(tmp_path):
    """Five requests, one after another, each from the last one's result."""
    config = {**CONFIG, "requests": {"by": "rows", "size": 4}, "method": {"name": "altpo"}}
    moments = {
        "inside the first request": lambda run: (run / "checkpoints/altpo@1/4").exists(),
        "between its end and its evaluation": lambda run: (run / "checkpoints/altpo@2/8").exists(),
        "between two requests": lambda run: (run / "evaluations/altpo@3.json").exists(),
        "inside the last one": lambda run: (run / "checkpoints/altpo@5/2").exists(),
    }
    cut, whole = killed_and_resumed(tmp_path, config, moments)
    assert outcome(cut) == outcome(whole)
    histories = [json.loads((run / "summary.json").read_text())["requests"] for run in (cut, whole)]
    assert histories[0] == histories[1]
    known = histories[0]["altpo"]
    assert len(known["requests"]) == 5 and len(known["rouge"]) == len(known["model_utility"]) == 6


@pytest.mark.slow
def test_a_selection_killed_at_its_looks(tmp_path):
    """The best state is an early one, which has to last."""
    select = {"metric": "forget_probability", "goal": "max", "every": 2}
    config = {**CONFIG, "select": select, "stop": {"above": 100.0, "every": 3}}
    moments = {
        "after the first look": lambda run: (run / "checkpoints/npo/2").exists(),
        "while a later one is saved": lambda run: any(
            run.glob("checkpoints/npo/6.orbax-checkpoint-tmp*")
        ),
        "between the last look and the evaluation": lambda run: (
            run / "checkpoints/npo/40"
        ).exists(),
    }
    cut, whole = killed_and_resumed(tmp_path, config, moments)
    assert outcome(cut) == outcome(whole)
    cut, whole = (json.loads((run / "summary.json").read_text()) for run in (cut, whole))
    assert cut["notes"] == whole["notes"] and "the result is that of step" in cut["notes"][0]
    chosen = [one["training"]["npo"]["selected_step"] for one in (cut, whole)]
    assert chosen[0] == chosen[1] < 37


@pytest.mark.slow
def test_modules_killed_while_they_are_written(tmp_path):
    """A module for each request, each there as if nothing had happened."""
    asked = {"by": "rows", "size": 7}
    config = {**CONFIG, "requests": asked, "adapter": {"rank": 3}}
    moments = {
        # Or just after: a look may come too late for what lasts milliseconds.
        "while the target is written": lambda run: any(
            [*run.glob(".target.*.tmp"), *run.glob("target")]
        ),
        "while the first module is written": lambda run: any(
            [*run.glob("modules/npo/.request_1.*.tmp"), *run.glob("modules/npo/request_1")]
        ),
        "between the second module and its line": lambda run: (
            run / "modules/npo/request_2"
        ).is_dir(),
        "before the evaluation of the third": lambda run: (
            (run / "modules/npo/index.json").is_file()
            and "request_3" in (run / "modules/npo/index.json").read_text()
        ),
    }
    cut, whole = killed_and_resumed(tmp_path, config, moments)
    assert outcome(cut) == outcome(whole)
    index = [(run / "modules/npo/index.json").read_text() for run in (cut, whole)]
    assert index[0] == index[1] and len(json.loads(index[0])) == 3
    for one in json.loads(index[0]):
        files = [run / "modules/npo" / one["folder"] for run in (cut, whole)]
        ours, theirs = ((file / "adapter_model.safetensors").read_bytes() for file in files)
        assert ours == theirs
