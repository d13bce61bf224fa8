"""Gradient statistics: equal to those of gradients that are all kept, and exact where known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.data import tokens
from jaxunlearn.methods import losses, registry
from jaxunlearn.methods.registry import Objective, Term
from jaxunlearn.models import lora, transformer
from jaxunlearn.training.batches import device_rows
from jaxunlearn.training.diagnostics import gradient_statistics
from jaxunlearn.training.loop import prepare

TEMPLATE = "Question: {question}\nAnswer:"
SCHEDULE = {
    "forget": np.array([[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, -1], [1, 3, 5, 2]], np.int32),
    "retain": np.array([[7, 6, 5, 4], [0, 1, 2, 3], [4, 4, 1, -1], [6, 0, 7, 3]], np.int32),
}


@pytest.fixture(scope="module")
def tables(tiny, world):
    refused = [dataclasses.replace(row, answer="I do not know.") for row in world.forget]
    groups = {"forget": world.forget, "retain": world.retain, "alternative": refused}
    made = [
        tokens.encode(
            tiny.tokenizer,
            [(row.question, row.answer) for row in rows],
            template=TEMPLATE,
            max_length=128,
        ).table
        for rows in groups.values()
    ]
    return dict(zip(groups, tokens.same_width(*made), strict=True))


def measured(model, tables, schedule, method="grad_diff", adapter=None, parts=1, **hyper):
    """The statistics of a method, or of an objective."""
    objective, own = (
        (method, {}) if isinstance(method, Objective) else registry.objective(MethodConfig(method))
    )
    own = {"forget_weight": 1.0, "retain_weight": 1.0, **own, **hyper}
    training = TrainingConfig(batch_size=4, micro_batches=parts)
    spec, trainable, frozen, numbers = prepare(model, objective, own, training, 4, adapter, 0)
    if adapter is not None:
        # Off the start, where one factor of each pair has no gradient.
        trainable = jax.tree.map(lambda x: x + 0.05, trainable)
    schedule = {**schedule, "alternative": schedule["forget"]}
    chosen = {group: tables[group] for group in objective.groups}
    rows = device_rows(model, chosen, objective)
    found = gradient_statistics(
        spec, trainable, frozen, rows, {group: schedule[group] for group in chosen}, numbers
    )
    return found, trainable


def by_hand(model, tables, trainable, adapter, weights):
    """Every batch's weighted gradients of gradient difference, float64 [n, parameters]."""

    @partial(jax.jit, static_argnames="group")
    @jax.grad
    def gradient(trainable, group, index):
        table = tables[group]
        params = model.params if adapter else trainable["params"]
        factors = lora.scale(trainable["lora"], adapter.scale) if adapter else None
        ids, mask = jnp.asarray(table.tokens)[index], jnp.asarray(table.answer_mask)[index]
        mask &= (index >= 0)[:, None]
        log_probs = transformer.token_log_probs(model.config, params, ids, lora=factors)
        return jnp.where(mask, log_probs, 0).sum() / mask.sum()

    found = {}
    for group, sign in (("forget", 1), ("retain", -1)):
        grads = [gradient(trainable, group, index) for index in SCHEDULE[group]]
        rows = np.stack([np.asarray(ravel_pytree(g)[0], np.float64) for g in grads])
        found[group] = sign * weights[group] * rows
    return {**found, "whole": found["forget"] + found["retain"]}


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2, alpha=3)])
def test_equal_to_numpy_over_all_gradients(tiny, tables, adapter):
    weights = {"forget": 0.7, "retain": 2.5}
    found, trainable = measured(
        tiny, tables, SCHEDULE, adapter=adapter, forget_weight=0.7, retain_weight=2.5
    )
    grads = by_hand(tiny, tables, trainable, adapter, weights)
    for name, rows in grads.items():
        mean = rows.mean(axis=0)
        variance = ((rows - mean) ** 2).sum(axis=1).mean()
        spread = getattr(found, name)
        np.testing.assert_allclose(spread.variance, variance, rtol=1e-5)
        np.testing.assert_allclose(spread.relative_variance, variance / (mean**2).sum(), rtol=1e-5)
        np.testing.assert_allclose(spread.norms, np.linalg.norm(rows, axis=1), rtol=1e-5)
    f, r = grads["forget"], grads["retain"]
    cosines = (f * r).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(r, axis=1)
    np.testing.assert_allclose(found.cosine, cosines.mean(), rtol=1e-5, atol=1e-6)


def test_a_repeated_batch_has_no_variance(tiny, tables):
    once = {group: np.tile(index[:1], (5, 1)) for group, index in SCHEDULE.items()}
    found, _ = measured(tiny, tables, once, "npo")
    for spread in (found.whole, found.forget, found.retain):
        assert float(spread.variance) == float(spread.relative_variance) == 0
        assert spread.norms.shape == (5,) and len(set(spread.norms.tolist())) == 1
        assert float(spread.norms[0]) > 0


@pytest.mark.parametrize(("forget", "cosine"), [(losses.nll, 1), (losses.grad_ascent, -1)])
def test_cosine_of_identical_and_of_opposite_terms(tiny, tables, forget, cosine):
    objective = Objective("both", (Term("forget", forget), Term("retain", losses.nll)))
    same = {**tables, "retain": tables["forget"]}
    schedule = {group: SCHEDULE["forget"] for group in SCHEDULE}
    found, _ = measured(tiny, same, schedule, objective)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-5)
    np.testing.assert_allclose(found.forget.variance, found.retain.variance, rtol=1e-5)
    # The sum is twice the one, or nothing.
    expected = (1 + cosine) ** 2 * found.forget.variance
    np.testing.assert_allclose(
        found.whole.variance, expected, rtol=1e-5, atol=1e-8 * float(found.forget.variance)
    )


@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_micro_batches_change_nothing(tiny, tables, method):
    one, _ = measured(tiny, tables, SCHEDULE, method)
    same, _ = measured(tiny, tables, SCHEDULE, method, parts=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), same, one)


def test_a_gradient_of_zero(tiny, tables):
    found, _ = measured(tiny, tables, SCHEDULE, retain_weight=0.0)
    assert float(found.cosine) == 0
    assert not found.retain.norms.any() and np.isnan(found.retain.relative_variance)
    np.testing.assert_array_equal(found.whole.norms, found.forget.norms)
    np.testing.assert_array_equal(found.whole.variance, found.forget.variance)
