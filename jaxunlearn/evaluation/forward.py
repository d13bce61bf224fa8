"""One pass over a token table gives the per-token statistics that every metric shares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.tokens import WIDTHS, TokenTable, batch_width, check_ids
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.head import most_likely
from jaxunlearn.models.placement import cores, fetch, side_by_side, spread

_CACHE = 2**22  # bytes
_WIDTHS = sorted((*WIDTHS, 160, 224, 320))  # where most answers end; sorted rows fill them


@dataclass(frozen=True)
class TokenStats:
    """What one forward pass knows about every token of a table."""

    log_probs: np.ndarray
    """float32 [n, T]: log p(token t | tokens before t); 0 in column 0."""
    hits: np.ndarray
    """bool [n, T]: the token is the most likely one."""
    mask: np.ndarray
    """bool [n, T]: answer tokens."""
    means: np.ndarray | None = None
    """float32 [n, T]: mean of log p(v | tokens before t) over tokens v drawn from that p; 0 in
    column 0. None where moments were not asked for."""
    deviations: np.ndarray | None = None
    """float32 [n, T]: its standard deviation."""


def score(
    config: DecoderConfig,
    params: Mapping[str, Any],
    table: TokenTable,
    *,
    lora: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    moments: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> TokenStats:
    """Forwards every row of a table once.

    Rows are sorted by length, so that a batch is hardly wider than its rows, and dealt to all
    local devices; a row's numbers depend neither on its batch nor on the devices.

    Args:
      config: the model's shape.
      params: its parameters.
      table: n rows.
      lora: scaled adapter factors, or None.
      batch_size: rows in one forward pass, rounded up so that each device gets as many; one CPU
        takes fewer together (`rows_at_once`), and as many passes at a time as it has cores.
      moments: also `means` and `deviations`, which Min-K%++ needs.
      on_rows: called with the number of rows done after each batch.

    Raises:
      UserError: a token that the model does not have.
    """
    check_ids(table, config.vocab_size)
    n, width = table.tokens.shape
    dtypes = (np.float32, bool, np.float32, np.float32)[: 4 if moments else 2]
    found = [np.zeros((n, width), dtype) for dtype in dtypes]
    there = spread((params, lora))

    def forward(rows_and_batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
        _, batch = rows_and_batch
        with there.known():
            return fetch(_statistics(config, *there.tree, there.deal(batch), moments))

    work = batches(table, there.batch_size(batch_size))
    if there.mesh is None:
        work = (few for one in work for few in _in_parts(config, *one))
    at_once = 1 if there.mesh else batch_size
    for (rows, batch), of_batch in side_by_side(forward, work, at_once):
        for whole, part in zip(found, of_batch, strict=True):
            whole[rows, : batch.shape[1]] = part[: len(rows)]
        if on_rows is not None:
            on_rows(len(rows))
    log_probs, hits, *rest = found
    return TokenStats(log_probs, hits, table.answer_mask, *rest)


def batches(table: TokenTable, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows of a table, sorted by length: row indices and tokens [batch_size, T].

    The last batch may have fewer indices than tokens; the rest are zeros.
    """
    order = np.argsort(table.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        cut = batch_width(int(table.lengths[rows].max()), table.tokens.shape[1], _WIDTHS)
        batch = np.zeros((batch_size, cut), np.int32)
        batch[: len(rows)] = table.tokens[rows, :cut]
        yield rows, batch


def rows_at_once(config: DecoderConfig, rows: int, width: int) -> int:
    """How many of the rows of a batch to work on together: on a CPU one core's share, and no more
    than have attention scores that stay in its cache, as a pass is otherwise spent on moving them.
    """
    if jax.default_backend() != "cpu":
        return rows
    share = -(-rows // cores())
    return max(1, min(share, _CACHE // (4 * config.num_heads * width**2)))


def _in_parts(
    config: DecoderConfig, rows: np.ndarray, batch: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A batch as batches that are worked on by themselves, all of the same shape."""
    size = rows_at_once(config, *batch.shape)
    for start in range(0, len(rows), size):
        part = batch[start : start + size]
        yield rows[start : start + size], np.pad(part, ((0, size - len(part)), (0, 0)))


@partial(jax.jit, static_argnames=("config", "moments"))
def _statistics(
    config: DecoderConfig, params: Any, lora: Any, tokens: jax.Array, moments: bool
) -> tuple[jax.Array, ...]:
    """Log-probability and hit of every token of [b, T] rows; mean and deviation if asked for."""
    logits = transformer.logits(config, params, tokens, lora=lora, forward_only=True)[:, :-1]
    targets = tokens[:, 1:]
    at_targets = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    norm = jax.nn.logsumexp(logits, axis=-1)
    found = (at_targets - norm, most_likely(logits) == targets)
    if moments:
        found += _moments(logits - norm[..., None])
    return tuple(jnp.pad(values, ((0, 0), (1, 0))) for values in found)


def _moments(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of log p(v), v drawn from p, over the last axis.

    `mu = Σ_v p_v log p_v`, `sigma² = Σ_v p_v (log p_v - mu)²`; centred, so that nothing cancels.
    """
    probs = jnp.exp(log_probs)
    # A token of probability 0 adds nothing, even where its logarithm is infinite.
    log_probs = jnp.where(probs > 0, log_probs, 0.0)
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean[..., None]) ** 2).sum(-1)
    return mean, jnp.sqrt(variance)
