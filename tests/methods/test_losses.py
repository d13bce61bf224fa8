"""Losses against numbers worked out by hand, and their limits."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import MethodConfig
from jaxunlearn.errors import UserError
from jaxunlearn.methods import losses, registry


def test_doctests():
    failures, count = doctest.testmod(losses)
    assert failures == 0 and count >= 4


def test_npo_by_hand():
    # (2 / 0.5) ln(1 + exp(0.5 * (-4 - -2))) = 4 ln(1 + e^-1) = 1.2530469
    value = losses.npo(jnp.array([-4.0]), jnp.array([-2.0]), beta=0.5)
    np.testing.assert_allclose(value, [1.2530468], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_npo_at_the_reference(beta):
    seq = jnp.array([-3.0, -70.0])
    value, pull = jax.vjp(lambda s: losses.npo(s, seq, beta=beta), seq)
    np.testing.assert_allclose(value, 2 / beta * np.log(2), rtol=1e-6)
    # The gradient of the sequence log-prob itself: gradient ascent on sequence sums.
    np.testing.assert_allclose(pull(jnp.ones(2))[0], 1.0, rtol=1e-6)


def test_npo_becomes_gradient_ascent_as_beta_falls():
    seq, reference = jnp.array([-9.0]), jnp.array([-4.0])
    gradient = jax.grad(lambda s: losses.npo(s, reference, beta=1e-4).sum())(seq)
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-3)


def test_npo_stays_finite_far_from_the_reference():
    value, gradient = jax.value_and_grad(lambda s: losses.npo(s, jnp.zeros(()), beta=0.1))(-1e5)
    assert value == 0 and gradient == 0
    assert jnp.isfinite(losses.npo(jnp.array(0.0), jnp.array(-1e5), beta=0.1))


def test_kl_by_hand():
    q = jnp.log(jnp.array([[[0.25, 0.75]]]))
    p = jnp.log(jnp.array([[[0.5, 0.5]]]))
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(losses.kl(q, p), [[by_hand]], rtol=1e-6)


def test_registry_fills_in_the_papers_defaults():
    assert registry.defaults("npo") == {
        "beta": 0.1, "retain_loss": "nll", "forget_weight": 1.0, "retain_weight": 1.0,
    }  # fmt: skip
    assert registry.defaults("grad_ascent")["retain_loss"] == "none"


def test_objective_names_groups_and_needs():
    objective, hyper = registry.objective(MethodConfig(name="npo", hyper={"retain_loss": "kl"}))
    assert objective.groups == ("forget", "retain")
    assert objective.needs("reference_log_softmax") and "retain_loss" not in hyper
    objective, _ = registry.objective(MethodConfig(name="grad_ascent"))
    assert objective.groups == ("forget",)
    assert not objective.needs("reference_seq_log_prob")


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        ("npoo", {}, "npo"),
        ("npo", {"beta": 0}, "beta: input should be greater than 0, found 0"),
        ("npo", {"beta": -1}, "beta"),
        ("npo", {"beta": "inf"}, "beta"),
        ("npo", {"betta": 1}, "unknown key betta; the closest known key is beta"),
        ("grad_diff", {"beta": 1}, "unknown key beta"),
        ("npo", {"retain_loss": "mse"}, "'nll', 'kl' or 'none'"),
    ],
)
def test_registry_refuses(name, hyper, words):
    with pytest.raises(UserError) as caught:
        registry.resolve(MethodConfig(name=name, hyper=hyper))
    assert words in str(caught.value)
