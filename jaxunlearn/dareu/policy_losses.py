"""Loss terms of policy optimisation: per token, to be minimised, and never reduced.

Arrays [B, T] are aligned with tokens and `mask` says which of them count; values elsewhere are
never looked at, results there are 0, and so are gradients. `advantages.masked_mean` makes one
number of a term. Log-probabilities are those of the distribution that responses were drawn from: if
that had a temperature, of logits divided by it, on both sides of a ratio. "The paper" is DareU,
arXiv 2605.30919.
"""

import chex
import jax
import jax.numpy as jnp

from jaxunlearn.dareu.advantages import masked_mean
from jaxunlearn.dareu.reward import kl_estimates
from jaxunlearn.methods import logit_losses


def ppo_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
) -> jax.Array:
    """Clipped surrogate: -min(s A, clip(s, 1 - clip, 1 + clip) A), with s = exp(lp - lp_old).

    At the old policy s is 1 and the gradient is that of `reinforce_loss`. A token that is already
    more likely by the factor 1 + clip and should be yet more so has gradient 0, and so has one
    below 1 - clip that should be less likely; in the other two corners the gradient is kept.

    Args:
      log_probs: [B, T], of the policy.
      old_log_probs: [B, T], of the policy that drew the tokens; a constant.
      advantages: [B, T], A; constants.
      mask: bool [B, T].
      clip: > 0.

    Returns:
      [B, T].

    Reference: Schulman et al., Proximal policy optimization algorithms, arXiv 1707.06347, equation
    7; the paper's J, with clip 0.2.

    >>> lp, mask = jnp.log(jnp.array([[0.6, 0.6]])), jnp.ones((1, 2), bool)
    >>> up, down = ppo_loss(lp, jnp.log(0.4) + 0 * lp, jnp.array([[1.0, -1.0]]), mask)[0]
    >>> print(f"{up:.4f}, {down:.4f}")
    -1.2000, 1.5000
    """
    ratio = ratios(log_probs, old_log_probs, mask)
    bound = jnp.where(advantages > 0, 1.0 + clip, 1.0 - clip)
    kept = jnp.where(clipped(ratio, advantages, clip=clip), bound, ratio)
    return -jnp.where(mask, kept * jax.lax.stop_gradient(advantages), 0.0)


def ratios(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """How much likelier a token became: s = p / p_old, 1 outside the mask.

    Args:
      log_probs: [B, T], of the policy.
      old_log_probs: [B, T], of the policy that drew the tokens; a constant.
      mask: bool [B, T].

    Returns:
      [B, T], > 0.

    Reference: as for `ppo_loss`; the paper's s_t.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    # Masked before the exponential: an infinity there would make gradients nan.
    gain = log_probs - jax.lax.stop_gradient(old_log_probs)
    return jnp.exp(jnp.where(mask, gain, 0.0))


def clipped(ratio: jax.Array, advantages: jax.Array, *, clip: float = 0.2) -> jax.Array:
    """Where the clipped surrogate is flat: A > 0 and s > 1 + clip, or A < 0 and s < 1 - clip.

    Args:
      ratio: [B, T], from `ratios`.
      advantages: [B, T], A.
      clip: > 0.

    Returns:
      bool [B, T].

    Reference: as for `ppo_loss`.
    """
    raised = (advantages > 0) & (ratio > 1.0 + clip)
    return raised | ((advantages < 0) & (ratio < 1.0 - clip))


def reinforce_loss(log_probs: jax.Array, advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Policy gradient without ratios: -A log p(y_t).

    Right only for tokens that the policy itself drew.

    Args:
      log_probs: [B, T], of the policy.
      advantages: [B, T], A; constants.
      mask: bool [B, T].

    Returns:
      [B, T].

    Reference: Williams, Simple statistical gradient-following algorithms, 1992. Not in the paper.

    >>> print(reinforce_loss(jnp.array([[-2.0]]), jnp.array([[0.5]]), jnp.array([[True]])))
    [[1.]]
    """
    chex.assert_equal_shape([log_probs, advantages, mask])
    log_probs, advantages = (jnp.where(mask, x, 0.0) for x in (log_probs, advantages))
    return -jax.lax.stop_gradient(advantages) * log_probs


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
) -> jax.Array:
    """Clipped value error: max((V - R)^2, (V_old + clip(V - V_old, ±clip) - R)^2) / 2.

    Args:
      values: [B, T], V.
      old_values: [B, T], V when the tokens were drawn; constants.
      returns: [B, T], R, what V is to become, such as advantages plus old values; constants.
      mask: bool [B, T].
      clip: > 0; infinite for the plain squared error.

    Returns:
      [B, T], >= 0.

    Reference: the clipping is that of the PPO authors' code and of PPO for language models. The
    paper gives the weight of this term, 0.2, and no more about it.

    >>> zero, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> print(value_loss(jnp.array([[0.5, 0.25]]), zero, zero + 1.0, mask, clip=0.25))
    [[0.28125 0.28125]]
    """
    chex.assert_equal_shape([values, old_values, returns, mask])
    values, old_values, returns = (jnp.where(mask, x, 0.0) for x in (values, old_values, returns))
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))


def entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Entropy of the prediction of each token: -Σ_v p_v log p_v. A bonus, not a loss.

    Args:
      logits: [B, T, V].
      mask: bool [B, T].

    Returns:
      [B, T], from 0 to ln V.

    Reference: Schulman et al., arXiv 1707.06347, equation 9. Not in the paper.

    >>> print(f"{entropy(jnp.zeros((1, 1, 4)), jnp.array([[True]]))[0, 0]:.4f}")
    1.3863
    """
    chex.assert_shape(logits, (*mask.shape, None))
    log_probs = jax.nn.log_softmax(jnp.where(mask[..., None], logits, 0.0))
    return -jnp.where(mask, jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1), 0.0)


def distillation(logits: jax.Array, teacher_logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Forward divergence from the teacher: KL(p_teacher || p).

    Args:
      logits: [B, T, V].
      teacher_logits: [B, T, V]; constants.
      mask: bool [B, T].

    Returns:
      [B, T], >= 0; with gradient 0 where the two distributions are the same.

    Reference: the paper's L_dis on retain rows, whose teacher is the model before unlearning, with
    weight 2. That retain rows are read along their own answers is inferred from its algorithm 1.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{distillation(q, p, jnp.array([[True]]))[0, 0]:.4f}")
    0.1438
    """
    chex.assert_equal_shape([logits, teacher_logits])
    chex.assert_shape(logits, (*mask.shape, None))
    logits, teacher_logits = (jnp.where(mask[..., None], z, 0.0) for z in (logits, teacher_logits))
    return logit_losses.kl(logits, jax.lax.stop_gradient(teacher_logits))


def ratio_diagnostics(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
) -> dict[str, jax.Array]:
    """How far the policy is from the one that drew the tokens.

    Args:
      log_probs: [B, T], of the policy.
      old_log_probs: [B, T], of the policy that drew the tokens.
      advantages: [B, T].
      mask: bool [B, T].
      clip: as for `ppo_loss`.

    Returns:
      Scalars over all tokens that count: `clip_fraction`, the share that `clipped` holds back;
      `ratio_mean`, near 1 as long as the tokens are a fair sample; `ratio_min` and `ratio_max`; and
      `old_policy_kl`, KL(p_old || p) by `kl_estimates` k3.

    >>> lp = jnp.log(jnp.array([[0.3, 0.2]]))
    >>> x = ratio_diagnostics(lp, jnp.log(0.2) + 0 * lp, 1.0 + 0 * lp, jnp.ones((1, 2), bool))
    >>> print(", ".join(f"{name} {value:.4f}" for name, value in list(x.items())[:2]))
    clip_fraction 0.5000, ratio_mean 1.2500
    """
    ratio = ratios(log_probs, old_log_probs, mask)
    kl = kl_estimates(old_log_probs, log_probs, mask, estimator="k3")
    return {
        "clip_fraction": masked_mean(clipped(ratio, advantages, clip=clip), mask),
        "ratio_mean": masked_mean(ratio, mask),
        "ratio_min": jnp.min(ratio, where=mask, initial=jnp.inf),
        "ratio_max": jnp.max(ratio, where=mask, initial=0.0),
        "old_policy_kl": masked_mean(kl, mask),
    }
