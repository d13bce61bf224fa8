"""Plots of a report as inline SVG: matplotlib draws, the page's style sheet colours.

Colours are written as CSS variables (`--m0`, `--ink`, ...), so one drawing serves light and dark
pages, and nothing in it depends on the date or on chance, so the same run gives the same bytes.
"""

import io
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

# Drawn with these, then replaced by the variable of the same place in the page's style sheet.
INK, LINE = "#010101", "#020202"
SLOTS = ("#0072b2", "#d55e00", "#009e73", "#b5548f", "#b8860b", "#3f8fbf", "#7a5195", "#5b7a1e")
_MARKERS = "osD^vPXh"
_DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
_MAX_POINTS = 300  # per line: the page stays small
_HIDDEN = {"step", "epoch", "model", "tokens_per_second", "learning_rate", "seconds"}
_FIRST = ("forget_loss", "retain_loss", "loss", "grad_norm")
P_FLOOR = 1e-12


@dataclass(frozen=True)
class Style:
    """How one model looks in every table and plot of a page."""

    color: str
    """As matplotlib draws it."""
    css: str
    """As the page writes it."""
    marker: str
    dashes: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """One model on the forget-utility plane."""

    label: str
    model: str
    utility: float
    forgetting: float


def styles(models: Iterable[str]) -> dict[str, Style]:
    """Model name to style: the target grey, the retrained model in ink, the others in order."""
    fixed = {
        "target": Style(LINE, "var(--grey)", "X", ()),
        "retrained": Style(INK, "var(--ink)", "*", (4, 2)),
    }
    found: dict[str, Style] = {}
    for model in dict.fromkeys(models):
        number = sum(name not in fixed for name in found)
        slot, turn = number % len(SLOTS), number // len(SLOTS)
        found[model] = fixed.get(model) or Style(
            SLOTS[slot],
            f"var(--m{slot})",
            _MARKERS[(slot + turn) % len(_MARKERS)],
            _DASHES[turn % len(_DASHES)],
        )
    return found


def curves_svg(
    curves: Sequence[dict[str, Any]], looks: Mapping[str, Style]
) -> list[dict[str, str]]:
    """Small multiples: one panel per logged quantity, one line per model.

    Args:
      curves: lines of `metrics.jsonl`; `model` and `step` name the line and its x, every other
        number is a quantity.
      looks: from `styles`, for every model in `curves`.

    Returns:
      `[{"title": quantity, "svg": markup}]`. Training of the target and the retrained model comes
      in panels of its own: its steps and losses are on another scale.
    """
    panels = []
    for title, made in (("", False), ("fine-tuning: ", True)):
        lines = [row for row in curves if (row.get("model") in ("target", "retrained")) == made]
        keys = {key for row in lines for key, value in row.items() if number(value) is not None}
        keys -= _HIDDEN | ({"grad_norm"} if made else set())
        for key in [*(k for k in _FIRST if k in keys), *sorted(keys - set(_FIRST))]:
            name = title + key.replace("_", " ")
            panels.append({"title": name, "svg": _curve_panel(lines, key, name, looks, "step")})
    return panels


def lines_svg(
    rows: Sequence[dict[str, Any]], looks: Mapping[str, Style], *, axis: str
) -> list[dict[str, str]]:
    """One panel per quantity, as `curves_svg` draws them; `axis` is what `step` counts."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in _HIDDEN)
    return [
        {"title": name, "svg": _curve_panel(rows, key, name, looks, axis)}
        for key in keys
        for name in [key.replace("_", " ")]
    ]


def _curve_panel(
    rows: Sequence[dict], key: str, name: str, looks: Mapping[str, Style], axis: str
) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(3.7, 2.3)
    everything = []
    for model in dict.fromkeys(row.get("model", "") for row in rows):
        series = [
            (row.get("step", i), number(row.get(key)))
            for i, row in enumerate(r for r in rows if r.get("model", "") == model)
        ]
        series = _thin([(x, y) for x, y in series if y is not None])
        if not series:
            continue
        look = looks[model]
        steps, values = zip(*series, strict=True)
        everything += values
        marker = look.marker if len(series) == 1 else None
        axes.plot(steps, values, color=look.color, dashes=look.dashes, lw=1.6, marker=marker, ms=4)
    _choose_scale(axes, everything)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(axis)
    return inline_svg(figure, name)


def _choose_scale(axes: Any, values: Sequence[float]) -> None:
    """Logarithmic where the values span more than three decades, linear otherwise."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) / max(min(sizes), 1e-9) < 1e3:
        return
    if min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_power_of_ten)
    elif max(sizes) > 1e3:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(_power_of_ten)
    axes.minorticks_off()


def forget_metric(models: Iterable[Mapping[str, Any]]) -> str:
    """What says how much was forgotten: forget quality where it was measured, else forget efficacy,
    else forget ROUGE-L."""
    known = list(models)
    for metric in ("forget_quality", "forget_efficacy"):
        if any(measured(values, metric) is not None for values in known):
            return metric
    return "forget_rouge"


def plane(
    rows: Sequence[tuple[str, str, Mapping[str, Any]]],
    looks: Mapping[str, Style],
    front: Collection[str] = (),
) -> dict[str, str] | None:
    """The forget-utility plane of every model that has both numbers, with its caption.

    Runs that agree on a model share its point.

    Args:
      rows: (run or "", model, its metrics as in `summary.json`).
      looks: from `styles`.
      front: the models that are not dominated, if the others are to stay without a name.

    Returns:
      `{"svg", "caption"}`, or None if no model has both numbers.
    """
    metric = forget_metric(values for _, _, values in rows)
    caption = {
        "forget_quality": (
            "Forget quality is the p-value of a test against the retrained model (★); above "
            "the dashed line the test cannot tell the two apart. "
            f"Values below {P_FLOOR:.0e} are drawn at the lower edge."
        ),
        "forget_efficacy": (
            "Forget efficacy is 1 minus the mean of probability, ROUGE-L and similarity."
        ),
        "forget_rouge": (
            "Without a retrained model: ROUGE-L recall on forget rows, lower is better."
        ),
    }[metric]
    if front:
        caption += (
            " The thin line joins what no other one beats in both numbers; only that is named,"
            " and the models before unlearning."
        )
    places: dict[tuple[str, float, float], list[str]] = {}
    for run, model, values in rows:
        forgetting, utility = measured(values, metric), measured(values, "model_utility")
        if metric == "forget_quality" and model == "retrained":
            forgetting = 1.0  # it is compared with itself
        if forgetting is not None and utility is not None:
            places.setdefault((model, utility, forgetting), []).append(run)
    if not places:
        return None
    points = [
        Point(f"{model} · {runs[0]}" if len(runs) == 1 and runs[0] else model, model, *xy)
        for (model, *xy), runs in places.items()
    ]
    svg = plane_svg(points, looks, metric=metric, front=front)
    return {"svg": svg, "caption": caption + " The upper right corner is the aim."}


def plane_svg(
    points: Sequence[Point],
    looks: Mapping[str, Style],
    *,
    metric: str,
    front: Collection[str] = (),
) -> str:
    """The forget-utility plane; the upper right corner is where one wants to be.

    Args:
      points: one per model.
      looks: from `styles`.
      metric: what y is: "forget_quality", a p-value on a logarithmic axis with floor `P_FLOOR`;
        "forget_efficacy"; or "forget_rouge", ROUGE-L recall on an inverted axis.
      front: see `plane`.
    """
    quality = metric == "forget_quality"
    figure, axes = new_figure(8.6, 4.2)
    places = []
    for point in points:
        look = looks[point.model]
        y = max(point.forgetting, P_FLOOR) if quality else point.forgetting
        size = {"*": 190, "X": 80}.get(look.marker, 62)
        axes.scatter(
            point.utility, y, s=size, color=look.color, marker=look.marker, zorder=3, clip_on=False
        )
        places.append((point.utility, y, point.label))
    joined = sorted(place[:2] for place, p in zip(places, points, strict=True) if p.model in front)
    if joined:
        axes.plot(*zip(*joined, strict=True), color=LINE, lw=0.9, zorder=2, clip_on=False)
    utilities = [point.utility for point in points]
    middle, half = _window(utilities)
    axes.set_xlim(middle - half, middle + half)
    axes.set_xlabel("model utility →")
    if quality:
        axes.set_yscale("log")
        lowest = min([y for _, y, _ in places] + [0.01])
        axes.set_ylim(max(lowest / 4, P_FLOOR / 4), 3)
        axes.axhline(0.05, color=LINE, lw=1, dashes=(3, 3), zorder=1)
        axes.annotate(
            "p = 0.05", (0.004, 0.05), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", fontsize=8, color=LINE,
        )  # fmt: skip
        axes.yaxis.set_major_formatter(_power_of_ten)
        axes.minorticks_off()
        axes.set_ylabel("forget quality (p) →")
    elif metric == "forget_efficacy":
        axes.set_ylim(-0.05, 1.05)
        axes.set_ylabel("forget efficacy →")
    else:
        axes.set_ylim(1.05, -0.05)
        axes.set_ylabel("forget ROUGE-L (inverted) →")
    figure.draw_without_rendering()  # the labels need the final places
    named = {*front, "target", "retrained"}
    _label(axes, places, [not front or point.model in named for point in points])
    return inline_svg(figure, "forget quality against model utility")


def _window(values: Sequence[float]) -> tuple[float, float]:
    """Centre and half width of the utility axis: never so narrow that noise looks like loss."""
    low, high = min(values), max(values)
    return (low + high) / 2, max((high - low) * 0.65, 0.06)


def _label(axes: Any, places: Sequence[tuple[float, float, str]], named: Sequence[bool]) -> None:
    """Names beside their points, at the nearest spot free of other names and points."""
    width, height = (size * 72 for size in axes.figure.get_size_inches())
    points = [axes.transData.transform(place[:2]) * 72 / axes.figure.dpi for place in places]
    taken = [(x - 7, x + 7, y - 6, y + 6) for x, y in points]
    chosen = itertools.compress(zip(points, places, strict=True), named)
    for (x, y), place in chosen:
        length = 5.4 * len(place[2])
        spots = [
            (side, up, x + 9 if side == "left" else x - 9 - length)
            for up in (0, *(sign * 12 * step for step in range(1, 12) for sign in (1, -1)))
            for side in ("left", "right")
        ]
        boxes = [(start, start + length, y + up - 5, y + up + 5) for _, up, start in spots]
        free = [
            (spot, box)
            for spot, box in zip(spots, boxes, strict=True)
            if box[0] > 0 and box[1] < width and 0 < box[2] and box[3] < height
            if not any(_overlap(box, other) for other in taken)
        ]
        (side, up, _), box = free[0] if free else (spots[0], boxes[0])
        taken.append(box)
        axes.annotate(
            place[2], place[:2], xytext=(9 if side == "left" else -9, up), fontsize=9,
            textcoords="offset points", va="center_baseline", ha=side, color=INK,
            parse_math=False, annotation_clip=False,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Boxes (left, right, bottom, top)."""
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of so many inches, and its axes, in the colours of the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="tight")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=LINE, labelcolor=INK, labelsize=8, length=3)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.grid(axis="y", color=LINE, alpha=0.25, lw=0.6)
    axes.margins(y=0.1)
    return figure, axes


def inline_svg(figure: Any, title: str) -> str:
    """The figure as inline SVG: no prolog, metadata, own fonts, own ids or fixed colours."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px; font-family: inherit", text)
    for number, color in enumerate(SLOTS):
        text = text.replace(color, f"var(--m{number})")
    text = text.replace(INK, "var(--ink)").replace(LINE, "var(--grey)")
    size = re.search(r'viewBox="0 0 ([\d.]+) ', text)
    width = f"style='max-width:{round(float(size[1]) * 4 / 3)}px'" if size else ""
    return re.sub(
        r'^<svg [^>]*?(viewBox="[^"]+")[^>]*>',
        rf'<svg xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img" {width} '
        f'aria-label="{_attribute(title)}">',
        text,
        count=1,
    )


def _attribute(text: str) -> str:
    from html import escape

    return escape(text, quote=True).replace("\\", "&#92;")  # a backslash would be a group name


def _power_of_ten(value: float, _: Any = None) -> str:
    """A tick as plain text: 10⁻⁴, and ordinary numbers near one."""
    if value == 0 or 0.01 <= abs(value) <= 100:
        return f"{value:g}"
    power = round(math.log10(abs(value)))
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if value < 0 else ''}10{raised}"


def number(value: Any) -> float | None:
    """A finite number, or None: a diverged step leaves a gap instead of breaking the axis."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def measured(values: Mapping[str, Any], key: str) -> float | None:
    """The number behind a metric of one model, or None if it was not measured."""
    return number((values.get(key) or {}).get("value"))


def _thin(series: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal stretches, at most `_MAX_POINTS` of them."""
    stride = math.ceil(len(series) / _MAX_POINTS) if series else 1
    chunks = [series[i : i + stride] for i in range(0, len(series), stride)]
    return [(chunk[len(chunk) // 2][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
