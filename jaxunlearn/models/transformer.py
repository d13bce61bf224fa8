"""A decoder-only language model as pure functions of (params, tokens).

Array names end in their axes: B batch, T query time, S key time, D model, N query heads,
K key-value heads, G query heads per key-value head (N / K), H head, F inner, V vocabulary,
L layers.

Parameters are a plain nested dict whose layers are stacked on axis 0. A LoRA tree mirrors its
``layers`` part with ``{"a": [L, in, r], "b": [L, r, out]}`` at each adapted projection; it is
passed already scaled and runs beside the frozen kernel, never merged into it. A tree of
`adapter_algebra.choose` holds several adapters, and which one each row of the batch has.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.attention import attend, attend_fused, attend_in_parts
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.head import head_log_probs, head_logits
from jaxunlearn.models.int8 import matmul
from jaxunlearn.models.on_mesh import APART, FEATURES, by_rows, laid
from jaxunlearn.models.rope import Rotary, rotary_table, rotate

Params = dict[str, Any]


class Context(NamedTuple):
    """What a kind of layer sees besides the residual stream; stacked over kinds on axis 0."""

    rotary: Rotary | None
    mask_BTS: jax.Array  # [B or 1, T, S]: True where a key is seen


class LayerCache(NamedTuple):
    """Keys and values seen so far by one layer, each [B, K, H, S].

    Time comes last: XLA's CPU backend then attends from a single token in 0.5 to 0.8 of the time
    with heads of 8, and in about the same with heads of 32 or 64.
    """

    k_BKHS: jax.Array
    v_BKHS: jax.Array


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Random float32 parameters: normal(0, 0.02) matrices, zero biases, unit norms."""
    return _init(config, key)


def logits(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    *,
    lora: Params | None = None,
    forward_only: bool = False,
) -> jax.Array:
    """Next-token logits at every position.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T]; rows padded on the right need no mask, as attention is causal.
      lora: adapter tree, already scaled; None for the bare model.
      forward_only: as of `Decoder`.

    Returns:
      float32 [B, T, V].
    """
    hidden_BTD = Decoder(config, forward_only=forward_only).apply(variables(params, lora), tokens)
    # Folded to rows for the same reason as in `Projection`.
    hidden_XD = hidden_BTD.reshape(-1, config.hidden_size)
    logits_XV = head_logits(hidden_XD, head_kernel(config, params), config.logit_softcap)
    return logits_XV.reshape(*tokens.shape, config.vocab_size)


def token_log_probs(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    *,
    targets: jax.Array | None = None,
    lora: Params | None = None,
) -> jax.Array:
    """Log-probability of every token, or of another in its place, given the tokens before it.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T].
      targets: int32 [B, T], the tokens that are asked about; None: ``tokens``.
      lora: adapter tree, already scaled; None for the bare model.

    Returns:
      float32 [B, T], aligned with ``tokens``: entry t is ``log p(targets[t] | tokens[:t])`` and
      entry 0 is 0.
    """
    hidden_BTD = hidden_states(config, params, tokens, lora=lora)
    # The last position predicts nothing and is dropped by the shift; keeping it until then leaves
    # every matrix at its aligned size.
    next_tokens = jnp.roll(tokens if targets is None else targets, -1, axis=1)
    kernel_DV = head_kernel(config, params)
    log_probs_BT = head_log_probs(hidden_BTD, kernel_DV, next_tokens, config.logit_softcap)
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
    normed: bool = True
    # No backward pass follows. Layers are never unrolled: as fast then, and sooner compiled;
    # attention skips most scores of keys that no query sees.
    forward_only: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Hidden states of whole sequences under causal attention."""
        config = self.config
        # A constant, as XLA's CPU backend would compute the cosines of a traced one anew for every
        # row, head and layer; what looks at it is traced, so that the mask is no constant.
        positions_1T = np.arange(tokens.shape[1], dtype=np.int32)[None]
        seen_1S = jnp.arange(tokens.shape[1])[None]
        x_BTD = by_rows(Embedding(config, name="embed")(tokens, positions_1T))
        context = layer_context(config, positions_1T, seen_1S, tokens.shape[1])
        block = Block
        if config.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[config.remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=config.num_layers,
            unroll=1 if self.forward_only else _unrolled(config),
        )
        kind_L = jnp.array([config.kind(layer) for layer in range(config.num_layers)])
        x_BTD, _ = layers(config, self.forward_only, name="layers")(x_BTD, context, kind_L)
        return Norm(config, name="final_norm")(x_BTD) if self.normed else x_BTD


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the residual stream."""

    config: DecoderConfig
    causal: bool = False  # as of `Attention`

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        context: Context,
        kind: jax.Array | int,
        cache: LayerCache | None = None,
        slot: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after this layer, and its grown cache (None without one)."""
        config = self.config
        context = jax.tree.map(lambda stacked: stacked[kind], context)

        def before(x_BTD: jax.Array, name: str) -> jax.Array:
            return Norm(config, name=name)(x_BTD) if config.norm_before else x_BTD

        def after(x_BTD: jax.Array, name: str) -> jax.Array:
            return Norm(config, name=name)(x_BTD) if config.norm_after else x_BTD

        mixed_BTD, cache = Attention(config, self.causal, name="attention")(
            before(x_BTD, "attention_norm"), context, cache, slot
        )
        added_BTD = by_rows(x_BTD + after(mixed_BTD, "attention_post_norm"))
        read_BTD = before(x_BTD if config.parallel else added_BTD, "mlp_norm")
        x_BTD = by_rows(added_BTD + after(MLP(config, name="mlp")(read_BTD), "mlp_post_norm"))
        # Kept only for those who ask for intermediates; see `lens`.
        self.sow("intermediates", "residual", x_BTD)
        return x_BTD, cache


class Attention(nn.Module):
    """Attention with grouped key-value heads."""

    config: DecoderConfig
    causal: bool = False  # no cache, and no query sees a key behind its own

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        context: Context,
        cache: LayerCache | None,
        slot: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Mixed values [B, T, D] and the grown cache."""
        config = self.config

        def heads(name: str, count: int) -> jax.Array:
            width = count * config.head_dim
            x_BTX = Projection(width, config.attention_bias, config.dtype, name=name)(x_BTD)
            normed = config.qk_norm if name != "v" else None
            norm = functools.partial(Norm, config, name=f"{name}_norm")
            x_BTX = norm()(x_BTX) if normed == "all" else x_BTX
            x_BNTH = _split_heads(x_BTX, count)
            x_BNTH = norm()(x_BNTH) if normed == "head" else x_BNTH
            return x_BNTH if name == "v" or not context.rotary else rotate(x_BNTH, context.rotary)

        q_BNTH = heads("q", config.num_heads)
        k_BKSH, v_BKSH = heads("k", config.num_kv_heads), heads("v", config.num_kv_heads)
        if cache is not None:
            cache = LayerCache(
                *(
                    jax.lax.dynamic_update_slice(seen, new.swapaxes(2, 3), (0, 0, 0, slot))
                    for seen, new in zip(cache, (k_BKSH, v_BKSH), strict=True)
                )
            )
            k_BKSH, v_BKSH = (seen.swapaxes(2, 3) for seen in cache)
        scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        if config.attention != "xla" and cache is None:
            mixed_BTX = attend_fused(config, q_BNTH * scale, k_BKSH, v_BKSH)
        else:
            mix = attend_in_parts if self.causal else attend
            mixed_BTX = mix(
                q_BNTH * scale, k_BKSH, v_BKSH, context.mask_BTS, config.attention_softcap
            )
        o = Projection(config.hidden_size, config.output_bias, config.dtype, name="o")
        return o(mixed_BTX), cache


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        config = self.config
        project = functools.partial(Projection, use_bias=config.mlp_bias, dtype=config.dtype)
        activate = ACTIVATIONS[config.activation]
        up_BTF = project(config.intermediate_size, name="up")(x_BTD)
        if config.gated:
            gate_BTF = project(config.intermediate_size, name="gate")(x_BTD)
            inner_BTF = activate(gate_BTF) * up_BTF
        else:
            inner_BTF = activate(up_BTF)
        return project(config.hidden_size, name="down")(inner_BTF)


class Projection(nn.Module):
    """x @ kernel (+ bias) (+ x @ a @ b when the ``lora`` collection holds this path)."""

    features: int
    use_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]."""
        kernel = self.param("kernel", _normal, (x.shape[-1], self.features), jnp.float32)
        # One matrix of rows: XLA's CPU backend computes the kernel gradient of a product with two
        # leading axes two to three times slower than that of a plain one.
        rows = x.reshape(-1, x.shape[-1])
        y = matmul(rows, kernel, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None]
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(self.dtype) for name in ("a", "b"))
            if self.has_variable("lora", "choice"):
                choice_B = self.get_variable("lora", "choice")
                a, b = (of.at[choice_B].get(mode="fill", fill_value=jnp.nan) for of in (a, b))
                y = y + ((x @ a) @ b).reshape(y.shape)
            else:
                y = y + (rows @ a) @ b
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """RMSNorm x / rms(x) * scale, or LayerNorm, over the last axis; computed in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> the same shape."""
        config, width = self.config, x.shape[-1:]
        unit = nn.initializers.constant(1.0 - config.norm_offset)
        scale = self.param("scale", unit, width, jnp.float32).astype(jnp.float32)
        x = x.astype(jnp.float32)
        if config.norm == "layer":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps)
        axes = tuple(range(x.ndim - 1))
        x = x * jnp.expand_dims(scale + config.norm_offset, axes)
        if config.norm == "layer":
            bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
            x = x + jnp.expand_dims(bias.astype(jnp.float32), axes)
        return x.astype(config.dtype)


class Embedding(nn.Module):
    """Token embeddings, and learned positions where the family has them."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Tokens [B, T] and positions [B or 1, T] -> [B, T, D] in the compute dtype."""
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        table = self.param("embedding", _normal, shape, jnp.float32)
        # Each device looks up its columns for the rows of all that have others: tokens travel,
        # the table does not.
        x_BTD = laid(table[laid(tokens, APART)], APART, (), FEATURES).astype(config.dtype)
        if config.embedding_scale is not None:
            x_BTD = x_BTD * jnp.asarray(config.embedding_scale, config.dtype)
        if config.soft_rows:
            table = self.param("soft", _normal, (config.soft_rows, config.hidden_size), jnp.float32)
            rows_BT = tokens - config.vocab_size
            soft_BTD = table[jnp.maximum(rows_BT, 0)].astype(config.dtype)
            # Not scaled, like the `inputs_embeds` of transformers.
            x_BTD = jnp.where((rows_BT >= 0)[..., None], soft_BTD, x_BTD)
        if config.learned_positions:
            shape = (config.max_positions, config.hidden_size)
            table = self.param("positions", _normal, shape, jnp.float32)
            x_BTD = x_BTD + table[positions].astype(config.dtype)
        return x_BTD


# What is stored for the backward pass, by the name of what is computed again: nothing but each
# layer's input, or its products with parameters too, but no attention scores.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_normal = nn.initializers.normal(0.02)

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def layer_context(
    config: DecoderConfig,
    positions_BT: jax.Array,
    key_positions_BS: jax.Array,
    lengths_B: jax.Array | int,
) -> Context:
    """Rotary tables and masks of every kind of layer, stacked on axis 0.

    Args:
      config: the model's shape.
      positions_BT: of the tokens that look, [B or 1, T].
      key_positions_BS: of those that are looked at, [B or 1, S]; negative ones are never seen.
      lengths_B: tokens of each text so far, [B] or one number for all.
    """
    ago_BTS = positions_BT[:, :, None] - key_positions_BS[:, None]
    causal_BTS = (ago_BTS >= 0) & (key_positions_BS >= 0)[:, None]
    masks = [
        causal_BTS if kind.window is None else causal_BTS & (ago_BTS < kind.window)
        for kind in config.kinds
    ]
    ropes = [kind.rope for kind in config.kinds]
    dims = next((rope.dims or config.head_dim for rope in ropes if rope), None)
    rotary = None
    if dims is not None:
        tables = [rotary_table(rope, dims, positions_BT, lengths_B) for rope in ropes]
        rotary = jax.tree.map(lambda *parts: jnp.stack(jnp.broadcast_arrays(*parts)), *tables)
    return Context(rotary, jnp.stack(masks))


def _split_heads(x_BTX: jax.Array, heads: int) -> jax.Array:
    """[B, T, heads * H] -> [B, heads, T, H]."""
    batch, time, width = x_BTX.shape
    return x_BTX.reshape(batch, time, heads, width // heads).transpose(0, 2, 1, 3)


def _unrolled(config: DecoderConfig) -> int:
    """How many layers are laid out one after the other in a turn of the scan.

    All of a shallow stack: a loop over layers writes and reads back all that the backward pass
    needs, which costs a tenth of a training step. Deep stacks would compile slowly, and
    rematerialisation saves memory only inside a loop.
    """
    shallow = config.num_layers <= 8 and config.remat == "none"
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
