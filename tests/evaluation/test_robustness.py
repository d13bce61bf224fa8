"""Numbers, means over runs and tables of what attacks found, by hand."""

import math

import numpy as np
import pytest

from jaxunlearn.evaluation import robustness
from jaxunlearn.evaluation.robustness import quantisation_robustness, relearning_robustness


@pytest.mark.parametrize(
    ("ours", "theirs", "r"),
    [
        ((0.1, 0.5), (0.1, 0.2), 0.25),
        ((0.1, 0.2), (0.1, 0.5), 1.0),
        ((0.3, 0.2), (0.1, 0.5), 1.0),
        ((0.3, 0.3), (0.1, 0.1), 1.0),
        ((0.1, 0.2), (0.3, 0.2), 0.0),
    ],
)
def test_relearning_robustness(ours, theirs, r):
    assert relearning_robustness(ours, theirs) == pytest.approx(r)


@pytest.mark.parametrize(
    ("before", "after", "q"), [(0.2, 0.8, 0.25), (0.8, 0.2, 1), (0, 0, 1), (0, 0.1, 0)]
)
def test_quantisation_robustness(before, after, q):
    assert quantisation_robustness(before, after) == q


def point(name, value):
    found = {"value": value, "n": 4, "ci": None}
    return {"name": name, "probability": found, "rouge": found}


def test_aggregates_by_hand():
    """R = 0.1 / 0.4, Q = 0.1 / 0.2 of NF4, HM = 2 / (4 + 2); the middle of a curve says nothing."""
    found = {
        "relearning": {
            "unlearned": [point("0", 0.1), point("1", 0.9), point("2", 0.5)],
            "retrained": [point("0", 0.2), point("1", 0.2), point("2", 0.3)],
        },
        "quantisation": {
            "unlearned": [point("none", 0.1), point("int4", 0.9), point("nf4", 0.2)],
            "retrained": [point("none", 0.1), point("int4", 0.9), point("nf4", 0.9)],
        },
    }
    for one in robustness.aggregates(found, ["unlearned"])["unlearned"].values():
        np.testing.assert_allclose(
            [one[name]["value"] for name in ("R", "Q", "HM")], [0.25, 0.5, 1 / 3]
        )
        assert {number["n"] for number in one.values()} == {4}
    del found["relearning"]["retrained"]
    alone = robustness.aggregates(found, ["unlearned"])["unlearned"]["rouge"]
    assert (alone["R"]["value"], alone["Q"]["value"], alone["HM"]["value"]) == (None, 0.5, None)
    empty = robustness.aggregates({}, ["unlearned"])["unlearned"]["probability"]
    assert {one["value"] for one in empty.values()} == {None}


def result_of(value, r, *, steps=2):
    """What a run's attacks found, with the probability of one model as it is, and its R."""
    return {
        "name": "x",
        "settings": {"steps": steps, "rows": 3},
        "before": {"npo": point("before", value)},
        "lens": {"npo": [{**point("layer 1", value), "layer": 1}]},
        "aggregates": {"npo": {"probability": {"R": {"value": r, "n": 4, "ci": None}}}},
    }


def test_without_a_step_nothing_is_known_of_relearning():
    found = {"relearning": {m: [point("0 steps", 0.1)] for m in ("npo", "retrained")}}
    (of_npo,) = robustness.aggregates(found, ["npo"]).values()
    assert of_npo["probability"]["R"] == {"value": None, "n": 0, "ci": None}


def test_several_runs_are_means_by_hand():
    runs = [result_of(0.1, 1.0), result_of(0.3, None, steps=5)]
    both = robustness.over_runs(runs, ["a", "b"])
    assert (both["runs"], both["settings"]) == (["a", "b"], {"rows": 3})
    of_model = both["before"]["npo"]["probability"]
    assert (of_model["value"], of_model["seeds"], of_model["ci"]) == (0.2, 2, [0.1, 0.3])
    assert math.isclose(of_model["sd"], 0.02**0.5)
    (layer,) = both["lens"]["npo"]
    assert (layer["name"], layer["layer"], layer["probability"]["value"]) == ("layer 1", 1, 0.2)
    # The one run that has an R.
    assert both["aggregates"]["npo"]["probability"]["R"]["seeds"] == 1
    assert robustness.verdicts(both) == ["npo, probability: R 1.000 (1.000-1.000)"]


def test_tables_by_hand():
    found = {
        **result_of(0.1, 1.0),
        "quantisation": {"retrained": [point("nf4", 0.5)], "npo": [point("nf4", 0.25)]},
        "prompts": {"npo": [{"name": "prefix", "rouge": point("", 0.75)["rouge"]}]},
    }
    made = robustness.tables(found)
    assert made["Attacks"]["columns"] == [
        "retrained prob.", "retrained ROUGE", "npo prob.", "npo ROUGE",
    ]  # fmt: skip
    assert made["Attacks"]["rows"] == {
        "quantisation: nf4": ["0.500", "0.500", "0.250", "0.250"],
        "prompts: prefix": ["-", "-", "-", "0.750"],
    }
    assert made["Layers"]["columns"] == ["npo logit lens"]
    assert made["Layers"]["rows"] == {"layer 1": ["0.100"]}
    assert list(robustness.tables(result_of(0.1, 1.0))) == ["Layers"]
