"""Trains by reward on however many devices there are, for test_driver."""

import dataclasses
import json

import jax
import numpy as np

from jaxunlearn.config_parallel import MeshConfig
from jaxunlearn.dareu import driver
from jaxunlearn.models import transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.parallel import ONE_DEVICE, layout_of
from tests.dareu.conftest import PROMPTS, RETAIN, job_of

CONFIG = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "eos_token_id": 2,
}  # fmt: skip


def measured(layout=ONE_DEVICE, algorithm="grpo", adapter=2):
    """The numbers of every iteration, and what was trained."""
    config = read_config(CONFIG, "tiny")
    params = jax.tree.map(lambda x: x * 4, transformer.init_params(config, jax.random.key(1)))
    job = job_of(
        LanguageModel(config, params, hf_config=CONFIG),
        shares=np.where(np.arange(64) % 2 == 0, 0.9, 0.1),
        prompts=PROMPTS[:3],
        iterations=2,
        retain=RETAIN,
        samples=2,
        algorithm=algorithm,
        adapter=adapter,
        learning_rate=1e-3,
    )
    job = dataclasses.replace(job, layout=layout)
    log = []
    found = driver.train(job, on_steps=lambda done, total, rows: log.extend(rows))
    trained = found.params if adapter is None else found.adapter.factors
    trained = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(trained))])
    return {"log": log, "trained": trained.tolist()}


def main():
    """On one device, on eight of a mesh, and on eight under pmap."""
    adapted = {
        name: measured(layout)
        for name, layout in {
            "one": ONE_DEVICE,
            "mesh": layout_of(MeshConfig(data=2, fsdp=2, tensor=2)),
            "pmap": layout_of("pmap"),
        }.items()
    }
    # Without an adapter the divergence from the start model begins at exactly 0, and its gradient
    # is rounding: cutting matrices would give it another sign, which Adam takes for a direction.
    whole = {
        name: measured(layout, "ppo", None)
        for name, layout in {
            "one": ONE_DEVICE,
            "mesh": layout_of("auto"),
            "pmap": layout_of("pmap"),
        }.items()
    }
    return {"devices": jax.device_count(), "grpo": adapted, "ppo": whole}


if __name__ == "__main__":
    print(json.dumps(main()))
