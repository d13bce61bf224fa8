"""Trainings by reward on a tiny model whose rewards depend on single tokens."""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.dareu.driver import Job
from jaxunlearn.dareu.rollout import prompts_of
from jaxunlearn.data.tokens import make_table
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.models import transformer
from jaxunlearn.training.statistics import Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByToken:
    """Attributes a text by the last token that is seen of it."""

    names: tuple[str, ...] = field(metadata={"static": True})
    shares: jax.Array
    """[V, owners]."""
    temperature: jax.Array

    def scores(self, tokens, lengths):
        places = jnp.maximum(lengths.reshape(len(lengths), -1) - 1, 0)
        last = jnp.take_along_axis(tokens, places, axis=1)
        return self.shares[last].reshape(*lengths.shape, -1)


def by_token(shares):
    """Of two owners: the share of the first for each token."""
    shares = jnp.asarray(shares, jnp.float32)
    return ByToken(("one", "other"), jnp.stack([shares, 1 - shares], axis=1), jnp.float32(1.0))


def small(model, vocab_size, seed=1):
    """A model of few tokens, without a tokenizer, and no token that ends an answer."""
    config = dataclasses.replace(model.config, vocab_size=vocab_size)
    params = transformer.init_params(config, jax.random.key(seed))
    return dataclasses.replace(
        model, config=config, params=params, tokenizer=None, hf_config={"eos_token_id": 99}
    )


def job_of(model, *, shares, prompts, retain, iterations=4, adapter=2, seed=3, answer=1, **options):
    """A job whose prompts are all of the first owner, with answers of so many tokens."""
    training = {"epochs": 1, "learning_rate": 1e-2, "decay": "constant", "warmup": 0.0}
    names = {one.name for one in dataclasses.fields(TrainingConfig)}
    training |= {key: options.pop(key) for key in list(options) if key in names}
    settings = {"updates": 2, "old_refresh": "batch", "max_new_tokens": 6, **options}
    if settings.get("level") != "sequence" and "kappa" not in settings:
        settings["slices"] = 3
    table = make_table([(row, [1] * answer) for row in prompts], 16)
    kept = make_table(retain, 16)
    rng = np.random.default_rng(0)
    return Job(
        start=model,
        attributors=(by_token(shares), by_token(shares)),
        forget_owners=(True, False),
        prompts=prompts_of(table, np.zeros(len(prompts), np.int32)),
        retain=Rows(jnp.asarray(kept.tokens), jnp.asarray(kept.answer_mask)),
        schedule={
            "forget": np.stack([rng.permutation(len(prompts)) for _ in range(iterations)]),
            "retain": np.stack([rng.permutation(len(retain)) for _ in range(iterations)]),
        },
        per_epoch=2,
        settings=DareU(**settings),
        training=TrainingConfig(batch_size=len(prompts), **training),
        adapter=adapter and AdapterConfig(rank=adapter, alpha=4.0),
        seed=seed,
    )


PROMPTS = [[1, 5, 6], [1, 7], [1, 8, 9, 10], [1, 11, 5]]
RETAIN = [([1, 4], [7, 9, 2]), ([1, 6, 5], [8, 2]), ([1, 3], [4, 4, 4, 2])]


@pytest.fixture
def job(tiny):
    """Even tokens are the first owner's; token 2 ends an answer."""
    shares = np.where(np.arange(tiny.config.vocab_size) % 2 == 0, 0.9, 0.1)

    def make(**options):
        return job_of(tiny, shares=shares, prompts=PROMPTS, retain=RETAIN, **options)

    return make
