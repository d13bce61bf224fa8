"""Advantages against loops in plain Python, their limits, and what must never matter."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.dareu import advantages

B, T = 4, 7
# A prompt before the response, one token, a full row, and no response at all.
SPANS = [(2, 6), (0, 1), (0, T), (3, 3)]
MASK = np.array([[start <= t < end for t in range(T)] for start, end in SPANS])
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)
gae = jax.jit(advantages.gae)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def returns_by_hand(rewards, gamma):
    """[B, T]: every sum written out."""
    found = np.zeros((B, T))
    for b, (start, end) in enumerate(SPANS):
        for t in range(start, end):
            found[b, t] = sum(gamma ** (u - t) * rewards[b, u] for u in range(t, end))
    return found


def gae_by_hand(rewards, values, gamma, lam):
    """[B, T]: the weighted sum of one-step errors, each written out."""
    found = np.zeros((B, T))
    for b, (start, end) in enumerate(SPANS):
        following = [values[b, u + 1] if u + 1 < end else 0.0 for u in range(start, end)]
        errors = [
            rewards[b, u] + gamma * following[u - start] - values[b, u] for u in range(start, end)
        ]
        for t in range(start, end):
            found[b, t] = sum((gamma * lam) ** (u - t) * errors[u - start] for u in range(t, end))
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_by_hand(gamma):
    rewards = draw(0, B, T)
    got = advantages.discounted_returns(rewards, MASK, gamma=gamma)
    np.testing.assert_allclose(got, returns_by_hand(rewards, gamma), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_with_lambda_of_one_it_is_the_return_minus_the_value(gamma):
    rewards, values = draw(0, B, T), draw(1, B, T)
    got = gae(rewards, values, MASK, gamma=gamma, lam=1.0)
    expected = np.where(MASK, returns_by_hand(rewards, gamma) - values, 0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    default = advantages.gae(rewards, values, MASK, gamma=gamma)
    np.testing.assert_allclose(default, expected, atol=1e-5)


@few
@given(seeds, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_estimates_by_hand(seed, gamma, lam):
    rewards, values = draw(seed, B, T), draw(seed + 1, B, T)
    got = gae(rewards, values, MASK, gamma=gamma, lam=lam)
    np.testing.assert_allclose(got, gae_by_hand(rewards, values, gamma, lam), atol=2e-5)


def test_a_value_function_that_is_right_leaves_no_advantage():
    rewards = draw(0, B, T)
    values = returns_by_hand(rewards, 0.9).astype(np.float32)
    for lam in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(gae(rewards, values, MASK, gamma=0.9, lam=lam), 0, atol=1e-5)


def test_no_gradient_flows_through_advantages():
    gradient = jax.grad(lambda v: advantages.gae(draw(0, B, T), v, MASK).sum())(draw(1, B, T))
    assert not np.asarray(gradient).any()


@few
@given(seeds, st.sampled_from([np.nan, np.inf, 1e30]))
def test_padding_changes_nothing(seed, garbage):
    rewards, values = draw(seed, B, T), draw(seed + 1, B, T)
    bad_rewards, bad_values = (np.where(MASK, x, np.float32(garbage)) for x in (rewards, values))
    calls = [
        lambda r, v: gae(r, v, MASK, gamma=0.9, lam=0.8),
        lambda r, v: advantages.discounted_returns(r, MASK, gamma=0.9),
        lambda r, v: advantages.whiten(r, MASK),
        lambda r, v: advantages.group_advantages(r, MASK, group_size=2),
        lambda r, v: advantages.masked_mean(r, MASK, -1),
        lambda r, v: advantages.leave_one_out(r[:, 0], MASK[:, 0], group_size=4),
    ]
    for call in calls:
        clean = np.asarray(call(rewards, values))
        np.testing.assert_array_equal(call(bad_rewards, bad_values), clean)
        if clean.shape == MASK.shape:
            assert not clean[~MASK].any()


def test_masked_means_by_hand():
    x = draw(0, B, T)
    np.testing.assert_allclose(advantages.masked_mean(x, MASK), x[MASK].mean(), atol=1e-6)
    rows = [x[b, start:end].mean() if end > start else 0 for b, (start, end) in enumerate(SPANS)]
    np.testing.assert_allclose(advantages.masked_mean(x, MASK, -1), rows, rtol=1e-5, atol=1e-7)


@few
@given(seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_whitened_values_have_mean_zero_and_variance_one(seed, shift, size):
    values = shift + size * draw(seed, B, T)
    got = np.asarray(advantages.whiten(values, MASK))
    np.testing.assert_allclose(got[MASK].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(got[MASK].std(), 1, rtol=1e-4)
    expected = (values[MASK] - values[MASK].mean()) / values[MASK].std()
    np.testing.assert_allclose(got[MASK], expected, atol=1e-4)


@few
@given(seeds, st.booleans())
def test_group_advantages_by_hand(seed, by_std):
    rewards, mask = draw(seed, 6), np.array([1, 1, 1, 1, 0, 1], bool)
    got = advantages.group_advantages(rewards, mask, group_size=3, by_std=by_std)
    expected = np.zeros(6)
    for rows in ([0, 1, 2], [3, 5]):
        centred = rewards[rows] - rewards[rows].mean()
        expected[rows] = centred / np.sqrt(centred.var() + 1e-8) if by_std else centred
    np.testing.assert_allclose(got, expected, atol=2e-4)
    np.testing.assert_allclose(np.asarray(got).reshape(2, 3).sum(-1), 0, atol=1e-4)


def test_groups_of_token_rewards_share_one_mean_over_tokens():
    rewards = draw(0, B, T)
    got = np.asarray(advantages.group_advantages(rewards, MASK, group_size=2))
    for rows in (slice(0, 2), slice(2, 4)):
        inside = rewards[rows][MASK[rows]]
        expected = (inside - inside.mean()) / inside.std()
        np.testing.assert_allclose(got[rows][MASK[rows]], expected, rtol=1e-3, atol=1e-5)


@few
@given(st.floats(-1, 0, width=32), st.sampled_from([1, 3, 7]), st.booleans())
def test_a_group_of_equal_rewards_teaches_exactly_nothing(reward, size, by_std):
    rewards, mask = np.full(2 * size, reward, np.float32), np.ones(2 * size, bool)
    got = advantages.group_advantages(rewards, mask, group_size=size, by_std=by_std)
    assert not np.asarray(got).any()
    assert not np.asarray(advantages.leave_one_out(rewards, mask, group_size=size)).any()


@few
@given(seeds)
def test_leave_one_out_by_hand(seed):
    rewards, mask = draw(seed, 9), np.array([1, 1, 1, 1, 0, 1, 0, 1, 0], bool)
    expected = np.zeros(9)
    for group in ([0, 1, 2], [3, 5], [7]):
        for i in group:
            others = [rewards[j] for j in group if j != i]
            expected[i] = rewards[i] - np.mean(others) if others else 0
    got = advantages.leave_one_out(rewards, mask, group_size=3)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rows_that_make_no_groups_are_an_error():
    with pytest.raises(ValueError, match="5 rows are no multiple of the group size 2"):
        advantages.group_advantages(jnp.zeros(5), jnp.ones(5, bool), group_size=2)


def test_doctests():
    failures, count = doctest.testmod(advantages)
    assert failures == 0 and count > 0
