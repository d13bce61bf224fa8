"""From one value per row, or from other metrics, to one entry: what a benchmark can name.

Five kinds: of the rows of some sets; of two samples (forget rows against holdout rows, or a model's
rows against those of the retrained model); of other metrics; of one metric, or of several, and the
same of the retrained model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import metrics, named_entities, open_unlearning, privacy, text
from jaxunlearn.evaluation.entries import Entry, entry, summarise, summarise_two

ALL = "harmonic_mean_of_all"
"""Left out where one of its metrics is."""
FORGOTTEN = 0.9
"""An entity whose efficacy is above this counts as forgotten."""


def efficacy(scores: np.ndarray) -> float:
    """MELU's forget efficacy of [n, 3] scores: 1 minus the mean of the three means.

    >>> round(efficacy(np.array([[0.5, 0.0, 0.1], [0.1, 0.2, 0.3]])), 3)
    0.8
    """
    return 1 - float(scores.mean())


def utility(scores: np.ndarray) -> float:
    """MELU's model utility of [n, 3] scores: the harmonic mean of the three means.

    >>> round(utility(np.array([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]])), 3)
    0.6
    """
    return float(metrics.harmonic_mean(scores.mean(axis=0)))


def entity_means(rows: Sequence[Row], values: np.ndarray) -> dict[str, float]:
    """Mean value of each entity's rows; rows without an entity or a value are counted out."""
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if row.entity and not np.isnan(value):
            found.setdefault(row.entity, []).append(float(value))
    return {entity: float(np.mean(values)) for entity, values in found.items()}


def harmonic_mean(entries: Sequence[Entry]) -> Entry:
    """Of the metrics that have a value; 0 if one is 0. n says how many they are."""
    known = {str(i): one["value"] for i, one in enumerate(_known(entries))}
    return entry(metrics.model_utility(known) if known else np.nan, len(known))


def mean(entries: Sequence[Entry]) -> Entry:
    """Of the metrics that have a value; n says how many they are."""
    known = [one["value"] for one in _known(entries)]
    return entry(float(np.mean(known)) if known else np.nan, len(known))


def first(entries: Sequence[Entry]) -> Entry:
    """The first metric that has a value."""
    return next(iter(_known(entries)), entry(np.nan, 0))


def similarity_to_retrained(ours: float, theirs: float) -> float:
    """`clip(1 - |a - b| / b, 0, 1)`: 1 for a model that looks like the retrained one.

    Reference:
      The privacy score of OpenUnlearning (arXiv 2506.12618) as its readers restate it; the paper
      does not give the transform.

    >>> round(similarity_to_retrained(0.75, 0.5), 3)
    0.5
    """
    return float(np.clip(1 - abs(ours - theirs) / theirs, 0, 1)) if theirs else np.nan


def from_chance(entries: Sequence[Entry]) -> Entry:
    """`1 - 2 |AUC - 0.5|` of one AUC: 1 for an attack that is at chance.

    Reference:
      The membership score of SemEval-2025 Task 4 (arXiv 2504.02883).
    """
    (one,) = entries
    value = np.nan if one["value"] is None else 1 - 2 * abs(one["value"] - 0.5)
    return entry(value, one["n"])


def _known(entries: Sequence[Entry]) -> list[Entry]:
    return [one for one in entries if one["value"] is not None]


def _of_entities(statistic: Callable[[np.ndarray], float]) -> Callable[..., Entry]:
    def aggregate(values: np.ndarray, rows: Sequence[Row]) -> Entry:
        of_entity = np.array(list(entity_means(rows, values).values()))
        return entry(statistic(of_entity) if len(of_entity) else np.nan, len(of_entity))

    return aggregate


def _entity_mean(values: np.ndarray, rows: Sequence[Row]) -> Entry:
    return summarise(np.array(list(entity_means(rows, values).values())))


def _entity_sd(values: np.ndarray, rows: Sequence[Row]) -> Entry:
    return summarise(np.array(list(entity_means(rows, values).values())), statistic=np.std)


def _ks_test(left: np.ndarray, right: np.ndarray) -> Entry:
    return entry(metrics.forget_quality(left, right), int(np.isfinite(left).sum()))


def _of_two(statistic: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., Entry]:
    return lambda left, right: summarise_two(left, right, statistic=statistic)


ROWS: Mapping[str, Callable[[np.ndarray, Sequence[Row]], Entry]] = {
    "mean": lambda values, rows: summarise(values),
    "median": lambda values, rows: summarise(values, statistic=np.median),
    "closer_to_1": lambda values, rows: summarise(metrics.forget_truth_ratio(values)),
    "true_better": lambda values, rows: summarise(metrics.retain_truth_ratio(values)),
    "right_better": lambda values, rows: summarise(1 / (1 + values)),
    "above_0.8": lambda values, rows: summarise(np.where(np.isnan(values), np.nan, values > 0.8)),
    "micro_f1": lambda values, rows: summarise(values, statistic=named_entities.micro_f1),
    "efficacy": lambda values, rows: summarise(values, statistic=efficacy),
    "utility": lambda values, rows: summarise(values, statistic=utility),
    "distinct_2": lambda values, rows: entry(text.distinct_n(list(values)), len(values)),
    "identical": lambda values, rows: entry(text.identical_rate(list(values)), len(values)),
    "entity_mean": _entity_mean,
    "entity_sd": _entity_sd,
    "entity_min": _of_entities(np.min),
    "entities_forgotten": _of_entities(lambda values: float((values > FORGOTTEN).sum())),
}
"""Of the rows of all sets that a metric is about."""

SAMPLES: Mapping[str, Callable[[np.ndarray, np.ndarray], Entry]] = {
    "auc": _of_two(privacy.auc),
    "tpr_at_1": _of_two(partial(privacy.tpr_at_fpr, fpr=0.01)),
    "tpr_at_0.1": _of_two(partial(privacy.tpr_at_fpr, fpr=0.001)),
    "ks_test": _ks_test,
}
"""Of two samples; the numbers of TPR are percents of FPR, ks_test is a p-value."""

NUMBERS: Mapping[str, Callable[[Sequence[Entry]], Entry]] = {
    "harmonic_mean": harmonic_mean,
    ALL: harmonic_mean,
    "mean": mean,
    "first": first,
    "from_chance": from_chance,
}
"""Of other metrics of the same model."""

CHANGES: Mapping[str, Callable[[float, float], float]] = {
    "priv_leak": privacy.priv_leak,
    "rel_diff": open_unlearning.rel_diff,
    "similarity_to_retrained": similarity_to_retrained,
}
"""Of a metric and the same of the retrained model."""

COMPARISONS: Mapping[str, Callable[[Mapping[str, float], Mapping[str, float]], float]] = {
    "tug_of_war": metrics.tug_of_war,
}
"""Of several metrics and the same of the retrained model, each name to value; left out where one of
them is."""

THEIRS: Mapping[str, Callable[..., Any]] = {
    "closer_to_1": lambda values, rows: summarise(open_unlearning.forget_truth_ratio(values)),
    "priv_leak": open_unlearning.priv_leak,
}
"""What `compat: open-unlearning` puts in the place of those of the same name."""


def find(table: Mapping[str, Callable[..., Any]], name: str, compat: str) -> Callable[..., Any]:
    """The aggregation of this name."""
    return THEIRS[name] if compat == "open-unlearning" and name in THEIRS else table[name]
