"""Open-unlearning's formulas, in its own alignment: prediction i is about token i + 1."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.methods import compat, logit_losses, losses, own

SPANS = [(2, 5), (1, 2), (3, 6)]
B, T, V = 3, 6, 103  # V > 100: their label -100 is an index
MASK = np.array([[start <= t < end for t in range(T)] for start, end in SPANS])
NAMES = ("model", "start", "other_model", "other_start")


def make_batch():
    """Predictions [B, T, V] of both models, on both answers, and labels that are -100 elsewhere."""
    rng = np.random.default_rng(0)
    predictions = {name: rng.normal(0, 2, (B, T, V)) for name in NAMES}
    tokens = rng.integers(0, V, (B, T))
    return predictions, tokens, np.where(MASK, tokens, -100)


def log_softmax(z):
    return z - z.max() - np.log(np.sum(np.exp(z - z.max())))


def sum_nll(predictions, labels, b):
    pairs = ((predictions[b, i], labels[b, i + 1]) for i in range(T - 1))
    return sum(-log_softmax(z)[label] for z, label in pairs if label != -100)


def kl(p, labels):
    total = 0.0
    for b in range(B):
        for i in range(T):
            start, model = log_softmax(p["start"][b, i]), log_softmax(p["model"][b, i])
            total += np.sum(np.exp(start) * (start - model))
    return total / (B * T)


def undial(p, labels, beta):
    total = 0.0
    for b in range(B):
        for i in range(T - 1):
            lowered = p["start"][b, i].copy()
            lowered[labels[b, i + 1]] -= beta
            total -= np.sum(np.exp(log_softmax(lowered)) * log_softmax(p["model"][b, i]))
    return total / (B * (T - 1))


def simnpo(p, labels, beta, delta):
    total = 0.0
    for b in range(B):
        mean = sum_nll(p["model"], labels, b) / np.sum(labels[b] != -100)
        total += 2 / beta * np.log1p(np.exp(-beta * (mean - delta)))
    return total / B


def dpo(p, labels, beta):
    total = 0.0
    for b in range(B):
        s = {name: sum_nll(p[name], labels, b) for name in NAMES}
        gain = (s["other_start"] - s["other_model"]) - (s["start"] - s["model"])
        total += 2 / beta * np.log1p(np.exp(-beta * gain))
    return total / B


CASES = {
    "kl": (kl, {}),
    "undial": (undial, {"beta": 10.0}),
    "simnpo": (simnpo, {"beta": 1.3, "delta": 1.0}),
    "dpo": (dpo, {"beta": 0.1}),
}


def reduced(name, predictions, tokens, hyper):
    """Our statistics of these predictions, reduced as the update step does."""
    known = {"targets": jnp.asarray(tokens), "mask": jnp.asarray(MASK)}
    known["answer_length"] = jnp.asarray(MASK.sum(-1), jnp.float32)
    prefixes = ("", "reference_", "alternative_", "alternative_reference_")
    for prefix, source in zip(prefixes, NAMES, strict=True):
        logits = jnp.roll(jnp.asarray(predictions[source], jnp.float32), 1, axis=1)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), known["targets"][..., None], -1)
        known[f"{prefix}logits"] = logits
        known[f"{prefix}seq_log_prob"] = jnp.where(MASK, picked[..., 0], 0.0).sum(-1)
    function = getattr(compat, name)
    needs = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind != p.KEYWORD_ONLY
    ]
    values = function(*(known[need] for need in needs), **hyper)
    assert values.shape == (B,)
    return values.mean()


@pytest.mark.parametrize("name", CASES)
def test_value_is_theirs(name):
    by_hand, hyper = CASES[name]
    predictions, tokens, labels = make_batch()
    np.testing.assert_allclose(
        reduced(name, predictions, tokens, hyper),
        by_hand(predictions, labels, **hyper),
        rtol=1e-5,
    )


def test_every_replacement_has_a_case_and_a_loss_that_it_replaces():
    assert {function.__name__ for function in compat.COMPAT.values()} == set(CASES)
    for paper, theirs in compat.COMPAT.items():
        assert paper.__name__ == theirs.__name__
        parameters = inspect.signature(theirs).parameters.values()
        needs = {p.name for p in parameters if p.kind != p.KEYWORD_ONLY}
        assert needs <= own.STATISTICS


def test_undial_lowers_token_v_minus_100_outside_the_answer():
    z = jnp.zeros((B, T, V))
    mask, targets = jnp.asarray(MASK), jnp.full((B, T), 7)

    def total(x):
        return compat.undial(x, z, targets, mask, beta=5.0).mean()

    # At the start model the gradient is what the target lacks: positive for the lowered token.
    gradient = np.asarray(jax.grad(total)(z))
    lowered = np.where(MASK, 7, V - 100)
    assert np.all(gradient[:, 0] == 0)
    assert np.all(gradient.argmax(-1)[:, 1:] == lowered[:, 1:])


def test_kl_leaves_out_the_last_prediction_where_entry_0_is_alike():
    predictions, tokens, _ = make_batch()
    whole = reduced("kl", predictions, tokens, {})
    last = logit_losses.kl(*(jnp.asarray(predictions[name][:, -1:]) for name in ("model", "start")))
    predictions["model"][:, -1] = predictions["start"][:, -1]
    np.testing.assert_allclose(
        reduced("kl", predictions, tokens, {}), whole - last.sum() / (B * T), rtol=1e-5
    )


def test_simnpo_margin_is_the_papers_times_beta():
    total, length = jnp.array([-9.0, -2.0]), jnp.array([3.0, 1.0])
    np.testing.assert_allclose(
        compat.simnpo(total, length, beta=2.0, delta=0.75),
        losses.simnpo(total, length, beta=2.0, gamma=1.5),
    )


def test_doctests():
    failures, count = doctest.testmod(compat)
    assert failures == 0 and count >= len(CASES)
