"""What attacks on an unlearned model found: the published aggregates, tables and a page."""

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
_OTHER = ("name", "runs", "settings", "before", "aggregates", "membership")
_METRICS = {"probability": "prob.", "rouge": "ROUGE"}
_INSIDE = {"probability": "logit lens", "top_1": "probe top 1"}
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
    by_shadows = [one["membership"] for one in results if "membership" in one]
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
        **({"membership": _together(by_shadows)} if by_shadows else {}),
    }


def tables(result: Mapping[str, Any]) -> dict[str, report.PlainTable]:
    """Heading to what was found: the attacks from outside, and the layers."""
    lines = _lines(result)
    outside = [(f"{attack}: {name}", *of) for attack, name, *of in lines if "layer" not in of[1]]
    inside = [(name, *of) for _, name, *of in lines if "layer" in of[1]]
    made = {"Attacks": _table("attack", outside, _METRICS), "Layers": _table("", inside, _INSIDE)}
    return {heading: one for heading, one in made.items() if one["rows"]}


def rich_table(table: report.PlainTable) -> "rich.table.Table":
    """A table as `jaxunlearn attack` prints it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column(table["corner"], no_wrap=True)
    for column in table["columns"]:
        out.add_column(column, justify="right", overflow="fold")
    for name, values in table["rows"].items():
        out.add_row(Text(name), *map(Text, values))
    return out


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """In words: R, Q and HM of each model and metric, how often a guess is right, shadow models."""
    found = [
        f"{label}, {metric}: "
        + ", ".join(f"{name} {_text(one)}{_spread(one)}" for name, one in three.items())
        for label, metrics in result["aggregates"].items()
        for metric, three in metrics.items()
        if any(one["value"] is not None for one in three.values())
    ]
    chances = [one["chance"] for _, _, _, one in _lines(result) if "chance" in one]
    if chances:
        found.append(f"probe: a guess puts the right answer first in {chances[0]:.3f} of the rows")
    for label, told in result.get("membership", {}).get("models", {}).items():
        numbers = ", ".join(f"{name} {_text(one)}" for name, one in told.items())
        found.append(f"{label}, membership by shadow models: {numbers}")
    return found


def write_page(path: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Writes numbers, recovery curves and layers on the page that reports are made of.

    Args:
      path: of the page; its folder must exist.
      result: what `attacks.json` holds.
      config: of the run.
    """
    models = {label: _numbers(one) for label, one in result["before"].items()}
    curves, layers = [], []
    for attack, _, label, one in _lines(result):
        if "layer" in one:
            values = {title: one[key]["value"] for key, title in _PANELS.items() if key in one}
            layers.append({"model": label, "step": one["layer"], **values})
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
            ", ".join(_setting(*pair) for pair in result["settings"].items()),
            *result.get("runs", []),
        ],
        "config": config,
        **({"seeds": [Path(run).name for run in result["runs"]]} if "runs" in result else {}),
    }
    report.write_report(path, summary, curves, layers=layers, tables=tables(result))


def _aggregates(found: Mapping[str, Any], label: str) -> dict[str, dict[str, Entry]]:
    ends = [
        found["relearning"][model][at]
        for model in (label, "retrained")
        for at in (0, -1)
        if len(found.get("relearning", {}).get(model, ())) > 1
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
        known = [one for one in found if one["value"] is not None]
        return entries.over_runs(known) if known else entry(math.nan, 0)
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
    corner: str, lines: Sequence[tuple[str, str, Measured]], metrics: Mapping[str, str]
) -> report.PlainTable:
    """Of (row, model, what was measured): a column for each number of a model."""
    cells = {
        (row, label, metric): _text(one[metric])
        for row, label, one in lines
        for metric in metrics
        if metric in one
    }
    filled = {(label, metric) for _, label, metric in cells}
    labels = dict.fromkeys(label for _, label, _ in lines)
    columns = [(label, m) for label in labels for m in metrics if (label, m) in filled]
    rows = dict.fromkeys(row for row, _, _ in cells)
    return {
        "corner": corner,
        "columns": [f"{label} {metrics[metric]}" for label, metric in columns],
        "rows": {row: [cells.get((row, *column), "-") for column in columns] for row in rows},
    }


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


def _text(one: Entry) -> str:
    return "-" if one["value"] is None else f"{one['value']:.3f}"


def _spread(one: Entry) -> str:
    """The least and the greatest value of a mean over runs."""
    return f" ({one['ci'][0]:.3f}-{one['ci'][1]:.3f})" if "sd" in one else ""


def _setting(name: str, value: Any) -> str:
    return f"{name} {' and '.join(value) if isinstance(value, list) else value}"


def _lines(result: Mapping[str, Any]) -> list[tuple[str, str, str, Measured]]:
    """(attack, name, model, what was measured)."""
    return [
        (attack, one["name"], label, one)
        for attack, models in result.items()
        if attack not in _OTHER
        for label, measured in models.items()
        for one in measured
    ]
