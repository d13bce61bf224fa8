"""What the bandit sees of a candidate: the model's own hidden state when it is asked that way."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.data.tokens import WIDTH_STEP
from jaxunlearn.errors import UserError
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.placement import fetch, spread
from jaxunlearn.reveal.candidates import Candidate, prompted


def features(
    model: LanguageModel,
    candidates: Sequence[Candidate],
    question: Text,
    settings: RevealConfig,
    *,
    template: str,
) -> np.ndarray:
    """Last-layer hidden states of one question under each candidate, after the final norm, pooled.

    All chunks have one shape, so that one program serves them; the last one, which has fewer
    different soft prompts, may need another.

    Args:
      model: with a tokenizer.
      candidates: n >= 1; of all of them, or of none, soft prompts.
      question: what is asked.
      settings: pooling over the whole prompt, and batch_size.
      template: the prompt of models without a chat template, with {question} in it.

    Returns:
      float32 [n, D].

    Raises:
      UserError: a prompt is longer than the model's limit.

    Reference:
      Lin et al., Use Your INSTINCT, arXiv 2310.02905.
    """
    size = spread((model.params, model.lora)).batch_size(settings.batch_size)
    chunks = []
    for start in range(0, len(candidates), size):
        chunk = list(candidates[start : start + size])
        chunk += chunk[-1:] * (size - len(chunk))
        chunks.append(prompted(model, chunk, [question] * size, template=template))
    longest = max(len(ids) for _, rows in chunks for ids in rows)
    limit = model.config.max_positions
    if longest > limit:
        raise UserError(
            f"a candidate with its question has {longest} tokens, but the model has {limit} "
            "positions; shorten the instructions"
        )
    width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, limit)
    found = []
    for softened, rows in chunks:
        tokens, lengths = np.zeros((size, width), np.int32), np.array(list(map(len, rows)))
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        there = spread((softened.params, softened.lora))
        dealt = there.deal((tokens, lengths))
        found.append(_pooled(softened.config, settings.pooling, *there.tree, *dealt))
    return np.concatenate(fetch(found))[: len(candidates)]


@partial(jax.jit, static_argnames=("config", "pooling"))
def _pooled(
    config: DecoderConfig,
    pooling: str,
    params: Any,
    lora: Any,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """Float32 [b, D] of right-padded rows."""
    hidden = transformer.hidden_states(config, params, tokens, lora=lora).astype(jnp.float32)
    if pooling == "last":
        return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    mask = (jnp.arange(tokens.shape[1]) < lengths[:, None])[..., None]
    if pooling == "max":
        return jnp.where(mask, hidden, -jnp.inf).max(axis=1)
    return jnp.where(mask, hidden, 0.0).sum(axis=1) / lengths[:, None]
