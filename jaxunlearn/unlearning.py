"""Rows in, unlearned model out: what the run pipeline and the Python interface share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.config import (
    Experiment,
    MethodConfig,
    SamplingConfig,
    TrainingConfig,
    sampling_of,
    training_of,
)
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.answers import other_answers, refusals
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.data.rows import Row
from jaxunlearn.data.tokens import Encoded, TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.forward import score
from jaxunlearn.evaluation.metrics import rouge_l_recall
from jaxunlearn.methods import own, registry
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training import diagnostics
from jaxunlearn.training.diagnostics import GradientStatistics
from jaxunlearn.training.loop import Watch, device_rows, prepare, train

TEMPERATURES = (1.0, 1.0, 1.5, 2.0, 3.0)
"""Of the draws of an invented answer; five to a question, as AltPO (arXiv 2409.13474) draws."""
WATCHED_ROWS = 64
"""Retain rows whose NLL `stop` watches: the first ones."""
MOST_SHARED = 0.6
"""ROUGE-L recall of the truth in an invented answer from which on a stranger one is looked for."""


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
      on_schedule: called with what `sampling.describe` says of the schedule.
      utility: the model utility, if `stop` is to watch it.
      say: called with what the user should know.
    """
    check_method(model, method)
    training = training_of(experiment, method)
    chosen, (objective, hyper) = registry.lookup(method.name), registry.objective(method)
    tables, pool = _tables(model, forget, retain, experiment, method, say)
    pairing = sampling_of(experiment, method)
    if "retain" not in tables:
        steps = pairing.match_steps
        pairing = SamplingConfig(match_steps=None if isinstance(steps, str) else steps)
    schedule = make_schedule(pool, pairing, training, experiment.seed)
    indices = _indices(schedule)
    if on_schedule is not None:
        on_schedule(sampling.describe(pool, schedule))

    def trained(
        objective: registry.Objective, hyper: Mapping[str, float], **options: Any
    ) -> LanguageModel:
        return train(
            model,
            {group: tables[group] for group in objective.groups},
            {group: indices[group] for group in objective.groups},
            objective,
            hyper,
            training,
            adapter=experiment.adapter,
            seed=experiment.seed,
            **options,
        )

    options: dict[str, Any] = {"checkpoints": checkpoints, "on_steps": on_steps}
    if experiment.stop is not None:
        options["watch"] = _watch(model, retain, experiment, utility, say)
    if objective.needs("reinforced_logits"):
        place = checkpoints and checkpoints.parent / "reinforced" / checkpoints.name
        options["reinforced"] = trained(registry.REINFORCE, {}, checkpoints=place)
    result = trained(objective, hyper, **options)
    if chosen.finish is None:
        return result
    numbers = {name: hyper[name] for name in registry.keywords(chosen.finish)}
    return _combined(model.merged(), result, partial(chosen.finish, **numbers))


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
    tables, pool = _tables(model, forget, retain, experiment, method, say)
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
    indices = {group: _indices(schedule)[group][full] for group in objective.groups}
    return diagnostics.gradient_statistics(spec, trainable, frozen, rows, indices, numbers)


def make_schedule(
    pool: sampling.Pool, config: SamplingConfig, training: TrainingConfig, seed: int
) -> sampling.Schedule:
    """The schedule that the sampling and training sections ask for.

    Raises:
      UserError: the rows do not have what the sampler or the subset asks for.
    """
    shared = {"seed": seed, "ratio": config.ratio, "subset": config.subset}
    whole = {**shared, "order": config.order, **config.options}
    pairs = sampling.steps_of(config.name, pool, epochs=1, batch_size=1, **whole)
    sizes = {"epochs": training.epochs, "batch_size": batch_slots(training, pairs)}
    steps = config.match_steps
    if isinstance(steps, str):
        steps = sampling.steps_of(steps, pool, **sizes, **shared)
    return sampling.schedule(config.name, pool, **sizes, steps=steps, **whole)


def _indices(schedule: sampling.Schedule) -> dict[str, np.ndarray]:
    """Group name to its rows in each step; the second answer to a question goes wherever the
    question goes."""
    return {**vars(schedule), "alternative": schedule.forget}


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


def invented_answers(
    model: LanguageModel,
    rows: Sequence[Row],
    experiment: Experiment,
    say: Callable[[str], None] = print,
) -> tuple[str, ...]:
    """For each row an answer that the model draws itself and that is unlike the true one.

    None is longer than the longest true answer. The question is answered once at each of
    TEMPERATURES; the first answer that shares little with the truth is taken, else the one that
    shares least, and where all are empty a refusal; `say` tells for how many rows that is so.
    """
    tokenizer, template = need_tokenizer(model), experiment.data.template
    prompts = [tokens.prompt_tokens(tokenizer, row.question, template=template) for row in rows]
    # As long as the longest true answer: a model that never stops must not fill its positions.
    room = max(len(tokenizer(row.answer)["input_ids"]) for row in rows)
    room = min(room, model.config.max_positions - max(map(len, prompts)))
    best: list[tuple[float, str]] = [(math.inf, "")] * len(rows)
    for number, temperature in enumerate(TEMPERATURES):
        drawn = generate(
            model.config,
            model.params,
            prompts,
            lora=model.lora,
            max_new_tokens=room,
            stop_tokens=model.stop_tokens,
            sampling=Sampling(temperature),
            seed=experiment.seed + number,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
        found = zip(rouge_l_recall(texts, [row.answer for row in rows]), texts, strict=True)
        best = [
            new if old[0] > MOST_SHARED and new[1] and new[0] < old[0] else old
            for old, new in zip(best, found, strict=True)
        ]
    empty = sum(not text for _, text in best)
    if empty:
        say(f"alternative: {empty} of {len(rows)} rows get a refusal; all drawn answers are empty")
    close = sum(bool(text) and shared > MOST_SHARED for shared, text in best)
    if close:
        say(
            f"alternative: for {close} of {len(rows)} rows every drawn answer is much like the "
            "true one; the least similar is taken"
        )
    # A data set without refusals of its own lacks nothing here.
    plain = refusals([replace(row, refusal=row.refusal or None) for row in rows], experiment.seed)
    return tuple(text or other for (_, text), other in zip(best, plain, strict=True))


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
            found = score(now.config, now.params, table, lora=now.lora)
            return -float(found.log_probs[found.mask].mean())

    def crossed(value: float) -> bool:
        # Not a number is worse than any bound.
        return not (value >= stop.below if stop.above is None else value <= stop.above)

    return Watch(stop.every, measure, crossed, stop.action == "rollback", say, stop.metric)


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
        make_schedule(pool_of(forget, retain), pairing, training, experiment.seed)


def _tables(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    say: Callable[[str], None],
) -> tuple[dict[str, TokenTable], sampling.Pool]:
    """Token tables of the groups that the method looks at, all of one width, and their rows as a
    sampler sees them. To a method that looks at no retain rows each forget row comes alone."""
    chosen, limit = registry.lookup(method.name), max_length(model, experiment)
    other = {
        "refusal": lambda: refusals(forget, experiment.seed),
        "random": lambda: other_answers(forget, experiment.seed),
        "generated": lambda: invented_answers(model, forget, experiment, say),
    }
    answers = {
        "forget": chosen.answers,
        "labels": chosen.labels,
        "alternative": chosen.alternative,
    }
    groups = {
        group: [replace(row, answer=a) for row, a in zip(forget, other[kind](), strict=True)]
        for group, kind in answers.items()
        if kind in other
    }
    groups = {"forget": forget, **groups}
    if len(groups) > 1:
        fits = [
            set(encode_rows(model, rows, experiment, limit, name, say).kept)
            for name, rows in groups.items()
        ]
        kept = sorted(set.intersection(*fits))
        groups = {name: [rows[i] for i in kept] for name, rows in groups.items()}
    if "retain" in registry.objective(method)[0].groups:
        groups["retain"] = retain
    encoded = {
        name: encode_rows(model, rows, experiment, limit, name, say)
        for name, rows in groups.items()
    }
    tables = {name: found.table for name, found in encoded.items()}
    known = {name: [groups[name][i] for i in found.kept] for name, found in encoded.items()}
    pool = pool_of(known["forget"], known.get("retain", [Row("", "")]))
    if "labels" in tables:
        tables["forget"] = tokens.relabel(tables["forget"], tables.pop("labels"))
    return dict(zip(tables, tokens.same_width(*tables.values()), strict=True)), pool


def batch_slots(training: TrainingConfig, rows: int) -> int:
    """The batch size, but no more slots than there are rows to fill them."""
    parts = training.micro_batches
    return min(training.batch_size, -(-rows // parts) * parts)


def encode_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    experiment: Experiment,
    limit: int,
    what: str,
    say: Callable[[str], None],
) -> Encoded:
    """Rows as tokens; says how many were longer than the limit and so left out.

    Raises:
      UserError: no row is short enough, or the tokenizer is not the model's own.
    """
    pairs = [(row.question, row.answer) for row in rows]
    encoded = tokens.encode(
        need_tokenizer(model), pairs, template=experiment.data.template, max_length=limit
    )
    tokens.check_ids(encoded.table, model.config.vocab_size)
    if encoded.left_out:
        first = rows[encoded.left_out[0]].source
        say(
            f"{what}: {len(encoded.left_out)} of {len(rows)} rows are longer than {limit} tokens "
            f"and were left out (the first is {first})"
        )
    if not encoded.kept:
        raise UserError(
            f"{what}: every row is longer than {limit} tokens, the limit of the model or of "
            "data.max_length; use shorter rows or raise it"
        )
    return encoded


def max_length(model: LanguageModel, experiment: Experiment) -> int:
    """Tokens a row may have."""
    own = model.config.max_positions
    return min(experiment.data.max_length or own, own)


def need_tokenizer(model: LanguageModel) -> Any:
    """The model's tokenizer.

    Raises:
      UserError: it has none.
    """
    if model.tokenizer is None:
        raise UserError(
            f"{model.folder}: no tokenizer here; copy tokenizer.json and tokenizer_config.json of "
            "the model into this folder"
        )
    return model.tokenizer
