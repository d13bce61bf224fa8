"""What is said of several runs together."""

import pytest

from jaxunlearn.config import Experiment, ModelConfig
from jaxunlearn.evaluation import report
from jaxunlearn.sweeping.summary import over_seeds


def done(settings, *, base=None, **values):
    """A run, whose model `npo` has these values of metrics."""
    models = {
        name: {key: {"value": value, "n": 7, "ci": None} for key, value in numbers.items()}
        for name, numbers in {"target": base or {}, "npo": values}.items()
    }
    seed = settings.get("seed", 0)
    training = {"npo": {"steps": 3, "tokens_per_second": 10, "selected_step": seed}}
    return settings, Experiment(seed=seed), {"models": models, "training": training, "config": {}}


def test_means_over_seeds_by_hand():
    told = over_seeds(
        "s", [done({"seed": seed}, rouge=value) for seed, value in enumerate((0.1, 0.4, None))]
    )
    entry = told["models"]["npo"]["rouge"]
    assert entry["value"] == pytest.approx(0.25)
    assert (entry["n"], entry["seeds"], told["seeds"]) == (7, 2, ["0", "1", "2"])
    assert entry["ci"] == [0.1, 0.4] and entry["sd"] == pytest.approx(0.3 / 2**0.5)
    assert told["training"]["npo"] == {"steps": 3, "tokens_per_second": 10}
    assert "runs: 3; means over seeds 0, 1, 2" in told["notes"][0]


def test_other_settings_stay_apart_and_the_target_counts_once():
    runs = [
        done({"method.beta": beta, "seed": seed}, base={"rouge": float(seed)}, rouge=beta + seed)
        for beta in (1, 5)
        for seed in (0, 1)
    ]
    told = over_seeds("s", runs)
    assert {name: m["rouge"]["value"] for name, m in told["models"].items()} == {
        "target": 0.5, "npo beta-1": 1.5, "npo beta-5": 5.5,
    }  # fmt: skip
    assert told["models"]["target"]["rouge"]["seeds"] == 2
    assert told["primary"] == "npo beta-5"


def test_targets_of_other_data_stay_apart():
    runs = []
    for people in (10, 20):
        settings, one, summary = done({"data.people": people}, base={"rouge": people})
        tree = {"data": {"people": people}}
        runs.append((settings, Experiment(seed=one.seed, **tree), summary))
    assert [name for name in over_seeds("s", runs)["models"] if "target" in name] == [
        "target people-10", "target people-20",
    ]  # fmt: skip


def test_a_model_that_is_there_is_the_same_for_all_seeds():
    runs = []
    for seed in (0, 1):
        settings, _, summary = done({"seed": seed}, base={"rouge": 0.5})
        given = Experiment(seed=seed, model=ModelConfig(path="x"), data={"format": "muse"})
        runs.append((settings, given, summary))
    assert over_seeds("s", runs)["models"]["target"]["rouge"]["seeds"] == 1


def test_what_no_other_one_beats_is_marked():
    numbers = {1: (0.9, 0.5), 2: (0.8, 0.2), 3: (0.7, 0.3), 4: (0.9, 0.6)}
    runs = [
        done(
            {"method.beta": beta}, base={"model_utility": 1.0, "forget_rouge": 0.0},
            model_utility=utility, forget_rouge=rouge,
        )
        for beta, (utility, rouge) in numbers.items()
    ]  # fmt: skip
    told = over_seeds("s", runs)
    # Less ROUGE-L on forget rows is better; the target does not compete.
    assert told["pareto"] == {
        "forget": "forget_rouge", "utility": "model_utility",
        "models": ["npo beta-1", "npo beta-2"],
    }  # fmt: skip
    (names,) = [list(column.cells) for column in report.table(told).columns[:1]]
    assert [str(name).endswith("◆") for name in names] == [False, True, True, False, False]
    assert over_seeds("s", runs[:1])["notes"][1].startswith("◆: no other one is better")


def test_nothing_is_marked_where_utility_is_not_measured():
    told = over_seeds("s", [done({"seed": 0}, forget_rouge=0.5)])
    assert told["pareto"] is None and len(told["notes"]) == 1
