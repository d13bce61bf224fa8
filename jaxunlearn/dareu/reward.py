"""What a response earns for not being attributed to whom it should forget: pure array functions.

An attribution function scores prefixes of a response in slices of kappa tokens; a token's reward is
the mean over what stands up to it, minus how far the policy moved on it:

    owner_scores -> chi -> prefix_rewards - missing_costs - kl_weight * kl_estimates

Arrays [B, T] are aligned with tokens, and `mask` says which of them are the response: one run of
tokens in each row, with anything before it (a prompt) and after it (padding). Values outside it are
never looked at, and results there are 0. T_d is the length of row d's response, k the slices.

"The paper" is Lu et al., De-attribute to forget for LLM unlearning (DareU), arXiv 2605.30919. Its
code is not public.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp


def chi(scores: jax.Array, *, scale: float = 1.05, clip: float = 1e-6) -> jax.Array:
    """What an attribution score costs: clip(ln(1 - clip(b, e, 1 - e)) / C, -1, 0).

    0 where nothing is attributed, and -1 from b = 1 - exp(-C) on, which is 0.65 for the default.

    Args:
      scores: b in [0, 1], any shape.
      scale: C > 0; the larger, the less a middling score costs.
      clip: e in (0, 0.5).

    Returns:
      float32 of that shape, in [-1, 0].

    Reference: the paper's reward transform, C_seg = 1.05. It gives no value for e; 1e-6 is ours.

    >>> print(chi(jnp.array([0.0, 0.1, 0.5, 0.9])).round(4))
    [-0.     -0.1003 -0.6601 -1.    ]
    """
    inside = jnp.clip(jnp.asarray(scores, jnp.float32), clip, 1.0 - clip)
    return jnp.clip(jnp.log1p(-inside) / scale, -1.0, 0.0)


def counted_owners(
    owners: jax.Array, forget: jax.Array, *, against: Literal["own", "any"] = "own"
) -> jax.Array:
    """Whose attribution counts against a response.

    Args:
      owners: int [B], the owner that each row belongs to.
      forget: bool [N], which owners are to be forgotten; no other ever counts.
      against: "own": the row's own owner, so turning to another forget owner costs nothing. "any":
        all forget owners.

    Returns:
      bool [B, N].

    Reference: the paper's objective, equation 2, is "own"; "any" is ours.

    >>> print(counted_owners(jnp.array([2]), jnp.array([True, False, True])))
    [[False False  True]]
    """
    if against == "any":
        return jnp.broadcast_to(forget, (*owners.shape, *forget.shape))
    return jax.nn.one_hot(owners, len(forget), dtype=bool) & forget


def owner_scores(probabilities: jax.Array, counted: jax.Array) -> jax.Array:
    """Attribution of each prefix to the owners that count: sum of p_i over them.

    Args:
      probabilities: [B, k, N], p_i of each owner i for each prefix.
      counted: bool [B, N], such as `counted_owners`; `counted | column` for a class that counts for
        every row, such as one of incoherent texts.

    Returns:
      [B, k], in [0, 1] up to rounding.

    Reference: with one owner counted, the paper's DA(i, y) from its language-model classifier.

    >>> p = jnp.array([[[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]])
    >>> print(owner_scores(p, jnp.array([[True, False, True]])))
    [[0.75 0.75]]
    """
    chex.assert_shape(probabilities, (len(counted), None, counted.shape[1]))
    return jnp.sum(jnp.where(counted[:, None, :], probabilities, 0.0), axis=-1)


def segment_lengths(lengths: jax.Array, slices: int = 15) -> jax.Array:
    """Kappa for a wanted number of slices: ceil(T_d / k), at least 1.

    Args:
      lengths: int, any shape: of each response, or of the longest for one kappa for all.
      slices: k >= 1.

    Returns:
      int of that shape. A response can have fewer than k slices, never more.

    Reference: the paper tunes k = T / kappa, with 15 for TOFU, not kappa; it does not say whether T
    is the row's own length.

    >>> print(segment_lengths(jnp.array([30, 31, 4])))
    [2 3 1]
    """
    return jnp.maximum(-(-lengths // slices), 1)


def slice_ends(lengths: jax.Array, kappa: int | jax.Array, slices: int) -> jax.Array:
    """How many response tokens stand in each prefix that has to be scored.

    Prefix j ends with token min((j + 1) kappa, T_d).

    Args:
      lengths: int [B], T_d.
      kappa: tokens per slice, >= 1: one for all rows, or [B].
      slices: k, at least ceil(T_d / kappa) for every row.

    Returns:
      int [B, k]; 0 where a row has no such slice, so that there is nothing to score.

    Reference: the paper's token reward, y[: ceil(t' / kappa) kappa].

    >>> print(slice_ends(jnp.array([7, 3]), 3, 3))
    [[3 6 7]
     [3 0 0]]
    """
    kappa = jnp.broadcast_to(kappa, lengths.shape)[:, None]
    starts = jnp.arange(slices) * kappa
    return jnp.where(starts < lengths[:, None], jnp.minimum(starts + kappa, lengths[:, None]), 0)


def prefix_rewards(
    slice_values: jax.Array,
    mask: jax.Array,
    kappa: int | jax.Array,
    *,
    level: Literal["token", "sequence"] = "token",
) -> jax.Array:
    """Reward of each response token from what its prefixes are worth.

    `r_t = 1 / (t + 1) Σ_(t' = 0..t) v[floor(t' / kappa)]` at level "token": each token has the
    value of the prefix at the end of its slice, up to kappa - 1 tokens ahead, and earns the mean
    so far. kappa = 1 scores every token; from kappa = T_d on, all earn the same.

    `r_t = v[last slice]` at the last response token and 0 before it, at level "sequence".

    Args:
      slice_values: [B, k], v: what the prefixes of `slice_ends` are worth, such as `chi` of their
        scores. Values of slices that a row does not have are never looked at.
      mask: bool [B, T], the response.
      kappa: tokens per slice, >= 1: one for all rows, or [B].
      level: where the reward is given.

    Returns:
      [B, T]; 0 outside the response, and nan at tokens beyond kappa k, which no slice covers.

    Reference: the paper's token reward without its KL term; the sequence level is its ablation.

    >>> v = jnp.array([[-0.25, -1.0]])
    >>> print(prefix_rewards(v, jnp.array([[True, True, True, False]]), 2))
    [[-0.25 -0.25 -0.5   0.  ]]
    """
    chex.assert_rank([slice_values, mask], 2)
    chex.assert_equal_shape_prefix([slice_values, mask], 1)
    count = jnp.cumsum(mask, axis=-1)
    place = jnp.maximum(count - 1, 0) // jnp.broadcast_to(kappa, mask.shape[:1])[:, None]
    values = jnp.take_along_axis(slice_values, place, axis=-1, mode="fill", fill_value=jnp.nan)
    if level == "sequence":
        return jnp.where(mask & (count == count[:, -1:]), values, 0.0)
    total = jnp.cumsum(jnp.where(mask, values, 0.0), axis=-1)
    return jnp.where(mask, total / jnp.maximum(count, 1), 0.0)


def missing_costs(mask: jax.Array, wanted: jax.Array, *, cost: float | jax.Array) -> jax.Array:
    """What it costs to say too little, at the last token of a response: cost max(wanted - T_d, 0).

    A token earns at least -1 by `prefix_rewards`. With a cost of 1 it never pays to end before the
    wanted length so as to be spared what further tokens cost.

    Args:
      mask: bool [B, T], the response.
      wanted: int [B], tokens that a response should have.
      cost: of each token that it lacks, >= 0.

    Returns:
      [B, T]; 0 but at last tokens.

    Reference: ours. Without it the paper's rewards, none of which is above 0, pay for brevity.

    >>> print(missing_costs(jnp.array([[True, True, False]]), jnp.array([5]), cost=0.5))
    [[0.  1.5 0. ]]
    """
    chex.assert_rank(mask, 2)
    count = jnp.cumsum(mask, axis=-1)
    lengths = count[:, -1]
    lacking = cost * jnp.maximum(wanted - lengths, 0)
    return jnp.where(mask & (count == lengths[:, None]), lacking[:, None], 0.0)


def kl_estimates(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Literal["k1", "k3"] = "k1",
) -> jax.Array:
    """One-sample estimates of KL(p || p_ref) at tokens that p drew.

    With d = log p(y_t) - log p_ref(y_t): k1 = d, and k3 = exp(-d) - 1 + d. Both have the divergence
    as their mean; k3 is never negative. For the divergence itself: `logit_losses.kl`, with the
    policy's logits as the reference.

    Args:
      log_probs: [B, T], under the policy.
      reference_log_probs: [B, T], under what it should stay near to.
      mask: bool [B, T], the response.
      estimator: "k1" or "k3".

    Returns:
      [B, T]; 0 outside the response.

    Reference: the paper's lambda_KL term, with lambda_KL = 0.1; it names no estimator, and k1 is
    what PPO for language models commonly has. Schulman, Approximating KL divergence, 2020.

    >>> p, q = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
    >>> for estimator in ("k1", "k3"):
    ...     print(f"{kl_estimates(p, q, jnp.array([[True]]), estimator=estimator)[0, 0]:.4f}")
    0.6931
    0.1931
    """
    chex.assert_equal_shape([log_probs, reference_log_probs, mask])
    d = jnp.where(mask, log_probs - reference_log_probs, 0.0)
    return d if estimator == "k1" else jnp.expm1(-d) + d
