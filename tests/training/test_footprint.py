"""Predicted bytes of trainings next to placed arrays and the compiled program's own account."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.training.footprint import footprint
from tests.training.footprints import CONFIG, JOBS, job_of

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.fixture(scope="module")
def found():
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.footprints"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_parameters_and_optimiser_are_exact_and_the_peak_is_near(found, name):
    predicted, compiled = found[name]["predicted"], found[name]["compiled"]
    assert predicted["trainable"] == compiled["trainable"]
    assert predicted["optimizer"] == compiled["optimizer"]
    # Of a full training the start model is there too, but is no argument of the step.
    outside = predicted["model"] - compiled["frozen"]
    assert outside == (0 if "lora" in name else predicted["trainable"])
    peak = sum(predicted.values()) - outside
    assert abs(peak / compiled["step"] - 1) < 0.2


def test_cutting_parameters_cuts_what_is_held_of_them():
    job = job_of("grad_diff", None)
    whole = footprint(job, ONE)
    parameters = 12 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 704) + 2 * 8192 * 256
    norms = (12 * 2 + 1) * 256
    assert whole.trainable == 4 * (parameters + norms)
    cut = footprint(job, {"data": 1, "fsdp": 4, "tensor": 2})
    assert cut.trainable == cut.model == cut.gradients == 4 * (parameters // 8 + norms)
    # Two moments, and the step that they are of.
    assert cut.optimizer - 2 * cut.trainable in (4, 8)
    spread = footprint(job, {"data": 4, "fsdp": 1, "tensor": 1})
    assert spread.trainable == whole.trainable
    assert spread.activations < whole.activations / 3.9


def test_what_mends_memory_is_seen_to():
    job = job_of("npo", None)
    need = footprint(job, ONE)
    full = footprint(
        dataclasses.replace(job, config=dataclasses.replace(CONFIG, remat="full")), ONE
    )
    assert full.activations < need.activations / 10
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    assert footprint(dataclasses.replace(job, config=half), ONE).activations < need.activations
    parts = TrainingConfig(batch_size=32, micro_batches=8)
    less = footprint(dataclasses.replace(job, training=parts), ONE)
    assert less.activations < need.activations / 7 and less.gradients == 2 * need.gradients
    adapter = footprint(dataclasses.replace(job, adapter=AdapterConfig(rank=8)), ONE)
    assert adapter.optimizer < need.optimizer / 10
    assert adapter.model == need.model + 4  # the scale of the adapter


@pytest.mark.parametrize("method", ["kl", "whp", "gru", "rmu", "dpo"])
def test_every_kind_of_objective_can_be_measured(method):
    need = footprint(job_of(method, None, config=dataclasses.replace(CONFIG, num_layers=2)), ONE)
    models = {"kl": 1, "whp": 2}.get(method, 1)
    assert need.model == models * need.trainable
    assert need.activations > 0
