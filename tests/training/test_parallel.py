"""Every layout of the devices trains what one device trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxunlearn.config import TrainingConfig
from jaxunlearn.config_parallel import MeshConfig
from jaxunlearn.errors import UserError
from jaxunlearn.training.loop import check_layout
from jaxunlearn.training.optimizers import OPTIMIZERS
from jaxunlearn.training.parallel import ONE_DEVICE, Layout, layout_of, partition

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
SCRIPT = Path(__file__).with_name("on_devices.py")
METHODS = ["grad_diff", "npo", "rmu", "lora npo"]
LAYOUTS = ["data", "fsdp", "tensor", "mixed", "pmap"]


@pytest.fixture(scope="module")
def eight():
    """What the script finds in a process with eight devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["devices"] == 8
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_train_what_one_does(eight, method, layout):
    losses, tensors = eight["distances"][f"{method}, {layout}"]
    assert losses <= 1e-5
    assert tensors <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "npo in parts, mixed",
        "gru in parts, data",
        "gru in parts, pmap",
        "kl, one layer, mixed",
        "muon, fsdp",
        "sophia, data",
        "lora npo beside int8, mixed",
    ],
)
def test_so_do_other_steps(eight, case):
    losses, tensors = eight["distances"][case]
    assert losses <= 1e-5
    assert tensors <= 1e-5


@pytest.mark.slow
def test_there_was_something_to_train(eight):
    assert all(eight["moved"][name] > 1e-3 for name in ("grad_diff", "npo"))


@pytest.mark.slow
def test_devices_hold_their_share(eight):
    kernel = "layers/mlp/up/kernel"
    whole = {"data": 1, "fsdp": 1 / 8, "tensor": 1 / 8, "mixed": 1 / 4, "pmap": 1}
    found = {name: eight["shares"][f"grad_diff, {name}"] for name in LAYOUTS}
    assert {name: shares[kernel] for name, shares in found.items()} == whole
    assert found["mixed"]["embed/embedding"] == 1 / 4
    assert found["fsdp"]["final_norm/scale"] == 1
    int8 = eight["shares"]["lora npo beside int8, mixed"]
    assert (int8[f"{kernel}/values"], int8[f"{kernel}/scale"]) == (1 / 4, 1 / 2)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/embed/embedding", (64, 32), P("tensor", "fsdp")),
        ("params/layers/attention/q/kernel", (2, 32, 32), P(None, "fsdp", "tensor")),
        ("lora/layers/mlp/down/a", (2, 48, 4), P(None, "tensor", None)),
        ("params/layers/mlp/up/kernel/values", (2, 32, 48), P(None, "fsdp", "tensor")),
        ("params/layers/mlp/up/kernel/scale", (2, 1, 48), P(None, None, "tensor")),
        ("params/layers/mlp/down/kernel/values", (2, 48, 32), P(None, "tensor", "fsdp")),
        ("params/layers/mlp/down/kernel/scale", (2, 1, 32), P(None, None, "fsdp")),
        ("opt_state/mu/params/layers/mlp/down/kernel", (2, 48, 32), P(None, "tensor", "fsdp")),
        ("layers/attention/q_norm/scale", (2, 8), P(None, None)),
        ("forget/tokens", (9, 32), P(None, None)),
        ("step", (), P()),
        ("layers/params/layers/mlp/up/kernel", (3,), P()),
        # An axis that two does not divide is not cut.
        ("params/embed/embedding", (63, 32), P(None, "fsdp")),
    ],
)
def test_partition(path, shape, expected):
    assert partition(path, shape, SIZES) == expected


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ValueError, match="layers/gate/weights: no rule"):
        partition("layers/gate/weights", (2, 2), SIZES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rules_are_about_every_state(tiny, optimizer):
    tree = {"params": dict(tiny.params)}
    state = jax.eval_shape(OPTIMIZERS[optimizer].init, tree)
    layout = Layout(jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor")))
    specs = jax.tree.leaves(layout.shardings(state))
    assert len(specs) == len(jax.tree.leaves(state))


def test_one_device_is_used_as_it_is():
    assert layout_of("auto") == layout_of("jit") == ONE_DEVICE
    tree = {"params": jnp.ones((2, 3))}
    placed = ONE_DEVICE.place(tree)["params"]
    assert placed.unsafe_buffer_pointer() == tree["params"].unsafe_buffer_pointer()
    # Bound to the device, as the results of a step are: else the second dispatch compiles anew.
    assert placed.committed and not tree["params"].committed


def test_under_pmap_a_program_is_traced_once():
    """By all layouts that are equal; each device's rows are a block of the last axis."""
    traced = []

    def add(spec, total, rows, by):
        traced.append(rows.shape)
        return total + by * rows.sum()

    program = jax.jit(add, static_argnames="spec", donate_argnames="total")
    for by in (1.0, 2.0):
        rows = jnp.arange(6.0).reshape(3, 2)
        found = layout_of("pmap").run(program, "x", (jnp.zeros(()),), rows, (jnp.float32(by),))
        assert float(found) == 15 * by
    assert traced == [(3, 2)]


def test_a_mesh_of_another_size_is_refused():
    expected = r"parallel: data 1 x fsdp 4 x tensor 2 is 8 devices, but there are 1 \(CPU\)"
    with pytest.raises(UserError, match=expected):
        layout_of(MeshConfig(fsdp=4, tensor=2))


def test_estimates_need_a_whole_batch():
    sophia = TrainingConfig(optimizer="sophia", micro_batches=2)
    check_layout(sophia, ONE_DEVICE)

    class Eight(Layout):
        shards = 8

    with pytest.raises(UserError, match=r"micro_batches: on several devices sophia needs 1"):
        check_layout(sophia, Eight())
    with pytest.raises(UserError, match=r"sophia looks at a whole batch"):
        check_layout(sophia, Eight(mapped=True))
