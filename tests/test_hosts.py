"""Several processes train as one, and a run goes on after they were told to leave, or killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxunlearn.errors import UserError
from jaxunlearn.training import hosts

COMMAND = [sys.executable, "-c", "from jaxunlearn.cli import main; raise SystemExit(main())"]
STEPS = 48


@pytest.fixture(scope="module")
def config(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    tree = {
        "data": {"people": 6, "forget_people": 2},
        "model": {"path": str(tiny_folder)},
        "method": {"name": "npo"},
        "adapter": {"rank": 4, "alpha": 8},
        "training": {"batch_size": 5, "learning_rate": 1e-3, "checkpoint_every": 6},
        "sampling": {"match_steps": STEPS},
        "evaluation": {"suite": "memory", "limit": 5, "max_new_tokens": 8},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def start(config, output, *, processes, devices, options=()):
    """The processes of a run; options are the same for all, or one tuple for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        own = options[number] if options and isinstance(options[0], tuple) else options
        words = ["run", str(config), "--output", str(output), *own]
        if processes > 1:
            words += ["--distributed", f"localhost:{port},{processes},{number}"]
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        started.append(
            subprocess.Popen(
                [*COMMAND, *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def ended(started):
    """Exit statuses and what was printed."""
    said = [process.communicate(timeout=400)[0] for process in started]
    return [process.returncode for process in started], said


def logged(output):
    path = output / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until_step(output, step, started):
    """Waits until a training has come so far, and not to its end."""
    for _ in range(4000):
        done = len(logged(output))
        assert done < STEPS and all(process.poll() is None for process in started)
        if done >= step:
            return
        time.sleep(0.05)
    raise AssertionError("it did not come so far")


def result(output):
    """Losses of all steps, and the adapter."""
    losses = [row["loss"] for row in sorted(logged(output), key=lambda row: row["step"])]
    return losses, load_file(output / "run" / "adapter" / "adapter_model.safetensors")


def assert_same(ours, theirs):
    (losses, tensors), (losses1, tensors1) = ours, theirs
    assert len(losses) == len(losses1) == STEPS
    np.testing.assert_allclose(losses, losses1, rtol=1e-5)
    for name, tensor in tensors1.items():
        distance = np.linalg.norm(tensors[name] - tensor) / np.linalg.norm(tensor)
        assert distance <= 1e-5, name


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """What one process with eight devices finds."""
    output = tmp_path_factory.mktemp("whole")
    statuses, said = ended(start(config, output, processes=1, devices=8))
    assert statuses == [0], said
    return result(output)


@pytest.mark.slow
def test_two_processes_train_as_one(config, whole, tmp_path):
    options = ("--parallel.fsdp", "2")
    statuses, said = ended(start(config, tmp_path, processes=2, devices=4, options=options))
    assert statuses == [0, 0], said
    assert "tokens/s" in said[0] and "tokens/s" not in said[1]
    assert_same(result(tmp_path), whole)
    # All that there is to be one of is there once.
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"summary.json", "report.html", "hf", "adapter", "checkpoints"} <= names
    assert not [path for path in tmp_path.rglob("*.tmp")]


@pytest.mark.slow
def test_asked_to_leave_and_resumed_in_one_process(config, whole, tmp_path):
    started = start(config, tmp_path, processes=2, devices=4)
    until_step(tmp_path, 6, started)
    started[1].send_signal(signal.SIGTERM)
    statuses, said = ended(started)
    assert statuses == [75, 75], said
    assert f"of {STEPS}; the same command goes on from there" in said[0]
    before = len(logged(tmp_path))
    assert before < STEPS
    statuses, said = ended(start(config, tmp_path, processes=1, devices=8))
    assert statuses == [0], said
    assert_same(result(tmp_path), whole)


@pytest.mark.slow
def test_killed_and_resumed_on_one_device(config, whole, tmp_path):
    started = start(config, tmp_path, processes=2, devices=4)
    until_step(tmp_path, 12, started)
    for process in started:
        process.kill()
    ended(started)
    statuses, said = ended(start(config, tmp_path, processes=1, devices=1))
    assert statuses == [0], said
    assert_same(result(tmp_path), whole)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == "8 x cpu, then 1 x cpu"


def test_no_library_takes_the_request_to_leave_for_its_own_fault(monkeypatch):
    monkeypatch.setattr(hosts, "_asked", threading.Event())
    before = signal.getsignal(signal.SIGTERM)
    try:
        hosts.listen()
        with pytest.raises(hosts.PreemptedError, match="goes on from there"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except Exception:
                pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_there_is_nothing_to_leave_at_the_end():
    script = (
        "import atexit, os, signal\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "from jaxunlearn.training import hosts\n"
        "hosts.listen()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_one_process_leaves_when_it_is_asked_to(config, whole, tmp_path):
    started = start(config, tmp_path, processes=1, devices=1)
    until_step(tmp_path, 1, started)
    started[0].send_signal(signal.SIGTERM)
    statuses, said = ended(started)
    assert statuses == [75], said
    assert "preempted after step" in said[0] and "Traceback" not in said[0]
    statuses, said = ended(start(config, tmp_path, processes=1, devices=1))
    assert statuses == [0], said
    assert_same(result(tmp_path), whole)


@pytest.mark.slow
def test_processes_with_different_configs_are_refused(config, tmp_path):
    options = (("--training.epochs", "2"), ("--training.epochs", "3"))
    started = start(config, tmp_path, processes=2, devices=1, options=options)
    statuses, said = ended(started)
    assert statuses == [2, 2], said
    assert "the config differs between the processes" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "where", ["localhost", "localhost,2,0", "localhost:1,2", "h:1,two,0", ":1,2,0", "h:x,2,0"]
)
def test_a_malformed_address_is_refused(where):
    with pytest.raises(UserError, match=r"is not HOST:PORT,N,I"):
        hosts.connect(where)


@pytest.mark.parametrize("port", [0, 70000])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(UserError, match=f"there is no port {port}"):
        hosts.connect(f"localhost:{port},2,0")


def test_processes_count_from_0():
    with pytest.raises(UserError, match="process 2 of 2; they count from 0"):
        hosts.connect("localhost:1,2,2")
