"""From rewards to how much better a token was than expected: pure array functions.

Arrays and `mask` are as in `reward`: the response is one run of tokens in each row, values outside
it are never looked at, and results there are 0. A group is `group_size` rows that stand together,
responses to one prompt; B is a multiple of it. "The paper" is DareU, arXiv 2605.30919.
"""

import chex
import jax
import jax.numpy as jnp

_TINY = 1e-8
"""Added to a variance before a division by its root."""


def masked_mean(
    values: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None
) -> jax.Array:
    """Mean of the values that count; 0 where none does.

    Args:
      values: any shape.
      mask: bool of that shape.
      axis: None: one mean over all tokens, so that long responses weigh more. -1: each row's own
        mean, the paper's expectation over t, to be averaged over rows.

    Returns:
      The shape without the axis.

    >>> x, mask = jnp.array([[1.0, 2.0], [6.0, 9.0]]), jnp.array([[True, True], [True, False]])
    >>> print(masked_mean(x, mask), masked_mean(x, mask, -1))
    3.0 [1.5 6. ]
    """
    chex.assert_equal_shape([values, mask])
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis)
    return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def discounted_returns(rewards: jax.Array, mask: jax.Array, *, gamma: float = 0.99) -> jax.Array:
    """Reward from each token to the end of the response: R_t = r_t + gamma R_(t + 1).

    Args:
      rewards: [B, T].
      mask: bool [B, T], the response.
      gamma: discount in [0, 1].

    Returns:
      [B, T].

    Reference: the paper's R_t = Σ_j gamma^j r_(t + j), section on PPO. It says only that gamma is
    below 1; 0.99 is ours.

    >>> x, mask = jnp.array([[1.0, 2.0, 7.0]]), jnp.array([[True, True, False]])
    >>> print(discounted_returns(x, mask, gamma=0.5))
    [[2. 2. 0.]]
    """
    return gae(rewards, jnp.zeros_like(rewards), mask, gamma=gamma, lam=1.0)


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: float = 0.99,
    lam: float = 1.0,
) -> jax.Array:
    """Generalised advantage estimates: A_t = d_t + gamma lam A_(t + 1).

    d_t = r_t + gamma V_(t + 1) - V_t, with V = 0 after the response. With lam = 1 it is the
    discounted return minus the value, with lam = 0 the one-step d_t. What the value is to become,
    the target of `policy_losses.value_loss`, is A_t + V_t. No gradient flows through it.

    Args:
      rewards: [B, T].
      values: [B, T], V_t: what was expected from token t on, before it was known.
      mask: bool [B, T], the response.
      gamma: discount in [0, 1].
      lam: lambda in [0, 1].

    Returns:
      [B, T].

    Reference: Schulman et al., High-dimensional continuous control using generalized advantage
    estimation, arXiv 1506.02438, equation 16; lam = 1 is the paper's A_t = R_t - V(c_t).

    >>> r, v = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
    >>> print(gae(r, v, jnp.ones((1, 2), bool), gamma=1.0, lam=0.5))
    [[0.25 0.5 ]]
    """
    chex.assert_rank(rewards, 2)
    chex.assert_equal_shape([rewards, values, mask])
    rewards, values = jax.lax.stop_gradient(
        jax.tree.map(lambda x: jnp.where(mask, x, 0.0), (rewards, values))
    )
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + gamma * next_values - values

    def earlier(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, counts = now
        advantage = jnp.where(counts, delta + gamma * lam * later, 0.0)
        return advantage, advantage

    start = jnp.zeros_like(deltas[:, 0])
    _, advantages = jax.lax.scan(earlier, start, (deltas.T, mask.T), reverse=True)
    return advantages.T


def whiten(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over all tokens that count: (x - mean) / sqrt(var + 1e-8).

    Args:
      values: [B, T].
      mask: bool [B, T], the response.

    Returns:
      [B, T]; all 0 where all values are the same.

    Reference: usual in PPO for language models; the paper's cost model names it without details.

    >>> x, mask = jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])
    >>> print(whiten(x, mask))
    [[-1.  1.  0.]]
    """
    return group_advantages(values, mask, group_size=len(values))


def group_advantages(
    rewards: jax.Array, mask: jax.Array, *, group_size: int, by_std: bool = True
) -> jax.Array:
    """How much more a response, or a token, earned than its group: (r - mean) / sqrt(var + 1e-8).

    Given whole responses [B], the advantage of all their tokens. Given token rewards [B, T], the
    statistics are over all tokens of the group, and `discounted_returns` of the result with
    gamma = 1 are the advantages.

    Args:
      rewards: [B] or [B, T].
      mask: bool of that shape: which responses or tokens count.
      group_size: rows per group; all of them are one group if it is B.
      by_std: divide by the standard deviation. Without it a group of almost equal rewards does not
        weigh as much as one of unlike rewards.

    Returns:
      Of that shape; exactly 0 in groups whose rewards are all the same. The variance divides by
      the number of rewards, not by one less.

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1 (GRPO, outcome and process
    supervision); without the deviation: Liu et al., Understanding R1-Zero-like training, arXiv
    2503.20783. The paper speaks of GRPO as too costly and has not tried it.

    >>> print(group_advantages(jnp.array([1.0, 3.0, 5.0, 5.0]), jnp.ones(4, bool), group_size=2))
    [-1.  1.  0.  0.]
    """
    centred, mask_GN = _centred(rewards, mask, group_size)
    if by_std:
        variance = masked_mean(jnp.square(centred), mask_GN, -1)[:, None]
        centred = centred * jax.lax.rsqrt(variance + _TINY)
    return centred.reshape(rewards.shape)


def leave_one_out(rewards: jax.Array, mask: jax.Array, *, group_size: int) -> jax.Array:
    """How much more a response earned than the others of its group: r_i - mean of r_j, j ≠ i.

    That is n / (n - 1) (r_i - mean) for the n responses that count, and 0 for a single one, which
    has nothing to compare with.

    Args:
      rewards: [B], of whole responses.
      mask: bool [B], which of them count.
      group_size: rows per group.

    Returns:
      [B].

    Reference: Ahmadian et al., Back to basics: revisiting REINFORCE style optimization for learning
    from human feedback in LLMs, arXiv 2402.14740 (RLOO). Not in the paper.

    >>> print(leave_one_out(jnp.array([1.0, 2.0, 6.0]), jnp.ones(3, bool), group_size=3))
    [-3.  -1.5  4.5]
    """
    chex.assert_rank(rewards, 1)
    centred, mask_GN = _centred(rewards, mask, group_size)
    number = jnp.sum(mask_GN, axis=-1, keepdims=True)
    return (centred * number / jnp.maximum(number - 1, 1)).reshape(rewards.shape)


def _centred(values: jax.Array, mask: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Values minus their group's mean, 0 where they do not count, and the mask: [groups, n]."""
    chex.assert_equal_shape([values, mask])
    if len(values) % group_size:
        raise ValueError(f"{len(values)} rows are no multiple of the group size {group_size}")
    groups = len(values) // group_size
    values_GN, mask_GN = values.reshape(groups, -1), mask.reshape(groups, -1)
    # From the greatest first: a rounded mean of equal values need not be that value.
    greatest = jnp.max(values_GN, axis=-1, keepdims=True, where=mask_GN, initial=-jnp.inf)
    lower = jax.lax.stop_gradient(jnp.where(mask_GN, values_GN - greatest, 0.0))
    mean = masked_mean(lower, mask_GN, -1)[:, None]
    return jnp.where(mask_GN, lower - mean, 0.0), mask_GN
