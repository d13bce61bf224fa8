"""Authors as each other's neighbours; the layout of the splits is in test_tofu_splits.py."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load
from jaxunlearn.data.tofu import draft
from jaxunlearn.errors import UserError

TOPICS = ["poems", "maths", "poems", "maths", "ships", "maths", "poems"]  # the last two: forget


def folder(path):
    """Seven authors in the manner of TOFU."""
    authors = [
        [{"question": f"q{a} {i}?", "answer": f"{topic} {a}"} for i in range(20)]
        for a, topic in enumerate(TOPICS)
    ]
    splits = {
        "full": authors,
        "forget05": authors[5:],
        "retain95": authors[:5],
        "retain_perturbed": authors[1:3],
        "real_authors": authors[:1],
        "world_facts": authors[:1],
    }
    for name, parts in splits.items():
        text = "".join(json.dumps(row) + "\n" for part in parts for row in part)
        (path / f"{name}.json").write_text(text)
    return path


def read(path, **options):
    options = {"forget": "forget05", "retain": "retain95", "neighbours": True} | options
    return load(DataConfig(format="tofu", path=str(path), **options), seed=0)


def owners(rows):
    return [(row.entity, row.kind) for row in rows[::20]]


def test_authors_are_drafted_by_likeness(tmp_path):
    data = read(folder(tmp_path))
    assert owners(data.forget) == [("author 5", "forget"), ("author 6", "forget")]
    # In turns: 5 takes 1, 6 takes 0, 5 takes 3, 6 takes 2, and 5 is left with 4.
    maths, poems = ("author 5", "indirect"), ("author 6", "indirect")
    assert owners(data.retain) == [poems, maths, poems, maths, maths]
    assert owners(data.evaluation["retain"].rows) == [maths, poems]
    assert owners(data.evaluation["forget"].rows) == owners(data.forget)
    assert {row.kind for row in data.evaluation["real_authors"].rows} == {"general"}
    assert [row.question for row in data.retain] == [
        f"q{a} {i}?" for a in range(5) for i in range(20)
    ]
    assert read(tmp_path) == data


def test_without_the_view_retain_rows_are_general(tmp_path):
    data = read(folder(tmp_path), neighbours=False)
    assert owners(data.retain) == [(f"author {a}", "general") for a in range(5)]
    assert {row.kind for row in data.forget} == {"forget"}


def test_it_works_on_a_part_of_the_authors(tmp_path):
    data = read(folder(tmp_path), authors=5)
    assert owners(data.retain) == [
        ("author 6", "indirect"),
        ("author 5", "indirect"),
        ("author 5", "indirect"),
    ]


def test_authors_must_be_known(tmp_path):
    (folder(tmp_path) / "full.json").unlink()
    with pytest.raises(UserError, match=r"^forget05.json:1: data.neighbours needs .* full.json"):
        read(tmp_path)


def test_draft_by_hand():
    # Turn 1: x ~ 2; turn 2: y ~ 0; turn 3: x takes the first of two that are not like it.
    assert draft(["x x", "y"], ["y", "z", "x", "z"]) == [1, 0, 0, 1]
    # Words that all texts share say nothing: file order decides.
    assert draft(["a", "a"], ["a", "a", "a"]) == [0, 1, 0]


@given(
    st.lists(st.text("abc ", max_size=8), min_size=1, max_size=4),
    st.lists(st.text("abc ", max_size=8), min_size=1, max_size=9),
)
def test_shares_differ_by_at_most_one(captains, players):
    owner = draft(captains, players)
    shares = np.bincount(owner, minlength=len(captains))
    assert len(owner) == len(players) == shares.sum()
    assert shares.max() - shares.min() <= 1
    assert list(shares) == sorted(shares, reverse=True)
    assert draft(captains, players) == owner
