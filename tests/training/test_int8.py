"""Adapters beside a base in int8: as beside the floats that it means, and in less memory."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import AdapterConfig, ModelConfig, TrainingConfig
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.quantize import FORMATS, quantised
from jaxunlearn.methods import registry
from jaxunlearn.models import transformer
from jaxunlearn.models.starting import computed
from jaxunlearn.training.footprint import footprint
from jaxunlearn.training.loop import prepare, train
from jaxunlearn.training.profiling import flops_per_token
from tests.models.test_int8 import in_int8
from tests.models.test_lora import TOKENS, noisy
from tests.training.footprints import CONFIG, job_of
from tests.training.test_footprint import ONE
from tests.training.test_loop import Killed, job  # noqa: F401

TRAINING = TrainingConfig(epochs=4, batch_size=8, learning_rate=1e-3, checkpoint_every=3)
ADAPTER = AdapterConfig(rank=2)


@pytest.fixture(scope="module")
def models(tiny):
    """The tiny model in int8, and one that has the kernels that it means."""
    return in_int8(tiny), in_int8(tiny).plain()


def test_training_is_that_beside_the_floats(models, job):  # noqa: F811
    logs, found = [], []
    for model in models:
        log = []
        result = train(
            model, *job, TRAINING, adapter=ADAPTER, on_steps=lambda *a, log=log: log.extend(a[2])
        )
        logs.append([(row["loss"], row["grad_norm"]) for row in log])
        found.append(result.adapter.factors)
        assert result.params is model.params
    assert len(logs[0]) == 12
    np.testing.assert_allclose(*logs, rtol=1e-5)
    chex.assert_trees_all_close(*found, atol=1e-5)
    assert jnp.abs(found[0]["layers"]["mlp"]["up"]["b"]).max() > 1e-3


def test_resume_is_exact(models, job, tmp_path):  # noqa: F811
    inside, plain = models
    whole = train(inside, *job, TRAINING, adapter=ADAPTER)

    def stop(done, total, rows):
        if done >= 4:
            raise Killed

    with pytest.raises(Killed):
        train(inside, *job, TRAINING, adapter=ADAPTER, checkpoints=tmp_path, on_steps=stop)
    # The base decides a training, and so does how it is held.
    with pytest.raises(UserError, match="another"):
        train(plain, *job, TRAINING, adapter=ADAPTER, checkpoints=tmp_path)
    resumed = train(inside, *job, TRAINING, adapter=ADAPTER, checkpoints=tmp_path)
    chex.assert_trees_all_equal(resumed.adapter.factors, whole.adapter.factors)


def test_every_transformation_goes_through(models):
    """What second-order optimisers and trainings side by side do to a model, computed anew too."""

    def found(model):
        model = computed(model, ModelConfig(remat="full"))
        factors = noisy(model.params)

        def loss(factors):
            return transformer.token_log_probs(
                model.config, model.params, TOKENS, lora=factors
            ).mean()

        _, along = jax.jvp(jax.grad(loss), (factors,), (factors,))
        many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), factors)
        return along, jax.vmap(loss)(many)

    ours, theirs = (jax.jit(lambda m=m: found(m))() for m in models)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_weights_in_int8_are_not_trained(models, job):  # noqa: F811
    with pytest.raises(UserError, match=r"adapter: is missing, and weights in int8"):
        train(models[0], *job, TRAINING)


def test_the_attack_by_quantisation_is_on_the_floats(models):
    found = (dict(quantised(model, FORMATS["int4"]).params) for model in models)
    chex.assert_trees_all_equal(*found)


def test_flops_are_those_of_the_floats(models):
    objective, hyper = registry.FINETUNE, {}
    parts = [prepare(m, objective, hyper, TRAINING, 1, ADAPTER, 0)[1:3] for m in models]
    counts = [flops_per_token(m.config, *part, 64) for m, part in zip(models, parts, strict=True)]
    assert counts[0] == counts[1] > 0


def test_what_is_needed_is_a_quarter_for_the_kernels():
    needs = [
        footprint(job_of("npo", AdapterConfig(rank=8), quantize=quantize), ONE)
        for quantize in (None, "int8")
    ]
    outputs = 2 * 256 + 2 * 128 + 2 * 704 + 256  # of q and o, k and v, gate and up, down
    weights = 12 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 704)
    assert needs[0].model - needs[1].model == 3 * weights - 12 * 4 * outputs
    # The backward pass keeps no floats of the kernels.
    assert needs[1].activations == needs[0].activations
    same = ("trainable", "optimizer", "gradients", "tables", "logits")
    assert all(getattr(needs[0], name) == getattr(needs[1], name) for name in same)


def test_a_second_frozen_model_is_merged_and_so_not_in_int8():
    small = dataclasses.replace(CONFIG, num_layers=2)
    whp, npo = (
        footprint(job_of(name, AdapterConfig(rank=8), quantize="int8", config=small), ONE)
        for name in ("whp", "npo")
    )
    plain = footprint(job_of("npo", AdapterConfig(rank=8), config=small), ONE)
    assert whp.model - npo.model == plain.model - 4  # but for the scale of the adapter
