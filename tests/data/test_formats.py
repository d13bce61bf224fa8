import json
from pathlib import Path

import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load, read_file
from jaxunlearn.errors import UserError
from tests.data.folders import GOOD, KEPT, read, refusal, write


def test_jsonl_rows(tmp_path):
    row = {
        "question": " Wer? ",
        "answer": "Zoë 😀",
        "entity": 7,
        "paraphrased_answer": "It is Zoë",
        "perturbed_answer": ["It is Bo", "It is Cy"],
        "other": [1, {"a": None}],
    }
    write(tmp_path, forget__jsonl=json.dumps(row, ensure_ascii=False) + "\n" + GOOD)
    write(tmp_path, retain__jsonl=KEPT)
    data = read(tmp_path)
    first, second = data.forget
    assert (first.question, first.answer, first.entity) == ("Wer?", "Zoë 😀", "7")
    assert first.paraphrased_answer == "It is Zoë"
    assert first.perturbed_answers == ("It is Bo", "It is Cy")
    assert (first.source, second.source) == ("forget.jsonl:1", "forget.jsonl:2")
    assert (second.entity, second.paraphrased_answer, second.perturbed_answers) == ("", None, ())
    assert list(data.evaluation) == ["forget", "retain"]
    assert data.evaluation["forget"].rows == data.forget
    assert data.evaluation["retain"].role == "retain"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode().replace(b"\n", b"\r\n"),
        GOOD.encode().rstrip(),
        f"[{GOOD}]".encode(),
        '{"question": "Who?", "answer": "Ann", "note": "a\u2028b"}'.encode(),
    ],
    ids=["bom", "crlf", "no last newline", "array", "line separator in a text"],
)
def test_json_spellings(tmp_path, content):
    write(tmp_path, forget__jsonl=content, retain__jsonl=KEPT)
    (row,) = read(tmp_path).forget
    assert (row.question, row.answer, row.source) == ("Who?", "Ann", "forget.jsonl:1")


def test_blank_lines_are_skipped_but_counted(tmp_path):
    write(tmp_path, forget__jsonl=f"\n  \r\n{GOOD}\n{KEPT}", retain__jsonl='{"text": "a"}')
    assert [row.source for row in read(tmp_path).forget] == ["forget.jsonl:3", "forget.jsonl:5"]


def test_an_answer_that_looks_like_a_date_stays_text(tmp_path):
    row = '{"question": "When?", "answer": "1990-01-01"}\n'
    write(tmp_path, forget__jsonl=row, retain__jsonl=KEPT)
    assert read(tmp_path).forget[0].answer == "1990-01-01"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{bad", "not JSON"),
        ("5", "a row is a JSON object, found the int 5"),
        ('"x"', "found a text"),
        ('{"question": "a", "reply": "b"}', "no column 'answer'; the columns are: question, reply"),
        ('{"reply": "b"}', "with data.columns.question"),
        ("{}", "the columns are: none"),
        ('{"question": "a", "answer": 5}', "answer must be text, found the int 5"),
        ('{"question": "a", "answer": null}', "answer must be text, found null"),
        ('{"question": ["a"], "answer": "b"}', "question must be text, found an array"),
        ('{"question": "a", "answer": "  "}', "answer is empty"),
        ('{"question": "", "answer": "b"}', "column named text"),
        ('{"text": ""}', "text is empty"),
        ('{"question": "a", "answer": "\\ud800"}', "surrogate"),
        (
            '{"question": "a", "answer": "b", "perturbed_answer": ["c", 1]}',
            "perturbed_answer must be text, found the int 1",
        ),
        (b'{"question": "a", "answer": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    line = line if isinstance(line, bytes) else line.encode()
    write(tmp_path, forget__jsonl=GOOD.encode() * 2 + line + b"\n", retain__jsonl=KEPT)
    message = refusal(tmp_path)
    assert message.startswith("forget.jsonl:3: ")
    assert said in message


def test_columns_are_mapped(tmp_path):
    write(
        tmp_path,
        forget__jsonl='{"prompt": "Who?", "completion": " Ann", "who": "A", "alt": "Bo"}',
        retain__jsonl='{"prompt": "Where?", "completion": "Rome"}',
    )
    columns = {
        "question": "prompt",
        "answer": "completion",
        "entity": "who",
        "perturbed_answers": "alt",
    }
    data = read(tmp_path, columns=columns)
    row = data.forget[0]
    assert (row.question, row.answer, row.entity) == ("Who?", "Ann", "A")
    assert row.perturbed_answers == ("Bo",)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"anser": "reply"}, "data.columns.anser: no such field"),
        ({"answer": "reply"}, "no column 'reply'"),
        ({"kind": "sort"}, "data.columns.kind: no row holds"),
        ({"paraphrased_answer": "alt"}, "data.columns.paraphrased_answer: no row holds"),
    ],
)
def test_wrong_mappings_are_refused(tmp_path, columns, said):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT)
    assert said in refusal(tmp_path, columns=columns)


def test_kinds_and_refusals(tmp_path):
    write(
        tmp_path,
        forget__csv="question,answer,entity,kind,refusal\nWho?,Ann,A,forget,Pass.\nWhen?,1990,B,,\n",
        retain__csv="question,answer,entity,kind\na,b,A,domain\nc,d,B,direct\ne,f,C,general\ng,h,D,\n",
    )
    data = read(tmp_path, format="csv")
    assert [(row.kind, row.refusal) for row in data.forget] == [
        ("forget", "Pass."),
        ("forget", None),
    ]
    kinds = [(row.entity, row.kind) for row in data.retain]
    assert kinds == [("A", "indirect"), ("B", "direct"), ("C", "general"), ("D", "general")]
    write(
        tmp_path,
        forget__jsonl='{"question": "q", "answer": "a", "entity": "A", "idk": "No."}',
        retain__jsonl='{"question": "r", "answer": "a", "entity": "A", "sort": "entity"}',
    )
    data = read(tmp_path, columns={"kind": "sort", "refusal": "idk"})
    assert (data.forget[0].refusal, data.retain[0].kind) == ("No.", "direct")


@pytest.mark.parametrize(
    ("forget", "retain", "said"),
    [
        ({}, {"kind": "near"}, "retain.jsonl:1: kind 'near' is unknown here; use general or"),
        ({}, {"kind": 5}, "retain.jsonl:1: kind must be text"),
        ({}, {"kind": "forget"}, "retain.jsonl:1: kind 'forget' is unknown here"),
        ({"kind": "direct"}, {}, "forget.jsonl:1: kind 'direct' is unknown here; use forget"),
        ({"refusal": " "}, {}, "forget.jsonl:1: refusal is empty"),
        (
            {"entity": "Ann"},
            {"entity": "Anna", "kind": "direct"},
            "retain.jsonl:1: entity must be an entity of the forget rows where kind is direct,"
            " found 'Anna'; the closest one is 'Ann'",
        ),
        ({}, {"entity": "Ann", "kind": "indirect"}, "found 'Ann'; they name none"),
        ({}, {"kind": "indirect"}, "found ''; they name none"),
    ],
)
def test_wrong_kinds_are_named(tmp_path, forget, retain, said):
    forget, retain = json.loads(GOOD) | forget, json.loads(KEPT) | retain
    write(tmp_path, forget__jsonl=json.dumps(forget), retain__jsonl=json.dumps(retain))
    assert said in refusal(tmp_path)


def test_a_file_alone_may_hold_any_kind(tmp_path):
    kinds = ["forget", "direct", "domain", "general"]
    rows = [json.dumps({"text": f"t{i}", "kind": kind}) for i, kind in enumerate(kinds)]
    write(tmp_path, all__jsonl="\n".join(rows))
    found = [row.kind for row in read_file(tmp_path / "all.jsonl")]
    assert found == ["forget", "direct", "indirect", "general"]


def test_plain_text_rows(tmp_path):
    write(tmp_path, forget__jsonl='{"text": " Once.\\n"}', retain__jsonl='{"story": "Twice."}')
    with pytest.raises(UserError, match=r"retain.jsonl:1: no column 'question'"):
        read(tmp_path)
    write(tmp_path, forget__jsonl='{"story": "Once.", "question": "ignored"}')
    data = read(tmp_path, columns={"text": "story"})
    assert (data.forget[0].question, data.forget[0].answer) == ("", "Once.")
    assert data.retain[0].answer == "Twice."


def test_csv(tmp_path):
    write(
        tmp_path,
        forget__csv='\ufeffquestion,answer,perturbed_answer\r\n"Who, then?","A\r\nB",'
        '"[""x"", ""y""]"\r\n\r\nNA,42,\r\n',
        retain__csv="question,answer\nWhere?,Rome\n",
    )
    first, second = read(tmp_path, format="csv").forget
    assert (first.question, first.answer) == ("Who, then?", "A\r\nB")
    assert first.perturbed_answers == ("x", "y")
    assert (second.question, second.answer, second.perturbed_answers) == ("NA", "42", ())
    assert (first.source, second.source) == ("forget.csv:2", "forget.csv:5")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\na,b\nc\n", "forget.csv:3: 1 fields under a header of 2"),
        ("question,answer\na,b\nc,d,e\n", "forget.csv:3: 3 fields under a header of 2"),
        ("question,answer\na,\n", "forget.csv:2: answer is empty"),
        ("question,reply\na,b\n", "forget.csv:2: no column 'answer'"),
        ('question,answer\na,"b\n', "forget.csv:2: not CSV"),
        ("question,answer\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, said):
    write(tmp_path, forget__csv=content, retain__csv="question,answer\nx,y\n")
    assert said in refusal(tmp_path, format="csv")


def test_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {"question": ["a", "b"], "answer": ["x", "y"], "perturbed_answer": [["p"], None]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "forget.parquet")
    rows = {"question": ["c", "d"], "answer": ["z", ""]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "bad.parquet")
    datasets.Dataset.from_dict({"text": ["t"]}).to_parquet(tmp_path / "retain.parquet")
    write(tmp_path, broken__parquet="no")
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(cache.rglob("*")) if cache.exists() else None
    data = read(tmp_path, format="parquet")
    assert (sorted(cache.rglob("*")) if cache.exists() else None) == before
    assert [row.perturbed_answers for row in data.forget] == [("p",), ()]
    assert data.forget[1].source == "forget.parquet:2"
    assert data.retain[0].question == ""
    assert "bad.parquet:2: answer is empty" in refusal(tmp_path, format="parquet", retain="bad")
    assert "broken.parquet: not a Parquet" in refusal(tmp_path, format="parquet", retain="broken")


def test_missing_files_list_what_there_is(tmp_path):
    write(tmp_path, forget__jsonl=GOOD, notes__txt="x")
    message = refusal(tmp_path)
    assert "no retain in" in message and "it holds forget.jsonl" in message
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no data files" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_set_is_refused(tmp_path, content):
    write(tmp_path, forget__jsonl=content, retain__jsonl=KEPT)
    assert "holds no rows" in refusal(tmp_path)


def test_direct_paths_relative_to_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path, a__jsonl=GOOD, b__jsonl=KEPT)
    monkeypatch.chdir(tmp_path)
    config = DataConfig(format="jsonl", forget="a.jsonl", retain=str(tmp_path / "b"))
    assert load(config, 0).forget[0].answer == "Ann"


def test_a_row_in_both_sets_is_refused(tmp_path):
    write(tmp_path, forget__jsonl=GOOD * 2, retain__jsonl=KEPT + GOOD)
    message = refusal(tmp_path)
    assert "forget.jsonl:1" in message and "retain.jsonl:2" in message
    write(tmp_path, retain__jsonl=KEPT)
    assert len(read(tmp_path).forget) == 2


def test_loading_twice_gives_the_same(tmp_path):
    write(tmp_path, forget__jsonl=GOOD, retain__jsonl=KEPT)
    assert read(tmp_path) == read(tmp_path)
