"""What a run found, for people: a table for the terminal and one self-contained HTML page.

Both read `summary.json` and nothing else about the run. Everything on the page goes through a
template that escapes it: a model's text may contain anything.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.evaluation import over_requests, plots
from jaxunlearn.evaluation.columns import (
    MISSING,
    Summary,
    arrow,
    column,
    format_value,
    headline,
    with_training,
)
from jaxunlearn.evaluation.plots import measured

if TYPE_CHECKING:
    import rich.table

_TILES = (
    "forget_quality", "forget_efficacy", "model_utility", "forget_rouge", "forget_probability",
)  # fmt: skip
PlainTable = Mapping[str, Any]
"""{"corner": heading of the names, "columns": headings, "rows": {name: texts}}."""
_NO_TABLES: Mapping[str, PlainTable] = {}
_GLYPHS = dict(zip("osD^vPXh*", "●■◆▲▼✚✖⬢★", strict=True))
_OPEN_SAMPLES = 4


def table(summary: Summary) -> "rich.table.Table":
    """The headline numbers, one row per model, within 100 columns: what `jaxunlearn run` prints."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Within 100 columns for models with short names.
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("model", overflow="fold", max_width=26, vertical="bottom")
    models = with_training(summary)
    headings = headline(summary.get("config", {}).get("evaluation", {}).get("suite", "tofu"))
    keys = [key for key in headings if any(key in values for values in models.values())]
    for key in keys:
        out.add_column(f"{headings[key]} {arrow(key)}", justify="right", no_wrap=True)
    for model, values in models.items():
        style = "bold" if model == summary.get("primary") else "dim" if _is_given(model) else ""
        cells = [format_value(key, measured(values, key)) for key in keys]
        out.add_row(Text(model), *map(Text, cells), style=style)
    return out


def statement(summary: Summary) -> str:
    """One paragraph of plain words: what was forgotten, what was kept, compared with what."""
    models, primary = summary["models"], summary.get("primary")
    ours, target = models.get(primary), models.get("target", {})
    if ours is None or primary == "target":
        return "Measured: " + ", ".join(models) + "."
    parts = [_change(target, ours, models.get("retrained"))]
    before, after = measured(target, "model_utility"), measured(ours, "model_utility")
    # A share of next to nothing says nothing.
    if before and before > 0.01 and after is not None:
        parts.append(f"model utility kept {after / before:.0%} of the target's")
    told = "; ".join(part for part in parts if part)
    text = f"{primary}: {told}." if told else f"{primary} was measured."
    quality = measured(ours, "forget_quality")
    if quality is not None:
        verb = "cannot" if quality > 0.05 else "can"
        text += (
            f" A Kolmogorov-Smirnov test on the truth ratios of the forget rows {verb} tell it"
            f" from a model that never saw them (p = {quality:.2g})."
        )
    elif "retrained" not in models and "forget_efficacy" not in ours:
        text += " There is no retrained model to compare with, hence no forget quality."
    return text


def write_html(
    path: str | Path,
    summary: Summary,
    curves: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    layers: Sequence[Mapping[str, Any]] = (),
    tables: Mapping[str, PlainTable] = _NO_TABLES,
) -> None:
    """Write the report of one run as one self-contained page, atomically.

    Args:
      path: of the page, such as `runs/NAME/report.html`; its folder must exist.
      summary: what `summary.json` holds.
      curves: lines of `metrics.jsonl`, each with `model` and `step`.
      samples: `{"set", "question", "answer", "generations": {model: text}}`.
      layers: what was measured of each layer: `model`, `step` (the layer) and numbers.
      tables: heading to further table.
    """
    rows = [("", model, values) for model, values in with_training(summary).items()]
    looks = plots.styles([*summary["models"], *(row.get("model", "") for row in curves)])
    _write_page(
        path,
        title=summary["name"],
        kind="Unlearning report",
        small_print=_small_print([summary]),
        statements={"": statement(summary)},
        tiles=_tiles(summary),
        **_results(rows, looks, {("", summary.get("primary"))}),
        panels=plots.curves_svg(curves, looks),
        requests=plots.lines_svg(
            over_requests.lines(summary.get("requests", {})), looks, axis="requests done"
        ),
        layers=plots.lines_svg(layers, looks, axis="layer"),
        layers_legend=list(dict.fromkeys(row["model"] for row in layers)),
        legend=list(dict.fromkeys(row.get("model", "") for row in curves)),
        samples=_sample_groups(samples, summary),
        open_samples=_OPEN_SAMPLES,
        tables=tables,
        notes=summary.get("notes", []),
        config=_yaml(summary.get("config", {})),
        facts={
            "Timing": {k: _seconds(v) for k, v in summary.get("timing", {}).items()},
            "Environment": dict(summary.get("environment", {})),
        },
    )


def write_comparison(path: str | Path, summaries: Sequence[Summary]) -> None:
    """Write one page that compares runs: a table of runs x models, the plane, what was set apart.

    Args:
      path: of the page; its folder must exist.
      summaries: at least one, each as `summary.json` holds it.

    Raises:
      ValueError: there is no run.
    """
    if not summaries:
        raise ValueError("write_comparison needs at least one run, got none")
    names = _distinct([summary["name"] for summary in summaries])
    rows = [
        (name, model, values)
        for name, summary in zip(names, summaries, strict=True)
        for model, values in with_training(summary).items()
    ]
    looks = plots.styles(model for _, model, _ in rows)
    primaries = {(n, s.get("primary")) for n, s in zip(names, summaries, strict=True)}
    differences = _differences(names, [summary.get("config", {}) for summary in summaries])
    _write_page(
        path,
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        kind="Comparison of runs",
        small_print=_small_print(summaries),
        statements={n: statement(s) for n, s in zip(names, summaries, strict=True)},
        tiles=[],
        **_results(rows, looks, primaries),
        panels=[],
        requests=[],
        layers=[],
        layers_legend=[],
        legend=[],
        samples=[],
        open_samples=0,
        tables={"Settings that differ": differences} if differences["rows"] else {},
        notes=[
            f"{name}: {note}"
            for name, summary in zip(names, summaries, strict=True)
            for note in summary.get("notes", [])
        ],
        config=None,
        facts={
            f"Timing: {name}": {k: _seconds(v) for k, v in summary.get("timing", {}).items()}
            for name, summary in zip(names, summaries, strict=True)
        },
    )


def _small_print(summaries: Sequence[Summary]) -> str:
    entries = [e for s in summaries for metrics in s["models"].values() for e in metrics.values()]
    of_runs = any("sd" in entry for entry in entries)
    return "least and greatest of n runs" if of_runs else "95 % bootstrap interval over rows"


def _results(
    rows: Sequence[tuple[str, str, Summary]], looks: Mapping[str, plots.Style], primaries: set
) -> dict[str, Any]:
    """Table, legend and plane of (run, model, values)."""
    keys = list(dict.fromkeys(key for _, _, values in rows for key in values))
    columns = [column(key, [values for _, _, values in rows]) for key in keys]
    groups = Counter(column["group"] for column in columns)
    columns.sort(key=lambda column: list(groups).index(column["group"]))
    return {
        "has_runs": any(run for run, _, _ in rows),
        "groups": groups,
        "columns": columns,
        "rows": [
            {
                "run": run,
                "model": model,
                "note": {"retrained": "reference", "target": "before"}.get(model, ""),
                "primary": (run, model) in primaries,
                "cells": [_cell(column, values) for column in columns],
            }
            for run, model, values in rows
        ],
        "looks": {
            model: {"css": look.css, "glyph": _GLYPHS[look.marker]} for model, look in looks.items()
        },
        "plane": plots.plane(rows, looks),
    }


def _cell(column: Mapping[str, Any], values: Summary) -> dict[str, Any]:
    key, entry = column["key"], values.get(column["key"]) or {}
    value, interval, n = measured(values, key), entry.get("ci"), entry.get("n")
    return {
        "text": format_value(key, value),
        "sort": "" if value is None else repr(value),
        "ci": f"{interval[0]:.3f}–{interval[1]:.3f}" if interval and value is not None else "",
        "n": n if value is not None and column["n"] is None else None,
    }


def _tiles(summary: Summary) -> list[dict[str, str]]:
    """The few numbers a reader wants first, before -> after."""
    models = summary["models"]
    ours, target = models.get(summary.get("primary"), {}), models.get("target", {})
    tiles = []
    for key in _TILES:
        before, after = measured(target, key), measured(ours, key)
        if after is None:
            continue
        goal = measured(models.get("retrained", {}), key)
        heading = column(key, [])
        tiles.append(
            {
                "label": f"{heading['group']} {heading['label']}".removeprefix("overall "),
                "before": "" if before is None else format_value(key, before),
                "after": format_value(key, after),
                "goal": "" if goal is None else f"retrained: {format_value(key, goal)}",
            }
        )
    return tiles


def _change(before: Summary, after: Summary, retrained: Summary | None) -> str:
    old, new = measured(before, "forget_rouge"), measured(after, "forget_rouge")
    if new is None:
        return ""
    goal = measured(retrained or {}, "forget_rouge")
    beside = "" if goal is None else f" (retrained: {goal:.2f})"
    if old is None:
        return f"forget ROUGE-L is {new:.2f}{beside}"
    if abs(new - old) < 0.005:
        return f"forget ROUGE-L stayed at {new:.2f}{beside}"
    verb = "fell" if new < old else "rose"
    return f"forget ROUGE-L {verb} from {old:.2f} to {new:.2f}{beside}"


def _sample_groups(samples: Sequence[Mapping[str, Any]], summary: Summary) -> list[dict[str, Any]]:
    """Samples by set, forget first; the model before unlearning leads each row."""
    order = {"target": -2, "retrained": -1, summary.get("primary"): 0}
    groups = dict.fromkeys(["forget", "retain", *(sample["set"] for sample in samples)])
    return [
        {
            "set": name,
            "items": [
                {
                    **sample,
                    "generations": sorted(
                        sample["generations"].items(), key=lambda pair: order.get(pair[0], 1)
                    ),
                }
                for sample in samples
                if sample["set"] == name
            ],
        }
        for name in groups
        if any(sample["set"] == name for sample in samples)
    ]


def _differences(names: Sequence[str], configs: Sequence[Mapping]) -> PlainTable:
    """Settings that are not the same in every run; the run's own name says nothing."""
    flat = [dict(_flatten(config)) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "name")
    values = {key: [str(settings.get(key, MISSING)) for settings in flat] for key in keys}
    apart = {key: found for key, found in values.items() if len(set(found)) > 1}
    return {"corner": "setting", "columns": names, "rows": apart}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _distinct(names: Sequence[str]) -> list[str]:
    """Two folders may hold runs of one name: the second becomes `name (2)`."""
    return [
        name if name not in names[:i] else f"{name} ({names[:i].count(name) + 1})"
        for i, name in enumerate(names)
    ]


def _is_given(model: str) -> bool:
    return model in ("target", "retrained")


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else ""


def _write_page(path: str | Path, **content: Any) -> None:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    page = environment.get_template("page.html").render(content)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(text: str) -> str:
    """As a content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
