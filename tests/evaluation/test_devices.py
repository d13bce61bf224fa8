"""An evaluation runs on all devices of the process and finds what one device finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("on_devices.py")
PROGRAMS = ["statistics", "decode", "mean hidden", "gradient norms"]


@pytest.fixture(scope="module")
def one(tiny_folder, tmp_path_factory):
    return found_on(1, tiny_folder, tmp_path_factory)


@pytest.fixture(scope="module")
def eight(tiny_folder, tmp_path_factory):
    return found_on(8, tiny_folder, tmp_path_factory)


def found_on(devices, folder, tmp_path_factory):
    """What the script finds in a process with that many devices."""
    out = tmp_path_factory.mktemp("devices") / "found.json"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), str(folder), str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert found["devices"] == devices
    return found


def assert_same(ours, theirs, where=""):
    """Equal texts, counts and keys; numbers to 1e-6.

    Only Min-K%++ of a single row divides float32 log-probabilities, equal to 1e-6, by a deviation.
    """
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for place, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(left, right, f"{where}/{place}")
    elif isinstance(ours, float):
        bound = 1e-5 if "/rows/" in where and "min_k_plus_plus" in where else 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound, err_msg=where)
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("bare", "tofu"),
        ("bare", "melu"),
        ("adapter", "melu"),
        ("bare", "greedy"),
        ("bare", "sampled"),
        ("bare", "filtered"),
    ],
)
def test_eight_devices_find_what_one_finds(one, eight, model, part):
    # Last batches are uneven: no size of a batch and no number of devices divides the rows.
    assert all(one["rows"] % parts for parts in (6, 8, 16))
    assert_same(eight[model]["numbers"][part], one[model]["numbers"][part], part)


@pytest.mark.parametrize("model", ["bare", "adapter"])
def test_gradient_norms_are_those_of_one_device(one, eight, model):
    ours, theirs = (np.array(f[model]["numbers"]["gradient norms"]) for f in (eight, one))
    assert np.isfinite(theirs).all() and len(theirs) == 11
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_what_is_compared_says_something(one):
    bare, adapter = (one[model]["numbers"] for model in ("bare", "adapter"))
    for found in (bare["tofu"], adapter["melu"]):
        texts = [text for texts in found["generations"].values() for text in texts]
        assert len(set(texts)) > len(texts) / 2
        assert found["metrics"]["privacy_min_k_plus_plus_auc"]["value"] is not None
    assert bare["melu"]["metrics"]["forget_similarity"]["value"] > 0
    assert bare["melu"]["generations"] != adapter["melu"]["generations"]
    assert len({str(bare[part]) for part in ("greedy", "sampled", "filtered")}) == 3


@pytest.mark.parametrize("model", ["bare", "adapter"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_batch_is_dealt_to_every_device(one, eight, model, program):
    assert one[model]["programs"][program] == [[[1, 1]], []]
    parts, talk = eight[model]["programs"][program]
    assert parts == [[8, 8]]
    # Rows never leave their device; decoding asks whether any row of any device still runs.
    assert talk == ([["pred[]", "all-reduce"]] if program == "decode" else [])


def test_copies_are_made_once_and_freed(one, eight):
    for found in (one, eight):
        assert found["copies left"] == 0
        assert found["moved"] is False


def test_batches_grow_to_fill_every_device(one, eight):
    assert one["batch sizes"] == [1, 6, 8, 13]
    assert eight["batch sizes"] == [8, 8, 8, 16]
    # Along the first axis of the mesh that the params lie on, which is of four devices.
    assert eight["sharded batch sizes"] == [4, 8, 8, 16]


def test_sharded_params_stay_where_they_are(one, eight):
    assert_same(eight["sharded"], one["adapter"]["numbers"]["melu"])
    assert_same(eight["explicit"], one["bare"]["numbers"]["greedy"])
    assert eight["sharded moved"] is False
    shard, (layers, rows, columns) = eight["kernel"]
    assert shard == [layers, rows // 4, columns // 2]
