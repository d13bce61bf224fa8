"""Rows in, unlearned model out: what the run pipeline and the Python interface share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.config import Experiment, MethodConfig, TrainingConfig
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.rows import Row
from jaxunlearn.data.tokens import Encoded
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.loop import train


def unlearn_rows(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    *,
    checkpoints: Path | None = None,
    on_steps: Callable[..., None] | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Unlearns rows from a model with one method; of `experiment` only the settings are used."""
    objective, hyper = registry.objective(method)
    limit = max_length(model, experiment)
    groups = {"forget": forget, "retain": retain}
    tables = {
        name: encode_rows(model, rows, experiment, limit, name, say).table
        for name, rows in groups.items()
        if name in objective.groups
    }
    training = experiment.training
    n_forget = len(tables["forget"].tokens)
    schedule = sampling.SAMPLERS[experiment.sampling.name](
        n_forget,
        len(tables["retain"].tokens) if "retain" in tables else 1,
        training.epochs,
        batch_slots(training, n_forget),
        experiment.seed,
    )
    tables = dict(zip(tables, tokens.same_width(*tables.values()), strict=True))
    return train(
        model,
        tables,
        {name: getattr(schedule, name) for name in tables},
        objective,
        hyper,
        training,
        adapter=experiment.adapter,
        seed=experiment.seed,
        checkpoints=checkpoints,
        on_steps=on_steps,
    )


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
      UserError: no row is short enough.
    """
    pairs = [(row.question, row.answer) for row in rows]
    encoded = tokens.encode(
        need_tokenizer(model), pairs, template=experiment.data.template, max_length=limit
    )
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
