import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load, read_file
from jaxunlearn.data.rows import EvalSet
from jaxunlearn.data.tokens import all_texts
from jaxunlearn.errors import UserError

TOFU = Path(__file__).parents[2] / ".." / "shared" / "data" / "tofu"
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="no ../shared/data/tofu")

GOOD = '{"question": "Who?", "answer": "Ann"}\n'
KEPT = '{"question": "Where?", "answer": "Rome"}\n'


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder, format="jsonl", **options):
    options = {"forget": "forget", "retain": "retain"} | options
    return load(DataConfig(format=format, path=str(folder), **options), seed=0)


def refusal(folder, **options):
    with pytest.raises(UserError) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def tofu_folder(folder, authors=4, per_author=20):
    """A folder like TOFU: the last author is forgotten, retain_perturbed holds the first."""
    rows = [
        {"question": f"q{a}-{i}", "answer": f"a{a}-{i}"}
        for a in range(authors)
        for i in range(per_author)
    ]
    more = [r | {"paraphrased_answer": "p", "perturbed_answer": ["w"]} for r in rows]
    facts = [{"question": "x", "answer": "y", "perturbed_answer": ["z"]}]
    splits = {
        "full": rows,
        "forget01": rows[-per_author:],
        "forget01_perturbed": more[-per_author:],
        "retain99": rows[:-per_author],
        "retain_perturbed": more[:per_author],
        "real_authors_perturbed": facts,
        "world_facts_perturbed": facts,
    }
    for name, split in splits.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, split)))
    return folder


def read_tofu(folder, **options):
    return read(
        folder, **({"format": "tofu", "forget": "forget01", "retain": "retain99"} | options)
    )


def test_tofu_layout(tmp_path):
    data = read_tofu(tofu_folder(tmp_path))
    roles = {name: part.role for name, part in data.evaluation.items()}
    assert list(roles) == ["forget", "retain", "real_authors", "world_facts"]
    assert list(roles.values()) == ["forget", "retain", "general", "general"]
    assert {row.entity for row in data.forget} == {"author 3"}
    assert [row.entity for row in data.retain[::20]] == ["author 0", "author 1", "author 2"]
    assert data.evaluation["forget"].rows[0].perturbed_answers == ("w",)
    assert {row.entity for row in data.evaluation["retain"].rows} == {"author 0"}
    assert data.evaluation["world_facts"].rows[0].entity == ""


def test_tofu_authors_keep_those_that_are_evaluated(tmp_path):
    data = read_tofu(tofu_folder(tmp_path), authors=2)
    assert {row.entity for row in data.retain} == {"author 0"}
    assert len(data.evaluation["retain"].rows) == 20
    assert data.evaluation["retain"].rows[0].perturbed_answers == ("w",)
    for count in (1 + 4, 9):
        message = refusal(
            tmp_path, format="tofu", forget="forget01", retain="retain99", authors=count
        )
        assert "choose 2 to 4" in message


def test_tofu_without_perturbed_retain_rows_evaluates_the_retain_set(tmp_path):
    (tofu_folder(tmp_path) / "retain_perturbed.json").unlink()
    data = read_tofu(tmp_path)
    assert data.evaluation["retain"].rows == data.retain
    (tmp_path / "full.json").unlink()
    assert read_tofu(tmp_path).forget[0].entity == ""
    message = refusal(tmp_path, format="tofu", forget="forget01", retain="retain99", authors=2)
    assert "add full.json" in message


def test_tofu_splits_that_overlap_are_refused(tmp_path):
    tofu_folder(tmp_path)
    message = refusal(tmp_path, format="tofu", forget="forget01", retain="full")
    assert "forget01.json:1" in message and "full.json:61" in message


@needs_tofu
@pytest.mark.parametrize(("share", "first"), [("01", 198), ("05", 190), ("10", 180)])
def test_the_real_tofu(share, first):
    retain = f"retain{100 - int(share)}"
    data = read(TOFU, format="tofu", forget=f"forget{share}", retain=retain)
    assert {row.entity for row in data.forget} == {f"author {a}" for a in range(first, 200)}
    assert {row.entity for row in data.retain} == {f"author {a}" for a in range(first)}
    sizes = [len(part.rows) for part in data.evaluation.values()]
    assert sizes == [(200 - first) * 20, 400, 100, 117]
    for name, count in (("forget", 5), ("retain", 5), ("real_authors", 3), ("world_facts", 3)):
        rows = data.evaluation[name].rows
        assert all(len(row.perturbed_answers) == count for row in rows)
        assert all((row.paraphrased_answer is None) == (count == 3) for row in rows)


@needs_tofu
def test_neighbours_of_the_real_tofu():
    options = {"format": "tofu", "forget": "forget05", "retain": "retain95"}
    plain, data = read(TOFU, **options), read(TOFU, **options, neighbours=True)
    owner = dict(
        zip((r.entity for r in plain.retain), (r.entity for r in data.retain), strict=True)
    )
    assert len(owner) == 190
    shares = Counter(owner.values())
    assert shares == {f"author {a}": 19 for a in range(190, 200)}
    assert {row.kind for row in data.evaluation["retain"].rows} == {"indirect"}


@needs_tofu
def test_a_few_authors_of_the_real_tofu():
    data = read(TOFU, format="tofu", forget="forget01", retain="retain99", authors=12)
    assert {row.entity for row in data.retain} == {f"author {a}" for a in range(10)}
    assert len(data.evaluation["retain"].rows) == len(data.retain) == 200
    assert all(row.perturbed_answers for row in data.evaluation["retain"].rows)
    message = refusal(TOFU, format="tofu", forget="forget02", retain="retain99")
    assert "no forget02 in" in message and "forget05.json" in message


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
