"""Trains by reward on however many devices there are, for test_driver."""

import json

import jax
import numpy as np

from jaxunlearn.dareu import driver
from jaxunlearn.models import transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel
from tests.dareu.conftest import PROMPTS, RETAIN, job_of

CONFIG = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "eos_token_id": 2,
}  # fmt: skip


def measured():
    """The number of devices, the numbers of every iteration, and the adapter."""
    config = read_config(CONFIG, "tiny")
    params = jax.tree.map(lambda x: x * 4, transformer.init_params(config, jax.random.key(1)))
    job = job_of(
        LanguageModel(config, params, hf_config=CONFIG),
        shares=np.where(np.arange(64) % 2 == 0, 0.9, 0.1),
        prompts=PROMPTS[:3],
        iterations=2,
        retain=RETAIN,
        samples=2,
        algorithm="grpo",
        learning_rate=1e-3,
    )
    log = []
    found = driver.train(job, on_steps=lambda done, total, rows: log.extend(rows))
    factors = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.adapter.factors)])
    return {"devices": jax.device_count(), "log": log, "factors": factors.tolist()}


if __name__ == "__main__":
    print(json.dumps(measured()))
