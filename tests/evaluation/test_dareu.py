"""The suite of DareU: nearness to the retrained model, and what that alone does not tell."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import benchmark, columns, suite

SETTINGS = EvaluationConfig(suite="dareu", max_new_tokens=4, batch_size=4)
FORGET = Row("a", "one two three four", perturbed_answers=("five",))
SETS = {
    "forget": EvalSet("forget", (FORGET,)),
    "retain": EvalSet("retain", (Row("b", "one two"),)),
    "authors": EvalSet("general", (Row("c", "Ann"),)),
    "facts": EvalSet("general", (Row("d", "Bob"), Row("e", "Cid"))),
    "holdout": EvalSet("holdout", (Row("h", "Zed"),)),
}
BROKEN = {"forget": ["!!!!!!!!!!!!"], "retain": ["one"], "authors": ["Ann"], "facts": ["", ""]}
RETRAINED = {**BROKEN, "forget": ["one of"], "retain": ["one two"], "facts": ["Bob", ""]}
FUNCTIONS = ("attribution", "attribution_held_out")


@pytest.fixture
def evaluate(tiny, monkeypatch):
    """From sets and an answer for each of their rows to the evaluation of a model that says so."""

    def evaluated(sets, said):
        monkeypatch.setattr(
            suite._Work, "generate", lambda self, asked: ({n: said[n] for n in asked}, 0)
        )
        return suite.evaluate(tiny, sets, SETTINGS, template="{question}", max_length=128)

    return evaluated


def values(table):
    return {name: one["value"] for name, one in table.items()}


def test_what_is_measured_of_a_model(evaluate):
    found = evaluate(SETS, BROKEN).metrics
    assert values(found) == values(found) | {
        "forget_rouge": 0, "retain_rouge": 0.5, "authors_rouge": 1, "facts_rouge": 0,
        "test_rouge": pytest.approx(1 / 3), "model_utility": pytest.approx(0.4),
        "forget_broken_rate": 1, "retain_broken_rate": 0,
    }  # fmt: skip
    # One number over the rows of all general sets, not a mean of sets.
    assert found["test_rouge"]["n"] == 3
    for name in ("forget_truth_ratio", "forget_extraction_strength", "retain_extraction_strength"):
        assert 0 <= found[name]["value"] <= 1
    assert found["privacy_min_40_auc"]["value"] in (0, 1)


def test_length_is_counted_in_words_of_the_true_answer(evaluate):
    rows = (Row("q1", "one two three four"), Row("q2", "one two"))
    sets = {**SETS, "forget": EvalSet("forget", rows)}
    found = evaluate(sets, {**BROKEN, "forget": ["one", "a b c"]})
    np.testing.assert_allclose(found.rows["forget_length_ratio"], [0.25, 1.5])
    assert columns.arrow("forget_length_ratio") == ""


def test_tug_of_war_is_of_three_numbers_and_its_star_of_two(evaluate):
    ours, retrained = evaluate(SETS, BROKEN), evaluate(SETS, RETRAINED)
    compared = values(suite.against_retrained(SETTINGS, ours, retrained))
    near = (1 - 0.25) * (1 - 0.5)
    assert compared == pytest.approx({"tow": near * (1 - 1 / 3), "tow_star": near})
    own = suite.against_retrained(SETTINGS, retrained, retrained)
    assert values(own) == {"tow": 1, "tow_star": 1}
    few = {name: SETS[name] for name in ("forget", "retain")}
    own = suite.against_retrained(SETTINGS, evaluate(few, BROKEN), evaluate(few, BROKEN))
    assert values(own) == {"tow_star": 1}


@pytest.mark.parametrize("there", [(), FUNCTIONS[:1], FUNCTIONS[1:], FUNCTIONS])
def test_attribution_is_what_the_functions_of_the_set_give(evaluate, there):
    """Each metric by a function of its own; without it there is none, and the rest is as it was."""
    seen, given = {name: [] for name in there}, {"attribution": 0.125, "attribution_held_out": 0.25}

    def scorer(name):
        def score(texts):
            seen[name] += texts
            return np.full(len(texts), given[name])

        return score

    suite.check(SETTINGS, SETS)
    plain = evaluate(SETS, BROKEN).metrics
    functions = {name: scorer(name) for name in there}
    sets = {**SETS, "forget": dataclasses.replace(SETS["forget"], **functions)}
    found = evaluate(sets, BROKEN)
    assert values(found.metrics) == values(plain) | {f"forget_{n}": given[n] for n in there}
    assert all(found.rows[f"forget_{name}"] == [given[name]] for name in there)
    assert seen == {name: [FORGET.text(BROKEN["forget"][0])] for name in there}
    assert set(benchmark.load("dareu").names(sets, compared=False)) == set(found.metrics)


def test_what_tug_of_war_does_not_see_stands_beside_it():
    """Gibberish and a cheated reward: in every suite that has it, and in its table."""
    for one in map(benchmark.load, benchmark.built_in()):
        tugs = {metric.metric for metric in one.metrics if metric.aggregation == "tug_of_war"}
        if tugs:
            beside = {"forget_broken_rate", "forget_attribution_held_out"}
            assert tugs | beside <= set(one.headline)
            assert beside <= {metric.metric for metric in one.metrics}
    assert {columns.arrow(name) for name in ("tow", "tow_star", "test_rouge")} == {"↑"}
    assert {columns.arrow(f"forget_{name}") for name in FUNCTIONS} == {"↓"}
    assert columns.column("tow_star", [])["label"] == "ToW*"
