"""Attacks that change the weights: relearning, benign fine-tuning and quantisation."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxunlearn.attacks.case import Case, measure, measured
from jaxunlearn.data import sampling
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import suite
from jaxunlearn.evaluation.entries import summarise
from jaxunlearn.evaluation.quantize import FORMATS, quantised
from jaxunlearn.evaluation.robustness import Measured
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.tables import encode_rows, max_length
from jaxunlearn.training.loop import train
from jaxunlearn.training.watching import Watch
from jaxunlearn.unlearning_job import batch_slots

POINTS = 5  # of a recovery curve, besides its start


def relearn(case: Case) -> list[Measured]:
    """Fine-tunes all parameters on forget rows and follows what comes back with them.

    The learning rate is constant; the optimiser is AdamW. `unseen_probability` is of the forget
    rows that were not trained on.
    """
    return _tuned(case, case.forget)


def fine_tune(case: Case) -> list[Measured]:
    """The same on retain rows: what comes back without anybody meaning it (benign fine-tuning)."""
    return _tuned(case, case.retain)


def _tuned(case: Case, rows: Sequence[Row]) -> list[Measured]:
    options, experiment = case.options, case.experiment
    curve = [measured("0 steps", case.before) | {"step": 0}]
    if not options.steps:
        return curve
    rows = suite.limit_sets({"": EvalSet("forget", tuple(rows))}, options.rows)[""].rows
    trained = {row.key for row in rows}
    unseen = np.array([row.key not in trained for row in case.forget])
    limit = max_length(case.model, experiment)
    encoded = encode_rows(case.model, rows, experiment, limit, "rows", lambda text: None)
    slots = batch_slots(experiment.training, len(encoded.kept))
    epochs = -(-options.steps * slots // len(encoded.kept))
    schedule = sampling.epochs(len(encoded.kept), epochs, slots, experiment.seed)[: options.steps]
    every = -(-options.steps // POINTS)

    def look(model: LanguageModel) -> float:
        step = min(len(curve) * every, options.steps)
        values = measure(model, case.forget, experiment, case.stage)
        point = measured(f"{step} steps", values) | {"step": step}
        if unseen.any() and not unseen.all():
            point["unseen_probability"] = summarise(values["probability"][unseen])
        curve.append(point)
        return point["probability"]["value"]

    train(
        case.model.plain(),
        {"train": encoded.table},
        {"train": schedule},
        registry.FINETUNE,
        {},
        dataclasses.replace(
            experiment.training,
            learning_rate=options.learning_rate,
            warmup=0.0,
            decay="constant",
            optimizer="adamw",
            optimizer_options={},
            train_only=None,
        ),
        on_steps=case.stage.steps,
        watch=Watch(every, look, crossed=lambda value: False, rollback=False),
    )
    return curve


def quantise(case: Case) -> list[Measured]:
    """The model with weights of fewer bits; "none" is the model as it is."""
    found = [measured("none", case.before)]
    for name, chosen in FORMATS.items():
        values = measure(quantised(case.model, chosen), case.forget, case.experiment, case.stage)
        found.append(measured(name, values))
    return found
