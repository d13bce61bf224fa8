"""Successive halving: how many rungs there are, who goes on, and a real sweep."""

import json
from pathlib import Path

import pytest
import yaml

from jaxunlearn import experiment
from jaxunlearn.cli import main
from jaxunlearn.config import Experiment
from jaxunlearn.config_file import load
from jaxunlearn.errors import UserError
from jaxunlearn.sweeping.rungs import Halving, Rung, climb, plan, ranked, shortened, table
from jaxunlearn.sweeping.running import run
from jaxunlearn.sweeping.settings import expand
from jaxunlearn.training.step import steps_in_jit

SMALL = {
    "data": {"people": 4, "forget_people": 1},
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2,
              "vocab_size": 300},
    "finetune": {"epochs": 1},
    "adapter": {"rank": 2, "alpha": 4},
    "training": {"epochs": 2, "batch_size": 4},
    "evaluation": {"max_new_tokens": 2, "limit": 2},
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def settings(config, count, seeds=1, **overrides):
    rates = [10.0 ** -(i + 1) for i in range(count)]
    grid = {"training.learning_rate": rates, "seed": list(range(seeds))}
    return expand(config, grid, overrides)


def done(settings, **values):
    """A run whose main method has these values of metrics."""
    models = {
        name: {key: {"value": value, "n": 7, "ci": None} for key, value in values.items()}
        for name in ("target", "npo")
    }
    summary = {"models": models, "primary": "npo", "config": {}}
    return settings, Experiment(seed=settings.get("seed", 0)), summary


@pytest.mark.parametrize(
    ("count", "epochs", "factor", "rungs"),
    [
        (9, 9, 3, [(9, 9), (3, 3), (1, 1)]),
        (8, 9, 3, [(3, 8), (1, 3)]),  # of 8 settings two thirds can drop out only once
        (10, 30, 3, [(9, 10), (3, 4), (1, 2)]),
        (5, 30, 2, [(4, 5), (2, 3), (1, 2)]),
        (3, 3, 3, [(3, 3), (1, 1)]),
        (16, 5, 2, [(4, 16), (2, 8), (1, 4)]),  # an eighth of 5 epochs is none
    ],
)
def test_rungs_by_hand(config, count, epochs, factor, rungs):
    runs = settings(config, count, seeds=2, **{"training.epochs": epochs})
    assert plan(runs, Halving(factor)) == [Rung(part, left) for part, left in rungs]


@pytest.mark.parametrize(
    ("halving", "count", "overrides", "words"),
    [
        (Halving(1), 4, {}, "--halving 1: use 2 or more"),
        (Halving(3), 2, {"training.epochs": 9}, "needs 3 settings or more, and there are 2 "),
        (Halving(3), 4, {}, "needs 3 epochs or more, and a training has 2; raise"),
        (Halving(2), 4, {"sampling.match_steps": 20}, "sampling.match_steps is 20"),
        (Halving(2), 4, {"method.training": {"epochs": 1}}, "a training has 1;"),
        (Halving(2), 4, {"method.name": "reveal_release"}, "reveal_release goes on for as many"),
        (Halving(2, "rouge"), 4, {}, "--halving-by: suite tofu has no rouge on this data"),
        (Halving(2, "forget_refusal_rate"), 4, {}, "forget_refusal_rate has no better direction"),
        (Halving(2), 4, {"evaluation.suite": "privacy"}, "--halving: suite privacy has no .*-by"),
    ],
)
def test_what_cannot_be_halved_is_refused_before_anything_runs(
    config, halving, count, overrides, words
):
    with pytest.raises(UserError, match=words):
        run(settings(config, count, seeds=2, **overrides), halving=halving)
    assert not Path("runs").exists()


def test_steps_that_another_sampler_takes_follow_the_epochs(config):
    runs = settings(config, 4, **{"sampling.match_steps": "sequential"})
    assert plan(runs, Halving(2)) == [Rung(2, 4), Rung(1, 2)]


def test_every_training_is_shortened_and_nothing_else(config):
    tree = {
        "training": {"epochs": 10, "warmup": 0.2}, "finetune": {"epochs": 48},
        "method": {"name": "npo", "training": {"epochs": 7, "learning_rate": 0.1}},
        "baselines": [{"name": "simnpo"}, {"name": "npo", "training": {"epochs": 3}}],
    }  # fmt: skip
    config.write_text(yaml.safe_dump(tree))
    one = load(config, {"output": "runs/mine", "name": "beta-1"})
    short = shortened(one, 3)
    assert (short.output, short.name) == ("runs/mine/rungs/1-of-3", "beta-1")
    assert (short.training.epochs, short.training.warmup) == (3, 0.2)
    assert short.method.training == {"epochs": 2, "learning_rate": 0.1}
    assert [method.training for method in short.baselines] == [{}, {"epochs": 1}]
    assert short.finetune == one.finetune and short.method.hyper == one.method.hyper


def test_a_ranking_by_hand_of_means_over_seeds():
    """Less ROUGE-L is more forgetting; d is beaten by a alone, c by all."""
    numbers = {"a": (0.6, 0.3), "b": (0.9, 0.8), "c": (0.5, 0.9), "d": (0.5, 0.4), "e": (0.1, 0.1)}
    runs = [
        done({"method.name": name, "seed": seed}, model_utility=utility + shift, forget_rouge=rouge)
        for name, (utility, rouge) in numbers.items()
        for seed, shift in enumerate((-0.05, 0.05))
    ]
    runs.append(done({"method.name": "x"}, model_utility=None, forget_rouge=0.0))
    by, values, order = ranked(runs, Halving(2))
    # Utility times forgetting of the first front: a .42, b .18, e .09; beside a, b adds .3 * .2
    # and e .1 * .2.
    assert order == ["name-a", "name-b", "name-e", "name-d", "name-c"]
    assert by == ["forget_rouge", "model_utility"]
    assert values["name-a"] == pytest.approx({"forget_rouge": 0.3, "model_utility": 0.6})
    # One metric, down and up; of equal ones the first.
    assert ranked(runs, Halving(2, "forget_rouge"))[2] == [
        "name-x", "name-e", "name-a", "name-d", "name-b", "name-c",
    ]  # fmt: skip
    assert ranked(runs, Halving(2, "model_utility"))[2] == [
        "name-b", "name-a", "name-c", "name-d", "name-e",
    ]  # fmt: skip


def test_who_goes_on(config):
    """A setting of which a seed fails drops out, and so does one without the number; where fewer
    are left than may go on, these do."""
    runs = settings(config, 5, seeds=2)
    names = [one.name.removesuffix("-seed-0") for of, one in runs if of["seed"] == 0]
    asked, said = [], []

    def finish(rung):
        asked.append([one for _, one in rung])
        values = [0.5, 0.4, None, 0.2, 0.1]
        found, faults = [], {}
        for (of, one), value in zip(rung, [v for v in values for _ in range(2)], strict=True):
            if one.name == f"{names[4]}-seed-1":
                faults["place"] = "it broke"
            else:
                found.append(done(of, forget_rouge=value))
        return found, faults

    halving = Halving(2, "forget_rouge")
    planned = plan(runs, halving)
    assert planned == [Rung(2, 5), Rung(1, 3)]
    left, ladder, failed = climb(runs, planned, halving, finish, said.append)
    assert [one.training.epochs for one in asked[0]] == [1] * 10 and len(asked) == 1
    assert left == [pair for pair in runs if pair[1].name.rsplit("-seed", 1)[0] in
                    (names[0], names[1], names[3])]  # fmt: skip
    assert failed == {"place": "it broke"}
    first, last = ladder["rungs"]
    assert first["settings"] == {
        names[0]: {"rank": 3, "goes_on": True, "values": {"forget_rouge": 0.5}},
        names[1]: {"rank": 2, "goes_on": True, "values": {"forget_rouge": 0.4}},
        names[2]: {},
        names[3]: {"rank": 1, "goes_on": True, "values": {"forget_rouge": 0.2}},
        names[4]: {"failed": True},
    }
    assert list(last["settings"]) == [names[0], names[1], names[3]]
    assert (ladder["by"], ladder["factor"], ladder["rungs_left_out"]) == (["forget_rouge"], 2, 1)
    assert said == [
        "successive halving: 1 more rung would begin with less than an epoch",
        "rung 1 of 2: 5 settings, 1 epoch",
        "rung 2 of 2: 3 settings, 2 epochs",
    ]
    told = table(ladder)
    assert told["columns"] == ["1 epoch", "2 epochs, this report"]
    assert told["rows"][names[3]] == ["1, goes on (forget rouge 0.200)", "trained"]
    assert told["rows"][names[2]] == ["not measured", ""] and told["rows"][names[4]][0] == "failed"


def test_nothing_left_to_go_on(config):
    runs = settings(config, 4)
    halving, planned = Halving(2, "forget_rouge"), [Rung(2, 4), Rung(1, 2)]

    def unmeasured(rung):
        return [done(of, forget_rouge=None) for of, _ in rung], {}

    with pytest.raises(UserError, match="rung 1 has no setting with numbers for forget_rouge"):
        climb(runs, planned, halving, unmeasured)
    with pytest.raises(UserError, match="every setting failed; here: it broke"):
        climb(runs, planned, halving, lambda rung: ([], {"here": "it broke"}))


@pytest.mark.slow
def test_a_sweep_that_was_cut_off_ends_as_a_whole_one(config, monkeypatch, capsys):
    """Of four rates the last one diverges; all rungs have one target and one program."""
    grid = {"training.learning_rate": [1e-4, 1e-1, 1e-2, 1e38]}
    halving = Halving(2, "forget_probability")
    made, ran, prepare, whole_run = [], [], experiment.prepare, experiment.run

    def cut(one):
        ran.append(one.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return whole_run(one)

    monkeypatch.setattr(experiment, "prepare", lambda one: (made.append(one.name), prepare(one)))
    steps_in_jit.clear_cache()
    summary, failed = run(expand(config, grid, {"output": "whole"}), halving=halving)
    assert steps_in_jit._cache_size() == 2  # of fine-tuning and of unlearning
    assert len(made) == 1
    monkeypatch.setattr(experiment, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        run(expand(config, grid, {}), halving=halving)
    monkeypatch.setattr(experiment, "run", whole_run)
    again, failed_again = run(expand(config, grid, {}), halving=halving)
    for key in ("models", "halving", "failed", "notes", "pareto"):
        assert again[key] == summary[key], key
    assert failed == failed_again and len(failed) == 1
    assert failed[0].startswith("rungs/1-of-2/learning_rate-1e+38: npo")
    # Who went on is what the summaries of the first rung say.
    folder = Path("runs/small")
    values, told = {}, json.loads((folder / "sweep.json").read_text())
    for path in folder.glob("rungs/1-of-2/*/summary.json"):
        one = json.loads(path.read_text())
        assert one["config"]["training"]["epochs"] == 1
        values[one["name"]] = one["models"]["npo"]["forget_probability"]["value"]
    assert len(set(values.values())) == 3
    best = sorted(values, key=values.get)[:2]
    first, last = told["halving"]["rungs"]
    assert {name for name, one in first["settings"].items() if one.get("goes_on")} == set(best)
    assert first["settings"]["learning_rate-1e+38"] == {"failed": True}
    assert set(last["settings"]) == set(best) == {
        path.parent.name for path in folder.glob("*/summary.json")
    }  # fmt: skip
    assert set(told["models"]) == {"target", "retrained", *(f"npo {name}" for name in best)}
    page = (folder / "report.html").read_text()
    assert "Successive halving" in page and "of which this is" in page
    # A plain sweep finds one of them done, and says that the other is not in its report.
    options = ["--grid", f"training.learning_rate={best[0].removeprefix('learning_rate-')}"]
    monkeypatch.setattr("jaxunlearn.training.loop._advance", pytest.fail)
    assert main(["sweep", str(config), *options]) == 0
    assert "1 finished run of other settings" in capsys.readouterr().out


def test_a_metric_to_rank_by_needs_a_factor(config, capsys):
    assert main(["sweep", str(config), "--grid", "seed=0,1", "--halving-by", "forget_rouge"]) == 2
    assert "--halving-by: is for --halving" in capsys.readouterr().err
    options = ["--grid", "method.beta=1,2", "--halving", "2", "--halving-by", "forget_speed"]
    assert main(["sweep", str(config), *options]) == 2
    assert "--halving-by: suite tofu has no forget_speed" in capsys.readouterr().err
    assert not Path("runs").exists()
