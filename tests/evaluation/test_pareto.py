"""Which models no other one beats, and how the plane shows them."""

import re

from jaxunlearn.evaluation import plots
from jaxunlearn.evaluation.pareto import forgetting_against_utility, front, ranked


def test_fronts_by_hand():
    places = {"a": (1, 0), "b": (0, 1), "c": (0.5, 0.5), "d": (0.4, 0.5), "e": (0.5, 0.5)}
    assert front(places) == ["a", "b", "c", "e"]  # equal ones do not beat each other
    assert front({"one": (0, 0)}) == ["one"]
    assert front({}) == []


def test_fronts_come_one_after_another():
    """Of the first front (areas .2, .36, .18) the middle comes first; then `kept` adds .4 * .2 and
    `gone` .2 * .3. Of the second one `d` has .25 and `e` .18."""
    places = {
        "e": (0.3, 0.6), "kept": (1.0, 0.2), "middle": (0.6, 0.6), "gone": (0.2, 0.9),
        "d": (0.5, 0.5), "last": (0.1, 0.1),
    }  # fmt: skip
    assert ranked(places, (0.0, 0.0)) == ["middle", "kept", "gone", "d", "e", "last"]
    assert ranked({}, (0.0, 0.0)) == []
    # Of metrics of which less is better the worst is not 0; equal places come in order.
    assert ranked({"a": (0.5, -1.0), "b": (0.4, -0.1), "c": (0.4, -0.1)}, (0.0, -1.0)) == [
        "b", "a", "c",
    ]  # fmt: skip


def model(utility, **forgetting):
    return {key: {"value": v} for key, v in {"model_utility": utility, **forgetting}.items()}


def test_more_forget_quality_is_better():
    models = {
        "target": model(1.0, forget_quality=0.0),
        "a": model(0.9, forget_quality=0.1, forget_rouge=0.9),
        "b": model(0.9, forget_quality=0.2, forget_rouge=0.1),
        "c": model(None, forget_quality=0.9),
    }
    found = forgetting_against_utility(models, ["a", "b", "c"])
    assert found == {"forget": "forget_quality", "utility": "model_utility", "models": ["b"]}


def test_the_plane_joins_them_and_names_no_others():
    rows = [
        ("", "target", model(1.0, forget_rouge=1.0)),
        *(("", f"npo{i}", model(1 - i / 10, forget_rouge=1 - i / 10)) for i in range(1, 9)),
        ("", "beaten", model(0.3, forget_rouge=0.9)),
    ]
    looks = plots.styles(name for _, name, _ in rows)
    best = [f"npo{i}" for i in range(1, 9)]
    plain, marked = plots.plane(rows, looks), plots.plane(rows, looks, best)

    def names(found):
        return set(re.findall(r">(npo\d|target|beaten)<", found["svg"]))

    assert names(plain) == {"target", "beaten", *best} and names(marked) == {"target", *best}
    assert "thin line" in marked["caption"] and "thin line" not in plain["caption"]
