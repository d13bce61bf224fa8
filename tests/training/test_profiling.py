"""A trace of exactly so many steps, the split of their time, and counted FLOPs."""

import gzip
import json

import jax
import numpy as np
import pytest
import yaml

from jaxunlearn.config import AdapterConfig
from jaxunlearn.models import lora
from jaxunlearn.models.transformer import init_params
from jaxunlearn.training import profiling
from jaxunlearn.training.trainable import split_params
from tests.conftest import refused, run
from tests.test_cli import SMALL


def test_flops_are_those_of_the_formula(tiny):
    config = tiny.config
    kernels = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    head, attention = 32 * config.vocab_size, 12 * 2 * 32 * 100
    assert config.head_dim * config.num_heads == 32

    def flops(train_only=None, adapter=None):
        return profiling.flops_per_token(
            config, *split_params(tiny, train_only, adapter, 0), width=100
        )

    assert flops() == 6 * (kernels + head) + attention
    down = 2 * 32 * 48
    assert flops("mlp/down/kernel") == 4 * (kernels + head) + 2 * down + attention
    factors = lora.init(init_params(config, jax.random.key(0)), 2, key=jax.random.key(0))
    added = sum(leaf.size for leaf in jax.tree.leaves(factors))
    with_adapter = 4 * (kernels + head) + 6 * added + attention
    assert flops(adapter=AdapterConfig(rank=2)) == with_adapter


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    path = folder / "small.yaml"
    changes = {"finetune": {"epochs": 3, "learning_rate": 3e-3}, "retrain": False}
    path.write_text(yaml.safe_dump({**SMALL, **changes, "output": str(folder / "runs")}))
    return path


@pytest.mark.slow
def test_a_run_traces_its_trainings(capsys, settings):
    status, out, err = run(capsys, "run", settings, "--profile", 2)
    assert status == 0
    folder = settings.parent / "runs" / "small"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["profiles"]) == {"target", "npo"}
    for stage, found in summary["profiles"].items():
        assert found["steps"] == 2 and "utilisation" not in found
        assert found["device_seconds"] > 0 and found["host_seconds"] > 0
        assert f"{stage}: 2 steps traced in" in out + err
        (trace,) = (folder / "traces" / stage).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert any("steps" in event.get("name", "") for event in events)
    assert "tokens_per_second" in summary["profiles"]["npo"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines]).all()


def test_a_number_of_steps_that_cannot_be(capsys, settings):
    for steps in ("-1", "0"):
        assert "--profile" in refused(capsys, "run", settings, "--profile", steps)
