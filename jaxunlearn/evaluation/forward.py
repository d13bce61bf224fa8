"""One pass over a token table gives the per-token statistics that every metric shares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.tokens import TokenTable, batch_width, check_ids
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class TokenStats:
    """What one forward pass knows about every token of a table."""

    log_probs: np.ndarray
    """float32 [n, T]: log p(token t | tokens before t); 0 in column 0."""
    hits: np.ndarray
    """bool [n, T]: the token is the most likely one."""
    mask: np.ndarray
    """bool [n, T]: answer tokens."""


def score(
    config: DecoderConfig,
    params: Mapping[str, Any],
    table: TokenTable,
    *,
    lora: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> TokenStats:
    """Forwards every row of a table once.

    Rows are sorted by length, so that a batch is hardly wider than its rows; a row's numbers do
    not depend on its batch.

    Args:
      config: the model's shape.
      params: its parameters.
      table: n rows.
      lora: scaled adapter factors, or None.
      batch_size: rows in one forward pass.
      on_rows: called with the number of rows done after each batch.

    Raises:
      UserError: a token that the model does not have.
    """
    check_ids(table, config.vocab_size)
    n, width = table.tokens.shape
    log_probs, hits = np.zeros((n, width), np.float32), np.zeros((n, width), bool)
    for rows, batch in batches(table, batch_size):
        cut = batch.shape[1]
        batch_log_probs, batch_hits = jax.device_get(_statistics(config, params, lora, batch))
        log_probs[rows, :cut] = batch_log_probs[: len(rows)]
        hits[rows, :cut] = batch_hits[: len(rows)]
        if on_rows is not None:
            on_rows(len(rows))
    return TokenStats(log_probs, hits, table.answer_mask)


def batches(table: TokenTable, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows of a table, sorted by length: row indices and tokens [batch_size, T].

    The last batch may have fewer indices than tokens; the rest are zeros.
    """
    order = np.argsort(table.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        cut = batch_width(int(table.lengths[rows].max()), table.tokens.shape[1])
        batch = np.zeros((batch_size, cut), np.int32)
        batch[: len(rows)] = table.tokens[rows, :cut]
        yield rows, batch


@partial(jax.jit, static_argnames="config")
def _statistics(
    config: DecoderConfig, params: Any, lora: Any, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and hit of every token of [b, T] rows."""
    logits = transformer.logits(config, params, tokens, lora=lora)[:, :-1]
    targets = tokens[:, 1:]
    at_targets = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probs = at_targets - jax.nn.logsumexp(logits, axis=-1)
    hits = jnp.argmax(logits, axis=-1) == targets
    first = ((0, 0), (1, 0))
    return jnp.pad(log_probs, first), jnp.pad(hits, first)
