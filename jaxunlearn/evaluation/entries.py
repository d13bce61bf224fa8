"""From one value per row to one entry of `summary.json`, with its bootstrap interval."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Entry = dict[str, Any]
"""{"value": number or None, "n": rows behind it, "ci": [low, high] or None}."""
Statistic = Callable[[np.ndarray], Any]


def confidence_interval(
    values: np.ndarray,
    seed: int = 0,
    *,
    statistic: Statistic = np.mean,
    resamples: int = 1000,
) -> tuple[float, float]:
    """95 % interval of the mean, or of another statistic, by the percentile bootstrap over rows.

    Args:
      values: `[n]`, or `[n, k]` for a statistic of k numbers per row; a row with a `nan` is
        counted out.
      seed: of the resampling, so that the same values give the same interval.
      statistic: from such an array to one number.
      resamples: how many times n rows are drawn with replacement.

    Returns:
      (low, high); both are the value itself when n = 1 and `nan` when n = 0.

    Reference:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    >>> confidence_interval(np.array([0.5]))
    (0.5, 0.5)
    """
    present = _present(values)
    if len(present) < 2:
        value = float(statistic(present)) if len(present) else float("nan")
        return value, value
    rng = np.random.default_rng(seed)
    found = [statistic(rng.choice(present, len(present))) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def summarise(values: np.ndarray, seed: int = 0, *, statistic: Statistic = np.mean) -> Entry:
    """One entry of `summary.json`: a statistic over the rows that have a value.

    Args:
      values: `[n]` or `[n, k]`; a row with a `nan` is counted out.
      seed: of the bootstrap.
      statistic: from such an array to one number.

    Returns:
      `{"value": number or None, "n": rows counted, "ci": [low, high] or None}`. JSON has no
      infinity: a value or an interval that is not finite is None, and its rows are still counted.

    >>> summarise(np.array([0.5, 0.5, np.nan]))
    {'value': 0.5, 'n': 2, 'ci': [0.5, 0.5]}
    """
    present = _present(values)
    if not len(present):
        return entry(np.nan, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        value = statistic(present)
        interval = confidence_interval(present, seed, statistic=statistic)
    return entry(value, len(present), interval)


def summarise_two(
    left: np.ndarray,
    right: np.ndarray,
    seed: int = 0,
    *,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    resamples: int = 1000,
) -> Entry:
    """One entry of `summary.json`: a statistic of two independent samples.

    Its interval is the percentile bootstrap; each sample is resampled by itself.

    Args:
      left: `[n]`; a `nan` is counted out.
      right: `[m]`.
      seed: of the resampling.
      statistic: from both to one number.
      resamples: how many times n and m rows are drawn with replacement.

    Returns:
      As `summarise`; its n is n + m. Without a value on either side nothing is known.
    """
    left, right = _present(left), _present(right)
    n = len(left) + len(right)
    if not len(left) or not len(right):
        return entry(np.nan, n)
    rng = np.random.default_rng(seed)
    found = [
        statistic(rng.choice(left, len(left)), rng.choice(right, len(right)))
        for _ in range(resamples)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return entry(statistic(left, right), n, (float(low), float(high)))


def entry(value: float, n: int, interval: tuple[float, float] | None = None) -> Entry:
    """One entry of `summary.json`; what is not finite is None."""
    known = interval is not None and np.isfinite([value, *interval]).all()
    return {
        "value": float(value) if np.isfinite(value) else None,
        "n": n,
        "ci": list(interval) if known else None,
    }


def over_runs(entries: Sequence[Entry]) -> Entry:
    """One entry of several runs: their mean, the fewest rows behind one of them, how many runs they
    are as "seeds", the least and the greatest value, and the standard deviation of a sample as "sd"
    (None for one run).

    >>> found = over_runs([{"value": 1.0, "n": 8}, {"value": 3.0, "n": 9}])
    >>> found["value"], found["n"], found["seeds"], found["ci"]
    (2.0, 8, 2, [1.0, 3.0])
    """
    values = [one["value"] for one in entries]
    return {
        "value": statistics.fmean(values),
        "n": min(one["n"] for one in entries),
        "seeds": len(values),
        "ci": [min(values), max(values)],
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _present(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[~np.isnan(values).any(axis=tuple(range(1, values.ndim)))]
