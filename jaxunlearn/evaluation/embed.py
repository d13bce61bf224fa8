"""Texts as vectors, to tell how close in meaning a generation is to the true answer."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import tokens
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.forward import batches
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.placement import fetch, spread, spread_model
from jaxunlearn.user_file import user_function

Embedder = Callable[[Sequence[str]], np.ndarray]
"""From n texts to an array [n, D]."""


def from_model(model: LanguageModel, truths: Sequence[str], *, batch_size: int = 32) -> Embedder:
    """Mean of a language model's last hidden states over the text, minus that of all true answers.

    Hidden states share one large direction, so that any two texts have a cosine near 1. Without
    the mean over the true answers unrelated ones are near 0: on a model of 260 thousand parameters
    the cosine of answers to different questions goes from 0.96 to 0.08, and that of an answer with
    its paraphrase from 0.99 to 0.56.

    Args:
      model: with a tokenizer. To compare models, use one for all: a model that has unlearned would
        judge itself.
      truths: the true answers of the evaluation sets; they are embedded at the first call.
      batch_size: texts in one forward pass, rounded up so that each device gets as many.

    Returns:
      A function from texts to float64 [n, D]. Of a text that is longer than the model's limit it
      sees the beginning.
    """
    there = functools.cache(lambda: spread_model(model))
    centre = functools.cache(
        lambda: _pooled(there(), list(dict.fromkeys(truths)), batch_size).mean(axis=0)
    )
    return lambda texts: _pooled(there(), texts, batch_size) - centre()


def load(name: str) -> Embedder:
    """A user's own embedder; what it returns is checked.

    Args:
      name: path/to/file.py:function.

    Raises:
      UserError: now, if the function cannot be loaded; when it is called, if it fails or does not
        return one finite vector per text.
    """
    function = user_function(name, key="evaluation.embedder")

    def embed(texts: Sequence[str]) -> np.ndarray:
        where, n = f"evaluation.embedder: {name}", len(texts)
        try:
            vectors = np.asarray(function(list(texts)), np.float64)
        except Exception as error:  # a user's code can fail in any way
            fault = " ".join(str(error).split())
            raise UserError(
                f"{where} fails on {n} texts: {type(error).__name__}: {fault}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != n or not vectors.shape[1]:
            raise UserError(
                f"{where} gives an array of shape {vectors.shape} for {n} texts; return one vector "
                f"per text, [{n}, D]"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise UserError(
                f"{where} gives a vector that is not finite for {texts[int(bad.argmax())]!r}; "
                "return finite numbers for every text"
            )
        return vectors

    return embed


def similarity(embedder: Embedder, generations: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Closeness in meaning: the cosine of the two embeddings, at least 0.

    `C_i = max(0, cos(e(generation_i), e(truth_i)))`

    Args:
      embedder: from texts to vectors.
      generations: n texts; an empty one scores 0, one equal to the truth 1.
      truths: n true answers.

    Returns:
      `[n]` in [0, 1]; `nan` where the embedder gives no number.

    Reference:
      Bushipaka et al., Standard vs. Modular Sampling, arXiv 2509.05316, A.3.
    """
    pairs = list(zip(generations, truths, strict=True))
    other = [i for i, (text, truth) in enumerate(pairs) if text.strip() and text != truth]
    score = np.array([float(bool(text.strip()) and text == truth) for text, truth in pairs])
    if other:
        texts = list(dict.fromkeys(text for i in other for text in pairs[i]))
        place = {text: row for row, text in enumerate(texts)}
        vectors = np.asarray(embedder(texts), np.float64)
        a, b = (vectors[[place[pairs[i][side]] for i in other]] for side in (0, 1))
        score[other] = np.clip(_cosine(a, b), 0.0, 1.0)
    return score


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows [n, D]; 0 where one is zero."""
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(a)), where=size != 0)


def _pooled(model: LanguageModel, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """Mean last hidden states [n, D]."""
    config = model.config
    # Without a question the template is not used.
    pairs = [("", text) for text in texts]
    whole = tokens.encode(model.tokenizer, pairs, template="", max_length=sys.maxsize).table
    tokens.check_ids(whole, config.vocab_size)
    limit = config.max_positions
    table = dataclasses.replace(
        whole, tokens=whole.tokens[:, :limit], lengths=np.minimum(whole.lengths, limit)
    )
    vectors = np.zeros((len(texts), config.hidden_size))
    there = spread((model.params, model.lora))
    for rows, batch in batches(table, there.batch_size(batch_size)):
        mask = np.zeros(batch.shape, bool)
        mask[: len(rows)] = whole.answer_mask[rows, : batch.shape[1]]
        with there.known():
            found = _mean_hidden(config, *there.tree, *there.deal((batch, mask)))
        vectors[rows] = fetch(found)[: len(rows)]
    return vectors


@functools.partial(jax.jit, static_argnames="config")
def _mean_hidden(
    config: DecoderConfig, params: Any, lora: Any, batch: jax.Array, mask: jax.Array
) -> jax.Array:
    """Float32 [b, D]; 0 for a row without a token of text."""
    hidden = transformer.hidden_states(config, params, batch, lora=lora).astype(jnp.float32)
    total = jnp.where(mask[..., None], hidden, 0.0).sum(axis=1)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
