"""One record to one row: multiple-choice questions and raw rows; test_formats.py has the rest."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.data.formats import read_file
from jaxunlearn.data.records import RETAIN_KINDS, to_row
from jaxunlearn.errors import UserError

OPTIONS = ("red", "green", "blue")


def row(**record):
    return to_row("f.jsonl:7", {"question": "Which?", **record}, {}, RETAIN_KINDS)


def refusal(**record):
    with pytest.raises(UserError) as caught:
        row(**record)
    message = str(caught.value)
    assert message.startswith("f.jsonl:7: ") and "\n" not in message
    return message


@pytest.mark.parametrize("column", ["options", "choices"])
@pytest.mark.parametrize("answer", [1, "B", "green", " green ", "1"])
def test_the_answer_is_a_place_a_letter_or_a_text(column, answer):
    found = row(**{column: [" red", "green ", "blue"]}, answer=answer)
    assert (found.question, found.answer, found.options) == ("Which?", "green", OPTIONS)


def test_the_layouts_of_mmlu_and_arc():
    found = row(subject="colour", choices=list(OPTIONS), answer=2)
    assert (found.answer, found.entity) == ("blue", "")
    for labels in (["A", "B", "C"], ["1", "2", "3"], ["x", "y", "z"]):
        choices = {"text": list(OPTIONS), "label": labels}
        found = row(choices=choices, answerKey=labels[1])
        assert (found.answer, found.options) == ("green", OPTIONS)
        assert row(choices=choices, answer="red").answer == "red"


@given(
    options=st.lists(
        st.text(st.characters(categories=["Ll"]), min_size=1), min_size=2, max_size=26, unique=True
    ),
    data=st.data(),
)
def test_every_form_of_an_answer_says_the_same(options, data):
    place = data.draw(st.integers(0, len(options) - 1))
    forms = (place, chr(ord("A") + place), options[place], str(place))
    rows = {row(options=options, answer=form) for form in forms}
    assert len(rows) == 1 and rows.pop().answer == options[place]


def test_options_in_csv_and_parquet(tmp_path):
    import datasets

    with open(tmp_path / "f.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("question", "choices", "answer", "raw"),
                ("Which?", json.dumps(OPTIONS), "1", ""),
                ("Which?", json.dumps(OPTIONS), "C", "TRUE"),
                ("Open?", "", "yes", "false"),
            ]
        )
    found = read_file(tmp_path / "f.csv")
    assert [one.answer for one in found] == ["green", "blue", "yes"]
    assert [one.options for one in found] == [OPTIONS, OPTIONS, ()]
    assert [one.raw for one in found] == [False, True, False]
    records = [{"question": "Which?", "choices": list(OPTIONS), "answer": 0}]
    datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "f.parquet"))
    (found,) = read_file(tmp_path / "f.parquet")
    assert (found.answer, found.options) == ("red", OPTIONS)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"options": ["red"], "answer": 0}, "options must be a list of 2 to 26 options, found 1"),
        ({"options": [], "answer": 0}, "found 0"),
        ({"options": [str(i) for i in range(27)], "answer": 0}, "found 27"),
        ({"options": ["red", "blue ", "blue"], "answer": 0}, "options holds 'blue' twice"),
        ({"options": ["red", 2], "answer": 0}, "options must be text, found the int 2"),
        ({"options": OPTIONS, "answer": 0}, "options must be text"),
        ({"options": list(OPTIONS), "answer": 3}, "answer must be 0 to 2"),
        ({"options": list(OPTIONS), "answer": -1}, "found -1"),
        ({"options": list(OPTIONS), "answer": "D"}, "one of A, B, C"),
        ({"choices": list(OPTIONS), "answer": "3"}, "found '3'"),
        ({"choices": list(OPTIONS), "answer": "pink"}, "found 'pink'"),
        ({"choices": list(OPTIONS), "answer": True}, "found the bool True"),
        ({"choices": list(OPTIONS), "answer": ""}, "answer is empty"),
        ({"choices": list(OPTIONS)}, "no column 'answer'"),
        ({"choices": ["B", "A"], "answer": "A"}, "'A' can mean 'A' or 'B'"),
        ({"choices": ["1", "2"], "answer": "1"}, "'1' can mean '1' or '2'"),
        ({"choices": {"text": list(OPTIONS), "label": ["1", "2"]}, "answer": "1"}, "2 labels"),
        ({"answer": "a", "raw": "yes"}, "raw must be true or false, found a text"),
        ({"answer": "a", "raw": 1}, "raw must be true or false, found the int 1"),
    ],
)
def test_bad_choices_are_refused(record, said):
    assert said in refusal(**record)


def test_raw_rows():
    assert row(answer="a", raw=True).raw
    assert not row(answer="a", raw=False).raw
    assert not row(answer="a", raw=None).raw and not row(answer="a").raw
    assert row(answer="a", raw=True).key == ("Which?", "a", True)
    assert row(answer="a", raw=True).key != row(answer="a").key
