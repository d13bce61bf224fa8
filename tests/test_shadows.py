"""The attack by shadow models: who learns what, what is kept, and an attack from start to end."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import shadows
from jaxunlearn.config import (
    EvaluationConfig,
    Experiment,
    MethodConfig,
    ModelConfig,
    RequestsConfig,
    TrainingConfig,
)
from jaxunlearn.data import synthetic
from jaxunlearn.data.rows import EvalSet
from jaxunlearn.progress import Bars
from jaxunlearn.stages import base_model
from jaxunlearn.training.step import steps_in_jit
from jaxunlearn.unlearning import finetune_rows

DATA = synthetic.build(people=6, forget_people=2, seed=0, holdout_people=2)
HOLDOUT = DATA.evaluation["holdout"].rows
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2}
EXPERIMENT = Experiment(
    model=ModelConfig(vocab_size=400, **SIZES),
    finetune=TrainingConfig(epochs=1, learning_rate=5e-3),
    method=MethodConfig(name="grad_diff"),
    training=TrainingConfig(epochs=1, batch_size=10),
    evaluation=EvaluationConfig(max_new_tokens=4),
)


def test_a_plan_halves_people():
    plan = shadows.plan(EXPERIMENT, DATA, 4)
    assert [row.key for row in plan.candidates] == [row.key for row in (*DATA.forget, *HOLDOUT)]
    assert {row.kind for row in plan.candidates} == {"forget"}
    for inside in plan.inside:
        people = {row.entity for row, chosen in zip(plan.candidates, inside, strict=True) if chosen}
        assert len(people) == 2
        assert inside.sum() == sum(row.entity in people for row in plan.candidates)


def no_holdout(data):
    sets = {name: part for name, part in data.evaluation.items() if name != "holdout"}
    return dataclasses.replace(data, evaluation=sets)


def one_person(data):
    forget, holdout = (
        tuple(dataclasses.replace(row, entity="Ada") for row in rows)
        for rows in (data.forget, HOLDOUT)
    )
    sets = {**data.evaluation, "holdout": EvalSet("holdout", holdout)}
    return dataclasses.replace(data, forget=forget, evaluation=sets)


@pytest.mark.parametrize(
    ("experiment", "data", "count", "words"),
    [
        (EXPERIMENT, DATA, 5, "--shadows: is 5; use an even number, at least 4"),
        (EXPERIMENT, DATA, 2, "--shadows: is 2"),
        (dataclasses.replace(EXPERIMENT, finetune=None), DATA, 4, "needs to train shadow models"),
        (EXPERIMENT, no_holdout(DATA), 4, "data.holdout: is missing"),
        (EXPERIMENT, one_person(DATA), 4, "is about Ada"),
    ],
)
def test_what_cannot_be_planned(experiment, data, count, words):
    with pytest.raises(ju.UserError) as caught:
        shadows.plan(experiment, data, count)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def keys(rows):
    return {row.key for row in rows}


@pytest.fixture
def untrained(monkeypatch, tiny):
    """Nothing is trained; returns what should have been, in order."""
    asked = []

    def finetuned(model, rows, chosen, experiment, training, *, checkpoints, **options):
        asked.append(("learn", keys(rows[i] for i in chosen), experiment.seed, None))
        checkpoints.mkdir(parents=True)
        return model

    def unlearned(model, forget, retain, experiment, method, *, utility, **options):
        watched = utility(model) if experiment.requests is not None else None
        asked.append(("unlearn", keys(forget), experiment.seed, watched))
        return model

    monkeypatch.setattr(shadows, "base_model", lambda *arguments: tiny)
    monkeypatch.setattr(shadows, "finetune_rows", finetuned)
    monkeypatch.setattr(shadows, "unlearn_rows", unlearned)
    return asked


def attack(folder, experiment, models, count=4, data=DATA):
    with Bars() as bars:
        return shadows.run(folder, shadows.plan(experiment, data, count), models, bars)


def test_each_shadow_learns_its_half_and_unlearns_it(tmp_path, untrained, tiny):
    attack(tmp_path, EXPERIMENT, {"unlearned": tiny})
    plan, others = shadows.plan(EXPERIMENT, DATA, 4), keys((*DATA.retain, *DATA.background))
    for number, inside in enumerate(plan.inside):
        half = {row.key for row, chosen in zip(plan.candidates, inside, strict=True) if chosen}
        learned, unlearned = untrained[2 * number : 2 * number + 2]
        assert learned == ("learn", half | others, number + 1, None)
        assert unlearned == ("unlearn", half, number + 1, None)


def test_requests_are_unlearned_one_after_another(tmp_path, untrained, tiny, monkeypatch):
    measured = SimpleNamespace(metrics={"model_utility": {"value": 0.25}})
    monkeypatch.setattr(shadows, "evaluate_model", lambda *arguments: measured)
    attack(
        tmp_path, dataclasses.replace(EXPERIMENT, requests=RequestsConfig()), {"unlearned": tiny}
    )
    first = keys(row for row in DATA.forget if row.entity == DATA.forget[0].entity)
    asked = [(rows, utility) for what, rows, _, utility in untrained if what == "unlearn"]
    assert len(asked) == 4 * 2 and asked.count((first, 0.25)) == 2


def test_the_statistic_is_the_log_odds_of_the_answer(tiny):
    with Bars() as bars:
        found = shadows._values(tiny, shadows.plan(EXPERIMENT, DATA, 4), bars)
    p = ju.evaluate(tiny, [HOLDOUT[5].key], max_new_tokens=2)["forget_probability"]
    np.testing.assert_allclose(found[len(DATA.forget) + 5], np.log(p / (1 - p)), rtol=1e-5)


def test_a_candidate_that_is_too_long_is_counted_out(tmp_path, untrained, tiny):
    long = dataclasses.replace(HOLDOUT[0], answer="word " * 300)
    sets = {**DATA.evaluation, "holdout": EvalSet("holdout", (long, *HOLDOUT[1:]))}
    data = dataclasses.replace(DATA, evaluation=sets)
    for _ in range(2):  # measured, and read again
        found = attack(tmp_path, EXPERIMENT, {"unlearned": tiny}, data=data)
        assert found["models"]["unlearned"]["auc"]["n"] == len(DATA.forget) + len(HOLDOUT) - 1


def test_what_was_measured_is_kept(tmp_path, untrained, tiny):
    first = attack(tmp_path, EXPERIMENT, {"unlearned": tiny})
    assert sorted(path.name for path in (tmp_path / "shadows").iterdir()) == [
        f"{number}.json" for number in range(4)
    ]
    assert attack(tmp_path, EXPERIMENT, {"unlearned": tiny}) == first
    assert len(untrained) == 4 * 2
    attack(tmp_path, EXPERIMENT, {"unlearned": tiny}, 6)
    assert len(untrained) == 6 * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"rows": "", "inside": [], "values": ["x"]}', "damaged"),
        ('{"rows": "", "inside": [], "values": []}', "of other rows than the run's; remove"),
    ],
)
def test_what_is_kept_and_cannot_be_used(tmp_path, untrained, tiny, text, words):
    path = tmp_path / "shadows" / "0.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ju.UserError) as caught:
        attack(tmp_path, EXPERIMENT, {"unlearned": tiny})
    assert str(path) in str(caught.value) and words in str(caught.value)


@pytest.mark.slow
def test_without_unlearning_members_are_found(tmp_path):
    """A method that changes next to nothing leaves everything, and the retrained model nothing;
    all shadows share the programs of the first, and one made again is the same."""
    experiment = dataclasses.replace(
        EXPERIMENT,
        finetune=dataclasses.replace(EXPERIMENT.finetune, epochs=20),
        training=dataclasses.replace(EXPERIMENT.training, learning_rate=1e-9),
    )
    data = synthetic.build(people=8, forget_people=4, seed=0, holdout_people=4)
    base = base_model(experiment, data)
    rows = (*data.forget, *data.retain, *data.background)
    models = {
        name: finetune_rows(base, rows, range(start, len(rows)), experiment, experiment.finetune)
        for name, start in (("unlearned", 0), ("retrained", len(data.forget)))
    }
    attack(tmp_path, experiment, models, data=data)
    programs = steps_in_jit._cache_size()
    found = attack(tmp_path, experiment, models, 6, data)
    assert steps_in_jit._cache_size() == programs
    assert (found["shadows"], found["forget_rows"], found["holdout_rows"]) == (6, 40, 40)
    assert found["models"]["unlearned"]["auc"]["value"] > 0.9
    low, high = found["models"]["retrained"]["auc"]["ci"]
    assert low < 0.5 < high

    path = tmp_path / "shadows" / "2.json"
    kept = json.loads(path.read_text())
    path.unlink()
    assert attack(tmp_path, experiment, models, 6, data) == found
    assert json.loads(path.read_text()) == kept
