"""What a method trains on: batches, schedules, and which answers stand where."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn import config as configs
from jaxunlearn.config import MethodConfig, SamplingConfig, TrainingConfig
from jaxunlearn.data import neighbours
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.methods import registry
from jaxunlearn.tables import make_tables
from jaxunlearn.unlearning_job import batch_slots, make_schedule


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "rows", "slots"),
    [(32, 1, 100, 32), (32, 1, 5, 5), (32, 4, 5, 8), (100_000, 2, 41, 42), (8, 8, 1, 8)],
)
def test_a_batch_has_no_more_slots_than_rows(batch_size, micro_batches, rows, slots):
    training = TrainingConfig(batch_size=batch_size, micro_batches=micro_batches)
    assert batch_slots(training, rows) == slots


def test_a_refusal_goes_wherever_its_question_goes(tiny):
    """General rows meet random forget rows: the refusal beside one is that row's own."""
    data = neighbours.build(0.1, 0)
    experiment = dataclasses.replace(configs.Experiment(), data=configs.DataConfig())
    method = registry.resolve(MethodConfig("dpo"))
    found, pool = make_tables(tiny, data.forget, data.retain, experiment, method, print)
    assert len(found["alternative"].tokens) == len(data.forget) == len(pool.forget)
    for number, row in enumerate(data.forget):
        mask = found["alternative"].answer_mask[number]
        said = tiny.tokenizer.decode(found["alternative"].tokens[number, mask][:-1])
        assert said.strip() == row.refusal
        prompt = found["forget"].tokens[number, : found["forget"].prompt_lengths[number]]
        same = found["alternative"].tokens[number, : found["alternative"].prompt_lengths[number]]
        np.testing.assert_array_equal(prompt, same)
    made = make_schedule(pool, SamplingConfig("melu"), TrainingConfig(batch_size=8), 0)
    general = np.isin(made.retain, np.flatnonzero(pool.kinds == "general"))
    assert general.any() and (made.forget[general] >= 0).all()


def test_matched_steps_are_those_of_the_other_sampler_alone():
    """Also where a batch holds more than the forget rows, which are all the pairs of `random`."""
    data = neighbours.build(0.1, 0)
    pool = pool_of(data.forget, data.retain)
    for batch_size in (8, 32, 64):
        training = TrainingConfig(epochs=4, batch_size=batch_size)
        for other in ("cyclic", "melu"):
            alone = make_schedule(pool, SamplingConfig(other), training, 0)
            matched = make_schedule(pool, SamplingConfig(match_steps=other), training, 0)
            assert len(matched.forget) == len(alone.forget)
