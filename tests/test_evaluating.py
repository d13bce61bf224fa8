"""`jaxunlearn evaluate`: logs of open-unlearning in the place of a retrained model, and faults."""

import json

import pytest
import yaml

from jaxunlearn import cli


@pytest.fixture
def tofu(tmp_path):
    """A folder in TOFU's layout: two authors, of whom one is to be forgotten."""

    def rows(names, **more):
        return [{"question": f"Who is {n}?", "answer": f"{n} is a cook.", **more} for n in names]

    wrong = {
        "paraphrased_answer": "A cook it is.",
        "perturbed_answer": ["A nun it is.", "A fox it is."],
    }
    folder = tmp_path / "tofu"
    folder.mkdir()
    for name, found in {
        "forget01": rows(("Ann", "Bob")),
        "retain99": rows(("Cid", "Dan", "Eve")),
        "forget01_perturbed": rows(("Ann", "Bob"), **wrong),
        "retain_perturbed": rows(("Cid", "Dan"), **wrong),
        "real_authors_perturbed": rows(("Joyce",), **wrong),
        "world_facts_perturbed": rows(("Rome",), **wrong),
        "other": rows(("Zoe", "Yan")),
    }.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, found)))
    return folder


@pytest.fixture
def config(tmp_path, tofu, tiny_folder):
    tree = {
        "model": {"path": str(tiny_folder)},
        "data": {
            "format": "tofu",
            "path": str(tofu),
            "forget": "forget01",
            "retain": "retain99",
            "holdout": "other",
        },
        "evaluation": {"max_new_tokens": 4},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def evaluate(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_our_logs_are_a_retrained_model_for_others(config, tiny_folder, tmp_path, capsys):
    logs, numbers = tmp_path / "logs", tmp_path / "n.json"
    own = ("--evaluation.compat", "open-unlearning")
    assert evaluate(tiny_folder, config, *own, "--logs", logs) == 0
    theirs = json.loads((logs / "TOFU_EVAL.json").read_text())
    assert len(theirs["forget_truth_ratio"]["value_by_index"]) == 2
    assert theirs["ra_Q_A_Prob_normalised"]["value_by_index"]["0"]["prob"] == pytest.approx(
        theirs["ra_Q_A_Prob_normalised"]["agg_value"]
    )
    log = logs / "TOFU_EVAL.json"
    flags = ("--evaluation.retain_log", log, "--json", numbers)
    assert evaluate(tiny_folder, config, *own, *flags) == 0
    found = json.loads(numbers.read_text())
    # The model beside its own log.
    assert found["forget_quality"]["value"] == 1.0
    assert found["priv_leak"]["value"] == 0.0
    capsys.readouterr()
    before = log.read_bytes()
    assert evaluate(tiny_folder, config, "--logs", logs) == 2
    assert "is there already" in capsys.readouterr().err and log.read_bytes() == before
    # Another split: other rows, and another number of rows.
    other = ("--data.forget", "other", "--data.holdout", "null")
    plain = ("--evaluation.suite", "custom", "--evaluation.retain_log", log)
    assert evaluate(tiny_folder, config, *other, *plain) == 2
    assert "row 0: input is" in capsys.readouterr().err
    swapped = ("--data.forget", "retain99", "--data.retain", "forget01", *plain)
    assert evaluate(tiny_folder, config, *swapped) == 2
    assert "has 2 forget rows, the forget set 3" in capsys.readouterr().err
    both = ("--model.retrained", tiny_folder, "--evaluation.retain_log", log)
    assert cli.main(["run", config, *map(str, both), "--output", str(tmp_path / "runs")]) == 2
    assert "there is a retrained model too" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["forget01", "retain", "world_facts"])
def test_a_missing_perturbed_file_is_named(config, tofu, tiny_folder, capsys, name):
    (tofu / f"{name}_perturbed.json").unlink()
    if name == "world_facts":
        (tofu / "world_facts.json").write_text('{"question": "Where?", "answer": "Rome"}')
    assert evaluate(tiny_folder, config) == 2
    fault = capsys.readouterr().err
    assert f"{name}_perturbed" in fault and str(tofu) in fault and fault.count("\n") == 1
    assert evaluate(tiny_folder, config, "--evaluation.suite", "memory") == 0


def test_a_holdout_of_forget_rows_is_refused(config, tiny_folder, capsys):
    assert evaluate(tiny_folder, config, "--data.holdout", "forget01") == 2
    assert "is also a forget row" in capsys.readouterr().err


def test_an_option_list_of_one_is_refused(config, tmp_path, tiny_folder, capsys):
    (tmp_path / "quiz.jsonl").write_text('{"question": "Q", "choices": ["x"], "answer": 0}\n')
    sets = ("--data.sets", f"{{quiz: {{path: {tmp_path / 'quiz.jsonl'}}}}}")
    assert evaluate(tiny_folder, config, *sets) == 2
    assert "quiz.jsonl:1" in capsys.readouterr().err
