"""The best learning rates of a run, and the questions in other words."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from jaxunlearn.config_file import load
from jaxunlearn.data.rows import Row
from jaxunlearn.experiment import labels

FOLDER = Path(__file__).parents[2] / "experiments" / "dareu"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_further_seeds_have_the_best_rate_of_each_method(tmp_path):
    def rates(name, *known):
        chosen = [{"name": name, "label": f"{name}_{r}"} for r in known]
        return [
            {**one, "training": {"learning_rate": float(r)}}
            for one, r in zip(chosen, known, strict=True)
        ]

    tree = {
        "name": "seed-0",
        "output": "runs/some",
        "finetune": {"epochs": 7},
        "method": rates("npo", "1e-2")[0],
        "baselines": [
            *rates("npo", "1e-3", "3e-2"),
            *rates("simnpo", "1e-3"),
            *rates("dpo", "1e-3"),
        ],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    values = {"target": 0.1, "npo_1e-2": 0.3, "npo_1e-3": 0.6, "npo_3e-2": None, "simnpo_1e-3": 0.2,
              "dpo_1e-3": 0.9}  # fmt: skip
    models = {label: {"tow_star": {"value": value}} for label, value in values.items()}
    (tmp_path / "summary.json").write_text(json.dumps({"models": models}))
    one, two = script("chosen").further(tmp_path, (1, 4), without=["dpo"])
    assert list(labels(one)) == list(labels(two)) == ["npo_1e-3", "simnpo_1e-3"]
    assert [(x.seed, x.name, x.output) for x in (one, two)] == [
        (1, "seed-1", "runs/some"), (4, "seed-4", "runs/some")
    ]  # fmt: skip
    assert labels(one)["npo_1e-3"].training == {"learning_rate": 1e-3}
    assert one.finetune == load(tmp_path / "config.yaml").finetune


def test_a_fact_is_asked_for_by_its_other_question():
    reworded = script("reworded").reworded
    row = Row("Who taught Ada?", "Bo", entity="Ada")
    other = reworded(row)
    assert (other.question, other.answer) == ("Who was the teacher of Ada?", "Bo")
    assert reworded(other) == row
    with pytest.raises(SystemExit, match="no question of the built-in world"):
        reworded(Row("Who?", "Bo", entity="Ada"))
