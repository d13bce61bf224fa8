import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data.answers import refusals
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError

FORGET = "title,question,answer,idk\nAnn,Who?,Bo,No idea.\nCid,Where?,Rome,Pass.\n"
RETAIN = (
    "title,question,answer,type\n"
    "Ann,q1,a1,entity\n"
    "Ann,q2,a2,domain\n"
    "Cid,q3,a3,indirect\n"
    "Star,q4,a4,general\n"
    "Cid,q5,a5,direct\n"
)
TEST = "title,question,answer,type\nStar,t1,a,general\nCid,t2,b,domain\nAnn,t3,c,entity\n"


def read(folder, forget=FORGET, retain=RETAIN, test=None, **options):
    parts = {"forget": forget, "retain": retain, "test": test}
    for name, text in parts.items():
        if text is not None:
            (folder / f"{name}.csv").write_bytes(text.encode())
    named = {name: name for name, text in parts.items() if text is not None}
    return load(DataConfig(format="melu", path=str(folder), **named, **options), seed=0)


def refused(folder, **options):
    with pytest.raises(UserError) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows(tmp_path):
    data = read(tmp_path)
    assert data.forget == (
        Row("Who?", "Bo", "Ann", source="forget.csv:2", kind="forget", refusal="No idea."),
        Row("Where?", "Rome", "Cid", source="forget.csv:3", kind="forget", refusal="Pass."),
    )
    assert [(row.entity, row.kind, row.answer) for row in data.retain] == [
        ("Ann", "direct", "a1"),
        ("Ann", "indirect", "a2"),
        ("Cid", "indirect", "a3"),
        ("Star", "general", "a4"),
        ("Cid", "direct", "a5"),
    ]
    assert {row.refusal for row in data.retain} == {None}
    assert list(data.evaluation) == ["forget", "retain"]
    assert data.evaluation["retain"].rows == data.retain
    assert data.background == ()


def test_a_test_file_is_evaluated_by_kind_and_learned(tmp_path):
    data = read(tmp_path, test=TEST)
    assert list(data.evaluation) == [
        "forget",
        "retain",
        "test_direct",
        "test_indirect",
        "test_general",
    ]
    assert [row.question for row in data.background] == ["t1", "t2", "t3"]
    (direct,) = data.evaluation["test_direct"].rows
    assert (direct.question, direct.entity, direct.kind) == ("t3", "Ann", "direct")
    assert {data.evaluation[f"test_{k}"].role for k in ("direct", "indirect", "general")} == {
        "general"
    }
    only = read(tmp_path, test="title,question,answer,type\nStar,t1,a,general\n")
    assert list(only.evaluation) == ["forget", "retain", "test_general"]


def test_forget_files_may_have_a_type(tmp_path):
    text = "title,question,answer,type,idk\nAnn,Who?,Bo,forget,No.\nCid,Where?,Rome,,No.\n"
    assert [row.kind for row in read(tmp_path, forget=text).forget] == ["forget", "forget"]


def test_quotes_line_breaks_and_a_byte_order_mark(tmp_path):
    text = (
        '\ufefftitle,question,answer,idk\r\nAnn,"Who,\nthen?","Bo ""B""",No\r\nCid,ü?,日本,No\r\n'
    )
    first, second = read(tmp_path, forget=text).forget
    assert (first.question, first.answer, first.source) == (
        "Who,\nthen?",
        'Bo "B"',
        "forget.csv:2",
    )
    assert (second.question, second.answer, second.source) == ("ü?", "日本", "forget.csv:4")


def test_other_column_names(tmp_path):
    data = read(
        tmp_path,
        forget=FORGET.replace("title", "who").replace("idk", "no"),
        retain=RETAIN.replace("title", "who").replace("type", "sort"),
        columns={"entity": "who", "kind": "sort", "refusal": "no"},
    )
    assert data.forget[0].refusal == "No idea." and data.retain[0].kind == "direct"
    said = refused(tmp_path, columns={"refusal": "nay"})
    assert "data.columns.refusal: no row holds" in said


@pytest.mark.parametrize("column", ["title", "question", "answer", "type"])
def test_a_missing_column_is_named(tmp_path, column):
    assert f"retain.csv:2: no column '{column}'; the columns are: " in refused(
        tmp_path, retain=RETAIN.replace(column, "x")
    )
    if column != "type":
        said = refused(tmp_path, forget=FORGET.replace(column, "x"))
        assert f"forget.csv:2: no column '{column}'" in said


@pytest.mark.parametrize("column", ["title", "question", "answer"])
def test_an_empty_cell_is_named(tmp_path, column):
    cells = {"title": "Ann", "question": "q", "answer": "a", "idk": "No"} | {column: " "}
    forget = "title,question,answer,idk\nAnn,Who?,Bo,No\n" + ",".join(cells.values()) + "\n"
    assert f"forget.csv:3: {column} is empty" in refused(tmp_path, forget=forget)
    cells["idk"] = "general"
    retain = RETAIN + ",".join(cells.values()) + "\n"
    assert f"retain.csv:7: {column} is empty" in refused(tmp_path, retain=retain)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN"])
def test_an_idk_column_must_be_full(tmp_path, cell):
    said = refused(tmp_path, forget=FORGET.replace("Pass.", cell))
    assert said.startswith("forget.csv:3: idk")


@pytest.mark.parametrize("kind", ["syntactic", "forget", "Entity"])
def test_an_unknown_type_is_named(tmp_path, kind):
    said = refused(tmp_path, retain=RETAIN.replace("general", kind))
    assert said.startswith(f"retain.csv:5: type '{kind}' is unknown here")
    assert "direct or entity or indirect or domain" in said
    assert "test.csv:2: type" in refused(tmp_path, test=TEST.replace("general", kind))


def test_an_empty_type_is_named(tmp_path):
    assert "retain.csv:5: type is empty" in refused(tmp_path, retain=RETAIN.replace("general", ""))


def test_forget_rows_are_no_neighbours(tmp_path):
    text = "title,question,answer,type\nAnn,Who?,Bo,domain\n"
    assert "forget.csv:2: type 'domain' is unknown here; use forget" in refused(
        tmp_path, forget=text
    )


def test_neighbours_of_nobody_are_named(tmp_path):
    said = refused(tmp_path, retain=RETAIN.replace("Ann,q2", "Anne,q2"))
    assert said.startswith("retain.csv:3: title must be an entity of the forget rows")
    assert "'Anne'" in said and "the closest one is 'Ann'" in said
    said = refused(tmp_path, test=TEST.replace("Cid", "Sid"))
    assert said.startswith("test.csv:3: ") and "the closest one is 'Cid'" in said


def test_an_entity_without_neighbours_is_read(tmp_path):
    retain = "title,question,answer,type\nAnn,q1,a1,entity\n"
    assert len(read(tmp_path, retain=retain).forget) == 2


def test_a_forget_row_that_comes_twice_is_named(tmp_path):
    said = refused(tmp_path, forget=FORGET + "Cid,Who?,Bo,No.\n")
    assert said.startswith("forget.csv:4: ") and "forget.csv:2" in said


@pytest.mark.parametrize("part", ["retain", "test"])
def test_a_forget_row_that_is_kept_is_named(tmp_path, part):
    text = {"retain": RETAIN, "test": TEST}[part] + "Star,Who?,Bo,general\n"
    said = refused(tmp_path, **{part: text})
    line = text.count("\n")
    assert "forget.csv:2" in said and f"{part}.csv:{line}" in said


def test_a_missing_file_is_named(tmp_path):
    read(tmp_path)
    config = DataConfig(
        format="melu", path=str(tmp_path), forget="forget", retain="retain", test="tests"
    )
    with pytest.raises(UserError, match=r"no tests in .* it holds forget.csv, retain.csv"):
        load(config, 0)


def test_refusals_are_the_rows_own(tmp_path):
    assert refusals(read(tmp_path).forget, seed=3) == ("No idea.", "Pass.")
    without = "title,question,answer\nAnn,Who?,Bo\nCid,Where?,Rome\n"
    rows = read(tmp_path, forget=without).forget
    with pytest.raises(UserError, match=r"^forget.csv:2: has no refusal.* column idk"):
        refusals(rows, seed=3)


texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20
).filter(lambda text: text.strip() and text.strip().lower() != "nan")


@st.composite
def files(draw):
    """Rows of a forget and of a retain file."""
    pairs = draw(
        st.lists(st.tuples(texts, texts), min_size=2, max_size=8, unique_by=lambda p: p[0].strip())
    )
    border = draw(st.integers(1, len(pairs) - 1))
    forget = [(draw(texts), *pair, draw(texts)) for pair in pairs[:border]]
    entities = st.sampled_from([row[0] for row in forget])
    kinds = {"entity": "direct", "domain": "indirect", "direct": "direct", "indirect": "indirect"}
    retain = []
    for pair in pairs[border:]:
        kind = draw(st.sampled_from([*kinds, "general"]))
        entity = draw(texts if kind == "general" else entities)
        retain.append((entity, *pair, kind, kinds.get(kind, "general")))
    return forget, retain


def written(header, rows, bom):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows(rows)
    return "\ufeff" * bom + stream.getvalue()


@given(files(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, bom):
    forget, retain = rows
    data = read(
        tmp_path_factory.mktemp("melu"),
        forget=written(["title", "question", "answer", "idk"], forget, bom),
        retain=written(["title", "question", "answer", "type"], [row[:4] for row in retain], bom),
    )
    assert [(r.entity, r.question, r.answer, r.refusal) for r in data.forget] == [
        tuple(cell.strip() for cell in row) for row in forget
    ]
    assert [(r.entity, r.question, r.answer, r.kind) for r in data.retain] == [
        (*(cell.strip() for cell in row[:3]), row[4]) for row in retain
    ]
