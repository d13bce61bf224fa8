"""Membership inference by gradient norm: what a model has learned hardly moves it any more."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.tokens import TokenTable, check_ids
from jaxunlearn.evaluation.forward import batches
from jaxunlearn.evaluation.metrics import content_mask
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.placement import fetch, spread


def gradient_norm_score(
    config: DecoderConfig,
    params: Mapping[str, Any],
    table: TokenTable,
    *,
    lora: Mapping[str, Any] | None = None,
    batch_size: int = 4,
    by_tensor: bool = False,
) -> np.ndarray:
    """Minus the norm of the gradient of each row's loss; higher = more likely a member.

    `-||∇ L_i||_2`, L_i the mean loss of an answer token and the norm over all parameters together.

    Args:
      config: the model's shape.
      params: its parameters.
      table: n rows.
      lora: scaled adapter factors; the gradient is then that of these alone. None: of `params`.
      batch_size: gradients held at once, each as large as what it is taken of; rounded up so that
        each device has as many.
      by_tensor: the mean of the norms of single tensors, one for each weight of each layer, of the
        loss without the last answer token, as open-unlearning has it.

    Returns:
      float64 `[n]`; `nan` for rows without an answer token.

    Raises:
      UserError: a token that the model does not have.

    Reference:
      Wang et al., Pandora's White-Box: Precise Training Data Detection and Extraction in Large
      Language Models, arXiv 2402.17012, 2024.
    """
    check_ids(table, config.vocab_size)
    scores = np.full(len(table.tokens), np.nan)
    there = spread((params, lora))
    for rows, tokens in batches(table, there.batch_size(batch_size)):
        mask = np.zeros(tokens.shape, bool)
        mask[: len(rows)] = content_mask(table.answer_mask[rows], by_tensor)[:, : tokens.shape[1]]
        norms = _norms(config, *there.tree, *there.deal((tokens, mask)), by_tensor)
        norms = fetch(norms)[: len(rows)]
        scores[rows] = np.where(mask[: len(rows)].any(axis=1), -norms, np.nan)
    return scores


@partial(jax.jit, static_argnames=("config", "by_tensor"))
def _norms(
    config: DecoderConfig,
    params: Any,
    lora: Any,
    tokens: jax.Array,
    mask: jax.Array,
    by_tensor: bool,
) -> jax.Array:
    """Gradient norm of each of [b, T] rows."""

    def loss(trainable: Any, row: jax.Array, counted: jax.Array) -> jax.Array:
        model, adapter = (trainable, None) if lora is None else (params, trainable)
        log_probs = transformer.token_log_probs(config, model, row[None], lora=adapter)[0]
        return -jnp.where(counted, log_probs, 0.0).sum() / jnp.maximum(counted.sum(), 1)

    def norm(row: jax.Array, counted: jax.Array) -> jax.Array:
        gradients = jax.grad(loss)(params if lora is None else lora, row, counted)
        if not by_tensor:
            return optax.tree.norm(gradients)
        leaves = jax.tree.leaves_with_path(gradients)
        return jnp.concatenate([_of_each(*leaf) for leaf in leaves]).mean()

    return jax.vmap(norm)(tokens, mask)


def _of_each(path: Any, gradient: jax.Array) -> jax.Array:
    """The norm of each layer's tensor in a stack of them, or of the one that it is."""
    stack = gradient if path[0].key == "layers" else gradient[None]
    return jnp.sqrt((stack.reshape(len(stack), -1) ** 2).sum(axis=1))
