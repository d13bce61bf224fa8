"""What a method trains on, and how: checks of model and rows, tables, schedule, numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxunlearn.config import (
    Experiment,
    MethodConfig,
    SamplingConfig,
    TrainingConfig,
    sampling_of,
    training_of,
)
from jaxunlearn.data import sampling
from jaxunlearn.data.answers import refusals
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.data.rows import Row
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.methods import own, registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.tables import make_tables


@dataclass(frozen=True)
class UnlearningJob:
    """What a method trains on, and how."""

    objective: registry.Objective
    hyper: Mapping[str, float]
    training: TrainingConfig
    tables: Mapping[str, TokenTable]
    pool: sampling.Pool
    """The rows of the tables, as a sampler sees them."""
    schedule: sampling.Schedule
    indices: Mapping[str, np.ndarray]
    """Group name to its rows in each step."""


def unlearning_job(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    say: Callable[[str], None] = print,
) -> UnlearningJob:
    """What a method of the kind that minimises a loss does with rows; see `unlearn_rows`."""
    check_method(model, method)
    training = training_of(experiment, method)
    objective, hyper = registry.objective(method)
    tables, pool = make_tables(model, forget, retain, experiment, method, say)
    pairing = sampling_of(experiment, method)
    if "retain" not in tables:
        steps = pairing.match_steps
        pairing = SamplingConfig(match_steps=None if isinstance(steps, str) else steps)
    in_turn = registry.resolve(method).hyper.get("forget_epochs")
    schedule = make_schedule(pool, pairing, training, experiment.seed, forget_epochs=in_turn)
    return UnlearningJob(objective, hyper, training, tables, pool, schedule, indices_of(schedule))


def make_schedule(
    pool: sampling.Pool,
    config: SamplingConfig,
    training: TrainingConfig,
    seed: int,
    *,
    forget_epochs: int | None = None,
) -> sampling.Schedule:
    """The schedule that the sampling and training sections ask for; `forget_epochs` as for
    `sampling.schedule`.

    Raises:
      UserError: the rows do not have what the sampler or the subset asks for.
    """
    shared = {"seed": seed, "ratio": config.ratio, "subset": config.subset}
    whole = {**shared, "order": config.order, **config.options_of(config.name)}

    def sizes(name: str, options: Mapping[str, Any]) -> dict[str, int]:
        pairs = sampling.steps_of(name, pool, epochs=1, batch_size=1, **options)
        return {"epochs": training.epochs, "batch_size": batch_slots(training, pairs)}

    steps = config.match_steps
    if isinstance(steps, str):
        theirs = {**shared, **config.options_of(steps)}
        steps = sampling.steps_of(steps, pool, **sizes(steps, theirs), **theirs)
    own_sizes = sizes(config.name, whole)
    return sampling.schedule(
        config.name, pool, **own_sizes, steps=steps, forget_epochs=forget_epochs, **whole
    )


def indices_of(schedule: sampling.Schedule) -> dict[str, np.ndarray]:
    """Group name to its rows in each step; the second answer to a question goes wherever the
    question goes."""
    return {**vars(schedule), "alternative": schedule.forget}


def batch_slots(training: TrainingConfig, rows: int) -> int:
    """The batch size, but no more slots than there are rows to fill them."""
    parts = training.micro_batches
    return min(training.batch_size, -(-rows // parts) * parts)


def check_method(model: LanguageModel, method: MethodConfig) -> None:
    """What a method asks for must be there in the model, and a function of a user's own must work.

    Raises:
      UserError: it names a layer that the model does not have, or its function fails.
    """
    layer, layers = registry.objective(method)[0].layer, model.config.num_layers
    if layer is not None and layer >= layers:
        raise UserError(
            f"method {method.name}: layer is {layer}, but the model has layers 0 to {layers - 1}"
        )
    if method.name not in registry.BUILT_IN:
        sizes = {"vocab_size": model.config.vocab_size, "hidden_size": model.config.hidden_size}
        own.try_out(method.name, registry.lookup(method.name).forget, **sizes)


def check_rows(
    method: MethodConfig, forget: Sequence[Row], retain: Sequence[Row], experiment: Experiment
) -> None:
    """What a method and its sampler ask of the rows must be there.

    Raises:
      UserError: a refusal is missing, or the sampler cannot pair the rows.
    """
    chosen = registry.lookup(method.name)
    if "refusal" in (chosen.answers, chosen.labels, chosen.alternative):
        refusals(forget, experiment.seed)
    training, pairing = training_of(experiment, method), sampling_of(experiment, method)
    if "retain" in registry.objective(method)[0].groups:
        if not retain:
            about = ", ".join(list(dict.fromkeys(row.entity for row in forget if row.entity))[:3])
            raise UserError(
                f"method {method.name}: no retain row is left for the request about {about}: there "
                "are neither general rows nor neighbours of it; add some, or raise requests.size"
            )
        make_schedule(pool_of(forget, retain), pairing, training, experiment.seed)
