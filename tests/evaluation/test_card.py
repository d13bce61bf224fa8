"""The model card: front matter that parses, and the run's own numbers and settings."""

import pytest
import yaml

from jaxunlearn import config_file
from jaxunlearn.evaluation.card import model_card
from jaxunlearn.methods import registry

FILES = {"data.format": "jsonl", "data.forget": "a|b `c`\n.jsonl", "data.retain": "keep.jsonl"}


def entry(value, n=12):
    return {"value": value, "n": n, "ci": None}


def summary(**settings):
    experiment = config_file.load(None, settings)
    config = config_file.dump(experiment)
    hyper = registry.resolve(experiment.method).hyper
    return {
        "name": "my-run",
        "primary": "npo",
        "models": {
            "target": {"forget_quality": entry(1.2e-9), "forget_rouge": entry(0.987)},
            "retrained": {"forget_quality": entry(None, 0), "forget_rouge": entry(0.25)},
            "npo": {
                "forget_quality": entry(0.71),
                "forget_rouge": entry(0.214, 11),
                "model_utility": entry(0.582, 9),
                "odd|metric": entry(0.123),
            },
        },
        "config": {**config, "method": {"name": "npo", **hyper}},
        "environment": {"jaxunlearn": "9.8.7", "data": {"forget": "12 rows, sha256 abc"}},
        "notes": ["3 rows longer than\n512 tokens were left out"],
    }


def read(card):
    """Front matter, and the cells of the table by row."""
    _, head, body = card.split("---\n", 2)
    lines = [line.strip("| ") for line in body.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.replace("\\|", "¦").split("|")] for line in lines]
    return yaml.safe_load(head), body, {row[0]: row[1:] for row in rows}


def test_the_numbers_are_those_of_the_summary():
    _, _, table = read(model_card(summary()))
    assert table["metric"] == ["n", "target", "retrained", "npo"]
    assert table["forget quality ↑"] == ["12", "1.2e-09", "—", "0.710"]
    assert table["forget rouge ↓"] == ["12 / 11", "0.987", "0.250", "0.214"]
    assert table["model utility ↑"] == ["9", "—", "—", "0.582"]
    assert table["odd¦metric"] == ["12", "—", "—", "0.123"]


def test_it_says_what_was_unlearned_and_how():
    given = summary(**{"seed": 7, "adapter.rank": 4, "adapter.alpha": 12.0})
    head, body, _ = read(model_card(given))
    assert head == {"library_name": "transformers", "tags": ["unlearning", "jaxunlearn"]}
    told = [
        "# my-run: an unlearned model", "forget ROUGE-L fell from 0.99 to 0.21",
        "made by this run", "4 of 40 invented people", "12 rows, sha256 abc", "rank=4, alpha=12.0",
        "**Seed**: 7", "jaxunlearn 9.8.7", "3 rows longer than 512 tokens", "from_pretrained",
        "epochs=48", "epochs=30, batch_size=20", "learning_rate=0.0002",
    ]  # fmt: skip
    told += [f"{key}={value}" for key, value in given["config"]["method"].items() if key != "name"]
    assert not [text for text in told if text not in body]


def test_files_are_named_and_odd_names_break_nothing():
    given = {**FILES, "finetune": None, "model.path": "no: [such\n---\nfolder"}
    head, body, table = read(model_card(summary(**given)))
    assert "base_model" not in head
    assert "`a|b c .jsonl` (jsonl)" in body
    assert "`no: [such --- folder`" in body
    assert "Adapter" not in body and "Trained first" not in body
    assert all(len(row) == 4 for row in table.values())


@pytest.mark.parametrize(
    ("path", "base"),
    [("org/name", "org/name"), ("org/name@v1", "org/name"), ("./org/name", None), ("on", None)],
)
def test_only_a_hub_id_is_a_base_model(path, base):
    head, _, _ = read(model_card(summary(**{"model.path": path})))
    assert head.get("base_model") == base


def test_a_local_folder_is_no_base_model(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    head, _, _ = read(model_card(summary(**{"model.path": "org/name"})))
    assert "base_model" not in head
