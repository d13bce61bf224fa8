"""Loss terms: pure functions of log-probabilities.

A term never reduces over the batch: it returns one value per token, [B, T], or per sequence, [B].
The update step averages per-token values over all answer tokens of the global batch, and
per-sequence values over all its sequences; prompt and padding positions never count.

Positional parameters name what a term needs to know; the update step provides just that:

    log_probs               [B, T]     log p(token t | tokens before t) of the trained model
    seq_log_prob            [B]        their sum over answer tokens
    reference_seq_log_prob  [B]        the same under the frozen start model, computed once
    log_softmax             [B, T, V]  the whole next-token distribution that predicts token t
    reference_log_softmax   [B, T, V]  the same under the frozen start model: a second forward pass

Keyword-only parameters are hyper-parameters: their annotation is the allowed range, their default
is the paper's.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.config import Positive


def nll(log_probs: jax.Array) -> jax.Array:
    """Negative log-likelihood of each answer token: -log p(y_t).

    Args:
      log_probs: [B, T].

    Returns:
      [B, T], one value per token.

    >>> print(nll(jnp.log(jnp.array([[0.5, 0.25]]))).round(4))
    [[0.6931 1.3863]]
    """
    return -log_probs


def grad_ascent(log_probs: jax.Array) -> jax.Array:
    """Gradient ascent on the forget rows: minimises log p(y_t), the negated NLL.

    Args:
      log_probs: [B, T].

    Returns:
      [B, T], one value per token; unbounded below, so it destroys the model when run for long.

    Reference: Jang et al., Knowledge unlearning for mitigating privacy risks, arXiv 2210.01504;
    TOFU, arXiv 2401.06121, section 4.

    >>> print(grad_ascent(jnp.array([[-2.0, -1.0]])))
    [[-2. -1.]]
    """
    return log_probs


def npo(
    seq_log_prob: jax.Array, reference_seq_log_prob: jax.Array, *, beta: Positive = 0.1
) -> jax.Array:
    """Negative preference optimisation: -(2/beta) log sigmoid(-beta (S - S_ref)).

    S is the log-probability of the whole answer. At the reference the value is (2/beta) ln 2 and
    the gradient is that of S, as in gradient ascent on sequence sums; it fades as S falls.

    Args:
      seq_log_prob: [B], S.
      reference_seq_log_prob: [B], S under the frozen start model.
      beta: inverse temperature, > 0; gradient ascent is the limit beta -> 0.

    Returns:
      [B], one value per sequence, >= 0.

    Reference: Zhang et al., Negative preference optimization, arXiv 2404.05868, equation 3.

    >>> print(npo(jnp.array([-3.0]), jnp.array([-3.0]), beta=0.5).round(4))
    [2.7726]
    """
    return (2.0 / beta) * jax.nn.softplus(beta * (seq_log_prob - reference_seq_log_prob))


def kl(log_softmax: jax.Array, reference_log_softmax: jax.Array) -> jax.Array:
    """Divergence of the model from the start model at each answer token: KL(p_ref || p).

    Only answer tokens count; the code of TOFU and open-unlearning averages over prompt and padding
    positions as well.

    Args:
      log_softmax: [B, T, V].
      reference_log_softmax: [B, T, V], under the frozen start model.

    Returns:
      [B, T], one value per token, >= 0.

    Reference: TOFU, arXiv 2401.06121, section 4 (KL minimisation).

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{kl(q, p).sum():.4f}, {kl(p, p).sum():.4f}")
    0.1438, 0.0000
    """
    return jnp.sum(jnp.exp(reference_log_softmax) * (reference_log_softmax - log_softmax), axis=-1)
