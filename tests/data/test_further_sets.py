"""Sets that are only measured: a holdout, and those of data.sets."""

import dataclasses
from pathlib import Path

import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load, read_file
from jaxunlearn.data.rows import EvalSet
from jaxunlearn.data.tokens import all_texts
from tests.data.folders import GOOD, KEPT, read, read_tofu, refusal, tofu_folder, write

UNSEEN = '{"question": "When?", "answer": "Then"}\n'


def test_a_holdout_is_an_evaluation_set_and_nothing_else(tmp_path):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT)
    # Cut out of a file of forget rows, it may still say so.
    write(tmp_path, h__jsonl=UNSEEN + '{"question": "Why?", "answer": "So", "kind": "forget"}')
    plain, data = read(tmp_path), read(tmp_path, holdout="h")
    assert (plain.forget, plain.retain, plain.background) == (
        data.forget,
        data.retain,
        data.background,
    )
    assert list(plain.evaluation) == ["forget", "retain"]
    assert data.evaluation == plain.evaluation | {"holdout": data.evaluation["holdout"]}
    holdout = data.evaluation["holdout"]
    assert holdout.role == "holdout"
    assert [row.key[:2] for row in holdout.rows] == [("When?", "Then"), ("Why?", "So")]
    assert [row.kind for row in holdout.rows] == ["general", "general"]


def test_a_holdout_of_the_other_formats(tmp_path):
    write(tmp_path, forget__csv="question,answer\nWho?,Ann", retain__csv="question,answer\nW?,R")
    write(tmp_path, h__csv="question,answer\nWhen?,Then")
    data = read(tmp_path, "csv", holdout="h")
    assert data.evaluation["holdout"].rows[0].source == "h.csv:2"
    tofu = tofu_folder(tmp_path)
    (tofu / "holdout01.json").write_text(UNSEEN)
    assert list(read_tofu(tofu, holdout="holdout01").evaluation)[-1] == "holdout"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (UNSEEN + GOOD, ["h.jsonl:2", "also a forget row (forget.jsonl:1)", "remove it"]),
        (UNSEEN + KEPT, ["h.jsonl:2", "also a retain row (retain.jsonl:1)", "remove it"]),
        ("", ["h.jsonl: holds no rows"]),
        ('{"question": "When?"}', ["h.jsonl:1: no column 'answer'"]),
        (UNSEEN[:-2] + ', "kind": "direct"}', ["h.jsonl:1", "'direct'", "general or forget"]),
    ],
)
def test_bad_holdouts_are_refused(tmp_path, content, words):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT, h__jsonl=content)
    message = refusal(tmp_path, holdout="h")
    for word in words:
        assert word in message
    assert "there is no nowhere" in refusal(tmp_path, holdout="nowhere")


QUIZ = '{"question": "2+2?", "choices": ["3", "4"], "answer": "B"}\n'


def test_further_sets_of_any_format(tmp_path, monkeypatch):
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder, forget__jsonl=GOOD, retain__jsonl=KEPT, quiz__jsonl=QUIZ)
    write(tmp_path, quiz__jsonl=UNSEEN, more__csv="prompt,answer\nWho?,Ann")
    monkeypatch.chdir(tmp_path)
    sets = {
        "quiz": {"path": "quiz.jsonl"},
        "again": {"path": "more.csv", "role": "forget", "columns": {"question": "prompt"}},
    }
    data = read(folder, sets=sets)
    assert list(data.evaluation) == ["forget", "retain", "quiz", "again"]
    (row,) = data.evaluation["quiz"].rows  # the one in data.path
    assert (row.answer, row.options, data.evaluation["quiz"].role) == ("4", ("3", "4"), "general")
    assert data.evaluation["again"].role == "forget"
    assert data.evaluation["again"].rows[0].key == data.forget[0].key
    assert dataclasses.replace(data, evaluation=dict(list(data.evaluation.items())[:2])) == read(
        folder
    )
    # Every format has them; without data.path the path starts here.
    for options in ({}, {"world": "neighbours"}):
        built = load(DataConfig(sets={"quiz": {"path": "quiz.jsonl"}}, **options), 0)
        assert built.evaluation.popitem() == (
            "quiz",
            EvalSet("general", read_file(Path("quiz.jsonl"))),
        )
        assert built == load(DataConfig(**options), 0)
    texts = all_texts(
        load(DataConfig(sets={"quiz": {"path": "rows/quiz.jsonl"}}), 0), template="{question}"
    )
    assert texts[-2:] == ["2+2? 4", "2+2? 3"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("retain", {"path": "quiz.jsonl"}, ["data.sets.retain: there is a set retain already"]),
        ("x", {"path": "nowhere.jsonl"}, ["nowhere.jsonl: cannot be read"]),
        ("x", {"path": "quiz.txt"}, ["quiz.txt: unknown kind of file"]),
        (
            "x",
            {"path": "forget.jsonl"},
            ["forget.jsonl:1: this row of data.sets.x is also a row to forget (forget.jsonl:1)"],
        ),
        ("x", {"path": "forget.jsonl", "role": "retain"}, ["set data.sets.x.role to forget"]),
        (
            "x",
            {"path": "quiz.jsonl", "columns": {"anser": "a"}},
            ["data.sets.x.columns.anser: no such field"],
        ),
        (
            "x",
            {"path": "quiz.jsonl", "columns": {"entity": "who"}},
            ["data.sets.x.columns.entity: no row holds"],
        ),
    ],
)
def test_bad_further_sets_are_refused(tmp_path, name, options, words):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT, quiz__jsonl=QUIZ)
    message = refusal(tmp_path, sets={name: options})
    for word in words:
        assert word in message


def test_a_further_set_may_not_hold_what_another_one_says_to_forget(tmp_path):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT, quiz__jsonl=QUIZ)
    sets = {"a": {"path": "quiz.jsonl"}, "b": {"path": "quiz.jsonl", "role": "forget"}}
    assert "this row of data.sets.a is also a row to forget" in refusal(tmp_path, sets=sets)
