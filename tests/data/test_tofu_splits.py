"""The layout of TOFU's splits; authors as neighbours are in test_tofu.py."""

from collections import Counter
from pathlib import Path

import pytest

from tests.data.folders import read, read_tofu, refusal, tofu_folder

TOFU = Path(__file__).parents[2] / ".." / "shared" / "data" / "tofu"

needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="no ../shared/data/tofu")


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
