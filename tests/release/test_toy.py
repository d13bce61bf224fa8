"""The toy experiment in small: one task, one seed, the controls that tell most."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import config_file, experiment

CONFIG = Path(__file__).parents[2] / "experiments" / "reveal_release" / "toy.yaml"
KEPT = ("location_score", "organisation_score")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Summary and folder of forgetting persons."""
    folder = tmp_path_factory.mktemp("toy")
    tree = config_file.load(CONFIG)
    wanted = ("retain_only", "one_shot", "random", "orthogonal")
    places = [i for i, one in enumerate(tree.baselines) if one.label in wanted]
    assert len(places) == len(wanted)
    import yaml

    plain = yaml.safe_load(CONFIG.read_text())
    baselines = [plain["baselines"][place] for place in places]
    settings = config_file.load(CONFIG, {"output": str(folder), "baselines": baselines})
    return experiment.run(settings), folder / settings.name


def value(summary, model, metric):
    return summary["models"][model][metric]["value"]


def kept(summary, model):
    return np.mean([value(summary, model, metric) for metric in KEPT])


@pytest.mark.slow
def test_iterating_forgets_and_keeps(run):
    summary, _ = run
    before = value(summary, "target", "forget_score")
    assert 0.7 < before < 0.9
    assert value(summary, "iterated", "forget_score") <= 0.15
    assert kept(summary, "iterated") >= 0.5
    assert kept(summary, "iterated") >= kept(summary, "one_shot") + 0.08
    for control in ("retain_only", "random"):
        assert value(summary, control, "forget_score") >= before - 0.15


@pytest.mark.slow
def test_less_and_less_is_revealed_until_nothing_is_left(run):
    iterations = run[0]["release"]["iterated"]
    fractions = [one["kept_fraction"] for one in iterations]
    assert (np.diff(fractions) <= 0.05).all() and fractions[-1] < 0.05
    assert "nothing is left to reveal" in iterations[-1]["ended"]
    assert not iterations[-1]["used"]


@pytest.mark.slow
def test_a_penalty_takes_the_overlap_of_what_is_read_and_not_of_what_is_written(run):
    """And the forget adapter learns as well with it."""
    summary, folder = run
    plain, apart = (summary["release"][name][0]["overlap"] for name in ("iterated", "orthogonal"))
    assert apart["a_subspace"] <= 0.001 < plain["a_subspace"]
    assert apart["b_subspace"] == pytest.approx(plain["b_subspace"], abs=0.05)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {
        name: np.mean([
            one["train_loss"] for one in lines
            if one["model"] == f"{name}@forget-1" and one["step"] > 80
        ])
        for name in ("iterated", "orthogonal")
    }  # fmt: skip
    assert last["orthogonal"] == pytest.approx(last["iterated"], abs=0.05)


@pytest.mark.slow
def test_the_report_shows_the_iterations(run):
    page = (run[1] / "report.html").read_text()
    assert "Iteration after iteration" in page and "iterated, 2" in page
