"""What a benchmark's rows come to, of one model and beside the retrained model."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.aggregation import CHANGES, COMPARISONS, NUMBERS, ROWS, SAMPLES, find
from jaxunlearn.evaluation.benchmark import SET, Benchmark, Metric, matched
from jaxunlearn.evaluation.entries import Entry, entry
from jaxunlearn.evaluation.results import Results, Table
from jaxunlearn.evaluation.statistics import STATISTICS

Rows = dict[str, list[float | None]]
"""`SET_STATISTIC` to one number per row of the set; None where a row has none."""

_LATER: Entry = {}  # keeps the place of a metric whose value needs those after it


def measure(benchmark: Benchmark, results: Results) -> tuple[Table, Rows]:
    """Every metric that needs no other model, and the numbers of the rows behind them."""
    roles = {name: chosen.role for name, chosen in results.sets.items()}
    values = {
        (name, statistic): STATISTICS[statistic].values(results, name)
        for name, statistics in benchmark.plan(results.sets).items()
        for statistic in sorted(statistics)
    }

    def sample(names: Sequence[str], statistic: str) -> np.ndarray:
        return np.concatenate([values[name, statistic] for name in names])

    found: Table = {}
    for metric in benchmark.metrics:
        if metric.of and not metric.against:
            found[metric.metric] = _LATER
        if metric.of or metric.against or not metric.applies(roles):
            continue
        names, others = (
            [name for name in matched(data, roles) if (name, metric.statistic) in values]
            for data in (metric.data, metric.versus)
        )
        if not names or (metric.versus and not others):
            continue
        for group in [[name] for name in names] if metric.each_set else [names]:
            mine = sample(group, metric.statistic)
            if metric.versus:
                one = SAMPLES[metric.aggregation](mine, sample(others, metric.statistic))
            else:
                rows = [row for name in group for row in results.sets[name].rows]
                one = find(ROWS, metric.aggregation, results.config.compat)(mine, rows)
            found[metric.metric.replace(SET, group[0])] = one
    for metric in benchmark.composites:
        if not metric.against:
            # One whose metrics are all left out is left out too.
            known = _parts(metric, found, roles)
            found |= {metric.metric: NUMBERS[metric.aggregation](known)} if known else {}
    numbers = {
        f"{name}_{statistic}": [float(v) if np.isfinite(v) else None for v in array]
        for (name, statistic), array in values.items()
        if array.ndim == 1 and array.dtype != object
    }
    return {name: one for name, one in found.items() if one is not _LATER}, numbers


def against(
    benchmark: Benchmark,
    roles: Mapping[str, str],
    ours: tuple[Table, Rows],
    theirs: tuple[Table, Rows],
    compat: str,
) -> Table:
    """Every metric that compares with the retrained model.

    Args:
      benchmark: what is measured.
      roles: set to its role.
      ours: what `measure` found of the model.
      theirs: the same of the retrained model; what is missing there gives no metric.
      compat: as of the config.
    """
    (our_table, our_rows), (their_table, their_rows) = ours, theirs
    found: Table = {}
    of_rows = [metric for metric in benchmark.metrics if not metric.of]
    for metric in (*of_rows, *benchmark.composites):
        if not metric.against:
            continue
        if metric.aggregation in CHANGES:
            ((name, _),) = metric.parts(roles)
            if name in our_table and name in their_table:
                change = find(CHANGES, metric.aggregation, compat)
                found[metric.metric] = _changed(change, our_table[name], their_table[name])
        elif metric.aggregation in COMPARISONS:
            both = [_parts(metric, table, roles) for table in (our_table, their_table)]
            if all(both):
                found[metric.metric] = _compared(metric, roles, *both)
        elif metric.of:
            known = _parts(metric, our_table | found, roles)
            found |= {metric.metric: NUMBERS[metric.aggregation](known)} if known else {}
        elif metric.applies(roles):
            names, others = (
                [name for name in matched(data, roles) if f"{name}_{metric.statistic}" in our_rows]
                for data in (metric.data, metric.versus)
            )
            needed = [f"{name}_{metric.statistic}" for name in (*names, *others)]
            there = names and (others or not metric.versus)
            if there and all(key in their_rows for key in needed):
                left, right = _sample(our_rows, names, metric), _sample(their_rows, names, metric)
                if others:
                    # Each row relative to what the retrained model says to it.
                    left = left - right
                    right = _sample(our_rows, others, metric) - _sample(their_rows, others, metric)
                found[metric.metric] = SAMPLES[metric.aggregation](left, right)
    return {one.metric: found[one.metric] for one in benchmark.metrics if one.metric in found}


def _sample(rows: Rows, names: Sequence[str], metric: Metric) -> np.ndarray:
    values = [value for name in names for value in rows[f"{name}_{metric.statistic}"]]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _parts(metric: Metric, found: Table, roles: Mapping[str, str]) -> list[Entry]:
    """The metrics that one is of, as far as they are there."""
    parts = metric.parts(roles)
    known = [
        _from_1(found[name]) if complement else found[name]
        for name, complement in parts
        if name in found and found[name] is not _LATER
    ]
    return [] if metric.needs_all and len(known) < len(parts) else known


def _from_1(one: Entry) -> Entry:
    """1 minus an entry."""
    interval = None if one["ci"] is None else tuple(1 - bound for bound in reversed(one["ci"]))
    return entry(np.nan if one["value"] is None else 1 - one["value"], one["n"], interval)


def _changed(change: Callable[[float, float], float], ours: Entry, theirs: Entry) -> Entry:
    known = None not in (ours["value"], theirs["value"])
    return entry(change(ours["value"], theirs["value"]) if known else np.nan, ours["n"])


def _compared(
    metric: Metric, roles: Mapping[str, str], ours: Sequence[Entry], theirs: Sequence[Entry]
) -> Entry:
    """Several metrics beside the same of the retrained model; n is of the one with fewest rows."""
    names, n = [name for name, _ in metric.parts(roles)], min(one["n"] for one in ours)
    left, right = (
        {name: one["value"] for name, one in zip(names, entries, strict=True)}
        for entries in (ours, theirs)
    )
    if None in (*left.values(), *right.values()):
        return entry(np.nan, n)
    try:
        return entry(COMPARISONS[metric.aggregation](left, right), n)
    except ValueError as error:
        raise UserError(
            f"evaluation.suite: {metric.metric}: {error}; change what it is of"
        ) from None
