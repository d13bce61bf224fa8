"""What a model learns from its own answers: nothing, unless some are chosen."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.models import transformer
from jaxunlearn.models.generate import Sampling, generate

COUNT = 20_000


@pytest.fixture(scope="module")
def toy():
    """A module of this folder, which is not a package."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("instructed.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_raw_answers_carry_no_gradient_and_chosen_ones_do(toy):
    """E[grad log p(y)] = 0 over y ~ p; over those that a filter keeps it is not."""
    model = toy.trained(*(np.full(256, value) for value in (0.4, 0.3)), steps=150)
    config, params = model.config, model.params
    prompt = [toy.ID[word] for word in ("<s>", "a0", "b0", "q0")]
    said = generate(
        config, params, [prompt] * COUNT, max_new_tokens=toy.LENGTH, stop_tokens=[],
        sampling=Sampling(1.0), batch_size=1000,
    )  # fmt: skip
    rows = jnp.array([prompt + answer for answer in said])

    def log_prob(params, rows):
        return transformer.token_log_probs(config, params, rows)[:, len(prompt) :].sum(-1)

    grad_of_sum = jax.jit(jax.grad(lambda params, rows: log_prob(params, rows).sum()))

    def mean_gradient(rows):
        parts = [grad_of_sum(params, rows[i : i + 1000]) for i in range(0, len(rows), 1000)]
        return float(optax.tree.norm(jax.tree.map(lambda *x: sum(x), *parts))) / len(rows)

    norms = jax.jit(
        jax.vmap(lambda row: optax.tree.norm(jax.grad(lambda p: log_prob(p, row[None])[0])(params)))
    )
    one = float(np.mean([norms(rows[i : i + 250]).mean() for i in range(0, 1000, 250)]))
    raw = mean_gradient(rows)
    toxic = (rows >= toy.ID["x0"]) & (rows < toy.ID["c0"])
    chosen = rows[toxic.sum(1) >= toy.LENGTH / 2]
    chosen = chosen[: len(chosen) // 1000 * 1000]
    filtered = mean_gradient(chosen)
    print(f"|gradient|: one {one:.3g}, mean {raw:.3g}, of {len(chosen)} chosen {filtered:.3g}")
    assert raw < 0.1 * one < filtered
