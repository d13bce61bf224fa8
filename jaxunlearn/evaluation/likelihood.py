"""How likely texts are to a model, in one number for a table or for each text."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Text
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.evaluation.forward import score
from jaxunlearn.models.language_model import LanguageModel


def mean_nll(model: LanguageModel, table: TokenTable) -> float:
    """Mean over all answer tokens of a table."""
    found = score(model.config, model.params, table, lora=model.lora)
    return -float(found.log_probs[found.mask].mean())


def text_nlls(model: LanguageModel, texts: Sequence[Text], template: str) -> np.ndarray:
    """Mean over the answer tokens of each text.

    Args:
      model: with a tokenizer.
      texts: n of them.
      template: prompt for tokenizers without a chat template.

    Returns:
      float64 [n]; nan for a text that is longer than the model's positions.
    """
    limit = model.config.max_positions
    encoded = tokens.encode(model.tokenizer, texts, template=template, max_length=limit)
    stats = score(model.config, model.params, encoded.table, lora=model.lora)
    counts = np.maximum(stats.mask.sum(1), 1)
    found = np.full(len(texts), np.nan)
    found[list(encoded.kept)] = -np.where(stats.mask, stats.log_probs, 0.0).sum(1) / counts
    return found
