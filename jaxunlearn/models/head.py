"""From hidden states to logits and log-probabilities, without more of [B, T, V] than fits.

Axes: B batch, T time, D model, V vocabulary, X rows of any origin.
"""

import jax
import jax.numpy as jnp

MOST_LOGITS = 2**27  # that `token_log_probs` holds at once: 512 MB


def head_logits(hidden: jax.Array, kernel_DV: jax.Array, softcap: float | None = None) -> jax.Array:
    """Logits of hidden states [..., D], float32 [..., V]; the soft-cap keeps them within +-cap."""
    logits = jnp.matmul(hidden, kernel_DV, preferred_element_type=jnp.float32)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def most_likely(logits: jax.Array) -> jax.Array:
    """Argmax over the last axis, the first of equals; int32.

    In two plain reductions, which XLA's CPU backend runs several times faster than its argmax.
    """
    last = logits.shape[-1] - 1
    is_largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.min(jnp.where(is_largest, place, last), axis=-1)


def head_log_probs(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    softcap: float | None = None,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """log p(target) at every position [B, T], in parts along T where the logits would be large;
    p is of logits divided by the temperature."""

    def of_part(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits_XV = head_logits(hidden.reshape(-1, hidden.shape[-1]), kernel_DV, softcap)
        logits_XV = logits_XV / temperature
        return _target_log_probs(logits_XV, targets.reshape(-1)).reshape(targets.shape)

    batch, time = targets_BT.shape
    room = max(1, MOST_LOGITS // (batch * kernel_DV.shape[1]))
    if time <= room:
        return of_part(hidden_BTD, targets_BT)
    width = next(width for width in range(room, 0, -1) if time % width == 0)
    parts = [
        jnp.moveaxis(x.reshape(batch, time // width, width, *x.shape[2:]), 1, 0)
        for x in (hidden_BTD, targets_BT)
    ]
    # Recomputed in the backward pass: the logits of two parts never exist at once.
    log_probs = jax.lax.map(lambda part: jax.checkpoint(of_part)(*part), tuple(parts))
    return jnp.moveaxis(log_probs, 0, 1).reshape(batch, time)


@jax.custom_vjp
def _target_log_probs(logits_XV: jax.Array, targets_X: jax.Array) -> jax.Array:
    """log softmax(logits)[target] of every row, [X].

    Its own derivative rule, (onehot - softmax) * cotangent, is one pass over the saved logits;
    autodiff of gather and logsumexp makes several and a scatter.
    """
    return _target_log_probs_forward(logits_XV, targets_X)[0]


def _target_log_probs_forward(logits_XV, targets_X):
    chosen_X = jnp.take_along_axis(logits_XV, targets_X[:, None], axis=-1)[:, 0]
    normalizer_X = jax.nn.logsumexp(logits_XV, axis=-1)
    return chosen_X - normalizer_X, (logits_XV, normalizer_X, targets_X)


def _target_log_probs_backward(saved, cotangent_X):
    logits_XV, normalizer_X, targets_X = saved
    hit_XV = jnp.arange(logits_XV.shape[-1])[None] == targets_X[:, None]
    probs_XV = jnp.exp(logits_XV - normalizer_X[:, None])
    return (hit_XV - probs_XV) * cotangent_X[:, None], None


_target_log_probs.defvjp(_target_log_probs_forward, _target_log_probs_backward)
