"""Reward: the paper's golden values, a reading of its formula in plain Python, and invariances."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.dareu import reward

B, T, K = 4, 8, 8
seeds, kappas = st.integers(0, 2**32 - 1), st.integers(1, T)
few = settings(max_examples=40, deadline=None)
prefix_rewards = jax.jit(reward.prefix_rewards, static_argnames="level")


def make_spans(rng, least=0):
    """Rows of a prompt, a response and padding: where responses start, and how long they are."""
    starts = rng.integers(0, T // 2, B)
    return starts, np.array([rng.integers(least, T - start + 1) for start in starts])


def masked(starts, lengths):
    place = np.arange(T) - starts[:, None]
    return (place >= 0) & (place < lengths[:, None])


def by_hand(values, length, kappa):
    """One response: `values[j]` is worth the prefix that ends slice j."""
    rewards = []
    for t in range(length):
        prefixes = [
            math.ceil(u / kappa) for u in range(1, t + 2)
        ]  # counted from 1, as in the paper
        rewards.append(sum(values[j - 1] for j in prefixes) / (t + 1))
    return rewards


# ------------------------------------------------------------------ chi


@pytest.mark.parametrize(
    ("score", "value"),
    [
        (0.05, -0.048851), (0.1, -0.100343), (0.25, -0.273983), (0.5, -0.660140),
        (0.6, -0.872658), (0.65, -0.999831), (0.66, -1.0), (0.9, -1.0), (1.0, -1.0),
    ],
)  # fmt: skip
def test_chi_golden_values(score, value):
    np.testing.assert_allclose(reward.chi(jnp.array(score)), value, atol=1e-5)


def test_chi_ends_where_it_is_said_to():
    least = 1 - math.exp(-1.05)
    assert reward.chi(jnp.array(least + 1e-4)) == -1 < reward.chi(jnp.array(least - 1e-4))
    np.testing.assert_allclose(reward.chi(jnp.zeros(2)), 0, atol=2e-6)
    # A clip like that of PPO would leave no response unpunished.
    np.testing.assert_allclose(reward.chi(jnp.array(0.0), clip=0.2), math.log(0.8) / 1.05)
    np.testing.assert_allclose(reward.chi(jnp.array(0.5), scale=2.0), math.log(0.5) / 2, rtol=1e-6)


@few
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2))
def test_chi_falls_with_the_score_and_stays_in_range(scores):
    low, high = reward.chi(jnp.array(sorted(scores)))
    assert -1 <= high <= low <= 0


def test_chi_of_bfloat16_scores_is_finite_float32():
    value = reward.chi(jnp.array([0.0, 1.0], jnp.bfloat16))
    assert value.dtype == jnp.float32 and value[1] == -1 and abs(value[0]) < 1e-5


# ------------------------------------------------------------------ owners


def test_own_and_any_forget_owner():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2)).astype(np.float32)
    forget, owners = jnp.array([True, False, True, True]), jnp.array([2, 0, 1])
    own = reward.owner_scores(jnp.array(p), reward.counted_owners(owners, forget))
    np.testing.assert_allclose(own, [p[0, :, 2], p[1, :, 0], [0, 0]], rtol=1e-6)
    counted = reward.counted_owners(owners, forget, against="any")
    np.testing.assert_allclose(
        reward.owner_scores(jnp.array(p), counted), p[..., [0, 2, 3]].sum(-1), rtol=1e-6
    )
    # A class for incoherent texts counts beside the row's own.
    both = reward.owner_scores(
        jnp.array(p), reward.counted_owners(owners, forget) | (jnp.arange(4) == 3)
    )
    np.testing.assert_allclose(both[1], p[1, :, 0] + p[1, :, 3], rtol=1e-6)


def test_counting_for_other_rows_is_an_error():
    with pytest.raises(AssertionError):
        reward.owner_scores(jnp.zeros((3, 2, 4)), jnp.zeros((2, 4), bool))


# ------------------------------------------------------------------ slices


def test_slices_by_hand():
    ends = reward.slice_ends(jnp.array([7, 6, 1, 0]), 3, 3)
    np.testing.assert_array_equal(ends, [[3, 6, 7], [3, 6, 0], [1, 0, 0], [0, 0, 0]])
    per_row = reward.slice_ends(jnp.array([7, 6]), jnp.array([4, 2]), 3)
    np.testing.assert_array_equal(per_row, [[4, 7, 0], [2, 4, 6]])


@pytest.mark.parametrize("slices", [1, 7, 15])
def test_segments_are_the_shortest_that_need_no_more_slices_than_wanted(slices):
    lengths = np.arange(200)
    kappa = np.asarray(reward.segment_lengths(jnp.array(lengths), slices))
    assert (kappa >= 1).all() and (kappa * slices >= lengths).all()
    assert ((kappa == 1) | ((kappa - 1) * slices < lengths)).all()


@few
@given(seeds, kappas)
def test_the_prefix_of_a_token_is_the_first_that_holds_it(seed, kappa):
    """Values that are the ends themselves: the reward is the mean end so far."""
    rng = np.random.default_rng(seed)
    starts, lengths = make_spans(rng)
    ends = reward.slice_ends(jnp.array(lengths), kappa, K)
    got = prefix_rewards(ends.astype(jnp.float32), masked(starts, lengths), kappa)
    for row, start, length in zip(np.asarray(got), starts, lengths, strict=True):
        cut = [min(math.ceil((u + 1) / kappa) * kappa, length) for u in range(length)]
        expected = [np.mean(cut[: t + 1]) for t in range(length)]
        np.testing.assert_allclose(row[start : start + length], expected, rtol=1e-5)


# ------------------------------------------------------------------ token rewards


def test_kappa_token_golden_values():
    values = reward.chi(jnp.array([[0.1, 0.5, 0.9]]))
    got = prefix_rewards(values, jnp.ones((1, 7), bool), 3)[0]
    expected = [-0.100343, -0.100343, -0.100343, -0.240293, -0.324262, -0.380242, -0.468779]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@few
@given(seeds, kappas)
def test_rewards_follow_the_formula(seed, kappa):
    rng = np.random.default_rng(seed)
    starts, lengths = make_spans(rng)
    values = rng.uniform(-1, 0, (B, K)).astype(np.float32)
    got = prefix_rewards(values, masked(starts, lengths), kappa)
    expected = np.zeros((B, T))
    for b in range(B):
        expected[b, starts[b] : starts[b] + lengths[b]] = by_hand(values[b], lengths[b], kappa)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@few
@given(seeds, kappas)
def test_what_stands_outside_the_response_changes_nothing(seed, kappa):
    """Neither the values of slices that are not there, nor where in the row the response stands."""
    rng = np.random.default_rng(seed)
    starts, lengths = make_spans(rng)
    values = rng.uniform(-1, 0, (B, K)).astype(np.float32)
    there = np.arange(K) * kappa < lengths[:, None]
    for level in ("token", "sequence"):
        got = prefix_rewards(values, masked(starts, lengths), kappa, level=level)
        spoiled = np.where(there, values, np.nan)
        moved = prefix_rewards(spoiled, masked(0 * starts, lengths), kappa, level=level)
        for b in range(B):
            inside = np.asarray(got)[b, starts[b] : starts[b] + lengths[b]]
            np.testing.assert_array_equal(inside, np.asarray(moved)[b, : lengths[b]])
        assert not np.asarray(got)[~masked(starts, lengths)].any()
        assert not np.asarray(moved)[~masked(0 * starts, lengths)].any()


@few
@given(seeds)
def test_kappa_of_one_is_per_token(seed):
    rng = np.random.default_rng(seed)
    starts, lengths = make_spans(rng)
    values = rng.uniform(-1, 0, (B, T)).astype(np.float32)
    got = np.asarray(prefix_rewards(values, masked(starts, lengths), 1))
    for b in range(B):
        running = np.cumsum(values[b, : lengths[b]]) / np.arange(1, lengths[b] + 1)
        np.testing.assert_allclose(got[b, starts[b] : starts[b] + lengths[b]], running, atol=1e-6)


@few
@given(seeds, st.integers(T, 3 * T))
def test_kappa_of_the_length_or_more_is_one_reward_for_all(seed, kappa):
    rng = np.random.default_rng(seed)
    mask = masked(*make_spans(rng))
    values = rng.uniform(-1, 0, (B, 1)).astype(np.float32)
    got = prefix_rewards(values, mask, kappa)
    np.testing.assert_allclose(got, np.where(mask, values, 0), rtol=1e-6)


def test_each_row_can_have_its_own_kappa():
    values, lengths = np.random.default_rng(0).uniform(-1, 0, (B, 3)), jnp.array([8, 6, 3, 1])
    kappa = reward.segment_lengths(lengths, 3)
    got = prefix_rewards(values, masked(np.zeros(B, int), np.asarray(lengths)), kappa)
    for b in range(B):
        alone = by_hand(values[b], int(lengths[b]), int(kappa[b]))
        np.testing.assert_allclose(got[b, : lengths[b]], alone, atol=1e-6)


def test_at_the_level_of_sequences_the_whole_response_is_paid_at_its_end():
    values = jnp.array([[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]])
    mask = jnp.array([[False, True, True, True, False], [True, True, True, True, True]])
    got = prefix_rewards(values, mask, 2, level="sequence")
    np.testing.assert_allclose(got, [[0, 0, 0, -0.2, 0], [0, 0, 0, 0, -0.6]], rtol=1e-6)


def test_tokens_that_no_slice_covers_are_nan_and_never_silent():
    got = np.asarray(prefix_rewards(jnp.array([[-0.1, -0.2]]), jnp.ones((1, 6), bool), 2))
    np.testing.assert_array_equal(np.isnan(got[0]), [0, 0, 0, 0, 1, 1])


# ------------------------------------------------------------------ brevity


@few
@given(seeds)
def test_missing_tokens_cost_at_the_last_one_alone(seed):
    rng = np.random.default_rng(seed)
    starts, lengths = make_spans(rng)
    mask, wanted = masked(starts, lengths), rng.integers(0, T, B)
    expected = np.zeros((B, T))
    for row, length in enumerate(lengths):
        if length:
            expected[row, starts[row] + length - 1] = 0.5 * max(wanted[row] - length, 0)
    found = reward.missing_costs(jnp.array(mask), jnp.array(wanted), cost=0.5)
    np.testing.assert_allclose(found, expected)


def test_ending_early_never_pays_when_a_missing_token_costs_1():
    """Undiscounted, and however much is attributed."""
    costs = jnp.array(np.random.default_rng(0).uniform(-1, 0, (1, K)))
    earned = []
    for length in range(1, T + 1):
        mask = jnp.arange(T)[None] < length
        rewards = prefix_rewards(costs, mask, 1)
        rewards -= reward.missing_costs(mask, jnp.array([T]), cost=1.0)
        earned.append(float(rewards.sum()))
    assert earned == sorted(earned)


# ------------------------------------------------------------------ divergence


@few
@given(seeds)
def test_k3_is_never_negative_and_both_are_zero_at_the_reference(seed):
    rng = np.random.default_rng(seed)
    p, q = -rng.exponential(3, (2, B, T)).astype(np.float32)
    mask = masked(*make_spans(rng))
    k1, k3 = (reward.kl_estimates(p, q, mask, estimator=name) for name in ("k1", "k3"))
    np.testing.assert_allclose(k1, np.where(mask, p - q, 0), rtol=1e-6)
    expected = np.exp(np.float64(q - p)) - 1 + np.float64(p - q)
    np.testing.assert_allclose(k3, np.where(mask, expected, 0), rtol=1e-4, atol=1e-6)
    assert (np.asarray(k3) >= -1e-7).all()
    for name in ("k1", "k3"):
        assert not np.asarray(reward.kl_estimates(p, p, mask, estimator=name)).any()
        spoiled = np.where(mask, p, np.nan)
        again = reward.kl_estimates(spoiled, np.where(mask, q, -np.inf), mask, estimator=name)
        np.testing.assert_array_equal(again, k1 if name == "k1" else k3)


def test_estimates_have_the_divergence_as_their_mean():
    p, q = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.15, 0.3, 0.05, 0.4])
    drawn = np.random.default_rng(0).choice(5, (1, 200_000), p=p)
    divergence = np.sum(p * np.log(p / q))
    lp, lq = (jnp.log(jnp.array(x, jnp.float32))[drawn] for x in (p, q))
    for estimator in ("k1", "k3"):
        sample = reward.kl_estimates(lp, lq, jnp.ones(lp.shape, bool), estimator=estimator)
        np.testing.assert_allclose(sample.mean(), divergence, rtol=0.02)
        # Exactly, with each token weighed by how often it is drawn.
        each = reward.kl_estimates(
            jnp.log(p)[None], jnp.log(q)[None], jnp.ones((1, 5), bool), estimator=estimator
        )
        np.testing.assert_allclose(np.sum(p * np.asarray(each)), divergence, rtol=1e-5)


def test_doctests():
    failures, count = doctest.testmod(reward)
    assert failures == 0 and count > 0
