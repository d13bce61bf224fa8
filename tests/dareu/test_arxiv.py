"""What the experiment on abstracts makes, and the configs of the experiments on real data."""

import csv
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from jaxunlearn import config_file
from jaxunlearn.config_data import DataConfig, SetConfig
from jaxunlearn.data import formats

FOLDER = Path(__file__).parents[2] / "experiments" / "dareu"
COLUMNS = ("summary", "category", "split")


@pytest.fixture(scope="module")
def arxiv():
    spec = importlib.util.spec_from_file_location("arxiv", FOLDER / "arxiv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(first, count):
    return " ".join(f"w{i}" for i in range(first, first + count))


def write(folder, records):
    with (folder / "arxiv_lite.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *records])


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_an_abstract_is_cut_into_its_beginning_and_what_follows(arxiv, tmp_path):
    write(
        tmp_path,
        [
            (words(0, 40).replace(" ", "\n "), "biology", "train"),
            (words(100, 30), "statistics", "train"),
            (words(200, 40), "biology", "val"),
            (words(300, 40), "biology", "test"),
            (words(400, 40), "statistics", "val"),
        ],
    )
    counts = arxiv.write_files(tmp_path, "statistics", tmp_path / "made", rows=5, held_out=5)
    assert counts == {"forget": 1, "retain": 1, "test": 2, "holdout": 1}
    (row,) = read(tmp_path / "made", "retain")
    assert row == {
        "question": words(0, 12), "answer": words(12, 18), "entity": "biology", "raw": True
    }  # fmt: skip
    (row,) = read(tmp_path / "made", "forget")
    assert (row["question"], row["answer"]) == (words(100, 12), words(112, 18))
    assert [row["question"] for row in read(tmp_path / "made", "test")] == [
        words(200, 12), words(300, 12)
    ]  # fmt: skip
    assert [row["question"] for row in read(tmp_path / "made", "holdout")] == [words(400, 12)]


def test_short_and_repeated_abstracts_are_left_out_and_the_first_ones_taken(arxiv, tmp_path):
    same = words(50, 12)
    write(
        tmp_path,
        [
            (words(0, 29), "biology", "train"),
            (f"{same} {words(0, 30)}", "biology", "train"),
            (f"{same} {words(60, 30)}", "statistics", "train"),
            (words(100, 40), "biology", "train"),
            (words(200, 40), "biology", "train"),
            (words(300, 40), "statistics", "train"),
        ],
    )
    counts = arxiv.write_files(tmp_path, "statistics", tmp_path, rows=2, held_out=2)
    assert counts == {"forget": 1, "retain": 2, "test": 0, "holdout": 0}
    assert [row["question"] for row in read(tmp_path, "retain")] == [same, words(100, 12)]


def test_an_unknown_subject_is_refused(arxiv, tmp_path):
    write(tmp_path, [(words(0, 40), "biology", "train"), (words(50, 40), "art", "train")])
    with pytest.raises(SystemExit, match="no subject 'music'; use art, biology"):
        arxiv.write_files(tmp_path, "music", tmp_path, rows=1, held_out=1)


def test_real_abstracts_have_their_subjects_as_owners(arxiv, shared, tmp_path):
    source = shared / "data" / "attribution" / "arxiv_lite"
    counts = arxiv.write_files(source, "statistics", tmp_path, rows=8, held_out=4)
    config = DataConfig(
        format="jsonl", path=str(tmp_path), forget="forget.jsonl", retain="retain.jsonl",
        holdout="holdout.jsonl", sets={"test": SetConfig("test.jsonl")},
    )  # fmt: skip
    data = formats.load(config, seed=0)
    assert {row.entity for row in data.forget} == {"statistics"}
    owners = Counter(row.entity for row in data.retain)
    assert len(owners) == 7 and set(owners.values()) == {8} and "statistics" not in owners
    assert counts["retain"] == 56 and counts["forget"] == 8
    tested = data.evaluation["test"]
    assert tested.role == "general" and {row.entity for row in tested.rows} == set(owners)
    assert {row.entity for row in data.evaluation["holdout"].rows} == {"statistics"}
    assert all(row.raw for row in (*data.forget, *data.retain, *tested.rows))


@pytest.mark.parametrize("name", ["arxiv", "tofu"])
def test_a_config_compares_a_method_by_reward_with_the_retrained_model(name):
    found = config_file.load(FOLDER / f"{name}.yaml")
    assert found.method.name == "dareu" and found.retrain and found.finetune is not None
    assert found.evaluation.suite == "dareu"
    assert found.attribution.function != found.attribution.held_out
    assert found.attribution.function.classifier.incoherent_rows > 0
    # A completion is never answered by a refusal.
    refusing = {"idk", "dpo"} & {one.name for one in found.baselines}
    assert refusing == ({"dpo"} if name == "tofu" else set())
