"""What is known of one model on all evaluation sets: likelihoods, generations, gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data.rows import EvalSet, Text
from jaxunlearn.evaluation import metrics
from jaxunlearn.evaluation.embed import Embedder
from jaxunlearn.evaluation.entries import Entry
from jaxunlearn.evaluation.forward import TokenStats

Table = dict[str, Entry]
"""Metric name to entry, in the order of reports."""


@dataclass(frozen=True)
class Scores:
    """Statistics of a table, looked up by text."""

    stats: TokenStats
    place: Mapping[Text, int]

    def rows(self, texts: Sequence[Text | None]) -> tuple[np.ndarray, ...]:
        """log_probs, hits and mask of texts; one that was left out has an empty mask."""
        return self._of(texts, self.stats.log_probs, self.stats.hits, self.stats.mask)

    def moments(self, texts: Sequence[Text]) -> tuple[np.ndarray, ...]:
        """means and deviations of texts, from statistics that have them."""
        return self._of(texts, self.stats.means, self.stats.deviations)

    def _of(self, texts: Sequence[Text | None], *statistics: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [np.zeros((len(texts), values.shape[1]), values.dtype) for values in statistics]
        for row, text in enumerate(texts):
            at = None if text is None else self.place.get(text)
            if at is not None:
                for chosen, values in zip(found, statistics, strict=True):
                    chosen[row] = values[at]
        return tuple(found)

    def mean_log_probs(self, texts: Sequence[Text | None]) -> np.ndarray:
        """[len(texts)]; nan for a text that was left out."""
        log_probs, _, mask = self.rows(texts)
        return metrics.mean_log_prob(log_probs, mask)


@dataclass(frozen=True)
class Results:
    """One model on all evaluation sets."""

    sets: Mapping[str, EvalSet]
    scores: Scores
    generations: Mapping[str, Sequence[str]]
    """Set to the generated answer of each of its rows, for the sets where one is needed."""
    truths: Mapping[str, Sequence[str]]
    """Set to what each of these is to be compared to."""
    final_eos: bool
    """The last answer token of every row is the end token."""
    embedder: Embedder
    config: EvaluationConfig
    judged: Mapping[Text, float] = field(default_factory=dict)
    """Mean log-probability of a generated answer under the judge."""
    gradient_norms: Mapping[Text, float] = field(default_factory=dict)
    """Minus the norm of the gradient of a text's loss."""
