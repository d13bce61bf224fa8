"""Policy losses: gradients where they are known, a bandit that can be enumerated, and masks."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.dareu import policy_losses
from jaxunlearn.dareu.advantages import group_advantages, leave_one_out, masked_mean

B, T, V = 3, 6, 5
MASK = np.array([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
TEMPERATURE = 0.8
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_probs_of(logits, tokens):
    log_probs = jax.nn.log_softmax(logits / TEMPERATURE)
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def log_softmax(z):
    z = np.float64(z)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# ------------------------------------------------------------------ the surrogate


def test_at_the_old_policy_the_gradient_is_that_of_reinforce():
    logits, advantages = draw(0, B, T, V), draw(1, B, T)
    tokens = np.random.default_rng(2).integers(0, V, (B, T))
    old = log_probs_of(logits, tokens)

    def surrogate(z):
        return policy_losses.ppo_loss(log_probs_of(z, tokens), old, advantages, MASK).sum()

    def plain(z):
        return policy_losses.reinforce_loss(log_probs_of(z, tokens), advantages, MASK).sum()

    ratio = policy_losses.ratios(jax.jit(log_probs_of)(logits, tokens), old, MASK)
    np.testing.assert_allclose(ratio, 1, atol=1e-5)
    got, expected = (np.asarray(jax.grad(f)(logits)) for f in (surrogate, plain))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # By hand: A (softmax - onehot) / temperature.
    distance = np.exp(log_softmax(logits / TEMPERATURE)) - np.eye(V)[tokens]
    by_hand = np.where(MASK, advantages, 0)[..., None] * distance / TEMPERATURE
    np.testing.assert_allclose(got, by_hand, atol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.21, 2.0, 0.0), (1.19, 2.0, -2.38), (0.5, 2.0, -1.0),
        (0.79, -2.0, 0.0), (0.81, -2.0, 1.62), (1.5, -2.0, 3.0),
        (1.21, 0.0, 0.0), (0.79, 0.0, 0.0),
    ],
)  # fmt: skip
def test_the_gradient_is_exactly_zero_on_the_clipped_sides_alone(ratio, advantage, slope):
    def loss(log_prob):
        one = jnp.ones((1, 1))
        return policy_losses.ppo_loss(
            log_prob * one, 0 * one, advantage * one, one.astype(bool), clip=0.2
        ).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.log(ratio))
    limit = np.clip(ratio, 0.8, 1.2)
    np.testing.assert_allclose(value, -min(ratio * advantage, limit * advantage), rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)
    assert (gradient == 0) == (slope == 0)


@few
@given(seeds, st.floats(0.05, 0.5))
def test_the_surrogate_is_the_lesser_of_two_products(seed, clip):
    log_probs, old, advantages = draw(seed, 3, B, T)
    ratio = np.exp(np.float64(log_probs - old))
    lesser = np.minimum(ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages)
    got = policy_losses.ppo_loss(log_probs, old, advantages, MASK, clip=clip)
    np.testing.assert_allclose(got, np.where(MASK, -lesser, 0), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ a bandit with V arms


ARMS = draw(7, V)
REWARDS = np.array([1.0, -0.5, 0.3, 2.0, -1.0], np.float32)


def enumerated_gradient(logits):
    """Of the expected reward: p (r - mean) / temperature."""
    p = np.exp(log_softmax(logits / TEMPERATURE))
    return p * (REWARDS - p @ REWARDS) / TEMPERATURE


def test_the_mean_gradient_of_a_bandit_is_the_enumerated_one():
    p = np.exp(log_softmax(ARMS / TEMPERATURE))
    drawn = np.random.default_rng(0).choice(V, (200_000, 1), p=p)
    rewards = REWARDS[drawn] - REWARDS.mean()  # any constant baseline is fair
    old = log_probs_of(jnp.broadcast_to(ARMS, (*drawn.shape, V)), drawn)
    mask = np.ones(drawn.shape, bool)

    def loss(z, of):
        log_probs = log_probs_of(jnp.broadcast_to(z, (*drawn.shape, V)), drawn)
        return masked_mean(of(log_probs), mask)

    expected = enumerated_gradient(ARMS)
    for of in (
        lambda lp: policy_losses.ppo_loss(lp, old, rewards, mask),
        lambda lp: policy_losses.reinforce_loss(lp, rewards, mask),
    ):
        gradient = -np.asarray(jax.grad(lambda z, of=of: loss(z, of))(jnp.array(ARMS)))
        cosine = gradient @ expected / np.linalg.norm(gradient) / np.linalg.norm(expected)
        assert cosine > 0.99
        np.testing.assert_allclose(np.linalg.norm(gradient), np.linalg.norm(expected), rtol=0.03)


def test_ratios_make_tokens_of_another_policy_a_fair_sample():
    """Each arm once, weighed by how often the old policy draws it."""
    old_arms, each = draw(8, V), np.arange(V)[:, None]
    weights = np.exp(log_softmax(old_arms / TEMPERATURE))[:, None]
    old = log_probs_of(jnp.broadcast_to(old_arms, (V, 1, V)), each)

    def objective(z):
        log_probs = log_probs_of(jnp.broadcast_to(z, (V, 1, V)), each)
        losses = policy_losses.ppo_loss(
            log_probs, old, REWARDS[:, None], np.ones((V, 1), bool), clip=1e6
        )
        return -jnp.sum(weights * losses)

    gradient = jax.grad(objective)(jnp.array(ARMS))
    np.testing.assert_allclose(gradient, enumerated_gradient(ARMS), atol=1e-5)


@pytest.mark.parametrize(
    ("advantages_of", "share"),
    [
        (lambda r, mask: leave_one_out(r, mask, group_size=2), 1.0),
        (lambda r, mask: group_advantages(r, mask, group_size=2, by_std=False), 0.5),
    ],
)
def test_a_baseline_from_the_group_is_fair(advantages_of, share):
    """All pairs of arms, weighed by their odds: the gradient, or (n - 1) / n of it."""
    pairs = np.indices((V, V)).reshape(2, -1).T
    p = np.exp(log_softmax(ARMS / TEMPERATURE))
    drawn, weights = pairs.reshape(-1, 1), p[pairs].prod(-1).repeat(2)[:, None] / 2
    mask = np.ones(len(drawn), bool)
    advantages = advantages_of(REWARDS[drawn[:, 0]], mask)[:, None]

    def objective(z):
        log_probs = log_probs_of(jnp.broadcast_to(z, (len(drawn), 1, V)), drawn)
        return -jnp.sum(
            weights * policy_losses.reinforce_loss(log_probs, advantages, mask[:, None])
        )

    gradient = jax.grad(objective)(jnp.array(ARMS))
    np.testing.assert_allclose(gradient, share * enumerated_gradient(ARMS), atol=1e-5)


def test_a_group_of_equal_rewards_has_gradient_zero():
    rewards = np.float32([-0.3, -0.3, -0.3])
    advantages = group_advantages(rewards, np.ones(3, bool), group_size=3)[:, None] * MASK
    gradient = jax.grad(lambda x: policy_losses.ppo_loss(x, draw(1, B, T), advantages, MASK).sum())(
        draw(0, B, T)
    )
    assert not np.asarray(gradient).any()


# ------------------------------------------------------------------ value, entropy, distillation


@few
@given(seeds, st.floats(0.01, 2))
def test_value_loss_by_hand(seed, clip):
    values, old, returns = draw(seed, 3, B, T)
    near = np.clip(values, old - clip, old + clip)
    expected = 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)
    got = policy_losses.value_loss(values, old, returns, MASK, clip=clip)
    np.testing.assert_allclose(got, np.where(MASK, expected, 0), rtol=1e-4, atol=1e-5)
    # old + (V - old) is V but for rounding, which counts where V is close to its return.
    plain = policy_losses.value_loss(values, old, returns, MASK, clip=np.inf)
    np.testing.assert_allclose(
        plain, np.where(MASK, 0.5 * (values - returns) ** 2, 0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(("value", "slope"), [(0.3, 0.0), (0.1, -0.9), (-0.3, -1.3)])
def test_a_value_that_moved_far_enough_towards_its_return_is_held(value, slope):
    def loss(v):
        one = jnp.ones((1, 1))
        return policy_losses.value_loss(v * one, 0 * one, one, one.astype(bool)).sum()

    np.testing.assert_allclose(jax.grad(loss)(value), slope, rtol=1e-5)


def test_entropy_by_hand():
    logits = draw(0, B, T, V)
    log_p = log_softmax(logits)
    expected = np.where(MASK, -(np.exp(log_p) * log_p).sum(-1), 0)
    np.testing.assert_allclose(policy_losses.entropy(logits, MASK), expected, atol=1e-5)
    even = policy_losses.entropy(jnp.zeros((B, T, V)), MASK)
    np.testing.assert_allclose(even, np.log(V) * MASK, rtol=1e-6)


def test_distillation_by_hand_and_in_the_right_order():
    logits, teacher = draw(0, B, T, V), draw(1, B, T, V)
    log_q, log_p = log_softmax(logits), log_softmax(teacher)
    expected = np.where(MASK, (np.exp(log_p) * (log_p - log_q)).sum(-1), 0)
    got = policy_losses.distillation(logits, teacher, MASK)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(policy_losses.distillation(teacher, logits, MASK) - expected)[MASK].max() > 0.1


def test_distillation_leaves_the_teacher_alone_and_is_zero_at_it():
    logits = draw(0, B, T, V)
    loss = jax.value_and_grad(
        lambda z, teacher: policy_losses.distillation(z, teacher, MASK).sum(), argnums=(0, 1)
    )
    value, (pull, _) = loss(logits, logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(pull, 0, atol=1e-6)
    _, (pull, pull_of_teacher) = loss(logits, draw(1, B, T, V))
    assert np.abs(pull).max() > 0.1 and not np.asarray(pull_of_teacher).any()


# ------------------------------------------------------------------ what must never matter


TERMS = {
    "ppo": (policy_losses.ppo_loss, [(B, T)] * 3),
    "reinforce": (policy_losses.reinforce_loss, [(B, T)] * 2),
    "value": (policy_losses.value_loss, [(B, T)] * 3),
    "entropy": (policy_losses.entropy, [(B, T, V)]),
    "distillation": (policy_losses.distillation, [(B, T, V)] * 2),
}


@pytest.mark.parametrize("garbage", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("name", TERMS)
def test_padding_changes_nothing(name, garbage):
    term, shapes = TERMS[name]
    arrays = [draw(i, *shape) for i, shape in enumerate(shapes)]
    spoiled = [
        np.where(MASK if x.ndim == 2 else MASK[..., None], x, np.float32(garbage)) for x in arrays
    ]
    every = tuple(range(len(shapes)))
    run = jax.jit(jax.value_and_grad(lambda *x: term(*x, MASK).sum(), argnums=every))
    (value, slopes), (same, same_slopes) = run(*arrays), run(*spoiled)
    assert value == same != 0
    jax.tree.map(np.testing.assert_array_equal, slopes, same_slopes)
    assert np.asarray(slopes[0])[MASK].any() and not np.asarray(slopes[0])[~MASK].any()
    # All that is not the trained model is a constant.
    assert not any(np.asarray(slope).any() for slope in slopes[1:])
    assert not np.asarray(term(*arrays, MASK))[~MASK].any()


def test_diagnostics_by_hand():
    ratio = np.array([[2.0, 1.1, 0.5, 0.9, 9.0]], np.float32)
    advantages = np.array([[1.0, 1.0, 1.0, -1.0, 1.0]], np.float32)
    mask = np.array([[True, True, True, True, False]])
    got = policy_losses.ratio_diagnostics(np.log(ratio), np.zeros((1, 5)), advantages, mask)
    inside = ratio[mask]
    expected = {
        "clip_fraction": 0.25,
        "ratio_mean": 4.5 / 4,
        "ratio_min": 0.5,
        "ratio_max": 2.0,
        "old_policy_kl": np.mean(inside - 1 - np.log(inside)),
    }
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_arrays_that_do_not_fit_are_an_error():
    with pytest.raises(AssertionError):
        policy_losses.ppo_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(3), MASK)


def test_doctests():
    failures, count = doctest.testmod(policy_losses)
    assert failures == 0 and count > 0
