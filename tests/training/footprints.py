"""Predicted and compiled bytes of trainings on eight devices; run by test_footprint."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.methods import registry
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.int8 import with_int8_kernels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.batches import referenced
from jaxunlearn.training.footprint import Job, footprint
from jaxunlearn.training.loop import prepare
from jaxunlearn.training.parallel import AXES, Layout
from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.step import init_state, steps_in_jit

CONFIG = DecoderConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_layers=12,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    max_positions=128,
)
TABLE = Rows(jax.ShapeDtypeStruct((64, 128), jnp.int32), jax.ShapeDtypeStruct((64, 128), bool))
JOBS = {
    "full grad_diff": ("grad_diff", None, (1, 8, 1)),
    "lora npo": ("npo", AdapterConfig(rank=8), (8, 1, 1)),
    "full npo": ("npo", None, (2, 2, 2)),
    "lora npo, int8": ("npo", AdapterConfig(rank=8), (2, 2, 2), {"quantize": "int8"}),
}


def job_of(method, adapter, **changes):
    objective, hyper = registry.objective(MethodConfig(name=method))
    reference = dataclasses.replace(
        TABLE, reference_log_probs=jax.ShapeDtypeStruct((64, 128), jnp.float32)
    )
    tables = {
        group: reference if group in referenced(objective) else TABLE for group in objective.groups
    }
    training = TrainingConfig(batch_size=32)
    job = Job(
        method,
        CONFIG,
        "float32",
        objective,
        hyper,
        training,
        adapter,
        tables,
        128,
        dict.fromkeys(tables, 32),
    )
    return dataclasses.replace(job, **changes)


def on_device(tree):
    """Bytes of arrays that lie on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def compiled(job, shape):
    """Bytes of what is placed, by kind, and those of the compiled step."""
    layout = Layout(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3))
    params = transformer.init_params(job.config, jax.random.key(0))
    model = LanguageModel(job.config, params if job.quantize is None else with_int8_kernels(params))
    spec, trainable, frozen, numbers = prepare(
        layout.placed(model), job.objective, job.hyper, job.training, 1, job.adapter, 0, layout
    )
    state = layout.place(init_state(layout.place(trainable)))
    frozen = layout.place(frozen)
    tables = layout.place(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), job.tables))
    schedule = {group: np.zeros((4, 32), np.int32) for group in tables}
    with layout.known():
        step = steps_in_jit.lower(spec, state, frozen, tables, schedule, np.int32(4), numbers)
    memory = step.compile().memory_analysis()
    return {
        "trainable": on_device(state.trainable),
        "optimizer": on_device(state.opt_state),
        "frozen": on_device(frozen),
        "step": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


def main():
    found = {}
    for name, (method, adapter, shape, *changes) in JOBS.items():
        job = job_of(method, adapter, **dict(*changes))
        predicted = footprint(job, dict(zip(AXES, shape, strict=True)))
        found[name] = {
            "predicted": dataclasses.asdict(predicted),
            "compiled": compiled(job, shape),
            "devices": math.prod(shape),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
