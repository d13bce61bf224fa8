"""A decoder-only language model as pure functions of (params, tokens).

Array names end in their axes: B batch, T query time, S key time, D model, N query heads,
K key-value heads, G query heads per key-value head (N / K), H head, F inner, V vocabulary,
L layers.

Parameters are a plain nested dict whose layers are stacked on axis 0. A LoRA tree mirrors its
``layers`` part with ``{"a": [L, in, r], "b": [L, r, out]}`` at each adapted projection; it is
passed already scaled and runs beside the frozen kernel, never merged into it.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.head import head_log_probs, head_logits

Params = dict[str, Any]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary positions beyond the length of pretraining."""

    factor: float  # by how much the low frequencies are slowed
    low_freq_factor: float  # slower than original / this: slowed in full
    high_freq_factor: float  # faster than original / this: left alone
    original_max_positions: int  # length of pretraining


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; hashable, so that it can be a static argument of ``jit``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    remat: bool = False  # recompute each layer in the backward pass instead of storing it
    dtype: str = "float32"  # of the computation; parameters keep their own


class Rotary(NamedTuple):
    """Cosines and sines of every position, each [B or 1, T, H / 2] in float32."""

    cos: jax.Array
    sin: jax.Array


class LayerCache(NamedTuple):
    """Keys and values seen so far by one layer, each [B, K, S, H]."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Random float32 parameters: normal(0, 0.02) matrices, zero biases, unit norms."""
    return _init(config, key)


def logits(
    config: DecoderConfig, params: Params, tokens: jax.Array, *, lora: Params | None = None
) -> jax.Array:
    """Next-token logits at every position.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T]; rows padded on the right need no mask, as attention is causal.
      lora: adapter tree, already scaled; None for the bare model.

    Returns:
      float32 [B, T, V].
    """
    hidden_BTD = hidden_states(config, params, tokens, lora=lora)
    # Folded to rows for the same reason as in `Projection`.
    hidden_XD = hidden_BTD.reshape(-1, config.hidden_size)
    logits_XV = head_logits(hidden_XD, head_kernel(config, params))
    return logits_XV.reshape(*tokens.shape, config.vocab_size)


def token_log_probs(
    config: DecoderConfig, params: Params, tokens: jax.Array, *, lora: Params | None = None
) -> jax.Array:
    """Log-probability of every token given those before it.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T].
      lora: adapter tree, already scaled; None for the bare model.

    Returns:
      float32 [B, T], aligned with ``tokens``: entry t is ``log p(tokens[t] | tokens[:t])`` and
      entry 0 is 0.
    """
    hidden_BTD = hidden_states(config, params, tokens, lora=lora)
    # The last position predicts nothing and is dropped by the shift; keeping it until then leaves
    # every matrix at its aligned size.
    next_tokens = jnp.roll(tokens, -1, axis=1)
    log_probs_BT = head_log_probs(hidden_BTD, head_kernel(config, params), next_tokens)
    return jnp.pad(log_probs_BT[:, :-1], ((0, 0), (1, 0)))


def hidden_states(
    config: DecoderConfig, params: Params, tokens: jax.Array, *, lora: Params | None = None
) -> jax.Array:
    """Output of the final norm, [B, T, D] in the compute dtype."""
    return Decoder(config).apply(variables(params, lora), tokens)


def head_kernel(config: DecoderConfig, params: Params) -> jax.Array:
    """The output kernel [D, V] in the compute dtype, whether it is tied or not."""
    if config.tie_embeddings:
        kernel_DV = params["embed"]["embedding"].T
    else:
        kernel_DV = params["lm_head"]["kernel"]
    return kernel_DV.astype(jnp.dtype(config.dtype))


class Decoder(nn.Module):
    """Embedding, scanned layers and final norm: tokens [B, T] -> hidden states [B, T, D]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Hidden states of whole sequences under causal attention."""
        config = self.config
        x_BTD = Embedding(config, name="embed")(tokens)
        positions_T = jnp.arange(tokens.shape[1])
        rotary = rotary_table(config, positions_T[None])
        mask_BTS = positions_T[None, None] <= positions_T[None, :, None]
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            unroll=_unrolled(config),
        )
        x_BTD, _ = layers(config, name="layers")(x_BTD, rotary, mask_BTS)
        return RMSNorm(config.norm_eps, jnp.dtype(config.dtype), name="final_norm")(x_BTD)


class Block(nn.Module):
    """One pre-norm layer: attention, then the gated MLP, each added to the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        rotary: Rotary,
        mask_BTS: jax.Array,
        cache: LayerCache | None = None,
        slot: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after this layer, and its grown cache (None without one)."""
        config = self.config
        norm = functools.partial(RMSNorm, config.norm_eps, jnp.dtype(config.dtype))
        normed_BTD = norm(name="attention_norm")(x_BTD)
        mixed_BTD, cache = Attention(config, name="attention")(
            normed_BTD, rotary, mask_BTS, cache, slot
        )
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + GatedMLP(config, name="mlp")(norm(name="mlp_norm")(x_BTD)), cache


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped key-value heads."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        rotary: Rotary,
        mask_BTS: jax.Array,
        cache: LayerCache | None,
        slot: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Mixed values [B, T, D] and the grown cache."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        project = functools.partial(Projection, use_bias=config.attention_bias, dtype=dtype)
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        q_BNTH = _split_heads(project(heads * size, name="q")(x_BTD), heads)
        k_BKTH = _split_heads(project(kv_heads * size, name="k")(x_BTD), kv_heads)
        v_BKSH = _split_heads(project(kv_heads * size, name="v")(x_BTD), kv_heads)
        q_BNTH, k_BKSH = rotate(q_BNTH, rotary), rotate(k_BKTH, rotary)
        if cache is not None:
            at = (0, 0, slot, 0)
            k_BKSH = jax.lax.dynamic_update_slice(cache.k_BKSH, k_BKSH, at)
            v_BKSH = jax.lax.dynamic_update_slice(cache.v_BKSH, v_BKSH, at)
            cache = LayerCache(k_BKSH, v_BKSH)
        mixed_BTX = attend(q_BNTH, k_BKSH, v_BKSH, mask_BTS)
        return project(config.hidden_size, name="o")(mixed_BTX), cache


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        config = self.config
        project = functools.partial(
            Projection, use_bias=config.mlp_bias, dtype=jnp.dtype(config.dtype)
        )
        gate_BTF = project(config.intermediate_size, name="gate")(x_BTD)
        up_BTF = project(config.intermediate_size, name="up")(x_BTD)
        return project(config.hidden_size, name="down")(jax.nn.silu(gate_BTF) * up_BTF)


class Projection(nn.Module):
    """x @ kernel (+ bias) (+ x @ a @ b when the ``lora`` collection holds this path)."""

    features: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]."""
        kernel = self.param("kernel", _normal, (x.shape[-1], self.features), jnp.float32)
        # One matrix of rows: XLA's CPU backend computes the kernel gradient of a product with two
        # leading axes two to three times slower than that of a plain one.
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None]
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(self.dtype) for name in ("a", "b"))
            y = y + (rows @ a) @ b
        return y.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        scale_D = self.param("scale", nn.initializers.ones, (x_BTD.shape[-1],), jnp.float32)
        x_BTD = x_BTD.astype(jnp.float32)
        inverse_BT1 = jax.lax.rsqrt(jnp.mean(x_BTD**2, axis=-1, keepdims=True) + self.eps)
        return (x_BTD * inverse_BT1 * scale_D.astype(jnp.float32)[None, None]).astype(self.dtype)


class Embedding(nn.Module):
    """Token embeddings, [B, T] -> [B, T, D]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Rows of the table in the compute dtype."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        return embed(self.config, self.param("embedding", _normal, shape, jnp.float32), tokens)


_normal = nn.initializers.normal(0.02)


def rotary_table(config: DecoderConfig, positions_BT: jax.Array) -> Rotary:
    """Cosines and sines of positions [B or 1, T]."""
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_frequencies(config)[None, None]
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """Angle per position of each rotated pair, float32 [H / 2].

    Reference: Su et al., "RoFormer", arXiv:2104.09864; scaling as released with Llama 3.1.
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    plain = config.rope_theta**-half
    scaling = config.rope_scaling
    if scaling is None:
        return plain.astype(np.float32)
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (kept * plain + (1 - kept) * plain / scaling.factor).astype(np.float32)


def rotate(x_BNTH: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotary positions on (i, i + H/2) pairs, the layout of Hugging Face checkpoints."""
    cos, sin = rotary.cos[:, None].astype(x_BNTH.dtype), rotary.sin[:, None].astype(x_BNTH.dtype)
    first, second = jnp.split(x_BNTH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Softmax attention, [B, T, N * H]; the mask is [B or 1, T, S], True where a key is seen."""
    batch, heads, time, size = q_BNTH.shape
    kv_heads, keys = k_BKSH.shape[1:3]
    groups = heads // kv_heads
    # Queries that share a key head become rows of one matrix product: keys are never repeated.
    q_BKMH = (q_BNTH * size**-0.5).reshape(batch, kv_heads, groups * time, size)
    scores = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, groups, time, keys)
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
    probs_BKMS = probs.reshape(batch, kv_heads, groups * time, keys)
    mixed_BKMH = jnp.einsum("bkms,bksh->bkmh", probs_BKMS, v_BKSH)
    mixed_BNTH = mixed_BKMH.reshape(batch, heads, time, size)
    return mixed_BNTH.transpose(0, 2, 1, 3).reshape(batch, time, heads * size)


def _split_heads(x_BTX: jax.Array, heads: int) -> jax.Array:
    """[B, T, heads * H] -> [B, heads, T, H]."""
    batch, time, width = x_BTX.shape
    return x_BTX.reshape(batch, time, heads, width // heads).transpose(0, 2, 1, 3)


def embed(config: DecoderConfig, embedding_VD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of the table [V, D] for tokens [B, T], in the compute dtype."""
    return embedding_VD[tokens].astype(jnp.dtype(config.dtype))


def _unrolled(config: DecoderConfig) -> int:
    """How many layers are laid out one after the other in a turn of the scan.

    All of a shallow stack: a loop over layers writes and reads back all that the backward pass
    needs, which costs a tenth of a training step. Deep stacks would compile slowly, and
    rematerialisation saves memory only inside a loop.
    """
    shallow = config.num_layers <= 8 and not config.remat
    return config.num_layers if shallow else 1


@functools.partial(jax.jit, static_argnums=0)
def _init(config: DecoderConfig, key: jax.Array) -> Params:
    body_key, head_key = jax.random.split(key)
    params = Decoder(config).init(body_key, jnp.zeros((1, 1), jnp.int32))["params"]
    if config.tie_embeddings:
        return params
    shape = (config.hidden_size, config.vocab_size)
    return {**params, "lm_head": {"kernel": _normal(head_key, shape, jnp.float32)}}


def variables(params: Params, lora: Params | None) -> dict[str, Params]:
    """The collections that the modules read."""
    return {"params": params, "lora": lora} if lora else {"params": params}
