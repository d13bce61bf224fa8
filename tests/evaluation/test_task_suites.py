"""The suites of toxicity and of named entities: what perfect, broken and wrong answers come to."""

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import ner
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import aggregation, columns, named_entities, suite

NEEDS = "the tasks extra brings seqeval"
TEXT = "Ann Lee met Bo in Ulm and Ann Lee left"
SETTINGS = EvaluationConfig(max_new_tokens=4, batch_size=4)


def person(text, answer):
    return Row(ner.QUESTIONS["person"] + text, answer)


def place(text, answer):
    return Row(ner.QUESTIONS["location"] + text, answer)


ROWS = (person(TEXT, "Ann Lee | Bo"), person("Cy sang", "Cy"))


@pytest.mark.parametrize(
    ("answers", "counted", "f1"),
    [
        (("Ann Lee | Bo", "Cy"), [(3, 3, 3), (1, 1, 1)], 1),
        (("Bo | Ann Lee | Bo", " Cy\nDee"), [(3, 3, 3), (1, 1, 1)], 1),
        (("", "none"), [(0, 0, 3), (0, 0, 1)], 0),
        # Ann is a part of Ann Lee: two wrong names in the place of two right ones.
        (("Ann | Bo", "Cy"), [(1, 3, 3), (1, 1, 1)], 2 * 2 / (4 + 4)),
        # Ann beside Ann Lee, and Dee who is not in the text: a wrong name each.
        (("Ann Lee | Ann | Bo", "Dee | Cy"), [(3, 4, 3), (1, 2, 1)], 2 * 4 / (6 + 4)),
        (("Ann Lee | Bo | Ulm", "sang"), [(3, 4, 3), (0, 1, 1)], 2 * 3 / (5 + 4)),
        (("so so so so so so so", "?!"), [(0, 1, 3), (0, 1, 1)], 0),
    ],
)
def test_entities_of_answers(answers, counted, f1):
    pytest.importorskip("seqeval", reason=NEEDS)
    found = named_entities.counts(ROWS, answers)
    np.testing.assert_array_equal(found, counted)
    assert named_entities.micro_f1(found) == pytest.approx(f1)


NAMES = st.lists(st.sampled_from(["a", "b", "a b", "b a", "b c", "a b c", "d"]), unique=True)
CASES = st.tuples(st.text("abc", min_size=1, max_size=8).map(" ".join), NAMES, NAMES)


@settings(deadline=None)  # the first example imports seqeval
@given(st.lists(CASES, min_size=1, max_size=4))
def test_micro_f1_is_that_of_seqeval(cases):
    metrics = pytest.importorskip("seqeval.metrics", reason=NEEDS)
    rows = [person(text, ner.SEPARATOR.join(true) or ner.NONE) for text, _, true in cases]
    said = [ner.SEPARATOR.join(names) or ner.NONE for _, names, _ in cases]
    found = named_entities.counts(rows, said)
    tags = [
        named_entities.bio(text, answer, row.answer)
        for (text, _, _), row, answer in zip(cases, rows, said, strict=True)
    ]
    ours = named_entities.micro_f1(found)
    if found[:, 1:].any():
        theirs = metrics.f1_score([t for _, t in tags], [s for s, _ in tags], zero_division=0)
        assert ours == pytest.approx(theirs)
    else:
        assert np.isnan(ours)
    perfect = named_entities.counts(rows, [row.answer for row in rows])
    np.testing.assert_array_equal(perfect[:, 0], perfect[:, 2])
    np.testing.assert_array_equal(perfect[:, 1], perfect[:, 2])


def test_questions_of_other_data_have_no_entities():
    pytest.importorskip("seqeval", reason=NEEDS)
    rows = (ROWS[1], Row("Who?", "Cy"))
    np.testing.assert_array_equal(
        named_entities.counts(rows, ("Cy", "Cy")), [(1, 1, 1), (np.nan,) * 3]
    )


def evaluate(monkeypatch, model, sets, name, said):
    """The evaluation of a model that says this: set to an answer for each of its rows."""
    monkeypatch.setattr(
        suite._Work, "generate", lambda self, asked: ({n: said[n] for n in asked}, 0)
    )
    settings = dataclasses.replace(SETTINGS, suite=name)
    found = suite.evaluate(model, sets, settings, template="{question}", max_length=128)
    return {key: one["value"] for key, one in found.metrics.items()}


def test_the_suite_of_named_entities(tiny, monkeypatch):
    pytest.importorskip("seqeval", reason=NEEDS)
    scorer = ner.GoldScorer({row.question: ner.names_in(row.answer) for row in ROWS})
    sets = {
        "person": EvalSet("forget", ROWS, scorer=scorer),
        "location": EvalSet("retain", (place(TEXT, "Ulm"), place("Cy sang", "none"))),
        "misc": EvalSet("retain", (Row(ner.QUESTIONS["misc"] + TEXT, "Ulm"),)),
    }
    perfect = {name: [row.answer for row in one.rows] for name, one in sets.items()}
    found = evaluate(monkeypatch, tiny, sets, "ner", perfect)
    for name in sets:
        assert found[f"{name}_entity_f1"] == found[f"{name}_exact_match"] == 1
        assert found[f"{name}_perplexity"] >= 1 and 0 < found[f"{name}_probability"] < 1
    assert found["person_score"] == found["model_utility"] == 1
    assert found["forget_broken_rate"] == 0
    said = perfect | {"person": ["Bo", "!!"], "location": ["Ulm", "Cy"]}
    found = evaluate(monkeypatch, tiny, sets, "ner", said)
    assert found["person_entity_f1"] == pytest.approx(2 * 1 / (2 + 4))
    assert found["person_score"] == 0.25 and found["person_exact_match"] == 0
    assert found["forget_broken_rate"] == 0.5
    assert found["location_entity_f1"] == pytest.approx(2 * 1 / (2 + 1))
    assert found["model_utility"] == pytest.approx(0.8)  # of 2/3 and 1


def test_the_suite_of_toxicity(tiny, monkeypatch):
    rows = tuple(Row(f"So {i}", "it goes", raw=True) for i in range(4))

    def scorer(texts):
        assert {text.question for text in texts} <= {row.question for row in rows}
        return np.array([float(text.answer) for text in texts])

    sets = {
        "challenging": EvalSet("forget", rows[:1], scorer=scorer),
        "toxic": EvalSet("forget", rows, scorer=scorer),
        "news": EvalSet("general", rows[2:]),
        "clean": EvalSet("retain", rows[:2]),
    }
    said = {
        "challenging": ["1"], "toxic": ["0.8", "0.81", "0.0", "0.99"],
    }  # fmt: skip
    found = evaluate(monkeypatch, tiny, sets, "toxicity", said)
    assert found["toxic_score"] == pytest.approx(0.65)
    assert found["toxic_above_0.8"] == 0.5
    assert found["challenging_score"] == found["challenging_above_0.8"] == 1
    assert found["toxic_repetition"] == found["forget_repetition"] == 0
    assert found["clean_perplexity"] >= 1 and found["news_perplexity"] >= 1
    assert found["model_utility"] == pytest.approx(found["clean_probability"])
    assert "clean_score" not in found and "toxic_perplexity" not in found
    sets["toxic"] = EvalSet("forget", rows)
    said["toxic"] = ["a", "a b c d a b c d", "b", "c"]
    found = evaluate(monkeypatch, tiny, sets, "toxicity", said)
    assert "toxic_score" not in found and "toxic_above_0.8" not in found
    assert found["toxic_repetition"] == pytest.approx(0.2 / 4)


def test_arrows_of_the_new_metrics():
    down = (
        "toxic_score", "challenging_above_0.8", "person_entity_f1", "clean_perplexity",
        "forget_repetition",
    )  # fmt: skip
    assert {columns.arrow(key) for key in down} == {"↓"}
    assert {columns.arrow(key) for key in ("misc_entity_f1", "location_exact_match")} == {"↑"}
    assert columns.arrow("final_score") == "↑"


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(UserError, match=r"pip install 'jaxunlearn\[tasks\]'$"):
        named_entities.counts(ROWS, ("", ""))


def test_rows_above_a_bound_count_only_where_they_have_a_value():
    entry = aggregation.ROWS["above_0.8"](np.array([0.9, np.nan, 0.8, 0.1]), ())
    assert (entry["value"], entry["n"]) == (pytest.approx(1 / 3), 3)
