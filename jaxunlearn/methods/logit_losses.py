"""Loss terms that need the whole distribution of a token, not only the probability of its target.

What their parameters are, and how values become a loss, is said in `losses`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.validation import NonNegative

_LN2 = float(np.log(2.0))


def undial(
    logits: jax.Array, reference_logits: jax.Array, targets: jax.Array, *, beta: NonNegative = 10.0
) -> jax.Array:
    """Distils the start model with the answer's logits lowered by beta.

    Cross-entropy of softmax(z) against softmax(z_ref - beta onehot(y_t)). With beta = 0 it is
    self-distillation, whose gradient at the start model is 0.

    Args:
      logits: [B, T, V], z.
      reference_logits: [B, T, V], under the frozen start model.
      targets: [B, T].
      beta: by how much the answer's logits are lowered, >= 0.

    Returns:
      [B, T], one value per token; its least value is the entropy of the lowered distribution.

    Reference: Dong et al., UnDIAL, arXiv 2402.10052; the default is the middle of the authors' 3,
    10 and 30, and they use no retain term.
    Open-unlearning averages over prompt and padding positions too, and lowers a logit there.

    >>> z = jnp.log(jnp.array([[[0.8, 0.2]]]))
    >>> print(undial(z, z, jnp.array([[0]]), beta=jnp.log(4.0)).round(4))
    [[0.9163]]
    """
    lowered = reference_logits - beta * jax.nn.one_hot(targets, logits.shape[-1])
    return _cross_entropy(jax.nn.softmax(lowered), logits)


def ceu(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, *, skip: NonNegative = 1.0
) -> jax.Array:
    """Distils the model's own distribution without the answer token.

    Cross-entropy of softmax(z) against softmax(z) with z of y_t at minus infinity, held constant.
    Its gradient is bounded, large where the model is sure, and fades as p(y_t) does.

    The first `skip` tokens of an answer are left out and the others scaled up, so that each answer
    counts with its whole length in the mean over answer tokens.

    Args:
      logits: [B, T, V], z.
      targets: [B, T].
      mask: [B, T].
      skip: leading answer tokens to leave out, >= 0; answers no longer than this count as 0.

    Returns:
      [B, T], one value per token, >= 0; 0 outside the answer.

    Reference: Yang, CE-U: cross entropy unlearning, arXiv 2503.01224.
    Open-unlearning divides by the tokens that are left instead, so long answers weigh a bit more;
    for answers of equal length the two agree.

    >>> z = jnp.log(jnp.array([[[0.5, 0.5], [0.5, 0.5], [0.8, 0.2]]]))
    >>> print(ceu(z, jnp.array([[0, 0, 0]]), jnp.array([[False, True, True]])).round(4))
    [[0.     0.     3.2189]]
    """
    at_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    others = jax.lax.stop_gradient(jnp.where(at_target, -jnp.inf, logits))
    counted = mask & (jnp.cumsum(mask, axis=-1) > skip)
    scale = mask.sum(-1, keepdims=True) / jnp.maximum(counted.sum(-1, keepdims=True), 1)
    return jnp.where(counted, scale * _cross_entropy(jax.nn.softmax(others), logits), 0.0)


def pdu(logits: jax.Array) -> jax.Array:
    """Flattens the logits: (max_v z_v - mean_v z_v)^2.

    0 where the prediction is uniform, and the same for z and z plus a constant.

    Args:
      logits: [B, T, V], z.

    Returns:
      [B, T], one value per token, >= 0.

    Reference: Entesari et al., Constrained entropic unlearning, arXiv 2506.05314.
    Open-unlearning: the same; earlier versions averaged over prompt and padding too.

    >>> print(pdu(jnp.array([[[3.0, 0.0, 0.0]]])))
    [[4.]]
    """
    return jnp.square(jnp.max(logits, axis=-1) - jnp.mean(logits, axis=-1))


def whp(
    logits: jax.Array,
    reference_logits: jax.Array,
    reinforced_logits: jax.Array,
    *,
    alpha: NonNegative = 5.0,
) -> jax.Array:
    """Who's Harry Potter: cross-entropy against the most likely generic token.

    The generic logits are v_ref - alpha relu(v_reinforced - v_ref): what further training on the
    forget rows makes more likely is suppressed. The label is their argmax, as the paper relabels
    its text with one generic token per position. With alpha = 0 it is the start model's own choice.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], v_ref, under the frozen start model.
      reinforced_logits: [B, T, V], under a model trained further on the forget rows.
      alpha: how strongly what was reinforced is suppressed, >= 0.

    Returns:
      [B, T], one value per token, >= 0.

    Reference: Eldan and Russinovich, Who's Harry Potter?, arXiv 2310.02238, equation 1; the paper's
    replacement of names by generic ones (anchor terms) is not part of it.
    Open-unlearning has no such method.

    >>> base, more = jnp.array([[[2.0, 1.0, 0.0]]]), jnp.array([[[3.0, 1.0, 0.0]]])
    >>> print(whp(jnp.zeros((1, 1, 3)), base, more).round(4))
    [[1.0986]]
    """
    gain = jax.nn.relu(reinforced_logits - reference_logits)
    label = jnp.argmax(reference_logits - alpha * gain, axis=-1)
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probs, label[..., None], axis=-1)[..., 0]


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Divergence of the model from the start model at each answer token: KL(p_ref || p).

    A retain term.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.

    Returns:
      [B, T], one value per token, >= 0.

    Reference: TOFU, arXiv 2401.06121, section 4 (KL minimisation).
    The code of TOFU and open-unlearning averages over prompt and padding positions as well.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{kl(q, p).sum():.4f}, {kl(p, p).sum():.4f}")
    0.1438, 0.0000
    """
    reference = jax.nn.log_softmax(reference_logits)
    return jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(logits)), axis=-1)


def nll_kl(
    log_probs: jax.Array,
    logits: jax.Array,
    reference_logits: jax.Array,
    *,
    nll_weight: NonNegative = 0.99,
    kl_weight: NonNegative = 0.001,
) -> jax.Array:
    """Task loss and distillation: nll_weight NLL + kl_weight KL(p_ref || p).

    The retain term of `scrub`.

    Args:
      log_probs: [B, T].
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.
      nll_weight: the authors' gamma, >= 0.
      kl_weight: the authors' alpha, >= 0.

    Returns:
      [B, T], one value per token, >= 0.

    Reference: as for `scrub`; the defaults are those of the authors' large-scale runs.
    Open-unlearning has no such term.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{nll_kl(q[..., 0], q, p, nll_weight=1.0, kl_weight=10.0).sum():.4f}")
    2.8247
    """
    return kl_weight * kl(logits, reference_logits) - nll_weight * log_probs


def scrub(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Takes the model away from the start model at each answer token: -KL(p_ref || p).

    The start model is where it is largest and its gradient 0: what moves the model there is the
    retain rows, whose turns come in between, or rounding.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.

    Returns:
      [B, T], one value per token, <= 0; unbounded below, so it destroys the model when run for
      long.

    Reference: Kurmanji et al., Towards unbounded machine unlearning, arXiv 2302.09880. The authors
    divide the logits by a temperature of 2 or 4; here it is 1.
    Open-unlearning has no such method.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{scrub(q, p).sum():.4f}")
    -0.1438
    """
    return -kl(logits, reference_logits)


def jsd(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence of the model from the start model at each answer token.

    (KL(p || m) + KL(p_ref || m)) / 2 with m = (p + p_ref) / 2: symmetric, and unlike `kl` bounded,
    with a bounded gradient. The retain term of `jensun`.

    Args:
      logits: [B, T, V].
      reference_logits: [B, T, V], under the frozen start model.

    Returns:
      [B, T], one value per token, in [0, ln 2].

    Reference: Singh et al., Unlearning that lasts, arXiv 2509.02820.
    Open-unlearning has no such term.

    >>> p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    >>> print(f"{jsd(q, p).sum():.4f}, {jsd(p, q).sum():.4f}")
    0.0338, 0.0338
    """
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference_logits)
    middle = jnp.logaddexp(p, q) - _LN2
    return 0.5 * jnp.sum(jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle), axis=-1)


def _cross_entropy(distribution: jax.Array, logits: jax.Array) -> jax.Array:
    """[B, T]: of softmax(logits) against a distribution over the vocabulary."""
    return -jnp.sum(distribution * jax.nn.log_softmax(logits), axis=-1)
