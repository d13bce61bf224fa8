"""The numbers of a report as Markdown and as comma-separated values."""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxunlearn.evaluation.columns import (
    MISSING,
    Summary,
    arrow,
    behind,
    format_value,
    interval,
    with_training,
)
from jaxunlearn.evaluation.plots import measured
from jaxunlearn.evaluation.statement import seeds, statement

FIELDS = ("run", "model", "metric", "value", "n", "low", "high", "seeds")
"""Columns of `csv_text`."""


def csv_text(runs: Mapping[str, Summary]) -> str:
    """One line per run, model and metric, with FIELDS; what was not measured is left empty.

    Args:
      runs: name to summary.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for run, summary in runs.items():
        for model, metrics in with_training(summary).items():
            for metric, entry in metrics.items():
                low, high = entry.get("ci") or (None, None)
                numbers = (entry["value"], entry.get("n"), low, high, entry.get("seeds", 1))
                writer.writerow((run, model, metric, *numbers))
    return out.getvalue()


def markdown(title: str, runs: Mapping[str, Summary], small_print: str) -> str:
    """A page with a table of metrics x models for each run."""
    parts = [f"# {_plain(title)}"]
    for run, summary in runs.items():
        if len(runs) > 1:
            parts.append(f"## {_plain(run)}")
        parts += [_plain(statement(summary)), f"Numbers of {seeds(summary)}; in brackets the"]
        parts[-1] += f" {small_print}. n: rows behind a value, of a mean of metrics these."
        parts.append(table(with_training(summary)))
    return "\n\n".join(parts) + "\n"


def table(models: Mapping[str, Summary]) -> str:
    """Markdown: one row per metric, one column per model; n is the number of rows behind the
    values, with the number of seeds where it is over several runs."""
    keys = dict.fromkeys(key for metrics in models.values() for key in metrics)
    lines: list[Sequence[str]] = [["metric", "n", *models], ["---", *["---:"] * (1 + len(models))]]
    for key in keys:
        entries = [metrics.get(key) or {} for metrics in models.values()]
        known = [entry for entry in entries if entry.get("value") is not None]
        counts = dict.fromkeys(text for text in map(_count, known) if text)
        name = f"{key.replace('_', ' ')} {arrow(key)}"
        lines.append([name, " / ".join(counts) or MISSING, *(_cell(key, one) for one in entries)])
    cells = [[_plain(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _count(entry: Mapping[str, Any]) -> str:
    return behind(entry).removeprefix("n = ")


def _cell(key: str, entry: Mapping[str, Any]) -> str:
    text, spread = format_value(key, measured({key: entry}, key)), interval(entry)
    return f"{text} ({spread})" if spread else text


def _plain(text: str) -> str:
    """On one line, and no markup."""
    return escape(" ".join(text.split()), quote=False)
