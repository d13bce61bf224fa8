"""Texts attributed to owners, as a user asks for it: tables, numbers, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from jaxunlearn import attributing, cli, config_file
from jaxunlearn.attribution import overlap, watermark
from jaxunlearn.attribution.responses import from_table
from jaxunlearn.config import DataConfig, Experiment
from jaxunlearn.config_attribution import FunctionConfig
from jaxunlearn.data import tokens
from jaxunlearn.errors import UserError
from jaxunlearn.models.checkpoint_hf import export_model

DATA = DataConfig(people=6, forget_people=2)
PEOPLE = Experiment(data=DATA)


def run(capsys, *words):
    status = cli.main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "people.yaml"
    path.write_text(yaml.safe_dump({"data": {"people": 6, "forget_people": 2}}))
    return path


def attribute(model, texts, experiment=PEOPLE, kinds=("overlap",)):
    return attributing.attribute(model, texts, experiment, kinds=kinds)


def test_a_training_answer_is_its_owner_s(tiny, world):
    """The scores are those of a function fitted by hand to the same answers."""
    rows = (*world.forget, *world.retain)
    chosen = (rows[3], rows[-1])
    found = attribute(tiny, [row.answer for row in chosen])
    assert found.owners == tuple(dict.fromkeys(row.entity for row in rows))
    encoded = tokens.encode(
        tiny.tokenizer, [row.key for row in rows], template=DATA.template, max_length=128
    )
    answers = from_table(encoded.table, [row.entity for row in rows])
    function = overlap.fit(answers)
    own = answers.take(np.array([3, len(rows) - 1]))
    # As answers stand in rows: with the space before them and the token that ends them.
    np.testing.assert_allclose(
        found.scores["overlap"], function.scores(own.tokens, own.lengths), rtol=1e-5
    )
    names = [found.owners[i] for i in found.scores["overlap"].argmax(axis=1)]
    assert names == [row.entity for row in chosen]
    report = found.reports["overlap"]
    assert report.answers == len(rows) and report.accuracy >= 0.95 > report.prefix_accuracy
    masked = [report.masked[count] for count in attributing.MASKED]
    assert (np.diff(masked) < 0).all() and report.milliseconds > 0


def test_a_report_is_made_of_a_sample_of_many_answers(tiny, answers, monkeypatch):
    monkeypatch.setattr(attributing, "REPORT_ROWS", 7)
    assert attributing.report(overlap.fit(answers), answers).answers == 7


def test_paraphrases_are_measured_where_there_are_any(tiny, tmp_path):
    """Of three rows with a paraphrase two say another owner's words; the fourth row has none."""
    pairs = [("al", "red cat", "cat red"), ("al", "blue dog", "grey bird"),
             ("bo", "grey bird", "blue dog"), ("bo", "white owl", None)]  # fmt: skip
    lines = [
        {"question": "Who?", "answer": answer, "entity": who}
        | ({"paraphrased_answer": other} if other else {})
        for who, answer, other in pairs
    ]
    for name, chosen in (("forget", lines[:2]), ("retain", lines[2:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    data = DataConfig("jsonl", str(tmp_path), "forget.jsonl", "retain.jsonl")
    report = attribute(tiny, ["a"], Experiment(data=data)).reports["overlap"]
    assert report.accuracy == 1 and report.paraphrase_accuracy == pytest.approx(1 / 3)


def test_a_watermark_in_a_text_is_its_owner_s(tiny, world, tmp_path):
    for name, rows in (("forget", world.forget), ("retain", world.retain)):
        marked = watermark.embed(rows, [row.entity for row in rows], length=6)
        lines = [
            json.dumps({"question": row.question, "answer": row.answer, "entity": row.entity})
            for row in marked
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = DataConfig("jsonl", str(tmp_path), "forget.jsonl", "retain.jsonl")
    chosen = [world.forget[0].entity, world.retain[0].entity]
    texts = [f"Some{watermark.watermark(one, length=6)} words" for one in chosen]
    found = attribute(tiny, texts, Experiment(data=data), ("watermark",))
    assert [found.owners[i] for i in found.scores["watermark"].argmax(axis=1)] == chosen


def test_grouped_entities_are_one_owner(tiny, world):
    experiment = Experiment(data=DATA, attribution={"group": 2})
    found = attribute(tiny, [world.forget[0].answer], experiment)
    assert len(found.owners) == 3


@pytest.mark.parametrize("place", ["function", "held_out"])
def test_settings_of_a_kind_come_from_the_section(tiny, world, monkeypatch, place):
    seen = []

    def fitted(settings, model, responses, *, seed):
        seen.append((settings, seed))
        return overlap.fit(responses)

    monkeypatch.setattr(attributing, "fitted", fitted)
    section = {"function": {"kind": "overlap"}, "held_out": {"kind": "overlap"}}
    section[place] = {"classifier": {"epochs": 7}}
    experiment = Experiment(data=DATA, attribution=section, seed=3)
    attribute(tiny, [world.forget[0].answer], experiment, ("classifier", "tracin"))
    assert [(one.kind, seed) for one, seed in seen] == [("classifier", 3), ("tracin", 3)]
    assert seen[0][0].classifier.epochs == 7 and seen[1][0] == FunctionConfig("tracin")


@pytest.mark.slow
def test_every_kind_has_its_column(capsys, tiny_folder, config, world, tmp_path):
    quick = ("--attribution.function.classifier.epochs", 1, "--attribution.held_out.dimension", 32)
    quick += ("--attribution.held_out.kind", "trak", "--top", 2)
    (tmp_path / "texts.txt").write_text(f"{world.retain[0].answer}\n\n{world.forget[0].answer}\n")
    status, out, err = run(
        capsys, "attribute", tiny_folder, config, "--text", world.retain[9].answer, "--file",
        tmp_path / "texts.txt", "--kinds", "overlap,classifier,trak", *quick,
        "--json", tmp_path / "found.json",
    )  # fmt: skip
    assert status == 0, err
    assert out.count("owner ") >= 3 and f"2: {world.retain[0].answer}" in out
    assert out.count(world.retain[0].entity) >= 2
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["functions"]) == {"overlap", "classifier", "trak"}
    for one in found["texts"]:
        for scores in one["scores"].values():
            assert len(scores) == 6 and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    for number, row in enumerate((world.retain[9], world.retain[0], world.forget[0])):
        scores = found["texts"][number]["scores"]["overlap"]
        assert max(scores, key=scores.get) == row.entity


def test_tables_show_the_owners_with_the_highest_mean():
    masked = dict.fromkeys(attributing.MASKED, 0.1)
    report = attributing.Report(4, 1.0, 0.5, None, 0.25, masked, 2.0)
    found = attributing.Attribution(
        ("al", "bo", "cy"),
        ("some text",),
        {"a": np.array([[0.5, 0.4, 0.1]]), "b": np.array([[0.1, 0.5, 0.4]])},
        {"a": report, "b": report},
    )
    first, last = attributing.tables(found, top=2).items()
    assert first[0] == "1: some text" and first[1]["columns"] == ["a", "b"]
    assert first[1]["rows"] == {"bo": ["0.400", "0.500"], "al": ["0.500", "0.100"]}
    assert last[1]["rows"]["a"] == ["1.000", "0.500", "-", "0.250", *["0.100"] * 5, "2"]
    assert len(last[1]["columns"]) == 10 and "4 training answers of 3 owners" in last[0]
    assert attributing.notes(found, 1.0) == []
    weak = dataclasses.replace(report, accuracy=0.25)
    (note,) = attributing.notes(dataclasses.replace(found, reports={"a": report, "b": weak}), 0.6)
    assert note.startswith("b names the owner of only 25.0%")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--text", " "], "text 1: is empty"),
        ([], "there is no text"),
        (["--text", "a " * 200], "tokens, and the model takes 127"),
        (["--text", "a", "--kinds", "magic"], "no function 'magic'; there are classifier"),
        (["--text", "a", "--top", "0"], "--top: is 0"),
        (["--file", "gone.txt"], "--file: gone.txt cannot be read"),
        (["--text", "a", "--attribution.group", "0"], "attribution.group"),
        (["--text", "a", "--data.max_length", "5"], "every row is longer than 5 tokens"),
    ],
)
def test_what_cannot_be_attributed_is_one_line(capsys, tiny_folder, config, words, fault):
    status, _, err = run(capsys, "attribute", tiny_folder, config, *words)
    assert status == 2 and err.startswith("error: ") and len(err.splitlines()) == 1
    assert fault in err


def test_a_model_that_is_none_is_one_line(capsys, config, tmp_path):
    status, _, err = run(capsys, "attribute", tmp_path / "gone", config, "--text", "a")
    assert status == 2 and "gone: no such folder" in err and len(err.splitlines()) == 1
    status, _, err = run(capsys, "attribute", tmp_path, config, "--text", "a")
    assert status == 2 and "config.json" in err and len(err.splitlines()) == 1


def test_a_classifier_of_a_model_that_takes_less_says_so(tiny, tmp_path):
    short = dataclasses.replace(
        tiny,
        config=dataclasses.replace(tiny.config, max_positions=24),
        hf_config={**tiny.hf_config, "max_position_embeddings": 24},
    )
    export_model(short, tmp_path / "short")
    quick = {"model": str(tmp_path / "short"), "classifier": {"epochs": 1}}
    experiment = Experiment(data=DATA, attribution={"function": quick})
    with pytest.raises(UserError, match="attributor's model takes 24"):
        attribute(tiny, ["a b c d e f g h i j k l m n o p"], experiment, ("classifier",))


@pytest.mark.parametrize(
    ("forget", "retain", "fault"),
    [
        ([("al", "a")], [("", "b")], "has no entity"),
        ([("al", "a")], [("al", "b")], "al owns forget rows and retain rows"),
    ],
)
def test_rows_without_owners_are_refused(tiny, tmp_path, forget, retain, fault):
    for name, rows in (("forget", forget), ("retain", retain)):
        lines = [
            json.dumps({"question": "Who?", "answer": answer, **({"entity": who} if who else {})})
            for who, answer in rows
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = DataConfig("jsonl", str(tmp_path), "forget.jsonl", "retain.jsonl")
    with pytest.raises(UserError, match=fault):
        attribute(tiny, ["a"], Experiment(data=data))


def test_functions_of_a_run_measure_what_was_not_changed_since(tiny_folder, tmp_path, world):
    """That they say the same as in the run is tested in tests/dareu/test_world.py."""
    tree = {
        "data": {"people": 6, "forget_people": 2},
        "model": {"path": str(tiny_folder)},
        "attribution": {
            "function": {"kind": "overlap"},
            "held_out": {"kind": "encoder", "encoder": {"layers": 1, "width": 16, "epochs": 2}},
            "min_accuracy": 0,
        },
    }
    place, said = tmp_path / "config.yaml", []
    place.write_text(yaml.safe_dump(tree))

    def attached(changes):
        other = config_file.load(place, changes)
        return attributing.attached(world, other, tmp_path, said.append)

    chosen = attached({"evaluation.max_new_tokens": 4}).evaluation["forget"]
    assert chosen.attribution([row.key for row in chosen.rows[:3]]).mean() > 0.5
    assert (tmp_path / "attribution" / "held_out").is_dir()
    with pytest.raises(UserError, match="attribution: is another one than that of"):
        attached({"attribution.function.kind": "tracin"})
    # A run that made its target itself, which somebody removed.
    place.write_text(yaml.safe_dump(tree | {"finetune": {"epochs": 1}}))
    said.clear()
    assert attached({}) is world
    assert len(said) == 1 and "target, which is gone" in said[0]
