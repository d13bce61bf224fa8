"""Tables and curves of what Reveal and Release did."""

import math

import pytest

from jaxunlearn.evaluation import over_iterations

ONE = {
    "number": 1, "before": [0.0, 0.8, 1.0], "answers": 600, "kept_fraction": 0.8, "forget_nll": 0.1,
    "signal": 0.95, "overlap": {"a_subspace": 0.05, "b_subspace": 0.07}, "ended": None,
    "curve": [[0.0, 0.8, 1.0], [0.5, 0.2, 1.0 + math.log(2)]],
    "chosen": [0.5, 0.2, 1.0 + math.log(2)],
}  # fmt: skip
LAST = {
    "number": 2, "before": [0.0, 0.2, 1.7], "answers": 600, "kept_fraction": 0.01,
    "forget_nll": None, "signal": None, "overlap": {}, "curve": [], "chosen": None,
    "ended": "nothing <b>is</b> left",
}  # fmt: skip


def test_the_table_says_what_happened():
    (table,) = over_iterations.tables({"iterated": [ONE, LAST]}).values()
    first, last = table["rows"]["iterated, 1"], table["rows"]["iterated, 2"]
    assert len(first) == len(last) == len(table["columns"])
    assert first[:2] == ["600", "80.0%"] and first[4:7] == ["0.5", "0.800 → 0.200", "50.0%"]
    assert last[4] == "—" and last[-1] == "nothing <b>is</b> left"
    assert over_iterations.tables({}) == {}


def test_utility_lost_is_measured_from_the_start():
    assert over_iterations.lost(1.0, [ONE]) == 0
    assert over_iterations.lost(1.0 + math.log(4), [ONE]) == pytest.approx(0.75)
    assert over_iterations.lost(None, [ONE]) == 1


def test_panels_share_their_axes():
    mild = {**ONE, "curve": [[0.0, 0.8, 1.0]], "chosen": [0.0, 0.8, 1.0]}
    panels = over_iterations.panels({"a": [ONE], "b": [mild], "c": [LAST]})
    assert [one["title"] for one in panels] == ["a", "b"]
    ticks = [
        [text for text in ("0.2", "0.4", "0.6") if f">{text}<" in one["svg"]] for one in panels
    ]
    assert ticks[0] == ticks[1] == ["0.2", "0.4", "0.6"]
    assert over_iterations.panels({"c": [LAST]}) == []
