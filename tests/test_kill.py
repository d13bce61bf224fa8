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
    losses = {(line["model"], line["step"]): line["loss"] for line in lines}
    assert len(losses) == len(lines)  # no step is logged twice
    models = json.loads((folder / "summary.json").read_text())["models"]
    return (folder / "hf" / "model.safetensors").read_bytes(), losses, models


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    whole = start(config, tmp_path / "whole")
    assert whole.wait() == 0, whole.stdout.read().decode()

    folder = tmp_path / "cut" / "run"
    checkpoints = folder / "checkpoints"
    moments = {
        "in the middle of a training": lambda: (checkpoints / "target" / "4").exists(),
        "while a checkpoint is written": lambda: any(
            checkpoints.glob("retrained/*.orbax-checkpoint-tmp*")
        ),
        "between training and evaluation of the last model": lambda: (
            checkpoints / "npo" / "8"
        ).exists(),
    }
    for name, moment in moments.items():
        process = start(config, tmp_path / "cut")
        assert wait_for(moment, process), (name, process.stdout.read().decode())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "summary.json").exists()
    last = start(config, tmp_path / "cut")
    assert last.wait() == 0, last.stdout.read().decode()
    assert outcome(folder) == outcome(tmp_path / "whole" / "run")
