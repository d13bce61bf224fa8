"""What a suite measures: the likelihoods and the generations of one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import metrics
from jaxunlearn.evaluation.embed import Embedder
from jaxunlearn.evaluation.entries import Entry
from jaxunlearn.evaluation.forward import TokenStats

Table = dict[str, Entry]
"""Metric name to entry, in the order of reports."""


@dataclass(frozen=True)
class Scores:
    """Statistics of a table, looked up by (question, answer)."""

    stats: TokenStats
    place: Mapping[tuple[str, str], int]

    def rows(self, pairs: Sequence[tuple[str, str] | None]) -> tuple[np.ndarray, ...]:
        """log_probs, hits and mask of pairs; a pair that was left out has an empty mask."""
        return self._of(pairs, self.stats.log_probs, self.stats.hits, self.stats.mask)

    def moments(self, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, ...]:
        """means and deviations of pairs, from statistics that have them."""
        return self._of(pairs, self.stats.means, self.stats.deviations)

    def _of(
        self, pairs: Sequence[tuple[str, str] | None], *statistics: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        found = [np.zeros((len(pairs), values.shape[1]), values.dtype) for values in statistics]
        for row, pair in enumerate(pairs):
            at = None if pair is None else self.place.get(pair)
            if at is not None:
                for chosen, values in zip(found, statistics, strict=True):
                    chosen[row] = values[at]
        return tuple(found)

    def mean_log_probs(self, pairs: Sequence[tuple[str, str] | None]) -> np.ndarray:
        """[len(pairs)]; nan for a pair that was left out."""
        log_probs, _, mask = self.rows(pairs)
        return metrics.mean_log_prob(log_probs, mask)


@dataclass(frozen=True)
class Results:
    """One model on all evaluation sets."""

    sets: Mapping[str, EvalSet]
    """All but the holdout."""
    scores: Scores
    generations: Mapping[str, Sequence[str]]
    """Set to the generated answer of each of its rows."""
    final_eos: bool
    """The last answer token of every row is the end token."""
    embedder: Embedder
    config: EvaluationConfig
    holdout: tuple[Row, ...] = ()
    """What `privacy` compares the forget rows to."""


@dataclass(frozen=True)
class Suite:
    """A way to measure."""

    measure: Callable[[Results], Table]
    answers: Callable[[Row], tuple[str, ...]] = lambda row: (row.answer,)
    """The answers of a row whose likelihood it needs."""
    forget_ratios: Callable[[Results], list[float | None]] = lambda results: []
    """The truth ratio of each forget row, if forget quality is a measure of this suite."""
