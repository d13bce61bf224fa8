"""What attributors read and say: responses as tokens, and the shares of owners in them.

Axes: B responses, K prefixes of each, T tokens, C classes, n rows.

A response is the tokens of an answer without its question, as the model's own tokenizer gives them
after the prompt; the token that ends an answer belongs to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar

from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Responses:
    """Responses with the owners whose training texts they are."""

    tokens: np.ndarray
    """int32 [n, T], right-padded."""
    lengths: np.ndarray
    """int32 [n]: tokens of each, padding not counted."""
    owners: np.ndarray
    """int32 [n], indices into `names`."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> "Responses":
        """The rows of these indices; the names stay as they are."""
        parts = (part[rows] for part in (self.tokens, self.lengths, self.owners))
        return Responses(*parts, self.names)


class Attributor(Protocol):
    """A pytree of arrays, so that a jitted program takes it as an argument."""

    names: tuple[str, ...]
    temperature: jax.Array
    """What logits are divided by; see `calibrated`."""

    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities of the classes, the owners first.

        Args:
          tokens: int32 [B, T], right-padded.
          lengths: int32 [B]: how much of each response is seen; or [B, K], for K prefixes of each.

        Returns:
          float32 [B, C] or [B, K, C].
        """
        ...

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """How likely each owner's texts influenced what is seen, in [0, 1].

        Of one response they sum to 1, or to less where there are classes that are no owner's.

        Returns:
          float32 [B, owners] or [B, K, owners].
        """
        ...


A = TypeVar("A", bound=Attributor)


def from_table(table: TokenTable, owners: Sequence[str]) -> Responses:
    """The answers of a table, without their prompts.

    Args:
      table: n rows.
      owners: whose each row is, such as the rows' entities; names stand in the order in which they
        come first.

    Raises:
      UserError: a row without an answer token or an owner, or all of one owner.
    """
    names = tuple(dict.fromkeys(owners))
    if len(names) < 2:
        raise UserError(f"attribution: needs rows of at least 2 owners, got {len(names)}")
    tokens, lengths = answers_of(table)
    for row, (owner, length) in enumerate(zip(owners, lengths, strict=True), start=1):
        if not owner or not length:
            fault = "an answer token" if owner else "an owner (its entity)"
            raise UserError(f"attribution: row {row} lacks {fault}; add it or leave the row out")
    place = {name: i for i, name in enumerate(names)}
    return Responses(tokens, lengths, np.array([place[o] for o in owners], np.int32), names)


def answers_of(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, T], right-padded, and lengths [n] of the answers of a table."""
    rows = [tokens[mask] for tokens, mask in zip(table.tokens, table.answer_mask, strict=True)]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def check_readable(config: DecoderConfig, responses: Responses) -> None:
    """Refuses responses that an attributor's model cannot read.

    Raises:
      UserError: a token that the model does not have, or more tokens than its limit.
    """
    largest, width = int(responses.tokens.max()), responses.tokens.shape[1] + 1
    if largest >= config.vocab_size:
        raise UserError(
            f"attribution: the responses have token id {largest}, but the attributor's model has "
            f"ids 0 to {config.vocab_size - 1}; take a model with the tokenizer of the responses"
        )
    if width > config.max_positions:
        raise UserError(
            f"attribution: a response with its start token has {width} tokens, and the "
            f"attributor's model takes {config.max_positions}; leave longer ones out"
        )


def random_prefixes(responses: Responses, *, seed: int) -> Responses:
    """Each response cut to a prefix whose length is uniform on 1 to its own."""
    lengths = np.random.default_rng(seed).integers(1, responses.lengths + 1).astype(np.int32)
    return replace(responses, lengths=lengths)


def start_token(tokenizer: Any) -> int:
    """The token before a text that stands alone: what begins a text or, without one, what ends it.

    Raises:
      UserError: the tokenizer has neither.
    """
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise UserError("tokenizer: has neither bos_token nor eos_token; add one of them to it")
    return token


def in_batches(
    function: Callable[[jax.Array, jax.Array], jax.Array], responses: Responses, batch_size: int
) -> np.ndarray:
    """An attributor's `logits` or `scores` of all responses, [n, ...], in batches of one shape."""
    found = []
    for start in range(0, len(responses), batch_size):
        tokens, lengths = (
            part[start : start + batch_size] for part in (responses.tokens, responses.lengths)
        )
        extra = batch_size - len(tokens)
        padded = np.pad(tokens, ((0, extra), (0, 0))), np.pad(lengths, (0, extra))
        found.append(jax.device_get(function(*padded))[: len(tokens)])
    return np.concatenate(found)


def calibrated(attributor: A, responses: Responses, *, batch_size: int = 64) -> A:
    """The attributor with the temperature at which the true owners are the most likely.

    `T = argmin_T mean_i -log softmax(logits_i / T)[owner_i]`, which is convex in 1 / T; sought
    within a factor of 1000 around the deviation of the logits.

    Args:
      attributor: with any temperature.
      responses: that it was not trained on, or prefixes of different lengths: where it is always
        right, no temperature is too low.
      batch_size: responses at once.

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, 2017.
    """
    logits = in_batches(attributor.logits, responses, batch_size).astype(np.float64)
    scale = logits.std() or 1.0
    rows = np.arange(len(logits))

    def loss(log_temperature: float) -> float:
        scaled = logits / (scale * np.exp(log_temperature))
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, responses.owners]).mean())

    best = minimize_scalar(loss, bounds=(-np.log(1000), np.log(1000)), method="bounded").x
    return replace(attributor, temperature=jnp.float32(scale * np.exp(best)))


def at_lengths(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """What stands at each length: values [B, T + 1, X], lengths [B] or [B, K] -> [..., X]."""
    flat = lengths.reshape(len(lengths), -1, 1)
    return jnp.take_along_axis(values, flat, axis=1).reshape(*lengths.shape, values.shape[-1])
