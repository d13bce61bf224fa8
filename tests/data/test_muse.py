"""MUSE's folder: the corpus in chunks, and its evaluation sets."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load
from jaxunlearn.data.muse import UNTIL, chunks
from jaxunlearn.data.rows import EvalSet, Row, Text
from jaxunlearn.errors import UserError

FILES = {
    "raw/forget.txt": "One two three.\n\nFour five.\nSix.\n \nSeven eight nine ten eleven.\n",
    "raw/retain1.txt": "Keep this.",
    "scal/forget_2.txt": "Scaled up.",
    "knowmem/forget_qa.json": [{"question": "Who?", "answer": "Ann"}],
    "knowmem/forget_qa_icl.json": [
        {"question": "When?", "answer": "1950"},
        {"question": "Where?", "answer": "Rome"},
    ],
    "knowmem/retain_qa.json": [{"question": "What?", "answer": "Tea"}],
    "knowmem/retain_qa_icl.json": [{"question": "Why?", "answer": "Fun"}],
    "verbmem/forget.json": [{"prompt": "One two", "gt": " three."}],
    "privleak/forget.json": ["Six.\n\nSeven eight", "Four five."],
    "privleak/holdout.json": ["Never seen."],
}


def write(folder, **changed):
    for name, content in (FILES | changed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(folder, **options):
    return load(DataConfig(format="muse", path=str(folder), **options), seed=0)


def test_the_corpus_is_plain_text_in_chunks(tmp_path):
    data = read(write(tmp_path), chunk_words=6)
    assert [(row.answer, row.source) for row in data.forget] == [
        ("One two three.\n\nFour five.\nSix.", "raw/forget.txt:1"),
        ("Seven eight nine ten eleven.", "raw/forget.txt:6"),
    ]
    assert {(row.question, row.kind) for row in data.forget} == {("", "forget")}
    (kept,) = data.retain
    assert (kept.key, kept.kind) == (Text("", "Keep this."), "general")
    other = read(tmp_path, forget="scal/forget_2", retain="retain1.txt")
    assert [row.answer for row in other.forget] == ["Scaled up."]


def test_the_evaluation_sets(tmp_path):
    data = read(write(tmp_path))
    shots = "Question: When?\nAnswer: 1950\n\nQuestion: Where?\nAnswer: Rome\n\n"
    common = {"kind": "forget", "raw": True}
    verbatim = Row("One two", "three.", source="verbmem/forget.json:1", **common)
    knowledge = Row(
        f"{shots}Question: Who?\nAnswer: ", "Ann", source="knowmem/forget_qa.json:1", **common
    )
    kept = Row(
        "Question: Why?\nAnswer: Fun\n\nQuestion: What?\nAnswer: ",
        "Tea",
        source="knowmem/retain_qa.json:1",
        raw=True,
    )
    members = [("Six.\n\nSeven eight", 1), ("Four five.", 2)]
    assert data.evaluation == {
        "verbatim": EvalSet("forget", (verbatim,), max_new_tokens=128, cut=True),
        "knowledge": EvalSet("forget", (knowledge,), max_new_tokens=32, until=UNTIL),
        "knowledge_retain": EvalSet("retain", (kept,), max_new_tokens=32, until=UNTIL),
        "members": EvalSet(
            "forget",
            tuple(
                Row("", text, source=f"privleak/forget.json:{i}", kind="forget")
                for text, i in members
            ),
        ),
        "holdout": EvalSet("holdout", (Row("", "Never seen.", source="privleak/holdout.json:1"),)),
    }
    assert list(data.evaluation) == "verbatim knowledge knowledge_retain members holdout".split()


def test_objects_and_the_files_of_the_hub(tmp_path):
    import datasets

    write(tmp_path)
    (tmp_path / "raw/forget.txt").unlink()
    texts = datasets.Dataset.from_list([{"text": "Doc one."}, {"text": "Doc\n\ntwo."}])
    texts.to_parquet(str(tmp_path / "raw" / "forget-00000-of-00001.parquet"))
    (tmp_path / "privleak/holdout.json").write_text('[{"text": "Unseen."}]')
    data = read(tmp_path)
    assert [row.answer for row in data.forget] == ["Doc one.\n\nDoc\n\ntwo."]
    assert data.forget[0].source == "raw/forget-00000-of-00001.parquet:1"
    assert data.evaluation["holdout"].rows[0].answer == "Unseen."


words = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=3)
documents = st.lists(
    st.lists(st.lists(words, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=5).map(
        "\n\n".join
    ),
    max_size=5,
)


@given(texts=documents, most=st.integers(1, 8))
@settings(deadline=None)
def test_chunks_keep_every_word_and_no_chunk_is_too_long(texts, most):
    rows = [Row("", text, source=str(i), kind="forget") for i, text in enumerate(texts)]
    found = chunks(rows, most)
    assert [w for row in found for w in row.answer.split()] == " ".join(texts).split()
    counts = [len(row.answer.split()) for row in found]
    assert all(1 <= count <= most for count in counts)
    # What a chunk begins with had no room in the one before.
    for left, right in itertools.pairwise(found):
        first = right.answer.split("\n\n")[0]
        assert len(left.answer.split()) + len(first.split()) > most


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("verbmem/forget.json", [{"prompt": "a"}], "verbmem/forget.json:1: no column 'gt', which"),
        ("knowmem/retain_qa.json", [{"question": "a", "answer": ""}], "answer is empty"),
        ("privleak/forget.json", ["Never seen."], "also a forget row (privleak/forget.json:1)"),
        ("privleak/holdout.json", [5], "holdout.json:1: a row is a JSON object, found the int 5"),
        ("raw/forget.txt", "\n \n", "forget.txt: holds no rows"),
        ("raw/retain1.txt", FILES["raw/forget.txt"], "also a row to keep (raw/retain1.txt:1)"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, said):
    write(tmp_path, **{name: content})
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_those_beside_it(tmp_path):
    write(tmp_path)
    (tmp_path / "knowmem/forget_qa_icl.json").unlink()
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert "no knowmem/forget_qa_icl in" in str(caught.value)
    assert "it holds knowmem/forget_qa.json, knowmem/retain_qa.json" in str(caught.value)
    with pytest.raises(UserError, match=r"no sust/forget_9 in .*; it holds no data files"):
        read(tmp_path, forget="sust/forget_9")
