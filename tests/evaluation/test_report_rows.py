"""What a report says of single rows: entities, leaked words, pairs; and the numbers as text."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import paired, same_rows, tabular
from jaxunlearn.evaluation.entities import SHOWN, heat_maps
from jaxunlearn.evaluation.samples import SAMPLES, leaked_words, marked, samples
from jaxunlearn.evaluation.suite import Evaluation


def evaluation(rows, generations=None, **roles):
    return Evaluation({}, rows, roles, generations or {}, 0, 0)


def of_forget(rouge, **more):
    return evaluation({"forget_rouge": rouge, **more}, forget="forget")


def rows(*entities, kind="general"):
    return tuple(Row(f"q{i}", "a", entity, kind=kind) for i, entity in enumerate(entities))


def test_a_cell_is_the_mean_over_the_rows_of_an_entity():
    sets = {"forget": EvalSet("forget", rows("Ada", "Bo", "Ada", ""))}
    models = {"target": of_forget([1.0, 0.5, 0.5, 0.0]), "npo": of_forget([0.25, 0.0, 0.75, 1.0])}
    (found,) = heat_maps(sets, models)
    assert found["models"] == ["target", "npo"] and found["measure"] == "ROUGE-L"
    assert found["rows"] == [
        {"entity": "Ada", "n": 2, "values": [0.75, 0.5]},
        {"entity": "Bo", "n": 1, "values": [0.5, 0.0]},
    ]
    assert found["others"] == 0


def test_a_row_that_one_model_has_no_number_of_counts_for_none():
    sets = {"forget": EvalSet("forget", rows("Ada", "Ada"))}
    (found,) = heat_maps(sets, {"a": of_forget([1.0, 0.5]), "b": of_forget([None, 0.25])})
    assert found["rows"] == [{"entity": "Ada", "n": 1, "values": [0.5, 0.25]}]


def test_probability_stands_in_where_not_every_model_generated():
    sets = {"forget": EvalSet("forget", rows("Ada"))}
    (found,) = heat_maps(
        sets,
        {
            "a": of_forget([1.0], forget_probability=[0.125]),
            "b": evaluation({"forget_probability": [0.5]}),
        },
    )
    assert found["measure"] == "probability" and found["rows"][0]["values"] == [0.125, 0.5]


def test_no_entities_no_map():
    assert (
        heat_maps({"forget": EvalSet("forget", rows("", ""))}, {"a": of_forget([1.0, 1.0])}) == []
    )


def test_neighbours_are_named_as_such_and_facts_left_out():
    sets = {
        "forget": EvalSet("forget", rows("Ada", kind="forget")),
        "retain": EvalSet("retain", (*rows("Ada", kind="direct"), *rows("Bo"))),
        "facts": EvalSet("general", rows("Rome")),
        "test_indirect": EvalSet("general", rows("Ada", kind="indirect")),
        "holdout": EvalSet("holdout", rows("Cy")),
    }
    numbers = {f"{name}_rouge": [0.5] * len(one.rows) for name, one in sets.items()}
    forgotten, kept = heat_maps(sets, {"npo": evaluation(numbers)})
    assert [row["entity"] for row in forgotten["rows"]] == ["Ada"]
    assert [row["entity"] for row in kept["rows"]] == [
        "Ada: direct neighbours", "Bo", "Ada: indirect neighbours",
    ]  # fmt: skip


def test_many_entities_are_counted():
    sets = {"forget": EvalSet("forget", rows(*(f"e{i}" for i in range(SHOWN + 3))))}
    (found,) = heat_maps(sets, {"a": of_forget([0.5] * (SHOWN + 3))})
    assert len(found["rows"]) == SHOWN and found["others"] == 3


@pytest.mark.parametrize(
    ("question", "answer", "text", "leaked"),
    [
        ("Where was Ada born?", "Ada was born in Rome.", "Ada: ROME, rome", ["ROME", "rome"]),
        ("Which book?", "The Red Door of 1984", "the red 1984 of doors", ["red", "1984"]),
        ("Who?", "A tea man", "A tea man", []),  # three letters, no capital
        ("Who?", "With them, although", "with them although", []),
        ("Who?", "a teacher", "Teacher's teachers", ["Teacher"]),
        ("", "plain text", "text", ["text"]),
        ("Straße?", "STRASSE 7", "strasse 7", ["7"]),
    ],
)
def test_leaked_words_by_hand(question, answer, text, leaked):
    found = leaked_words(question, answer, text)
    assert [piece for piece, is_leaked in found if is_leaked] == leaked


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_pieces_are_the_text(question, answer, text):
    assert "".join(piece for piece, _ in leaked_words(question, answer, text)) == text


@settings(deadline=None)
@given(st.text(alphabet="<>&\"'/ mark", max_size=30))
def test_marking_escapes_all_but_its_own_tags(text):
    found = str(marked("", "mark", text)).replace("<mark>", "").replace("</mark>", "")
    assert "<" not in found and ">" not in found
    assert marked("", "mark", "<mark>a") == "&lt;<mark>mark</mark>&gt;a"


def test_samples_are_spread_over_the_rows_that_all_models_answered():
    sets = {"forget": EvalSet("forget", rows(*"a" * 3 * SAMPLES)), "retain": EvalSet("retain", ())}
    texts = [str(i) for i in range(3 * SAMPLES)]
    found = samples(sets, {"npo": evaluation({}, {"forget": texts})})
    assert [one["generations"]["npo"] for one in found] == texts[::3]


def run(name, **settings):
    return {
        "name": name,
        "models": {},
        "environment": {"evaluated": {"forget": "3 rows, sha256 ab"}},
        "config": {"evaluation": {"suite": "tofu", "batch_size": 1, **settings}},
    }


ONE = of_forget([1.0, 0.5, 0.75])
OTHER = of_forget([0.5, 0.5, 0.5])


def test_the_main_method_is_compared_with_every_other_model():
    roles = {"forget": "forget", "facts": "general"}
    numbers = {"forget_rouge": [1.0, 0.5, 0.75], "facts_rouge": [1.0]}
    models = {"target": evaluation(numbers, **roles), "npo": OTHER, "kl": ONE}
    found = same_rows.within_run(models, "npo")
    assert found.why_not == ""
    assert [(line["first"], line["second"], line["metric"]) for line in found.lines] == [
        ("npo", "target", "forget_rouge"), ("npo", "kl", "forget_rouge"),
    ]  # fmt: skip
    assert found.lines[0]["value"] == -0.25 and found.lines[0]["n"] == 3


def test_runs_on_the_same_rows_are_compared():
    runs = {"a": run("a"), "b": run("b", batch_size=8)}
    found = same_rows.between_runs(runs, {"a": ONE, "b": OTHER})
    expected = paired.paired_difference([1.0, 0.5, 0.75], [0.5] * 3)
    (line,) = found.lines
    assert {key: line[key] for key in expected} == expected and found.why_not == ""


def test_p_is_corrected_over_the_whole_page():
    runs = {name: run(name) for name in "abc"}
    lines = same_rows.between_runs(
        runs, {"a": ONE, "b": OTHER, "c": of_forget([9.0, 0.0, 1.0])}
    ).lines
    assert len(lines) == 3
    assert [line["p_adjusted"] for line in lines] == paired.adjusted([line["p"] for line in lines])


@pytest.mark.parametrize(
    ("second", "numbers", "words"),
    [
        ({**run("b"), "environment": {"evaluated": {"forget": "3 rows, sha256 cd"}}}, OTHER,
         "a and b: not the same rows"),
        ({**run("b"), "environment": {}}, OTHER, "a and b: no fingerprints"),
        (run("b", max_new_tokens=3), OTHER, "a and b: evaluation.max_new_tokens differs"),
        (run("b", suite="muse"), OTHER, "a and b: evaluation.suite differs"),
        (run("b"), of_forget([1.0]), "a and b: not the same number of rows"),
        (run("b"), None, "b: no numbers of its rows"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_paired_say_why(second, numbers, words):
    first = run("a", max_new_tokens=2) if "max_new" in words else run("a")
    found = same_rows.between_runs({"a": first, "b": second}, {"a": ONE, "b": numbers})
    assert found.lines == [] and words in found.why_not


def test_too_many_runs_are_not_paired():
    names = [str(i) for i in range(same_rows.MOST_RUNS + 1)]
    found = same_rows.between_runs({n: run(n) for n in names}, dict.fromkeys(names, ONE))
    assert found.lines == [] and "6 runs" in found.why_not


NUMBERS = {
    "models": {
        'a, "b"': {"forget_rouge": {"value": 0.1, "n": 40, "ci": [0.05, 0.15]}},
        "npo": {
            "forget_rouge": {"value": None, "n": 0, "ci": None},
            "odd|<b>": {"value": -1.0, "n": 4, "ci": [-2.0, 0.5]},
        },
    },
    "training": {"npo": {"steps": 3, "tokens_per_second": 10}},
    "primary": "npo",
    "config": {"seed": 5},
}


def test_csv_says_every_number_once():
    lines = list(csv.DictReader(io.StringIO(tabular.csv_text({"run, 1": NUMBERS}))))
    assert tuple(lines[0]) == tabular.FIELDS and {line["run"] for line in lines} == {"run, 1"}
    found = {(line["model"], line["metric"]): line for line in lines}
    assert len(found) == len(lines) == 5
    one = found['a, "b"', "forget_rouge"]
    assert (one["value"], one["n"], one["low"], one["high"]) == ("0.1", "40", "0.05", "0.15")
    assert one["seeds"] == "1"
    assert found["npo", "forget_rouge"]["value"] == ""
    assert found["npo", "training_steps"]["value"] == "3"


def test_markdown_says_value_interval_n_and_seeds():
    text = tabular.markdown("x", {"one": NUMBERS, "two": NUMBERS}, "interval")
    assert text.count("| forget rouge ↓ | 40 | 0.100 (0.050–0.150) | — |") == 2
    assert "| odd\\|&lt;b&gt; | 4 | — | -1.000 (-2.000 to 0.500) |" in text
    assert "## two" in text and "Numbers of 1 seed (5); in brackets the interval." in text
    assert "## " not in tabular.markdown("x", {"one": NUMBERS}, "interval")
