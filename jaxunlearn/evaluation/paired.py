"""Two models compared on the same rows."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from jaxunlearn.evaluation.entries import summarise

RESAMPLES = 9999
"""Sign flips of a permutation test; where there are no more than that, all of them."""
_BATCH = 500  # flips that are held at a time

Rows = Mapping[str, Sequence[float | None]]
"""Metric to its value for each row; None where it has none."""
Comparison = dict[str, Any]
"""{"value": mean difference, first - second, or None, "n": pairs, "ci": [low, high] or None, "p":
p-value or None}."""


def paired_difference(
    ours: Sequence[float | None], theirs: Sequence[float | None], seed: int = 0
) -> Comparison:
    """How a metric of two models differs over the same rows.

    The interval is the bootstrap over rows of `entries.summarise`; both values of a row are drawn
    together. The p-value is of the two-sided permutation test that swaps the models in each row,
    and so flips the sign of its difference; exact where 2^n <= RESAMPLES.

    Args:
      ours: `[n]`; a row without a finite value on either side is counted out.
      theirs: `[n]`, of the same rows.
      seed: of the resampling.

    Returns:
      Mean of ours - theirs and what `Comparison` says; p is None for fewer than two pairs.

    Raises:
      ValueError: the numbers of rows differ.

    >>> paired_difference([0.5, 0.75, 1.0, None], [0.25, 0.5, 0.75, 1.0])
    {'value': 0.25, 'n': 3, 'ci': [0.25, 0.25], 'p': 0.25}
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired rows: {len(ours)} against {len(theirs)}")
    differences = np.array(ours, np.float64) - np.array(theirs, np.float64)
    differences = differences[np.isfinite(differences)]
    return {**summarise(differences, seed), "p": _sign_flip(differences, seed)}


def adjusted(pvalues: Sequence[float | None]) -> list[float | None]:
    """Benjamini-Hochberg: p-values of a family of comparisons, adjusted for there being many.

    Those that are at most q are, but for an expected share of q, no chance findings. None is not
    part of the family.

    >>> adjusted([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    from scipy.stats import false_discovery_control

    family = [p for p in pvalues if p is not None]
    found = iter(false_discovery_control(family).tolist() if family else [])
    return [None if p is None else next(found) for p in pvalues]


def comparisons(first: Rows, second: Rows, seed: int = 0) -> dict[str, Comparison]:
    """`paired_difference` for each metric that both models have values of.

    Raises:
      ValueError: the numbers of rows differ.
    """
    return {
        metric: paired_difference(values, second[metric], seed)
        for metric, values in first.items()
        if metric in second
    }


def table(
    models: Mapping[str, Rows], main: str | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Every two models compared, or one with every other, as plain data for a report.

    Args:
      models: name to its values, all of the same rows.
      main: the one that all others are compared with; None: every two.
      seed: of the resampling.

    Returns:
      A line per pair and metric: {"first", "second", "metric", "value", "n", "ci", "p",
      "p_adjusted"}; the family that p is adjusted for is the table.

    Raises:
      ValueError: the numbers of rows differ.
    """
    pairs = combinations(models, 2)
    if main is not None:
        pairs = ((main, other) for other in models if other != main)
    found = [
        {"first": one, "second": other, "metric": metric, **compared}
        for one, other in pairs
        for metric, compared in comparisons(models[one], models[other], seed).items()
    ]
    corrected = adjusted([line["p"] for line in found])
    return [{**line, "p_adjusted": p} for line, p in zip(found, corrected, strict=True)]


def _sign_flip(differences: np.ndarray, seed: int) -> float | None:
    n = len(differences)
    if n < 2:
        return None
    rng, exact = np.random.default_rng(seed), 2**n <= RESAMPLES
    count = 2**n if exact else RESAMPLES
    # Sums that differ by rounding alone are equal.
    least = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    extreme = 0
    for start in range(0, count, _BATCH):
        rows = np.arange(start, min(start + _BATCH, count))
        if exact:
            flips = (rows[:, None] >> np.arange(n)) & 1
        else:
            flips = rng.integers(0, 2, (len(rows), n), np.int8)
        extreme += int((np.abs((1 - 2 * flips) @ differences) >= least).sum())
    # Of a sample of the flips, the models as they are count as one more.
    return extreme / count if exact else (extreme + 1) / (count + 1)
