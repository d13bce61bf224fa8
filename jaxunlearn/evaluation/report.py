"""What a run found, for people: a table for the terminal, and one self-contained HTML page with its
numbers beside it as Markdown and CSV.

Everything on the page goes through a template that escapes it: a model's text may contain anything.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.evaluation import over_iterations, over_requests, plots, same_rows, tabular
from jaxunlearn.evaluation.columns import (
    MISSING,
    Summary,
    arrow,
    behind,
    column,
    format_value,
    headline,
    interval,
    with_training,
)
from jaxunlearn.evaluation.page import write_page
from jaxunlearn.evaluation.plots import measured
from jaxunlearn.evaluation.same_rows import Comparisons
from jaxunlearn.evaluation.statement import seeds, statement
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.writing import write_text

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
NOT_DOMINATED = "◆"
_NAME_WIDTH = 26  # of a table in the terminal


def table(summary: Summary, width: int | None = None) -> "rich.table.Table":
    """The headline numbers, one row per model: what `jaxunlearn run` prints.

    Args:
      summary: what `summary.json` holds.
      width: columns of the terminal. Where they are too few, the last numbers are left out, and a
        line below says which. Default: as many as it takes, 100 for models with short names.
    """
    from rich.console import Console

    wide, models = Console(width=1000), with_training(summary)
    headings = headline(summary.get("config", {}).get("evaluation", {}).get("suite", "tofu"))
    keys = [key for key in headings if any(key in values for values in models.values())]
    out, left_out = _printed(summary, models, {key: headings[key] for key in keys}), []
    while width is not None and len(keys) > 1 and wide.measure(out).maximum > width:
        left_out.insert(0, keys.pop().removeprefix("training_").replace("_", " "))
        out = _printed(summary, models, {key: headings[key] for key in keys})
        out.caption = f"no room for {', '.join(left_out)}"
    return out


def _printed(
    summary: Summary, models: Mapping[str, Summary], headings: Mapping[str, str]
) -> "rich.table.Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    out.add_column("model", overflow="fold", max_width=_NAME_WIDTH, vertical="bottom")
    for key, heading in headings.items():
        out.add_column(f"{heading} {arrow(key)}", justify="right", no_wrap=True)
    for model, values in models.items():
        style = "bold" if model == summary.get("primary") else "dim" if _is_given(model) else ""
        cells = [format_value(key, measured(values, key)) for key in headings]
        name = f"{model} {NOT_DOMINATED}" if model in _front(summary) else model
        out.add_row(Text(_folded(name)), *map(Text, cells), style=style)
    return out


def _folded(name: str) -> str:
    """The name of a setting in lines, which begin with a key: `beta-0.1-` is not torn apart."""
    lines = [""]
    for part in re.split(r"(?<=-)(?=[^\W\d])|(?<= )", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def write_report(
    path: str | Path,
    summary: Summary,
    curves: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    heat_maps: Sequence[Mapping[str, Any]] = (),
    comparisons: Comparisons | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    tables: Mapping[str, PlainTable] = _NO_TABLES,
) -> None:
    """Write the report of one run as one self-contained page, and its numbers beside it as `.md`
    and `.csv`, each atomically.

    Args:
      path: of the page, such as `runs/NAME/report.html`; its folder must exist.
      summary: what `summary.json` holds.
      curves: lines of `metrics.jsonl`, each with `model` and `step`.
      samples: of `samples.samples`.
      heat_maps: of `entities.heat_maps`.
      comparisons: of `same_rows.within_run`.
      layers: what was measured of each layer: `model`, `step` (the layer) and numbers.
      tables: heading to further table.
    """
    rows = [("", model, values) for model, values in with_training(summary).items()]
    histories, release = summary.get("requests", {}), summary.get("release", {})
    looks = plots.styles([*summary["models"], *(row.get("model", "") for row in curves)])
    _write(
        Path(path),
        {summary["name"]: summary},
        title=summary["name"],
        kind="Unlearning report",
        statements={"": statement(summary)},
        tiles=_tiles(summary),
        **_results(rows, looks, {("", summary.get("primary"))}, _front(summary)),
        panels=plots.curves_svg(curves, looks),
        requests=plots.lines_svg(over_requests.lines(histories), looks, axis="requests done"),
        request_rows=next((one["evaluated_rows"] for one in histories.values()), []),
        layers=plots.lines_svg(layers, looks, axis="layer"),
        layers_legend=list(dict.fromkeys(row["model"] for row in layers)),
        legend=list(dict.fromkeys(row.get("model", "") for row in curves)),
        samples=_sample_groups(samples, summary),
        open_samples=_OPEN_SAMPLES,
        heat_maps=heat_maps,
        comparisons=_paired(comparisons, "the main method with the other models"),
        release=over_iterations.panels(release),
        tables={**over_iterations.tables(release), **tables},
        notes=summary.get("notes", []),
        config=_yaml(summary.get("config", {})),
        facts={
            "Timing": {k: _seconds(v) for k, v in summary.get("timing", {}).items()},
            "Environment": dict(_flatten(summary.get("environment", {}))),
        },
    )


def write_comparison(
    path: str | Path,
    summaries: Sequence[Summary],
    evaluations: Sequence[Evaluation | None] = (),
) -> None:
    """Write one page that compares runs: a table of runs x models, the plane, what was set apart,
    the main methods on the same rows; and the numbers beside it as `.md` and `.csv`.

    Args:
      path: of the page; its folder must exist.
      summaries: at least one, each as `summary.json` holds it.
      evaluations: of each run's main method, None where not kept; empty: no paired comparisons.

    Raises:
      ValueError: there is no run.
    """
    if not summaries:
        raise ValueError("write_comparison needs at least one run, got none")
    names = _distinct([summary["name"] for summary in summaries])
    runs = dict(zip(names, summaries, strict=True))
    rows = [
        (name, model, values)
        for name, summary in runs.items()
        for model, values in with_training(summary).items()
    ]
    looks = plots.styles(model for _, model, _ in rows)
    differences = _differences(names, [summary.get("config", {}) for summary in summaries])
    comparisons = None
    if len(runs) > 1 and evaluations:
        comparisons = same_rows.between_runs(runs, dict(zip(names, evaluations, strict=True)))
    _write(
        Path(path),
        runs,
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        kind="Comparison of runs",
        statements={name: statement(summary) for name, summary in runs.items()},
        tiles=[],
        **_results(rows, looks, {(name, one.get("primary")) for name, one in runs.items()}),
        panels=[],
        requests=[],
        layers=[],
        layers_legend=[],
        request_rows=[],
        release=[],
        legend=[],
        samples=[],
        open_samples=0,
        heat_maps=[],
        comparisons=_paired(comparisons, "the main methods of the runs"),
        tables={"Settings that differ": differences} if differences["rows"] else {},
        notes=[f"{name}: {note}" for name, one in runs.items() for note in one.get("notes", [])],
        config=None,
        facts={
            f"Timing: {name}": {k: _seconds(v) for k, v in one.get("timing", {}).items()}
            for name, one in runs.items()
        },
    )


def _write(path: Path, runs: Mapping[str, Summary], *, title: str, **content: Any) -> None:
    small_print = (
        "least and greatest value of the seeds; what training took is that of the first"
        if any("seeds" in one for one in runs.values())
        else "95 % bootstrap interval over rows"
    )
    content |= {
        "title": title,
        "small_print": small_print,
        "seeds": seeds(*runs.values()) if len(runs) == 1 else f"{len(runs)} runs of 1 seed each",
    }
    write_text(path.with_suffix(".md"), tabular.markdown(title, runs, small_print))
    write_text(path.with_suffix(".csv"), tabular.csv_text(runs))
    write_page(path, content)


def _paired(comparisons: Comparisons | None, what: str) -> dict[str, Any] | None:
    """Paired comparisons in words."""
    if comparisons is None:
        return None
    rows = []
    for line in comparisons.lines:
        rows.append(
            {
                "pair": f"{line['first']} − {line['second']}",
                "metric": line["metric"].replace("_", " "),
                "n": line["n"],
                "difference": _digits(line["value"], 3),
                "interval": "{:.3g} to {:.3g}".format(*line["ci"]) if line["ci"] else "",
                "p": _digits(line["p"], 2),
                "p_adjusted": _digits(line["p_adjusted"], 2),
            }
        )
    return {"what": what, "rows": rows, "why_not": comparisons.why_not}


def _digits(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}g}"


def _results(
    rows: Sequence[tuple[str, str, Summary]],
    looks: Mapping[str, plots.Style],
    primaries: set,
    front: Collection[str] = (),
) -> dict[str, Any]:
    """Table, legend and plane of (run, model, values)."""
    notes = {"retrained": "reference", "target": "before", **dict.fromkeys(front, "not dominated")}
    keys = list(dict.fromkeys(key for _, _, values in rows for key in values))
    columns = [column(key, [values for _, _, values in rows]) for key in keys]
    last = ("privacy", "other", "training")  # what a reader looks at after the rest
    columns.sort(key=lambda column: column["group"] in last)
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
                "note": notes.get(model, ""),
                "primary": (run, model) in primaries,
                "cells": [_cell(column, values) for column in columns],
            }
            for run, model, values in rows
        ],
        "looks": {
            model: {"css": look.css, "glyph": _GLYPHS[look.marker]} for model, look in looks.items()
        },
        "plane": plots.plane(rows, looks, front),
    }


def _cell(column: Mapping[str, Any], values: Summary) -> dict[str, Any]:
    key, entry = column["key"], values.get(column["key"]) or {}
    value = measured(values, key)
    return {
        "text": format_value(key, value),
        "sort": "" if value is None else repr(value),
        "ci": interval(entry),
        "behind": behind(entry) if value is not None and column["behind"] is None else "",
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
        heading = column(key, [ours])
        about = ["" if goal is None else f"retrained: {format_value(key, goal)}", heading["behind"]]
        tiles.append(
            {
                "label": f"{heading['group']} {heading['label']}".removeprefix("overall "),
                "before": "" if before is None else format_value(key, before),
                "after": format_value(key, after),
                "about": " · ".join(text for text in about if text),
            }
        )
    return tiles


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


def _front(summary: Summary) -> Collection[str]:
    """The models that no other one beats in forgetting and in utility, where several compete."""
    return (summary.get("pareto") or {}).get("models", ())


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
