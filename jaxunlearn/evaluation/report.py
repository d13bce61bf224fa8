"""What a run found, for people: a table for the terminal and one self-contained HTML page.

Both read `summary.json` and nothing else about the run. Everything on the page goes through a
template that escapes it: a model's text may contain anything.
"""

import base64
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.evaluation import plots
from jaxunlearn.evaluation.plots import measured

if TYPE_CHECKING:
    import rich.table

Summary = Mapping[str, Any]

MISSING = "—"
_HEADLINE = {
    "forget_quality": "forget\nquality",
    "model_utility": "model\nutility",
    "forget_probability": "forget\nprob.",
    "forget_rouge": "forget\nROUGE",
    "forget_extraction_strength": "extr.\nstr.",
    "retain_probability": "retain\nprob.",
    "retain_rouge": "retain\nROUGE",
    "training_steps": "steps",
    "training_exposures": "expo-\nsures",
    "training_tokens_per_second": "tokens/s",
}
_LABELS = {
    "probability": "probability",
    "rouge": "ROUGE\u2011L",
    "truth_ratio": "truth ratio",
    "exact_memorisation": "exact memorisation",
    "extraction_strength": "extraction strength",
}
_WHOLE = ("training_steps", "training_tokens_per_second")
_GLYPHS = dict(zip("osD^vPXh*", "●■◆▲▼✚✖⬢★", strict=True))
_OPEN_SAMPLES = 4


def table(summary: Summary) -> "rich.table.Table":
    """The headline numbers, one row per model, within 100 columns: what `jaxunlearn run` prints."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Within 80 columns for models with short names.
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("model", overflow="fold", max_width=26, vertical="bottom")
    models = _with_training(summary)
    keys = [key for key in _HEADLINE if any(key in values for values in models.values())]
    for key in keys:
        out.add_column(f"{_HEADLINE[key]} {arrow(key)}", justify="right", no_wrap=True)
    for model, values in models.items():
        style = "bold" if model == summary.get("primary") else "dim" if _is_given(model) else ""
        cells = [format_value(key, measured(values, key)) for key in keys]
        out.add_row(Text(model), *map(Text, cells), style=style)
    return out


def format_value(metric: str, value: float | None) -> str:
    """`0.713`; small p-values as `1.2e-05`; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return MISSING
    if metric in _WHOLE:
        return f"{value:.0f}"
    if metric == "training_exposures":
        return f"{value:.1f}"
    if metric == "forget_quality" and 0 < value < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}"


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
    elif "retrained" not in models:
        text += " There is no retrained model to compare with, hence no forget quality."
    return text


def write_html(
    path: str | Path,
    summary: Summary,
    curves: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of one run as one self-contained page, atomically.

    Args:
      path: of the page, such as `runs/NAME/report.html`; its folder must exist.
      summary: what `summary.json` holds.
      curves: lines of `metrics.jsonl`, each with `model` and `step`.
      samples: `{"set", "question", "answer", "generations": {model: text}}`.
    """
    rows = [("", model, values) for model, values in _with_training(summary).items()]
    looks = plots.styles([*summary["models"], *(row.get("model", "") for row in curves)])
    _write_page(
        path,
        title=summary["name"],
        kind="Unlearning report",
        statements={"": statement(summary)},
        tiles=_tiles(summary),
        **_results(rows, looks, {("", summary.get("primary"))}),
        panels=plots.curves_svg(curves, looks),
        legend=list(dict.fromkeys(row.get("model", "") for row in curves)),
        samples=_sample_groups(samples, summary),
        open_samples=_OPEN_SAMPLES,
        differences=None,
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
        for model, values in _with_training(summary).items()
    ]
    looks = plots.styles(model for _, model, _ in rows)
    primaries = {(n, s.get("primary")) for n, s in zip(names, summaries, strict=True)}
    _write_page(
        path,
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        kind="Comparison of runs",
        statements={n: statement(s) for n, s in zip(names, summaries, strict=True)},
        tiles=[],
        **_results(rows, looks, primaries),
        panels=[],
        legend=[],
        samples=[],
        open_samples=0,
        differences=_differences(names, [summary.get("config", {}) for summary in summaries]),
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


def _with_training(summary: Summary) -> dict[str, dict[str, Any]]:
    """The models' metrics, with what their training took as further ones."""
    training = summary.get("training", {})
    return {
        model: {**values, **_taken(training.get(model, {}))}
        for model, values in summary["models"].items()
    }


def _taken(training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of one training: an exposure is how often a forget row was shown, from the least
    to the most."""
    plain = ("steps", "tokens_per_second", "same_entity_rate")
    found = {f"training_{key}": {"value": training[key]} for key in plain if key in training}
    if shown := training.get("forget_exposures"):
        interval = [shown["min"], shown["max"]]
        found["training_exposures"] = {"value": shown["mean"], "ci": interval}
    return found


def _results(
    rows: Sequence[tuple[str, str, Summary]], looks: Mapping[str, plots.Style], primaries: set
) -> dict[str, Any]:
    """Table, legend and plane of (run, model, values)."""
    keys = list(dict.fromkeys(key for _, _, values in rows for key in values))
    columns = [_column(key, [values for _, _, values in rows]) for key in keys]
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


def _column(key: str, models: Sequence[Summary]) -> dict[str, Any]:
    group, label = "other", key.replace("_", " ")
    if key in ("forget_quality", "model_utility"):
        group = "overall"
    elif key.startswith("training_"):
        group, label = "training", label.removeprefix("training ")
    else:
        for ending, name in _LABELS.items():
            if key.endswith(f"_{ending}"):
                group, label = key.removesuffix(f"_{ending}").replace("_", " "), name
    counts = {
        (values.get(key) or {}).get("n") for values in models if measured(values, key) is not None
    }
    shared = counts.pop() if len(counts) == 1 else None
    return {"key": key, "group": group, "label": label, "arrow": arrow(key), "n": shared}


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
    for key in ("forget_quality", "model_utility", "forget_rouge", "forget_probability"):
        before, after = measured(target, key), measured(ours, key)
        if after is None:
            continue
        goal = measured(models.get("retrained", {}), key)
        column = _column(key, [])
        tiles.append(
            {
                "label": f"{column['group']} {column['label']}".removeprefix("overall "),
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


def _differences(names: Sequence[str], configs: Sequence[Mapping]) -> dict[str, Any] | None:
    """Settings that are not the same in every run; the run's own name says nothing."""
    flat = [dict(_flatten(config)) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "name")
    values = {key: [str(settings.get(key, MISSING)) for settings in flat] for key in keys}
    apart = {key: found for key, found in values.items() if len(set(found)) > 1}
    return {"names": names, "rows": apart} if apart else None


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


def arrow(key: str) -> str:
    """The sign of the better direction; empty where neither is."""
    if key in ("forget_quality", "model_utility", "forget_truth_ratio"):
        return "↑"
    if not key.endswith(tuple(_LABELS)):
        return ""
    return "↓" if key.startswith("forget_") else "↑"


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
