"""The built-in world with neighbours, small: what arXiv 2509.05316 finds of its sampling practices.

The full size and three seeds are in `experiments/melu`; here a fifth of it, one seed, and bounds
with room. Never asserted: that MELU forgets more than cyclic sampling.
"""

import pytest

from jaxunlearn import config_file, experiment

SAMPLINGS = {
    "sequential": {"name": "sequential"},
    "cyclic": {"name": "cyclic"},
    "melu": {"name": "melu"},
    "matched": {"name": "sequential", "match_steps": "cyclic"},
}
CONFIG = {
    "data.world": "neighbours",
    "data.scale": 0.2,
    "model.hidden_size": 96,
    "model.num_layers": 2,
    "model.num_kv_heads": 4,
    "model.intermediate_size": 256,
    "retrain": False,
    "finetune": {"epochs": 100, "batch_size": 32, "learning_rate": 2e-3},
    "training": {"epochs": 4, "batch_size": 8, "learning_rate": 2e-4, "warmup": 0},
    "evaluation": {"suite": "melu", "max_new_tokens": 16},
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    methods = [
        {"name": name, "label": f"{name}-{sampling}", "sampling": SAMPLINGS[sampling]}
        for name in ("grad_diff", "dpo", "npo")
        for sampling in SAMPLINGS
    ]
    output = str(tmp_path_factory.mktemp("melu"))
    changes = {**CONFIG, "output": output, "baselines": methods[:-1], "method": methods[-1]}
    return experiment.run(config_file.load(None, changes))


@pytest.fixture(scope="module")
def value(summary):
    return lambda model, metric: summary["models"][model][metric]["value"]


@pytest.mark.slow
def test_the_target_knows_everything(value):
    assert value("target", "forget_efficacy") < 0.05
    assert value("target", "utility_test") > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_diff", "dpo", "npo"])
def test_pairs_of_one_to_one_hardly_forget_and_the_others_do(value, summary, method):
    few = value(f"{method}-sequential", "forget_efficacy")
    for sampling in ("cyclic", "melu"):
        assert value(f"{method}-{sampling}", "forget_efficacy") > max(0.6, few + 0.3)
    # With as many steps they forget as well: it was the steps.
    assert value(f"{method}-matched", "forget_efficacy") > 0.6
    steps = {name: took["steps"] for name, took in summary["training"].items()}
    assert steps[f"{method}-cyclic"] == steps[f"{method}-matched"] == steps[f"{method}-melu"]
    assert steps[f"{method}-cyclic"] > 10 * steps[f"{method}-sequential"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_diff", "npo"])
def test_seeing_few_retain_rows_often_costs_utility(value, method):
    assert value(f"{method}-matched", "utility_test") < (
        value(f"{method}-cyclic", "utility_test") - 0.1
    )


@pytest.mark.slow
def test_only_dpo_refuses(value):
    assert value("dpo-melu", "forget_refusal_rate") > 0.5
    assert value("npo-melu", "forget_refusal_rate") < 0.3


@pytest.mark.slow
def test_schedules_say_how_they_pair(summary):
    took = summary["training"]
    assert took["npo-melu"]["same_entity_rate"] == 1.0
    assert took["npo-cyclic"]["same_entity_rate"] < 0.6
    exposures = took["npo-cyclic"]["forget_exposures"]
    assert exposures["max"] - exposures["min"] <= 4  # one an epoch at most
