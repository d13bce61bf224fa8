"""DareU as a run: the experiment's config on a smaller world, one seed."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import cli
from jaxunlearn.attacks import models as models_of
from jaxunlearn.config_file import load
from jaxunlearn.experiment import run
from jaxunlearn.progress import Bars
from jaxunlearn.run_modules import open_run

CONFIG = Path(__file__).parents[2] / "experiments" / "dareu" / "world.yaml"


@pytest.mark.slow
def test_a_model_forgets_and_still_answers(tmp_path):
    """Bounds of the method's page, with slack for one seed; without the divergence from the start
    model on retain rows, the same training destroys what should stay."""
    shared = {"name": "dareu", "max_new_tokens": 16, "old_refresh": "batch", "samples": 4}
    shared |= {"updates": 4, "training": {"learning_rate": 2e-3}}
    experiment = load(
        CONFIG,
        {
            "data.people": 10,
            "data.forget_people": 2,
            "data.holdout_people": 0,
            "model.num_layers": 2,
            "output": str(tmp_path),
            "method": {**shared, "label": "dareu"},
            "baselines": [{**shared, "label": "not_held", "distill_weight": 0.0}],
        },
    )
    models = run(experiment)["models"]

    def value(model, metric):
        return models[model][metric]["value"]

    assert value("target", "forget_attribution_held_out") > 0.6
    assert value("retrained", "forget_attribution_held_out") < 0.1
    assert value("dareu", "forget_attribution_held_out") < 0.3
    assert value("dareu", "forget_attribution") < 0.3
    assert value("dareu", "forget_rouge") < value("retrained", "forget_rouge") + 0.3
    assert value("dareu", "retain_rouge") >= 0.95
    assert value("dareu", "forget_broken_rate") <= 0.1
    assert value("dareu", "tow_star") >= value("target", "tow_star") + 0.4
    assert value("retrained", "tow_star") == 1.0
    assert value("not_held", "retain_rouge") < 0.6
    place = tmp_path / "world"
    report = (place / "report.md").read_text()
    for name in ("tow star", "forget attribution held out", "forget broken rate"):
        assert name in report
    curves = (place / "report.html").read_text()
    assert "attribution held out" in curves
    assert sorted(path.name for path in (place / "attribution").iterdir()) == [
        "function", "held_out"
    ]  # fmt: skip
    # Afterwards the run's functions read the exported target, and say the same.
    numbers = tmp_path / "found.json"
    assert cli.main(["evaluate", str(place), "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    for name in ("forget_attribution", "forget_attribution_held_out"):
        assert found[name]["value"] == pytest.approx(value("dareu", name), abs=0.02)
    # A method that is not the main one is there again from its checkpoint.
    with Bars() as bars:
        *_, again = models_of.load(place, load(place / "config.yaml"), ["not_held"], bars)
    kept = open_run(place, "not_held").store.adapter("request_1")
    pairs = zip(*(jax.tree.leaves(x.factors) for x in (again[1].adapter, kept)), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
