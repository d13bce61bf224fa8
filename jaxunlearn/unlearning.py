"""Rows in, unlearned model out: what the run pipeline and the Python interface share."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.config import (
    AdapterConfig,
    Experiment,
    MethodConfig,
    TrainingConfig,
    sampling_of,
    training_of,
)
from jaxunlearn.data import sampling
from jaxunlearn.data.rows import Row
from jaxunlearn.data.tokens import Encoded, TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.likelihood import mean_nll
from jaxunlearn.methods import registry
from jaxunlearn.methods.orthogonality import Penalty
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.tables import encode_rows, make_tables, max_length
from jaxunlearn.training import diagnostics
from jaxunlearn.training.batches import device_rows
from jaxunlearn.training.diagnostics import GradientStatistics
from jaxunlearn.training.loop import prepare, train
from jaxunlearn.training.parallel import layout_of
from jaxunlearn.training.watching import Selection, Watch
from jaxunlearn.unlearning_job import (
    batch_slots,
    check_method,
    indices_of,
    make_schedule,
    unlearning_job,
)

WATCHED_ROWS = 64
"""Retain rows whose NLL `stop` watches: the first ones."""


def finetune_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    chosen: Sequence[int],
    experiment: Experiment,
    training: TrainingConfig,
    *,
    unfinished: Collection[int] = (),
    steps: int | None = None,
    adapter: AdapterConfig | None = None,
    apart_from: Mapping[str, Any] | None = None,
    orthogonality: tuple[Penalty, float] | None = None,
    seed: int | None = None,
    checkpoints: Path | None = None,
    on_steps: Callable[..., None] | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Trains a model, or a fresh adapter of it, on the chosen ones of some rows; of `experiment`
    only the settings are used.

    Args:
      model: it is left as it is.
      rows: what may be trained on. Trainings on as many of the same rows use one compiled program.
      chosen: indices of the rows to train on.
      experiment: settings.
      training: of the optimiser, with its epochs.
      unfinished: indices of rows whose answers do not end where they do: their end is not learned.
      steps: exactly so many, whatever the epochs.
      adapter: train one, in the place of the parameters.
      apart_from: factors that the adapter is kept orthogonal to.
      orthogonality: form and weight of that penalty.
      seed: of the order of the rows and of the adapter; default: the experiment's.
      checkpoints: folder to save to and to resume from.
      on_steps: see `train`.
      say: called with what the user should know.

    Raises:
      UserError: none of the chosen rows is short enough.
    """
    limit = max_length(model, experiment)
    encoded = encode_rows(model, rows, experiment, limit, "training rows", say)
    table = _without_ends(encoded, unfinished)
    # Rows that were too long are not in the table.
    wanted = set(chosen)
    places = np.array([p for p, row in enumerate(encoded.kept) if row in wanted], np.int32)
    if not len(places):
        raise UserError(
            f"training rows: none of the {len(wanted)} chosen ones is within {limit} tokens, the"
            " limit of the model or of data.max_length; use shorter rows or raise it"
        )
    slots = batch_slots(training, len(places))
    seed = experiment.seed if seed is None else seed
    epochs = training.epochs if steps is None else -(-steps * slots // len(places))
    order = sampling.epochs(len(places), epochs, slots, seed)[:steps]
    schedule = np.where(order >= 0, places[order], sampling.EMPTY)
    objective, hyper = registry.FINETUNE, {}
    if apart_from is not None:
        form, weight = orthogonality
        objective = replace(objective, orthogonality=form)
        hyper = {"orthogonality_weight": weight}
    return train(
        model,
        {"train": table},
        {"train": schedule.astype(np.int32)},
        objective,
        hyper,
        training,
        adapter=adapter,
        apart_from=apart_from,
        seed=seed,
        layout=layout_of(experiment.parallel),
        checkpoints=checkpoints,
        on_steps=on_steps,
    )


def _without_ends(encoded: Encoded, rows: Collection[int]) -> TokenTable:
    """The table, in which the last token of these rows, which closes the answer, does not count."""
    table, chosen = encoded.table, set(rows)
    places = [place for place, row in enumerate(encoded.kept) if row in chosen]
    mask = table.answer_mask.copy()
    mask[places, table.lengths[places] - 1] = False
    return replace(table, answer_mask=mask)


def unlearn_rows(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    *,
    checkpoints: Path | None = None,
    on_steps: Callable[..., None] | None = None,
    on_schedule: Callable[[dict[str, Any]], None] | None = None,
    utility: Callable[[LanguageModel], float] | None = None,
    selection: Selection | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Unlearns rows from a model with one method; of `experiment` only the settings are used.

    Args:
      model: it is left as it is.
      forget: rows to forget.
      retain: rows to keep; may be empty for methods without a retain term.
      experiment: settings.
      method: name and hyper-parameters.
      checkpoints: folder to save to and to resume from.
      on_steps: see `train`.
      on_schedule: called with what `sampling.describe` says of the schedule; at the end again, of
        the part that was trained, and with selected_step, the step of the result, if one is chosen.
      utility: the model utility, if `stop` is to watch it.
      selection: what chooses the result among the states of the training; needs `checkpoints`.
      say: called with what the user should know.
    """
    job = unlearning_job(model, forget, retain, experiment, method, say)
    objective, hyper, schedule = job.objective, job.hyper, job.schedule
    chosen = registry.lookup(method.name)

    def describe(steps: int, **more: int) -> None:
        if on_schedule is not None:
            part = sampling.Schedule(schedule.forget[:steps], schedule.retain[:steps])
            on_schedule({**sampling.describe(job.pool, part), **more})

    def ended(trained: int, kept: int) -> None:
        describe(trained, **({} if selection is None else {"selected_step": kept}))

    def finish(trained: LanguageModel) -> LanguageModel:
        if chosen.finish is None:
            return trained
        numbers = {name: hyper[name] for name in registry.keywords(chosen.finish)}
        return _combined(model.merged(), trained, partial(chosen.finish, **numbers))

    describe(len(schedule.forget))

    def trained(
        objective: registry.Objective, hyper: Mapping[str, float], **options: Any
    ) -> LanguageModel:
        return train(
            model,
            {group: job.tables[group] for group in objective.groups},
            {group: job.indices[group] for group in objective.groups},
            objective,
            hyper,
            job.training,
            adapter=experiment.adapter,
            seed=experiment.seed,
            layout=layout_of(experiment.parallel),
            **options,
        )

    options: dict[str, Any] = {}
    if experiment.stop is not None:
        options["watch"] = _watch(model, retain, experiment, utility, say)
    if objective.needs("reinforced_logits"):
        place = checkpoints and checkpoints.parent / "reinforced" / checkpoints.name
        options["reinforced"] = trained(registry.REINFORCE, {}, checkpoints=place)
    return trained(
        objective,
        hyper,
        checkpoints=checkpoints,
        on_steps=on_steps,
        selection=selection,
        finish=finish,
        on_end=ended,
        **options,
    )


def gradient_statistics(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    *,
    batches: int = 64,
    say: Callable[[str], None] = print,
) -> GradientStatistics:
    """How the gradients of a method's batches differ at the start model, before any step.

    Args:
      model: the start model.
      forget: rows to forget.
      retain: rows to keep.
      experiment: settings, as for `unlearn_rows`.
      method: name and hyper-parameters; needs both terms.
      batches: how many of the schedule's first full batches count, whatever its number of steps; a
        batch with empty slots has a larger variance for its size alone, and is passed over.
      say: called with what the user should know.

    Raises:
      UserError: the method has no forget or no retain term, or needs a model trained beforehand; or
        no batch is full.
    """
    check_method(model, method)
    objective, hyper = registry.objective(method)
    if {term.group for term in objective.terms} != {"forget", "retain"}:
        raise UserError(
            f"method {method.name}: gradients are compared between a forget and a retain term, and "
            "it does not have both; set its retain_loss, or choose another method"
        )
    if objective.needs("reinforced_logits"):
        raise UserError(
            f"method {method.name}: its gradients need a model that is trained beforehand; choose "
            "another method"
        )
    training = training_of(experiment, method)
    tables, pool = make_tables(model, forget, retain, experiment, method, say)
    # Only the last batch of an epoch can have empty slots, unless the order fills them by entity.
    pairing = replace(sampling_of(experiment, method), match_steps=2 * batches)
    schedule = make_schedule(pool, pairing, training, experiment.seed)
    full = np.flatnonzero((schedule.forget != sampling.EMPTY).all(axis=1))[:batches]
    if not len(full):
        raise UserError(
            f"sampling.order: {pairing.order} fills no batch of {schedule.forget.shape[1]}; lower "
            "training.batch_size or use shuffle"
        )
    model = model.merged()
    spec, trainable, frozen, numbers = prepare(
        model, objective, hyper, training, len(full), experiment.adapter, experiment.seed
    )
    rows = device_rows(model, {group: tables[group] for group in objective.groups}, objective)
    indices = {group: indices_of(schedule)[group][full] for group in objective.groups}
    return diagnostics.gradient_statistics(spec, trainable, frozen, rows, indices, numbers)


def _combined(
    start: LanguageModel, trained: LanguageModel, finish: Callable[[Any, Any], Any]
) -> LanguageModel:
    """The model that a method makes of start and trained params; of an adapter, which starts at
    nothing, it is made of the one factor that does."""
    if trained.adapter is None:
        return replace(trained, params=finish(start.params, trained.params))
    flat = flatten_dict(dict(trained.adapter.factors))
    factors = {
        path: finish(jnp.zeros_like(leaf), leaf) if path[-1] == "b" else leaf
        for path, leaf in flat.items()
    }
    return replace(trained, adapter=replace(trained.adapter, factors=unflatten_dict(factors)))


def _watch(
    model: LanguageModel,
    retain: Sequence[Row],
    experiment: Experiment,
    utility: Callable[[LanguageModel], float] | None,
    say: Callable[[str], None],
) -> Watch:
    """What ends a training early, as the config's `stop` says."""
    stop = experiment.stop
    if stop.metric == "utility":
        measure = utility
        if measure is None:
            raise UserError("stop.metric: utility needs a run with evaluation sets; use retain_nll")
    else:
        limit = max_length(model, experiment)
        table = encode_rows(model, retain[:WATCHED_ROWS], experiment, limit, "retain", say).table

        def measure(now: LanguageModel) -> float:
            return mean_nll(now, table)

    def crossed(value: float) -> bool:
        # Not a number is worse than any bound.
        return not (value >= stop.below if stop.above is None else value <= stop.above)

    return Watch(stop.every, measure, crossed, stop.action == "rollback", say, stop.metric)
