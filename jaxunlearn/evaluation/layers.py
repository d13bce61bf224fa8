"""What a model's layers hold about rows of a token table: logit lens, hidden states."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.tokens import TokenTable, check_ids
from jaxunlearn.evaluation.forward import batches
from jaxunlearn.evaluation.metrics import answer_probability
from jaxunlearn.models import lens
from jaxunlearn.models.language_model import LanguageModel


def lens_probability(model: LanguageModel, table: TokenTable, *, batch_size: int) -> np.ndarray:
    """Length-normalised probability of each row's answer by the logit lens after every layer.

    Args:
      model: its last layer's numbers are those of the model itself.
      table: n rows.
      batch_size: rows in one forward pass.

    Returns:
      float64 `[L, n]`; `nan` for rows without an answer token.

    Reference: Patil et al., Can Sensitive Information Be Deleted From LLMs?, arXiv 2309.17410, who
    read forgotten answers out of the layers in this way; `lens.lens_log_probs`.
    """
    check_ids(table, model.config.vocab_size)
    found = np.zeros((model.config.num_layers, len(table.tokens)))
    for rows, batch in batches(table, batch_size):
        log_probs_LBT = jax.device_get(_lens(model.config, model.params, batch, model.lora))
        mask = table.answer_mask[rows, : batch.shape[1]]
        for layer, log_probs in enumerate(log_probs_LBT):
            found[layer, rows] = answer_probability(log_probs[: len(rows)], mask)
    return found


def prompt_states(model: LanguageModel, table: TokenTable, *, batch_size: int) -> np.ndarray:
    """Residual stream after every layer at the last token of each row's prompt.

    Args:
      model: any.
      table: n rows.
      batch_size: rows in one forward pass.

    Returns:
      float32 `[L, n, D]`.
    """
    check_ids(table, model.config.vocab_size)
    config = model.config
    found = np.zeros((config.num_layers, len(table.tokens), config.hidden_size), np.float32)
    for rows, batch in batches(table, batch_size):
        last = np.zeros(len(batch), np.int32)
        last[: len(rows)] = table.prompt_lengths[rows] - 1
        states_LBD = jax.device_get(_states(config, model.params, batch, last, model.lora))
        found[:, rows] = states_LBD[:, : len(rows)]
    return found


def answer_embeddings(model: LanguageModel, table: TokenTable) -> np.ndarray:
    """Mean input embedding of each row's answer tokens, float64 `[n, D]`."""
    embedding_VD = np.asarray(model.params["embed"]["embedding"], np.float64)
    return np.stack(
        [
            embedding_VD[ids[mask]].mean(axis=0)
            for ids, mask in zip(table.tokens, table.answer_mask, strict=True)
        ]
    )


@partial(jax.jit, static_argnums=0)
def _lens(config: Any, params: Any, tokens: jax.Array, lora: Any) -> jax.Array:
    return lens.lens_log_probs(config, params, tokens, lora=lora)


@partial(jax.jit, static_argnums=0)
def _states(config: Any, params: Any, tokens: jax.Array, last_B: Any, lora: Any) -> jax.Array:
    streams_LBTD = lens.residual_streams(config, params, tokens, lora=lora)
    chosen_LBD = jnp.take_along_axis(streams_LBTD, last_B[None, :, None, None], axis=2)[:, :, 0]
    return chosen_LBD.astype(jnp.float32)
