"""Plots: what a diverged or a long run logs, and how models look."""

import math

from jaxunlearn.evaluation import plots


def test_curves_survive_what_a_diverged_run_logs():
    looks = plots.styles(["npo"])
    steps = [1.0, math.nan, math.inf, -1e30, 1e30]
    curves = [{"model": "npo", "step": i, "loss": v} for i, v in enumerate(steps)]
    assert [panel["title"] for panel in plots.curves_svg(curves, looks)] == ["loss"]
    assert plots.curves_svg([{"model": "npo", "step": 0, "loss": math.nan}], looks) == []


def test_long_curves_are_thinned():
    rows = [{"model": "npo", "step": i, "loss": 1 / (i + 1)} for i in range(20_000)]
    (panel,) = plots.curves_svg(rows, plots.styles(["npo"]))
    assert len(panel["svg"]) < 40_000


def test_models_keep_one_look_and_differ_from_each_other():
    looks = plots.styles(["target", "retrained", *(f"method {i}" for i in range(24))])
    marks = [(look.css, look.marker) for look in looks.values()]
    assert len(set(marks)) == len(marks)
    assert looks["method 0"] == plots.styles(["method 0"])["method 0"]
