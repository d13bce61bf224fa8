"""What attacks on an unlearned model found: the published aggregates, a table and a page."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn.evaluation import report
from jaxunlearn.evaluation.entries import Entry, entry
from jaxunlearn.evaluation.metrics import harmonic_mean

if TYPE_CHECKING:
    import rich.table

Measured = dict[str, Any]
"""{"name", "probability": entry, "rouge": entry}; a curve's also have "step"."""

_OTHER = ("name", "settings", "before", "aggregates")  # keys of the result that are no attacks


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


def aggregates(found: Mapping[str, Any]) -> dict[str, dict[str, Entry]]:
    """R after the last step, Q with NF4, and HM, their harmonic mean, of probability and of rouge.

    The probability is the one to read: ROUGE-L is often 0 before, where one word turns Q to 0.

    Args:
      found: attack to model to what was measured.

    Returns:
      Metric to {"R", "Q", "HM"} as entries; value None where an attack or a model is missing.

    Reference: OpenUnlearning, arXiv 2506.12618, equations 2 to 4, which are there for judging
    metrics by many models; these are of one model.
    """
    ends = [
        found["relearning"][label][at]
        for label in ("unlearned", "retrained")
        for at in (0, -1)
        if label in found.get("relearning", {})
    ]
    by_format = {one["name"]: one for one in found.get("quantisation", {}).get("unlearned", [])}
    pair = [by_format[name] for name in ("none", "nf4") if name in by_format]
    both = {}
    for metric in ("probability", "rouge"):
        r = _entry(metric, ends, 4, lambda v: relearning_robustness(v[:2], v[2:]))
        q = _entry(metric, pair, 2, lambda v: quantisation_robustness(*v))
        mean = float(harmonic_mean(np.array([r["value"], q["value"]], np.float64)))
        both[metric] = {"R": r, "Q": q, "HM": entry(mean, min(r["n"], q["n"]))}
    return both


def table(result: Mapping[str, Any]) -> "rich.table.Table":
    """Every attack in one row, two columns per model: what `jaxunlearn attack` prints."""
    from rich import box
    from rich.table import Table

    lines = _lines(result)
    labels = list(dict.fromkeys(label for _, _, label, _ in lines))
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("attack")
    out.add_column("")
    for label in labels:
        out.add_column(f"{label}\nprob.", justify="right")
        out.add_column(f"{label}\nROUGE", justify="right")
    cells: dict[tuple[str, str], dict[str, Measured]] = {}
    for attack, name, label, one in lines:
        cells.setdefault((attack, name), {})[label] = one
    for (attack, name), by_label in cells.items():
        values = [
            _text(by_label.get(label, {}).get(metric))
            for label in labels
            for metric in ("probability", "rouge")
        ]
        out.add_row(attack, name, *values)
    return out


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """R, Q and HM in words, a line per metric."""
    return [
        f"{metric}: " + ", ".join(f"{name} {_text(one)}" for name, one in found.items())
        for metric, found in result["aggregates"].items()
    ]


def write_page(path: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Writes the numbers and the recovery curves on the page that reports are made of.

    Args:
      path: of the page; its folder must exist.
      result: what `attacks.json` holds.
      config: of the run.
    """
    models = {label: _numbers(one) for label, one in result["before"].items()}
    curves = []
    for attack, name, label, one in _lines(result):
        row = f"{label}, {attack}: {name}"
        models[row] = _numbers(one)
        if "step" in one:
            values = {k: v["value"] for k, v in one.items() if k not in ("name", "step")}
            curves.append({"model": f"{label}, {attack}", "step": one["step"], **values})
    summary = {
        "name": f"{result['name']} under attack",
        "primary": "unlearned",
        "models": models,
        "notes": [
            *verdicts(result),
            "R: relearning, Q: quantisation (NF4), HM: their harmonic mean; 1 is robust",
            ", ".join(f"{key} {value}" for key, value in result["settings"].items()),
        ],
        "config": config,
    }
    report.write_html(path, summary, curves)


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
    return "-" if one is None or one["value"] is None else f"{one['value']:.3f}"


def _lines(result: Mapping[str, Any]) -> list[tuple[str, str, str, Measured]]:
    """(attack, name, model, what was measured)."""
    return [
        (attack, one["name"], label, one)
        for attack, models in result.items()
        if attack not in _OTHER
        for label, measured in models.items()
        for one in measured
    ]
