"""Softmax attention of queries over keys and values.

Axes: B batch, T query time, P a part of it, S key time, N query heads, K key-value heads, H head.
"""

import jax
import jax.numpy as jnp

_PART, _PARTS = 64, 8  # fewest queries in a part of causal attention, most parts


def attend(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention of scaled queries, [B, T, N * H]; the mask is True where a key is seen."""
    batch, heads, time, size = q_BNTH.shape
    kv_heads, keys = k_BKSH.shape[1:3]
    groups = heads // kv_heads
    # Queries that share a key head become rows of one matrix product: keys are never repeated.
    q_BKMH = q_BNTH.reshape(batch, kv_heads, groups * time, size)
    scores = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(batch, kv_heads, groups, time, keys)
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
    probs_BKMS = probs.reshape(batch, kv_heads, groups * time, keys)
    mixed_BKMH = jnp.einsum("bkms,bksh->bkmh", probs_BKMS, v_BKSH)
    mixed_BNTH = mixed_BKMH.reshape(batch, heads, time, size)
    return mixed_BNTH.transpose(0, 2, 1, 3).reshape(batch, time, heads * size)


def attend_causally(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    mask_BTT: jax.Array,
    softcap: float | None = None,
) -> jax.Array:
    """`attend` where no key behind the query's own is seen: in parts along the queries, each of
    which has the keys up to its last; of eight parts' scores 44 % are never computed."""
    time = q_BNTH.shape[2]
    width = max(_PART, -(-time // _PARTS))
    mixed = []
    for start in range(0, time, width):
        end = start + width
        q_BNPH, mask_BPS = q_BNTH[:, :, start:end], mask_BTT[:, start:end, :end]
        mixed.append(attend(q_BNPH, k_BKTH[:, :, :end], v_BKTH[:, :, :end], mask_BPS, softcap))
    return jnp.concatenate(mixed, axis=1)
