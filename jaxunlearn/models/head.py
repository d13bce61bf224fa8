"""From hidden states to logits and log-probabilities, without more of [B, T, V] than fits.

Axes: B batch, T time, D model, V vocabulary, X rows of any origin.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn.models.on_mesh import APART, VOCABULARY, laid, shares

MOST_LOGITS = 2**27  # that `in_parts` lets a function hold at once on a device: 512 MB


def head_logits(hidden: jax.Array, kernel_DV: jax.Array, softcap: float | None = None) -> jax.Array:
    """Logits of hidden states [..., D], float32 [..., V]; the soft-cap keeps them within +-cap.

    On a mesh that divides V no device holds the whole kernel, nor its gradient: rows go to the
    devices that share it, each of which has some columns of their logits.
    """
    if kernel_DV.shape[1] % shares(VOCABULARY) == 0:
        hidden, kernel_DV = laid(hidden, APART), laid(kernel_DV, (), VOCABULARY)
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

    return in_parts(of_part, hidden_BTD, targets_BT, logits=kernel_DV.shape[1])


def in_parts(function: Callable[..., jax.Array], *arrays_BT: jax.Array, logits: int) -> jax.Array:
    """A function of positions, in parts along T where its logits would be large.

    Args:
      function: of arrays [B, t, ...] to [B, t]; a position's value depends on that position alone.
      arrays_BT: its arguments, [B, T, ...].
      logits: how many it makes at each position.

    Returns:
      [B, T].
    """
    batch, time = arrays_BT[0].shape[:2]
    room = max(1, MOST_LOGITS * shares() // (batch * logits))
    if time <= room:
        return function(*arrays_BT)
    count = -(-time // room)
    # Parts of one size, filled up at the end: a divisor of T may be far smaller than the room.
    width = -(-time // count)
    fill = count * width - time

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, fill), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, count, width, *x.shape[2:]), 1, 0)

    # Recomputed in the backward pass: the logits of two parts never exist at once.
    values = jax.lax.map(lambda part: jax.checkpoint(function)(*part), tuple(map(split, arrays_BT)))
    return jnp.moveaxis(values, 0, 1).reshape(batch, count * width)[:, :time]


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
