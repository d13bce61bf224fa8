"""Text generation: prompts in, continuation ids out, with a key-value cache on the device.

Prompts of different lengths are sorted, padded on the left to a few fixed widths and decoded by one
compiled loop per shape (`decoding`), so that every row writes the same cache slot at the same step.
The rows are dealt to all local devices. What a row gets depends neither on its batch mates nor on
the devices: padding is masked, positions count from the row's own start, and its random keys derive
from (seed, row, step) alone.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.models.adapter_algebra import stacked_count
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.decoding import Draw, decode
from jaxunlearn.models.placement import fetch, side_by_side, spread
from jaxunlearn.models.transformer import Params

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
