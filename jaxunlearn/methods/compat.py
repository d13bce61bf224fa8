"""Loss terms as open-unlearning computes them, where that is not what the papers say.

Read at its commit d3d7cf9. For a row of T tokens its model returns T predictions, the last of which
is about a token that does not exist. Two of its losses count prompt and padding like the answer:

    kl      all T predictions, that last one too; the batch mean divides by B T
    undial  predictions and labels are shifted, T - 1 are left; the batch mean divides by B (T - 1)

Here they give each row's own mean, [B]. Their T is the longest row of a micro-batch: values agree
where rows are padded to that length and no further.

Statistics, shapes and hyper-parameters are those of `losses`, and so are the defaults, but for the
beta of `simnpo`, which is its recipe's. Weights are not changed.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxunlearn.methods import logit_losses, losses
from jaxunlearn.validation import NonNegative, Positive


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """`logit_losses.kl` averaged over all T entries of a row; entry 0 is what follows the last.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.

    Returns:
      [B], one value per sequence, >= 0.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{kl(q, p)[0]:.4f}")
    0.1438
    """
    return jnp.mean(logit_losses.kl(logits, reference_logits), axis=-1)


def undial(
    logits: jax.Array,
    reference_logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    beta: NonNegative = 10.0,
) -> jax.Array:
    """`logit_losses.undial` averaged over entries 1 to T - 1 of a row.

    Outside the answer the label is -100, which indexes the vocabulary from its end: the logit of
    token V - 100 is lowered there. Their code fails for V < 100; here none is lowered then.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.
      targets: [B, T].
      mask: [B, T].
      beta: by how much logits are lowered, >= 0.

    Returns:
      [B], one value per sequence.

    >>> z = jnp.zeros((1, 3, 200))
    >>> print(undial(z, z, jnp.zeros((1, 3), int), jnp.zeros((1, 3), bool)).mean().round(4))
    5.2983
    """
    lowered = jnp.where(mask, targets, logits.shape[-1] - 100)
    return jnp.mean(
        logit_losses.undial(logits, reference_logits, lowered, beta=beta)[:, 1:], axis=-1
    )


def simnpo(
    seq_log_prob: jax.Array,
    answer_length: jax.Array,
    *,
    beta: Positive = 4.5,
    delta: NonNegative = 0.0,
) -> jax.Array:
    """SimNPO with another margin: -(2/beta) log sigmoid(beta (-S/|y| - delta)).

    It is `losses.simnpo` with gamma = beta delta.

    Args:
      seq_log_prob: [B], S.
      answer_length: [B], |y|.
      beta: inverse temperature, > 0.
      delta: margin of the mean NLL, >= 0.

    Returns:
      [B], one value per sequence, >= 0.

    >>> print(simnpo(jnp.array([-3.0]), jnp.array([3.0]), beta=2.0, delta=1.0).round(4))
    [0.6931]
    """
    return losses.simnpo(seq_log_prob, answer_length, beta=beta, gamma=beta * delta)


def dpo(
    seq_log_prob: jax.Array,
    reference_seq_log_prob: jax.Array,
    alternative_seq_log_prob: jax.Array,
    alternative_reference_seq_log_prob: jax.Array,
    *,
    beta: Positive = 0.1,
) -> jax.Array:
    """`losses.dpo` times 2/beta.

    Args:
      seq_log_prob: [B], S of the answer to forget.
      reference_seq_log_prob: [B], the same under the frozen start model.
      alternative_seq_log_prob: [B], S of the preferred answer.
      alternative_reference_seq_log_prob: [B], the same under the frozen start model.
      beta: inverse temperature, > 0.

    Returns:
      [B], one value per sequence, >= 0; (2/beta) ln 2 at the reference.

    >>> print(dpo(*jnp.zeros((4, 1)), beta=0.5).round(4))
    [2.7726]
    """
    per_sequence = losses.dpo(
        seq_log_prob,
        reference_seq_log_prob,
        alternative_seq_log_prob,
        alternative_reference_seq_log_prob,
        beta=beta,
    )
    return (2.0 / beta) * per_sequence


COMPAT: Mapping[Callable[..., jax.Array], Callable[..., jax.Array]] = {
    logit_losses.kl: kl,
    logit_losses.undial: undial,
    losses.simnpo: simnpo,
    losses.dpo: dpo,
}
"""Each paper's function to open-unlearning's."""
