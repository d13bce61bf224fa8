"""What Reveal-and-Release did, iteration by iteration: tables and curves of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.evaluation.columns import MISSING
from jaxunlearn.evaluation.plots import INK, LINE, SLOTS, inline_svg, new_figure

Iterations = Sequence[Mapping[str, Any]]
"""Of one method, as `release.iteration.Iteration` holds them; a point of a curve is (weight of the
forget adapter, score, NLL of retain rows, None where it is not finite)."""

_COLUMNS = (
    "answers", "kept", "forget NLL", "signal", "weight", "score", "utility lost", "A overlap",
    "B overlap", "end",
)  # fmt: skip


def tables(release: Mapping[str, Iterations]) -> dict[str, dict[str, Any]]:
    """Heading to a table of all iterations of all methods; without any, no table."""
    rows = {
        f"{label}, {one['number']}": _row(one, iterations)
        for label, iterations in release.items()
        for one in iterations
    }
    table = {"corner": "method, iteration", "columns": _COLUMNS, "rows": rows}
    return {"Iterations": table} if rows else {}


def panels(release: Mapping[str, Iterations]) -> list[dict[str, str]]:
    """A panel for each method: what the model still says against the utility that it lost, a line
    for each iteration over the weight of the forget adapter, from none; the chosen point is full.
    """
    drawn = {label: known for label, known in release.items() if any(one["curve"] for one in known)}
    points = [
        (lost(nll, known), score)
        for known in drawn.values()
        for one in known
        for _, score, nll in (one["before"], *one["curve"])
    ]
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    # The same for all, so that panels can be compared.
    room = max(0.05 * (max(xs) - min(xs)), 0.005)
    frame = ((min(xs) - room, max(xs) + 4 * room), (0.0, 1.1 * max(ys) or 1.0))
    return [{"title": label, "svg": _panel(label, known, *frame)} for label, known in drawn.items()]


def lost(retain_nll: float | None, iterations: Iterations) -> float:
    """Share of the start model's utility exp(-NLL) that is gone; all of it without an NLL."""
    if retain_nll is None:
        return 1.0
    return 1 - math.exp(iterations[0]["before"][2] - retain_nll)


def _row(one: Mapping[str, Any], iterations: Iterations) -> list[str]:
    overlap, point = one["overlap"], one["chosen"]
    after = one["before"] if point is None else point
    return [
        str(one["answers"] or MISSING),
        MISSING if one["kept_fraction"] is None else f"{one['kept_fraction']:.1%}",
        _number(one["forget_nll"]),
        _number(one["signal"]),
        MISSING if point is None else f"{point[0]:g}",
        f"{one['before'][1]:.3f} → {after[1]:.3f}",
        f"{lost(after[2], iterations):.1%}",
        _number(overlap.get("a_subspace")),
        _number(overlap.get("b_subspace")),
        one["ended"] or "",
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _panel(
    label: str, iterations: Iterations, across: tuple[float, float], up: tuple[float, float]
) -> str:
    figure, axes = new_figure(4.2, 3.0)
    for one in iterations:
        color = SLOTS[(one["number"] - 1) % len(SLOTS)]
        points = [one["before"], *one["curve"]]
        # The first of a curve is the retain adapter alone; from there the weight grows.
        xs = [lost(nll, iterations) for _, _, nll in points]
        ys = [score for _, score, _ in points]
        axes.plot(xs[:2], ys[:2], color=LINE, lw=1, dashes=(2, 2))
        axes.plot(xs[1:], ys[1:], color=color, lw=1.4, marker="o", ms=3.5, mfc="none")
        if one["chosen"] is not None:
            weight, score, nll = one["chosen"]
            axes.plot([lost(nll, iterations)], [score], color=color, marker="o", ms=6)
            axes.annotate(
                f"{one['number']}: λ = {weight:g}", (lost(nll, iterations), score), xytext=(6, 4),
                textcoords="offset points", fontsize=8, color=INK, annotation_clip=False,
            )  # fmt: skip
    axes.set_xlabel("utility lost →")
    axes.set_ylabel("score of what it says")
    axes.set_xlim(*across)
    axes.set_ylim(*up)
    return inline_svg(figure, f"what {label} still says against the utility that it lost")
