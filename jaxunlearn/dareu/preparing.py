"""From rows and a config to a training by reward, or a fault before it starts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.of_run import Attributions
from jaxunlearn.config import Experiment, MethodConfig, sampling_of, training_of
from jaxunlearn.dareu import driver
from jaxunlearn.dareu.rollout import prompts_of
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.tables import encode_rows, max_length
from jaxunlearn.training.optimizers import OPTIMIZERS
from jaxunlearn.training.parallel import layout_of
from jaxunlearn.training.statistics import Rows
from jaxunlearn.unlearning_job import make_schedule


def reward_rows(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    attributions: Attributions,
    *,
    checkpoints: Path | None = None,
    on_steps: Callable[..., None] | None = None,
    on_schedule: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Unlearns rows from a model by DareU; of `experiment` only the settings are used.

    Args:
      model: it is left as it is.
      forget: rows whose questions are asked; their answers are not read.
      retain: rows to keep.
      experiment: settings.
      method: name and hyper-parameters.
      attributions: what rewards, and what looks on; fitted to all owners of a run.
      checkpoints: folder to save to and to resume from.
      on_steps: see `driver.train`.
      on_schedule: called with what `sampling.describe` says of the schedule; at the end again, of
        the part that was trained.
      say: called with what the user should know.
    """
    limit, training = max_length(model, experiment), training_of(experiment, method)
    encoded = {
        name: encode_rows(model, rows, experiment, limit, name, say)
        for name, rows in (("forget", forget), ("retain", retain))
    }
    asked = [forget[i] for i in encoded["forget"].kept]
    kept = [retain[i] for i in encoded["retain"].kept]
    pool = pool_of(asked, kept)
    schedule = make_schedule(pool, sampling_of(experiment, method), training, experiment.seed)

    def describe(steps: int) -> None:
        if on_schedule is not None:
            part = sampling.Schedule(schedule.forget[:steps], schedule.retain[:steps])
            on_schedule(sampling.describe(pool, part))

    describe(len(schedule.forget))
    table = encoded["retain"].table
    job = driver.Job(
        start=model.merged(),
        attributors=attributions.functions,
        forget_owners=tuple(name in attributions.forget for name in attributions.names),
        prompts=prompts_of(encoded["forget"].table, attributions.owners(asked)),
        retain=Rows(jnp.asarray(table.tokens), jnp.asarray(table.answer_mask)),
        schedule={"forget": schedule.forget, "retain": schedule.retain},
        per_epoch=-(-len(schedule.forget) // training.epochs),
        settings=registry.procedure_settings(method),
        training=training,
        adapter=experiment.adapter,
        seed=experiment.seed,
        layout=layout_of(experiment.parallel),
    )
    return driver.train(job, checkpoints=checkpoints, on_steps=on_steps, on_end=describe, say=say)


def check(
    model: LanguageModel, data: UnlearningData, experiment: Experiment, method: MethodConfig
) -> None:
    """Refuses what would fail only after the first training.

    Raises:
      UserError: sections that exclude each other, a question that leaves no room for a response, or
        an optimiser that needs more than a gradient.
    """
    for section in ("stop", "select"):
        if getattr(experiment, section) is not None:
            raise UserError(
                f"{section}: is for methods with a loss on rows; method {method.name} has"
                " max_kl, max_repetition and target_attribution, so remove it"
            )
    settings = registry.procedure_settings(method)
    training = training_of(experiment, method)
    optimizer = OPTIMIZERS[training.optimizer]
    if optimizer.estimate or optimizer.sharpness_aware or training.optimizer == "schedule_free":
        raise UserError(
            f"training.optimizer: {training.optimizer} does not go with method {method.name}; use"
            " adamw, lion or muon"
        )
    _check_room(model, data.forget, settings.max_new_tokens, experiment)


def _check_room(
    model: LanguageModel, rows: Sequence[Row], room: int, experiment: Experiment
) -> None:
    """The longest question must leave room for a response."""
    lengths = [
        len(
            tokens.prompt_tokens(
                model.tokenizer, row.question, template=experiment.data.template, raw=row.raw
            )
        )
        for row in rows
    ]
    longest, positions = int(np.argmax(lengths)), model.config.max_positions
    if lengths[longest] + room > positions:
        raise UserError(
            f"method dareu: max_new_tokens is {room}, and with the {lengths[longest]} tokens of the"
            f" question of {rows[longest].source or 'a forget row'} that is more than the model's"
            f" {positions} positions; lower it, or shorten the question"
        )
