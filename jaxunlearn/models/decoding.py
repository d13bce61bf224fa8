"""Cached decoding as one compiled loop: the next tokens of a batch of left-padded prompts."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.models.adapter_algebra import choose
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.head import head_logits, most_likely
from jaxunlearn.models.transformer import (
    Block,
    Embedding,
    LayerCache,
    Norm,
    Params,
    head_kernel,
    layer_context,
    variables,
)


class Draw(NamedTuple):
    """The numbers of a `Sampling`, traced so that changing them does not recompile."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class _Progress(NamedTuple):
    """What the decoding loop carries."""

    step: jax.Array  # new tokens so far
    last_B: jax.Array  # the newest of them, not yet in the cache
    tokens_BT: jax.Array
    counts_B: jax.Array  # tokens before the stop token
    running_B: jax.Array
    cache: list[LayerCache]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode(
    config: DecoderConfig,
    room: int,
    mode: str,
    params: Params,
    lora: Params | None,
    tokens_BT: jax.Array,
    starts_B: jax.Array,
    rows_B: jax.Array,
    choice_B: jax.Array | None,
    limit: jax.Array,
    stop_tokens: jax.Array,
    draw: Draw,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Continues left-padded prompts; jitted, and also a part of larger jitted programs.

    Args:
      config: the model's shape.
      room: columns for new tokens.
      mode: greedy, plain or filtered (by top k and top p).
      params: parameters.
      lora: adapter tree, already scaled, or None.
      tokens_BT: int32 [B, T], padded on the left.
      starts_B: int32 [B], the column where each prompt begins.
      rows_B: int32 [B], what each row's random draws derive from; a negative one is padding.
      choice_B: int32 [B], each row's adapter of stacked ones; None: there is one for all.
      limit: int32, most new tokens, at most `room`.
      stop_tokens: int32 [S], ids that end a continuation.
      draw: how the next token is drawn.
      key: of the draws.

    Returns:
      New tokens [B, room], and how many of them stand before the first stop token [B]; behind it is
      whatever would have followed.
    """
    batch, width = tokens_BT.shape
    lora = lora if choice_B is None else choose(lora, choice_B)
    layers = list(
        zip(
            unstack_layers(params, config.num_layers),
            unstack_layers(lora, config.num_layers),
            strict=True,
        )
    )
    kernel_DV = head_kernel(config, params)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)
    forward = functools.partial(forward_cached, config, params, layers, starts=starts_B)

    def extend(progress: _Progress, hidden_BD: jax.Array, cache: list[LayerCache]) -> _Progress:
        logits_BV = head_logits(hidden_BD, kernel_DV, config.logit_softcap)
        next_B = _pick(mode, logits_BV, draw, keys_B, progress.step)
        stopped_B = (next_B[:, None] == stop_tokens[None]).any(axis=1)
        running_B = progress.running_B & ~stopped_B
        return _Progress(
            progress.step + 1,
            next_B,
            jax.lax.dynamic_update_slice(
                progress.tokens_BT, next_B[:, None], (jnp.int32(0), progress.step)
            ),
            progress.counts_B + running_B,
            running_B,
            cache,
        )

    def advance(progress: _Progress) -> _Progress:
        hidden_B1D, cache = forward(
            progress.last_B[:, None], progress.cache, slot=width + progress.step - 1
        )
        return extend(progress, hidden_B1D[:, 0], cache)

    zeros_B = jnp.zeros(batch, jnp.int32)
    blank = jnp.zeros((batch, room), jnp.int32)
    hidden_BTD, cache = forward(
        tokens_BT, empty_cache(config, batch, width + room), slot=jnp.int32(0)
    )
    start = _Progress(jnp.int32(0), zeros_B, blank, zeros_B, rows_B >= 0, cache)
    final = jax.lax.while_loop(
        lambda progress: (progress.step < limit) & progress.running_B.any(),
        advance,
        extend(start, hidden_BTD[:, -1], cache),
    )
    return final.tokens_BT, final.counts_B


def empty_cache(config: DecoderConfig, batch: int, length: int) -> list[LayerCache]:
    """Zeroed key-value cache for ``length`` positions, one entry per layer."""
    shape = (batch, config.num_kv_heads, config.head_dim, length)
    zeros = functools.partial(jnp.zeros, shape, jnp.dtype(config.dtype))
    return [LayerCache(zeros(), zeros()) for _ in range(config.num_layers)]


def unstack_layers(tree: Params | None, num_layers: int) -> list[Params]:
    """Per-layer slices of a stacked params or LoRA tree (empty dicts for None)."""

    def cut(layer: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[layer], tree["layers"])

    return [{} if tree is None else cut(layer) for layer in range(num_layers)]


def forward_cached(
    config: DecoderConfig,
    params: Params,
    layers: list[tuple[Params, Params]],
    tokens: jax.Array,
    cache: list[LayerCache],
    *,
    slot: jax.Array,
    starts: jax.Array,
) -> tuple[jax.Array, list[LayerCache]]:
    """Hidden states of ``tokens`` placed at cache slots ``slot .. slot + T``, and the grown cache.

    Args:
      config: the model's shape.
      params: parameters; only those outside the layers are read.
      layers: (params, lora) of every layer, from `unstack_layers`. Cutting them out once, before
        the decoding loop, spares a copy of all weights per generated token.
      tokens: int32 [B, T].
      cache: what `empty_cache` or an earlier call returned.
      slot: int32 scalar, first slot to write.
      starts: int32 [B], first slot of each row that holds a real token (left padding before it).

    Returns:
      (hidden [B, T, D], cache).
    """
    # Positions count from each row's first token; what stands before it gets a negative one.
    positions_BT = slot + jnp.arange(tokens.shape[1])[None] - starts[:, None]
    key_positions_BS = jnp.arange(cache[0].k_BKHS.shape[3])[None] - starts[:, None]
    context = layer_context(config, positions_BT, key_positions_BS, positions_BT[:, -1] + 1)
    embedding = Embedding(config)
    x_BTD = embedding.apply({"params": params["embed"]}, tokens, jnp.maximum(positions_BT, 0))
    grown = []
    for layer, ((layer_params, layer_lora), entry) in enumerate(zip(layers, cache, strict=True)):
        x_BTD, entry = Block(config).apply(
            variables(layer_params, layer_lora), x_BTD, context, config.kind(layer), entry, slot
        )
        grown.append(entry)
    return Norm(config).apply({"params": params["final_norm"]}, x_BTD), grown


def _pick(
    mode: str, logits_BV: jax.Array, draw: Draw, keys_B: jax.Array, step: jax.Array
) -> jax.Array:
    """Next token of every row, int32 [B]."""
    if mode == "greedy":
        return most_likely(logits_BV)
    logits_BV = logits_BV / draw.temperature
    if mode == "filtered":
        logits_BV = _keep_likely(logits_BV, draw)
    step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
    # What `jax.random.categorical` draws, without its slow argmax.
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(step_keys_B)
    return most_likely(noise_BV + logits_BV)


def _keep_likely(logits_BV: jax.Array, draw: Draw) -> jax.Array:
    """Logits with those outside the top k, then outside the nucleus, at -inf.

    Reference: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv:1904.09751.
    """
    vocabulary = logits_BV.shape[-1]
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    most = jnp.where(draw.top_k == 0, vocabulary, draw.top_k)
    in_top_k = jnp.arange(vocabulary)[None] < most
    probs_BV = jax.nn.softmax(jnp.where(in_top_k, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    # The most likely token has nothing before it, so it is always kept.
    kept = jnp.where(in_top_k & (before_BV < draw.top_p), sorted_BV, jnp.inf)
    least_B1 = jnp.min(kept, axis=-1, keepdims=True)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
