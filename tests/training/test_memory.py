"""What a step holds in memory, by the compiled program's own account."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxunlearn.config import MethodConfig
from jaxunlearn.methods import registry
from jaxunlearn.models import head, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.training.parallel import AXES, ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.step import StepSpec, init_state, steps_in_jit
from tests.training.test_step import NUMBERS

VOCABULARY = 131072
CONFIG = DecoderConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=512,
    tie_embeddings=True,
)


def plain_log_probs(hidden, kernel, targets):
    log_softmax = jax.nn.log_softmax(head.head_logits(hidden, kernel))
    return jnp.take_along_axis(log_softmax, targets[..., None], axis=-1)[..., 0]


def with_gradient(log_probs):
    return jax.jit(
        jax.value_and_grad(
            lambda hidden, kernel, targets, weights: jnp.sum(
                weights * log_probs(hidden, kernel, targets)
            ),
            (0, 1),
        )
    )


def head_arguments(batch, time, size=32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (batch, time, size))
    kernel = jax.random.normal(keys[1], (size, VOCABULARY)) / size**0.5
    targets = jax.random.randint(keys[2], (batch, time), 0, VOCABULARY)
    return hidden, kernel, targets, jax.random.normal(keys[3], (batch, time))


def temporary(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def test_log_probs_of_a_large_vocabulary_take_a_quarter_of_the_memory():
    shapes = jax.eval_shape(lambda: head_arguments(16, 512, 256))
    sizes = [
        temporary(with_gradient(log_probs).lower(*shapes).compile())
        for log_probs in (plain_log_probs, head.head_log_probs)
    ]
    assert sizes[0] > 16 * 512 * VOCABULARY * 4
    assert sizes[1] <= sizes[0] / 4


def test_log_probs_of_a_large_vocabulary_in_parts_are_the_plain_ones(monkeypatch):
    # 13 positions do not divide into parts of 3.
    arguments = head_arguments(2, 13)
    monkeypatch.setattr(head, "MOST_LOGITS", 2 * 3 * VOCABULARY)
    compiled = with_gradient(head.head_log_probs).lower(*arguments).compile()
    assert "[6,131072]" in compiled.as_text() and "[26,131072]" not in compiled.as_text()
    value, grads = compiled(*arguments)
    expected, plain_grads = with_gradient(plain_log_probs)(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(grads, plain_grads, rtol=1e-6, atol=1e-6)


def compiled_step(config, method, *, batch=8, time=64, rows=32, layout=ONE_DEVICE):
    """The steps of full training, compiled from shapes alone."""
    objective, hyper = registry.objective(MethodConfig(name=method))
    spec = StepSpec(config, objective, layout=layout)
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    state = jax.eval_shape(lambda p: init_state({"params": p}), params)
    state = jax.tree.map(
        lambda x, home: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home),
        state,
        layout.shardings(state),
    )
    ids = jax.ShapeDtypeStruct((rows, time), jnp.int32)
    table = Rows(ids, jax.ShapeDtypeStruct(ids.shape, bool))
    reference = dataclasses.replace(
        table, reference_log_probs=jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    )
    tables = {
        group: reference if (method, group) == ("npo", "forget") else table
        for group in objective.groups
    }
    schedule = {group: jax.ShapeDtypeStruct((4, batch), jnp.int32) for group in objective.groups}
    numbers = {k: jnp.float32(v) for k, v in {**hyper, **NUMBERS}.items()} | {"optimizer": {}}
    count = jnp.int32(4)
    with layout.known():
        step = steps_in_jit.lower(spec, state, {"params": {}}, tables, schedule, count, numbers)
    return step.compile()


def largest_array(compiled):
    """Bytes of the largest array that any instruction of the program makes."""
    sizes = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
    return max(
        sizes[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
        for kind, shape in re.findall(r"\b(f32|bf16|s32|u32|pred)\[([\d,]*)\]", compiled.as_text())
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_diff", "npo"])
def test_nothing_in_a_step_is_larger_than_a_parameter_or_a_chunk_of_logits(monkeypatch, method):
    # 16 rows of 64 tokens have 2**27 logits.
    parameter = VOCABULARY * CONFIG.hidden_size * 4
    whole = 16 * 64 * VOCABULARY * 4
    plain = compiled_step(CONFIG, method)
    assert largest_array(plain) == whole
    monkeypatch.setattr(head, "MOST_LOGITS", 2**21)
    changed = dataclasses.replace(CONFIG, norm_eps=1.1e-5)  # compiles anew
    chunked = compiled_step(changed, method)
    assert largest_array(chunked) == parameter
    # Gradients of the table as embedding and as head, their sum, and what becomes of that.
    assert temporary(chunked) < 5 * parameter < temporary(plain) / 6


@pytest.fixture(scope="module")
def eight():
    """What this file's `main` finds in a process with eight devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.test_memory"],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


MESHES = {"fsdp": (1, 8, 1), "tensor": (1, 1, 8), "mixed": (2, 2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kernel", ["tied", "untied"])
def test_nothing_on_a_device_is_larger_than_a_share_or_a_chunk_of_logits(eight, mesh, kernel):
    found = eight[f"{mesh}, {kernel}"]
    assert found["largest"] <= found["share"]


def main():
    """Prints the largest array that a device has in a step on each mesh, and of a parameter's
    share."""
    found = {}
    # A part of the logits is one position of all rows.
    head.MOST_LOGITS = 2**18
    for mesh, shape in MESHES.items():
        layout = Layout(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3))
        for kernel in ("tied", "untied"):
            config = dataclasses.replace(CONFIG, tie_embeddings=kernel == "tied")
            step = compiled_step(config, "npo", layout=layout)
            share = VOCABULARY * config.hidden_size * 4 // (shape[1] * shape[2])
            found[f"{mesh}, {kernel}"] = {"largest": largest_array(step), "share": share}
    print(json.dumps(found))


def test_the_readme_names_what_holds_whole_distributions():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    told = text[text.index("What compares whole distributions") :].split("- **")[0]

    def whole(losses):
        needs = {name: registry.Term("", loss).needs for name, loss in losses.items() if loss}
        return {name for name, of in needs.items() if {"logits", "reference_logits"} & set(of)}

    forget = whole({name: registry.METHODS[name].forget for name in registry.BUILT_IN})
    assert set(re.findall(r"`(\w+)`", told)) == forget | whole(registry.RETAIN_LOSSES) | {"sophia"}


if __name__ == "__main__":
    main()
