"""What attacks on an unlearned model found: the published aggregates, a table and a page."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn.evaluation import entries, report
from jaxunlearn.evaluation.entries import Entry, entry
from jaxunlearn.evaluation.metrics import harmonic_mean

if TYPE_CHECKING:
    import rich.table

Measured = dict[str, Any]
"""{"name", "probability": entry, "rouge": entry}; a point of a curve has its "step" as well, and
what is of a layer its "layer" (1 is the first)."""

# Keys of the result that are no attacks.
_OTHER = ("name", "runs", "settings", "before", "aggregates")
_METRICS = {"probability": "prob.", "rouge": "ROUGE"}
_LAYER_METRICS = {"probability": "lens", "top_1": "top 1", "reciprocal_rank": "MRR"}
_PANELS = {
    "probability": "logit lens: probability",
    "top_1": "probe: right answer first",
    "reciprocal_rank": "probe: mean reciprocal rank",
}


def relearning_robustness(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """R = min((r_after - r_before) / (u_after - u_before), 1): 1 if relearning brings back no more
    than it teaches a model that never knew.

    Args:
      unlearned: a number that is larger the more is known, before and after relearning.
      retrained: the same of the retrained model.

    Returns:
      1 as well where the unlearned model gains nothing, and 0 where it gains and the retrained one
      does not; the source is silent on both.

    Reference: OpenUnlearning, arXiv 2506.12618, equation 2.

    >>> relearning_robustness((0.25, 0.75), (0.25, 0.5))
    0.5
    """
    ours, theirs = unlearned[1] - unlearned[0], retrained[1] - retrained[0]
    return 1.0 if ours <= 0 else min(max(theirs / ours, 0.0), 1.0)


def quantisation_robustness(before: float, after: float) -> float:
    """Q = min(before / after, 1): 1 if quantisation brings nothing back.

    Args:
      before: a number that is larger the more is known.
      after: the same of the quantised model; where it is 0, Q is 1.

    Reference: OpenUnlearning, arXiv 2506.12618, equation 3 (with NF4); some restate it upside down,
    for numbers that are larger the more is forgotten.

    >>> quantisation_robustness(0.1, 0.4), quantisation_robustness(0.4, 0.1)
    (0.25, 1.0)
    """
    return 1.0 if after <= before else before / after


def aggregates(
    found: Mapping[str, Any], methods: Sequence[str]
) -> dict[str, dict[str, dict[str, Entry]]]:
    """R after the last step, Q with NF4, and HM, their harmonic mean, of probability and of rouge.

    The probability is the one to read: ROUGE-L is often 0 before, where one word turns Q to 0.

    Args:
      found: attack to model to what was measured.
      methods: models that have unlearned.

    Returns:
      Model to metric to {"R", "Q", "HM"} as entries; value None where an attack or the retrained
      model is missing.

    Reference: OpenUnlearning, arXiv 2506.12618, equations 2 to 4, which are there for judging
    metrics by many models; these are of one model.
    """
    return {label: _aggregates(found, label) for label in methods}


def over_runs(results: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> dict[str, Any]:
    """One result of several runs: every number is a mean over the runs that have it.

    Args:
      results: at least one, each as `attacks.json` holds it.
      folders: of the runs, to name them by.

    Returns:
      As `attacks.json`; entries are those of `entries.over_runs`. The aggregates are means too, not
      those of the means. "settings" are what is the same in all runs.
    """
    attacks = list(dict.fromkeys(key for one in results for key in one if key not in _OTHER))
    same = results[0]["settings"].items()
    return {
        "name": f"{len(results)} runs",
        "runs": list(folders),
        "settings": {
            key: value
            for key, value in same
            if all(one["settings"].get(key) == value for one in results)
        },
        "before": _together([one["before"] for one in results]),
        **{name: _together([one[name] for one in results if name in one]) for name in attacks},
        "aggregates": _together([one["aggregates"] for one in results]),
    }


def tables(result: Mapping[str, Any]) -> "list[rich.table.Table]":
    """What `jaxunlearn attack` prints: the attacks from outside, and the layers; columns are a
    number of a model each."""
    lines = _lines(result)
    outside = [((attack, name), label, one) for attack, name, label, one in lines
               if "layer" not in one]  # fmt: skip
    inside = [((name,), label, one) for _, name, label, one in lines if "layer" in one]
    made = [(("attack", ""), outside, _METRICS), (("",), inside, _LAYER_METRICS)]
    return [_table(*one) for one in made if one[1]]


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """R, Q and HM in words, a line per model and metric, and what a guess of the probe is right."""
    found = [
        f"{label}, {metric}: " + ", ".join(f"{name} {_text(one)}" for name, one in three.items())
        for label, metrics in result["aggregates"].items()
        for metric, three in metrics.items()
        if any(one["value"] is not None for one in three.values())
    ]
    chances = [one["chance"] for _, _, _, one in _lines(result) if "chance" in one]
    guess = (
        [f"probe (top 1, MRR): a guess is first in {chances[0]:.3f} of the rows"] if chances else []
    )
    return found + guess


def write_page(path: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Writes numbers, recovery curves and layers on the page that reports are made of.

    Args:
      path: of the page; its folder must exist.
      result: what `attacks.json` holds.
      config: of the run.
    """
    models = {label: _numbers(one) for label, one in result["before"].items()}
    curves, layers = [], []
    for attack, name, label, one in _lines(result):
        if "layer" in one:
            values = {title: one[key]["value"] for key, title in _PANELS.items() if key in one}
            layers.append({"model": label, "step": one["layer"], **values})
            continue
        row = f"{label}, {attack}: {name}"
        models[row] = _numbers(one)
        if "step" in one:
            values = {k: v["value"] for k, v in one.items() if k not in ("name", "step")}
            curves.append({"model": f"{label}, {attack}", "step": one["step"], **values})
    summary = {
        "name": f"{result['name']} under attack",
        "primary": result["settings"].get("methods", [None])[0],
        "models": models,
        "notes": [
            *verdicts(result),
            "R: relearning, Q: quantisation (NF4), HM: their harmonic mean; 1 is robust",
            ", ".join(f"{key} {value}" for key, value in result["settings"].items()),
            *result.get("runs", []),
        ],
        "config": config,
    }
    report.write_html(path, summary, curves, layers=layers)


def _aggregates(found: Mapping[str, Any], label: str) -> dict[str, dict[str, Entry]]:
    ends = [
        found["relearning"][model][at]
        for model in (label, "retrained")
        for at in (0, -1)
        if model in found.get("relearning", {})
    ]
    by_format = {one["name"]: one for one in found.get("quantisation", {}).get(label, [])}
    pair = [by_format[name] for name in ("none", "nf4") if name in by_format]
    both = {}
    for metric in _METRICS:
        r = _entry(metric, ends, 4, lambda v: relearning_robustness(v[:2], v[2:]))
        q = _entry(metric, pair, 2, lambda v: quantisation_robustness(*v))
        mean = float(harmonic_mean(np.array([r["value"], q["value"]], np.float64)))
        both[metric] = {"R": r, "Q": q, "HM": entry(mean, min(r["n"], q["n"]))}
    return both


def _together(found: Sequence[Any]) -> Any:
    """Results of the same form as one: means of entries, the first of everything else."""
    first = found[0]
    if isinstance(first, Mapping) and "value" in first:
        values = [one["value"] for one in found if one["value"] is not None]
        return entries.over_runs(values) if values else entry(math.nan, 0)
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for one in found for key in one)
        return {key: _together([one[key] for one in found if key in one]) for key in keys}
    if isinstance(first, list):
        names = dict.fromkeys(item["name"] for one in found for item in one)
        return [
            _together([item for one in found for item in one if item["name"] == name])
            for name in names
        ]
    return first


def _table(
    heads: Sequence[str],
    found: Sequence[tuple[tuple[str, ...], str, Measured]],
    metrics: Mapping[str, str],
) -> "rich.table.Table":
    """Of (row, model, what was measured)."""
    from rich import box
    from rich.table import Table

    cells = {
        (row, label, metric): _text(one[metric])
        for row, label, one in found
        for metric in metrics
        if metric in one
    }
    filled = {(label, metric) for _, label, metric in cells}
    labels = dict.fromkeys(label for _, label, _ in found)
    columns = [(label, m) for label in labels for m in metrics if (label, m) in filled]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        out.add_column(head)
    for label, metric in columns:
        out.add_column(f"{label}\n{metrics[metric]}", justify="right")
    for row in dict.fromkeys(row for row, _, _ in cells):
        out.add_row(*row, *(cells.get((row, *column), "-") for column in columns))
    return out


def _entry(
    metric: str,
    measured: Sequence[Measured],
    needed: int,
    formula: Callable[[list[float]], float],
) -> Entry:
    """A formula of some measured values; None of no rows if not all of them are there."""
    values = [one[metric]["value"] for one in measured]
    if len(values) < needed or None in values:
        return entry(math.nan, 0)
    return entry(formula(values), min(one[metric]["n"] for one in measured))


def _numbers(one: Measured) -> dict[str, Entry]:
    """Under the names that reports know."""
    return {f"forget_{key}": one[key] for key in ("probability", "rouge") if key in one}


def _text(one: Entry | None) -> str:
    """The value; the least and the greatest as well if it is a mean over runs."""
    if one is None or one["value"] is None:
        return "-"
    spread = f" ({one['ci'][0]:.3f}-{one['ci'][1]:.3f})" if "sd" in one else ""
    return f"{one['value']:.3f}{spread}"


def _lines(result: Mapping[str, Any]) -> list[tuple[str, str, str, Measured]]:
    """(attack, name, model, what was measured)."""
    return [
        (attack, one["name"], label, one)
        for attack, models in result.items()
        if attack not in _OTHER
        for label, measured in models.items()
        for one in measured
    ]
