"""DareU as a run has it: rows to a training, and what is refused before it starts."""

import dataclasses

import pytest

from jaxunlearn.attribution import of_run
from jaxunlearn.config import (
    AdapterConfig,
    DataConfig,
    Experiment,
    MethodConfig,
    StopConfig,
    TrainingConfig,
)
from jaxunlearn.config_attribution import AttributionConfig, FunctionConfig
from jaxunlearn.dareu import preparing
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from tests.conftest import TEMPLATE

OVERLAP = AttributionConfig(
    function=FunctionConfig(kind="overlap"),
    held_out=FunctionConfig(kind="tracin_cosine", dimension=16),
    min_accuracy=0.0,
)


def experiment(**options):
    return Experiment(
        data=DataConfig(template=TEMPLATE),
        attribution=OVERLAP,
        adapter=AdapterConfig(rank=2, alpha=4.0),
        training=TrainingConfig(epochs=2, batch_size=8, learning_rate=1e-3),
        **options,
    )


def method(**hyper):
    return MethodConfig("dareu", {"max_new_tokens": 8, "updates": 2, **hyper})


def test_rows_become_a_training(tiny, world):
    asked = experiment()
    schedules, log = [], []
    model = preparing.reward_rows(
        tiny,
        world.forget,
        world.retain,
        asked,
        method(),
        of_run.fit(tiny, world, asked, say=lambda text: None),
        on_steps=lambda done, total, rows: log.extend(rows),
        on_schedule=schedules.append,
        say=lambda text: None,
    )
    # 20 forget rows in batches of 8, twice.
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert model.adapter is not None and model.params is tiny.params
    assert schedules[0] == schedules[-1] and len(schedules) == 2
    assert all(0 <= row["attribution_held_out"] <= 1 for row in log)


@pytest.mark.parametrize(
    ("options", "hyper", "fault"),
    [
        ({"stop": StopConfig(above=3.0)}, {}, "stop: is for methods with a loss on rows"),
        ({}, {"max_new_tokens": 125}, "max_new_tokens is 125, and with the"),
        (
            {"training": {"optimizer": "sophia"}}, {},
            "training.optimizer: sophia does not go with method dareu",
        ),
        (
            {"training": {"optimizer": "schedule_free"}}, {},
            "training.optimizer: schedule_free does not go with method dareu",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tiny, world, options, hyper, fault):
    chosen = method(**hyper)
    options = dict(options)
    chosen = dataclasses.replace(chosen, training=options.pop("training", {}))
    with pytest.raises(UserError, match=fault):
        preparing.check(tiny, world, experiment(**options), chosen)


@pytest.mark.parametrize(
    ("hyper", "fault"),
    [
        ({"algorithm": "grpo"}, "samples must be at least 2 for grpo"),
        ({"algorithm": "pop"}, "algorithm"),
        ({"temperature": 0}, "temperature"),
        ({"kapa": 3}, "the closest known key is kappa"),
        ({"gamma": 1.5}, "gamma"),
        (
            {"algorithm": "rloo", "samples": 2, "whiten": False},
            "whiten means nothing for",
        ),
        ({"level": "sequence", "kappa": 3}, "kappa means nothing for level sequence"),
        ({"kappa": 3, "slices": 4}, "slices means nothing beside kappa"),
    ],
)
def test_settings_are_checked(hyper, fault):
    with pytest.raises(UserError, match=fault):
        registry.resolve(MethodConfig("dareu", hyper))
