"""Softmax attention, by XLA or by a fused kernel of the device.

Axes: B batch, T query time, P a part of it, S key time, N query heads, K key-value heads, H head.
The fused kernels never hold the scores [B, N, T, S]; they are for whole texts under plain causal
attention.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.models.decoder_config import DecoderConfig

LANES = 128  # what a TPU kernel's blocks of time are multiples of
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
    return _joined(mixed_BKMH.reshape(batch, heads, time, size))


def attend_in_parts(
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


def attend_fused(
    config: DecoderConfig, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array
) -> jax.Array:
    """`attend` by the config's kernel, of whole texts, each token seeing those up to itself.

    Args:
      config: one that `refusal` has nothing against.
      q_BNTH: scaled queries.
      k_BKSH: keys, S = T.
      v_BKSH: values.

    Returns:
      [B, T, N * H].
    """
    kernel = {"cudnn": _cudnn, "splash": _splash}[config.attention]
    return kernel(q_BNTH, k_BKSH, v_BKSH, config.kinds[0].window)


def refusal(config: DecoderConfig) -> str | None:
    """Why the config's kernel cannot be used for this model on these devices; None: it can."""
    device = jax.devices()[0]
    size, name = config.head_dim, config.attention
    if name == "xla":
        return None
    if config.attention_softcap is not None or len({kind.window for kind in config.kinds}) > 1:
        return "the model's attention has a soft-cap, or windows in some layers only"
    if name == "splash":
        if device.platform != "tpu":
            return f"it needs a TPU, and this is a {device.platform.upper()}"
        # The compiler does not cut up the kernel by itself.
        return "it works on one device only" if jax.device_count() > 1 else None
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return f"it needs an NVIDIA GPU, and this is a {device.platform.upper()}"
    if config.dtype != "bfloat16":
        return f"it computes in bfloat16, and model.dtype is {config.dtype}"
    widest = 256 if float(device.compute_capability) >= 9 else 128
    if size % 8 or size > widest:
        return f"heads must have a multiple of 8 dimensions up to {widest}, and these have {size}"
    return None


def _cudnn(
    q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, window: int | None
) -> jax.Array:
    q_BTNH, k_BSKH, v_BSKH = (x.transpose(0, 2, 1, 3) for x in (q_BNTH, k_BKSH, v_BKSH))
    mixed_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=1.0,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1)


def _splash(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, time = q_BNTH.shape[1:3]
    # Filled up at the end, where under causal attention no earlier token looks.
    fill = -time % LANES
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0))) for x in (q_BNTH, k_BKSH, v_BKSH))
    shape = (time + fill,) * 2
    seen = masks.CausalMask(shape)
    if window is not None:
        seen = masks.LocalMask(shape, (window - 1, 0), 0)
    attention = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([seen] * heads), interpret=interpret
    )
    return _joined(jax.vmap(attention)(q, k, v)[:, :, :time])


def _joined(x_BNTH: jax.Array) -> jax.Array:
    batch, heads, time, size = x_BNTH.shape
    return x_BNTH.transpose(0, 2, 1, 3).reshape(batch, time, heads * size)
