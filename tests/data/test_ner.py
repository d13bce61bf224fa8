"""Questions about named entities: what CoNLL files say, what is asked, and what counts as named."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data import conll, ner
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import Text
from jaxunlearn.data.splits import held_out
from jaxunlearn.errors import UserError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "ner"
NEEDS = "the tasks extra brings seqeval"
PERSON, LOCATION, ORGANISATION, MISC = ner.QUESTIONS.values()


def sentences(path, content):
    path.write_text(content, encoding="utf-8")
    return conll.read(path)


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ("O B-PER I-PER O", [("PER", "b c")]),
        ("I-PER I-PER I-LOC I-PER", [("PER", "a b"), ("LOC", "c"), ("PER", "d")]),
        ("B-PER B-PER I-PER I-LOC", [("PER", "a"), ("PER", "b c"), ("LOC", "d")]),
        ("I-PER O I-PER B-LOC", [("PER", "a"), ("PER", "c"), ("LOC", "d")]),
        ("B-creative-work I-creative-work O O", [("creative-work", "a b")]),
        ("O O O O", []),
    ],
)
def test_entities_of_tags_with_and_without_b(tmp_path, tags, names):
    lines = "".join(f"{token} {tag}\n" for token, tag in zip("abcd", tags.split(), strict=True))
    (found,) = sentences(tmp_path / "x.conll", lines)
    assert found == conll.Sentence("a b c d", tuple(names), "x.conll:1")


def test_layouts_of_files(tmp_path):
    content = (
        "-DOCSTART- O\n\n\nAnn NNP I-NP I-PER\nlaughs VBZ I-VP O\n\n\nBo\u00a0B\tI-PER\r\n\r\nx O"
    )
    found = sentences(tmp_path / "x.conll", "\ufeff" + content)
    assert found == (
        conll.Sentence("Ann laughs", (("PER", "Ann"),), "x.conll:4"),
        conll.Sentence("BoB", (("PER", "BoB"),), "x.conll:8"),
        conll.Sentence("x", (), "x.conll:10"),
    )


SPANS = st.lists(st.tuples(st.sampled_from(["", "PER", "LOC"]), st.integers(1, 3)), max_size=6)


@given(SPANS.filter(bool))
def test_b_and_i_tags_give_back_what_they_mark(spans):
    lines, names = [], []
    for number, (kind, length) in enumerate(spans):
        words = [f"w{number}{place}" for place in range(length)]
        tags = [f"B-{kind}", *[f"I-{kind}"] * (length - 1)] if kind else ["O"] * length
        lines += [f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)]
        names += [(kind, " ".join(words))] if kind else []
    with tempfile.TemporaryDirectory() as folder:
        (found,) = sentences(Path(folder) / "x.conll", "".join(lines))
    assert found.names == tuple(names)
    assert found.text == " ".join(line.split()[0] for line in lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a O\nb\n", "x.conll:2: a line is a token and its tag, found 'b'"),
        ("a O\n\tO\n", "x.conll:2: a line is a token and its tag"),
        ("a O\nb PER\n", "x.conll:2: a tag is O, B-TYPE or I-TYPE, found 'PER'"),
        ("a B-\n", "x.conll:1: a tag is"),
        ("a S-PER\n", "x.conll:1: a tag is"),
        ("\n-DOCSTART- O\n\n", "holds no sentences"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, said):
    with pytest.raises(UserError) as caught:
        sentences(tmp_path / "x.conll", content)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "x.conll").write_bytes(b"a O\n\xff O\n")
    with pytest.raises(UserError, match=r"x.conll:2: not UTF-8 text"):
        conll.read(tmp_path / "x.conll")
    with pytest.raises(UserError, match=r"gone.conll: cannot be read"):
        conll.read(tmp_path / "gone.conll")


def tagged(text):
    """`Ann/PER met Bo/PER` as lines."""
    lines = []
    for word in text.split():
        token, _, tag = word.partition("/")
        lines.append(f"{token} {f'B-{tag}' if tag else 'O'}\n")
    return "".join(lines) + "\n"


TRAIN = (
    tagged("Ann/PER met Bo/person and Ann/Person in Ulm/LOC")
    + tagged("Ann/PER met Bo/person and Ann/Person in Ulm/LOC")
    + tagged("ACME/corporation and the Cubs/group sang Hey/creative-work")
    + "".join(tagged(f"it rains {i}") for i in range(8))
)
TEST = tagged("Cy/PER left") + tagged("Ann/PER met Bo/PER and Ann/PER in Ulm/LOC") + tagged("So")


def read(folder, train=TRAIN, **options):
    (folder / "train.conll").write_text(train)
    (folder / "test.conll").write_text(TEST)
    options = {"test": "test"} | options
    return load(DataConfig(format="ner", path=str(folder), **options), seed=0)


def test_rows_and_sets(tmp_path):
    pytest.importorskip("seqeval", reason=NEEDS)
    data = read(tmp_path)
    (row,) = data.forget
    assert row.key == Text(f"{PERSON}Ann met Bo and Ann in Ulm", "Ann | Bo")
    assert (row.kind, row.source) == ("forget", "train.conll:1")
    assert [row.key for row in data.retain] == [
        Text(f"{LOCATION}Ann met Bo and Ann in Ulm", "Ulm"),
        Text(f"{ORGANISATION}ACME and the Cubs sang Hey", "ACME | Cubs"),
        Text(f"{MISC}ACME and the Cubs sang Hey", "Hey"),
    ]
    assert {name: one.role for name, one in data.evaluation.items()} == {"person": "forget"}
    held = data.evaluation["person"]
    assert [row.key for row in held.rows] == [Text(f"{PERSON}Cy left", "Cy")]
    assert held.until == ("\n",) and held.scorer is data.theme.scorer


def test_none_has_a_bounded_share_and_no_part_in_what_is_forgotten(tmp_path):
    pytest.importorskip("seqeval", reason=NEEDS)
    named = "".join(tagged(f"{name}/LOC is far") for name in "ABCDEFGHI")
    data = read(tmp_path, TRAIN + named)
    places = [row.answer for row in data.retain if row.question.startswith(LOCATION)]
    assert len(places) == 12 and places.count("none") == 2  # a fifth of 13 is 2.6
    assert not any(row.answer == "none" for row in data.forget)
    assert read(tmp_path, TRAIN + named).retain == data.retain


def test_without_a_test_file_a_fifth_is_held_out(tmp_path):
    pytest.importorskip("seqeval", reason=NEEDS)
    lines = "".join(tagged(f"P{i}/PER saw L{i}/LOC") for i in range(200))
    data = read(tmp_path, lines, test=None)
    sets = data.evaluation
    held = {f"P{i} saw L{i}" for i in range(200) if held_out(f"P{i} saw L{i}")}
    assert 20 < len(held) < 60 and list(sets) == ["person", "location"]
    for rows, of_training in (
        (sets["person"].rows, data.forget),
        (sets["location"].rows, data.retain),
    ):
        assert {ner.text_of(row.question) for row in rows} == held
        assert len(rows) + len(of_training) == 200
        assert not held & {ner.text_of(row.question) for row in of_training}


def test_names_that_hold_the_separator_are_not_asked_for(tmp_path):
    pytest.importorskip("seqeval", reason=NEEDS)
    data = read(tmp_path, TRAIN + tagged("A|B/PER sang in Rome/LOC"))
    assert len(data.forget) == 1
    assert f"{LOCATION}A|B sang in Rome" in {row.question for row in data.retain}


def test_another_file_of_what_is_kept(tmp_path):
    pytest.importorskip("seqeval", reason=NEEDS)
    (tmp_path / "more.txt").write_text(tagged("Dee/PER saw Rome/LOC"))
    data = read(tmp_path, retain="more")
    assert [row.answer for row in data.forget] == ["Ann | Bo"]
    assert [row.answer for row in data.retain] == ["Rome"]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (TRAIN + "\nb B-DATE\n", "train.conll:57: the sentence that starts here has the type 'D"),
        (tagged("Ulm/LOC"), "train has no sentence with people"),
        (tagged("Ann/PER"), "train has no sentence with places, organisations or other names"),
    ],
)  # fmt: skip
def test_files_of_other_things_are_refused(tmp_path, train, said):
    pytest.importorskip("seqeval", reason=NEEDS)
    with pytest.raises(UserError) as caught:
        read(tmp_path, train)
    assert said in str(caught.value)


def test_missing_files_and_packages_are_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "seqeval", None)
        with pytest.raises(UserError, match=r"needs seqeval.*pip install 'jaxunlearn\[tasks\]'$"):
            read(tmp_path)
    pytest.importorskip("seqeval", reason=NEEDS)
    with pytest.raises(UserError, match=r"no dev in .*; it holds test.conll, train.conll"):
        read(tmp_path, test="dev")


WORDS = st.text("abc", min_size=1, max_size=3)
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), unique=True)


@given(NAMES)
def test_an_answer_gives_its_names_back(names):
    assert ner.names_in(ner.SEPARATOR.join(names) or ner.NONE) == tuple(names)


def test_the_scorer_counts_people_and_allows_nobody_else():
    scorer = ner.GoldScorer({"q": ("Ann Lee", "Bo")})
    answers = {
        "Ann Lee | Bo": 1, "Bo|Ann  Lee": 1, "Bo": 0.5, "Bo | Bo": 0.5, "Bo | Ulm": 0, "Ann": 0,
        "none": 0, "": 0, "|": 0, "Bo\nUlm": 0.5,
    }  # fmt: skip
    scores = scorer([Text("q", answer) for answer in answers])
    np.testing.assert_array_equal(scores, list(answers.values()))
    np.testing.assert_array_equal(scorer([Text("another", "Bo")]), [0])


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/ner")
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (
            {"path": str(REAL / "wikigold"), "forget": "wikigold"},
            {"forget": 426, "retain": 1521, "person": 115, "location": 148, "organisation": 122,
             "misc": 131},
        ),
        (
            {"path": str(REAL / "wnut17"), "test": "test"},
            {"forget": 489, "retain": 1226, "person": 330, "location": 156, "organisation": 223,
             "misc": 262},
        ),
    ],
)  # fmt: skip
def test_the_real_files(options, sizes):
    pytest.importorskip("seqeval", reason=NEEDS)
    data = load(DataConfig(format="ner", **options), seed=0)
    sets = data.evaluation
    held = {name: len(one.rows) for name, one in sets.items()}
    assert {"forget": len(data.forget), "retain": len(data.retain)} | held == sizes
    trained = {ner.text_of(row.question) for row in (*data.forget, *data.retain)}
    assert not trained & {ner.text_of(row.question) for one in sets.values() for row in one.rows}
    rows = (*data.forget, *sets["person"].rows)
    assert (data.theme.scorer([row.key for row in rows]) == 1).all()
