"""LUME's files: what a row's id and task say."""

import json
from pathlib import Path

import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data import requests, tokens
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError

LUME = Path(__file__).parents[2] / ".." / "shared" / "data" / "lume"


def line(id_, input_, output, task):
    return json.dumps({"id": id_, "input": input_, "output": output, "task": task}) + "\n"


FORGET = (
    line('"8f24-c5"sc1', "Madera, a city,", " was calm. ", "Task1")
    + line('"8f24-c5"qa0', "Which city?", "Madera", "Task1")
    + line("12762334qa0", "Who?", "Ann Lee", "Task3")
    + line("12762334qa11", "When?", "1950", "Task3")
)
RETAIN = line("df8d-9sc1", "Bo Ray was born", "in May.", "Task2")


def read(folder, **files):
    for name, content in ({"forget": FORGET, "retain": RETAIN} | files).items():
        (folder / f"{name}.jsonl").write_text(content)
    options = {"holdout": "holdout"} if "holdout" in files else {}
    return load(DataConfig(format="lume", path=str(folder), **options), seed=0)


def test_ids_and_tasks(tmp_path):
    data = read(tmp_path)
    assert [row.key for row in data.forget] == [
        Text("Madera, a city,", "was calm.", raw=True),
        Text("Which city?", "Madera"),
        Text("Who?", "Ann Lee"),
        Text("When?", "1950"),
    ]
    assert [row.entity for row in data.forget] == ["8f24-c5", "8f24-c5", "12762334", "12762334"]
    assert [row.source for row in data.forget] == [f"forget.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert {row.kind for row in data.forget} == {"forget"}
    assert [row.kind for row in data.retain] == ["general"]
    assert {name: (part.role, part.rows) for name, part in data.evaluation.items()} == {
        "forget_1_completion": ("forget", data.forget[:1]),
        "forget_1_question": ("forget", data.forget[1:2]),
        "forget_3_question": ("forget", data.forget[2:]),
        "retain_2_completion": ("retain", data.retain),
    }
    assert next(iter(data.evaluation)) == "forget_1_completion"
    assert not data.background


def test_a_holdout_in_the_same_layout(tmp_path):
    data = read(tmp_path, holdout=line("77sc1", "Cy Day was", "a cook.", "Task3"))
    assert list(data.evaluation)[-1] == "holdout"
    (row,) = data.evaluation["holdout"].rows
    assert (row.key, row.entity, row.kind) == (Text("Cy Day was", "a cook.", True), "77", "general")
    with pytest.raises(UserError, match=r"holdout.jsonl:1: this holdout row is also a forget row"):
        read(tmp_path, holdout=FORGET)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (line("77sc", "a", "b", "Task1"), "forget.jsonl:1: id must end in sc or qa and a number"),
        (line("sc1", "a", "b", "Task1"), "id must end in sc or qa and a number, found 'sc1'"),
        (line("77sc1", "a", "b", "Task4"), "task must be Task1, Task2 or Task3, found 'Task4'"),
        (line("77sc1", " ", "b", "Task1"), "input is empty"),
        (line("77sc1", "a", 5, "Task1"), "output must be text, found the int 5"),
        ('{"id": "77sc1", "input": "a", "output": "b"}', "no column 'task', which LUME has here"),
        (RETAIN, "also a row to keep (retain.jsonl:1)"),
    ],
)
def test_bad_rows_are_refused(tmp_path, content, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path, forget=content)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "forget.jsonl").write_text(FORGET)
    with pytest.raises(UserError, match=r"no retain in .*; it holds forget.jsonl"):
        load(DataConfig(format="lume", path=str(tmp_path)), seed=0)


@pytest.mark.skipif(not LUME.is_dir(), reason="no ../shared/data/lume")
def test_the_real_lume():
    data = load(DataConfig(format="lume", path=str(LUME)), seed=0)
    assert {name: len(part.rows) for name, part in data.evaluation.items()} == {
        "forget_1_completion": 243,
        "forget_1_question": 243,
        "forget_2_completion": 250,
        "forget_2_question": 1250,
        "forget_3_completion": 373,
        "forget_3_question": 373,
        "retain_1_completion": 246,
        "retain_1_question": 246,
        "retain_2_completion": 250,
        "retain_2_question": 1250,
        "retain_3_completion": 371,
        "retain_3_question": 371,
    }
    assert len(data.forget) == 2732 and len(data.retain) == 2734
    forget, retain = ({row.entity for row in rows} for rows in (data.forget, data.retain))
    assert (len(forget), len(retain)) == (866, 867) and not forget & retain
    assert not any('"' in entity for entity in forget | retain)
    assert len({row.key for row in (*data.forget, *data.retain)}) == 5466
    # A completion and at least one question about everybody.
    assert {row.entity for row in data.forget if row.raw} == forget
    assert len(tokens.all_texts(data, template="{question}")) == 5466
    asked = requests.split(data, requests.RequestsConfig(by="entity", size=866))
    assert [len(part.forget) for part in asked] == [2732]
