"""Text generation: prompts in, continuation ids out, with a key-value cache on the device.

Prompts of different lengths are sorted, padded on the left to a few fixed widths and decoded by one
compiled loop per shape, so that every row writes the same cache slot at the same step. The rows are
dealt to all local devices. What a row gets depends neither on its batch mates nor on the devices:
padding is masked, positions count from the row's own start, and its random keys derive from (seed,
row, step) alone.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.models.adapter_algebra import choose, stacked_count
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.head import head_logits, most_likely
from jaxunlearn.models.placement import fetch, side_by_side, spread
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

_CACHE = 2**22  # bytes
_NARROWEST = 16  # prompt widths are this times a power of two; answer room is a multiple of it


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the default is greedy."""

    temperature: float = 0.0  # 0: always the most likely token
    top_k: int = 0  # keep only the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens whose probabilities reach this sum

    def __post_init__(self):
        """Refuse values outside their ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sampling.temperature is {self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"sampling.top_k is {self.top_k}: use 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}: use a number in (0, 1]")


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    lora: Params | None = None,
    choice: Sequence[int] | None = None,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    sampling: Sampling = Sampling(),
    seed: int = 0,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
      config: the model's shape.
      params: its parameters.
      prompts: token ids of each prompt, of any lengths >= 1.
      lora: adapter tree, already scaled; None for the bare model.
      choice: each prompt's adapter of those that `adapter_algebra.stack` made `lora` of, -1 for
        none; None: `lora` is one adapter, and every prompt's.
      max_new_tokens: most ids to add to a prompt.
      stop_tokens: ids that end a continuation; they are not part of it.
      sampling: how the next id is drawn.
      seed: of the random draws.
      batch_size: most prompts decoded together, rounded up so that each device gets as many; one
        CPU decodes fewer together where that is faster (`rows_at_once`), and several such batches
        at the same time.
      on_rows: called with the number of prompts done after each batch.

    Returns:
      The new ids of each prompt, in the order of ``prompts``.

    Raises:
      UserError: a prompt is empty, too long for the model or holds an id it does not know, or a
        choice is none of the adapters.
    """
    _check_prompts(config, prompts, max_new_tokens)
    if choice is not None:
        _check_choice(lora, choice, len(prompts))
    if not prompts or max_new_tokens == 0:
        return [[] for _ in prompts]
    draw = Draw(
        jnp.float32(sampling.temperature), jnp.int32(sampling.top_k), jnp.float32(sampling.top_p)
    )
    mode = "greedy" if sampling.temperature == 0 else "plain"
    if mode == "plain" and (sampling.top_k or sampling.top_p < 1):
        mode = "filtered"
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    there, most = spread((params, lora)), batch_size
    if there.mesh is None:
        longest = len(prompts[by_length[-1]]) + max_new_tokens
        batch_size = min(batch_size, rows_at_once(config, params, longest))
    parts = -(-len(prompts) // batch_size)
    size = there.batch_size(-(-len(prompts) // parts))
    results: list[list[int]] = [[] for _ in prompts]

    def work(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        tokens, starts = left_pad([prompts[row] for row in rows], size, _width(prompts, rows))
        indices = np.full(size, -1, np.int32)
        indices[: len(rows)] = rows
        chosen = None
        if choice is not None:
            chosen = np.full(size, -1, np.int32)
            chosen[: len(rows)] = [choice[row] for row in rows]
        with there.known():
            found = decode(
                config,
                -(-max_new_tokens // _NARROWEST) * _NARROWEST,
                mode,
                *there.tree,
                *there.deal((tokens, starts, indices, chosen)),
                jnp.int32(max_new_tokens),
                jnp.asarray(stop_tokens, jnp.int32),
                draw,
                jax.random.key(seed),
            )
        return fetch(found)

    batches = [by_length[first : first + size] for first in range(0, len(prompts), size)]
    at_once = 1 if there.mesh else max(1, most // size)
    for rows, (new_tokens, counts) in side_by_side(work, batches, at_once):
        for place, row in enumerate(rows):
            results[row] = new_tokens[place, : counts[place]].tolist()
        if on_rows is not None:
            on_rows(len(rows))
    return results


def rows_at_once(config: DecoderConfig, params: Params, length: int) -> int:
    """Most rows of `length` positions to decode together.

    On a CPU as many as have keys and values that stay in its cache, or are no more to read in each
    step than the parameters are; elsewhere any number.
    """
    if jax.default_backend() != "cpu":
        return sys.maxsize
    values = 2 * config.num_layers * config.num_kv_heads * config.head_dim * length
    most = max(_CACHE, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    return max(1, most // (values * jnp.dtype(config.dtype).itemsize))


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


def left_pad(
    prompts: Sequence[Sequence[int]], size: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [size, width] with prompts at the right edge, and where each begins [size]; rows
    without a prompt have a token of padding."""
    tokens = np.zeros((size, width), np.int32)
    starts = np.full(size, width - 1, np.int32)
    for row, prompt in enumerate(prompts):
        starts[row] = width - len(prompt)
        tokens[row, starts[row] :] = prompt
    return tokens, starts


def _width(prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> int:
    """The narrowest of a few widths that holds these prompts."""
    longest = max(len(prompts[row]) for row in rows)
    width = _NARROWEST
    while width < longest:
        width *= 2
    return width


def _check_prompts(
    config: DecoderConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    room = config.max_positions - max_new_tokens
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {row} is empty: give it at least one token")
        if len(prompt) > room:
            raise UserError(
                f"prompt {row} has {len(prompt)} tokens, but with max_new_tokens={max_new_tokens} "
                f"the model's {config.max_positions} positions leave room for {max(room, 0)}: "
                "shorten the prompt or lower max_new_tokens"
            )
        ids = config.vocab_size + config.soft_rows
        if not 0 <= min(prompt) <= max(prompt) < ids:
            raise UserError(
                f"prompt {row} holds token ids from {min(prompt)} to {max(prompt)}, but the "
                f"model's vocabulary has ids 0 to {ids - 1}: use its own tokenizer"
            )


def _check_choice(lora: Params | None, choice: Sequence[int], prompts: int) -> None:
    if lora is None or len(choice) != prompts:
        raise UserError(
            f"choice has {len(choice)} entries for {prompts} prompts and "
            f"{'no' if lora is None else 'stacked'} adapters: give one entry for each prompt, and "
            "lora=stack(adapters)"
        )
    for row, number in enumerate(choice):
        if not -1 <= number < stacked_count(lora):
            raise UserError(
                f"choice {row} is {number}: there are adapters 0 to {stacked_count(lora) - 1}, and "
                "-1 for none"
            )
