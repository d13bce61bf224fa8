"""The attack by shadow models: train, unlearn and measure them, then attack (see `lira`)."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import Experiment, TrainingConfig
from jaxunlearn.data import requests
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluating import UTILITY, evaluate_model, value_of
from jaxunlearn.evaluation import lira
from jaxunlearn.evaluation.forward import score
from jaxunlearn.evaluation.metrics import mean_log_prob
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.starting import base_model
from jaxunlearn.progress import Bars, Stage
from jaxunlearn.runs import fingerprint
from jaxunlearn.tables import encode_rows, max_length
from jaxunlearn.unlearning import finetune_rows, unlearn_rows
from jaxunlearn.writing import write_text

FEWEST = 2 * lira.LEAST_SHADOWS


@dataclass(frozen=True)
class Plan:
    """Which rows each shadow model learns and unlearns."""

    experiment: Experiment
    data: UnlearningData
    """Of the run."""
    candidates: tuple[Row, ...]
    """n: the members, which are the forget rows, then the holdout."""
    inside: np.ndarray
    """bool `[K, n]`."""
    training: TrainingConfig
    """Of the target, and so of the shadow models before they unlearn."""


def plan(experiment: Experiment, data: UnlearningData, shadows: int) -> Plan:
    """Draws the halves of the candidates.

    Args:
      experiment: of a finished run.
      data: its data.
      shadows: K.

    Raises:
      UserError: too few shadows or an odd number of them, no finetune section, no holdout, a run
        with a select section, or all candidates about one entity.
    """
    if shadows < FEWEST or shadows % 2:
        raise UserError(f"--shadows: is {shadows}; use an even number, at least {FEWEST}")
    if experiment.finetune is None:
        raise UserError(
            "finetune: is missing from the run's config; --shadows needs to train shadow models as "
            "the target was trained; make the run with a finetune section"
        )
    if experiment.select is not None:
        raise UserError(
            "select: shadow models are the last state of their training; attack a run without it"
        )
    if "holdout" not in data.evaluation:
        raise UserError(
            "data.holdout: is missing from the run's config; --shadows needs rows that no model "
            "was trained on; make the run with data.holdout (built-in world: data.holdout_people)"
        )
    # A shadow model forgets holdout rows too.
    holdout = (replace(row, kind="forget") for row in data.evaluation["holdout"].rows)
    candidates = (*data.forget, *holdout)
    inside = lira.halves([row.entity for row in candidates], shadows, experiment.seed)
    if not inside.any(axis=1).all():
        raise UserError(
            f"{candidates[0].source}: every forget and holdout row is about {candidates[0].entity},"
            " and --shadows halves them by entity; use rows about more entities, or about none"
        )
    return Plan(experiment, data, candidates, inside, experiment.finetune)


def run(
    folder: Path, plan: Plan, models: Mapping[str, LanguageModel], bars: Bars
) -> dict[str, Any]:
    """Attacks models of a run by shadow models.

    What each shadow model says is kept in `shadows/` of the run folder, and its training goes on
    there where an earlier start was cut off.

    Args:
      folder: of the run.
      plan: as `plan` makes it.
      models: label to attacked model.
      bars: shows the progress, a bar per shadow.

    Returns:
      `{"shadows": K, "forget_rows": n, "holdout_rows": n, "models": {label: {"auc": entry,
      "tpr_at_1": entry, "tpr_at_0.1": entry}}}`.

    Raises:
      UserError: what is kept there is damaged or of other rows.
    """
    base, count = base_model(plan.experiment, plan.data), len(plan.inside)
    values = []
    for number in range(count):
        with bars.stage(f"shadow {number + 1} of {count}") as stage:
            values.append(_kept(folder / "shadows" / str(number), plan, number, base, stage, bars))
    members, attacked = len(plan.data.forget), {}
    for label, model in models.items():
        own = _values(model, plan, bars)
        scores = lira.likelihood_ratio(np.array(values), plan.inside, own)
        attacked[label] = lira.measure(scores[:members], scores[members:])
    return {
        "shadows": count,
        "forget_rows": members,
        "holdout_rows": len(plan.candidates) - members,
        "models": attacked,
    }


def _kept(
    place: Path, plan: Plan, number: int, base: LanguageModel, stage: Stage, bars: Bars
) -> np.ndarray:
    """The statistic of each candidate in one shadow model, `[n]`: kept, or measured and kept."""
    path = place.with_suffix(".json")
    inside = plan.inside[number].tolist()
    rows = fingerprint((*plan.candidates, *plan.data.retain, *plan.data.background))
    if path.exists():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            same = (kept["rows"], kept["inside"]) == (rows, inside)
            values = np.array(kept["values"], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it, it is made again") from None
        if not same:
            raise UserError(
                f"{path}: is of other rows than the run's; remove the folder {place.parent}"
            )
        stage.update(1, 1, "done before")
        return values
    values = _values(_shadow(place, plan, number, base, stage, bars), plan, bars)
    known = [float(value) if np.isfinite(value) else None for value in values]
    write_text(path, json.dumps({"rows": rows, "inside": inside, "values": known}) + "\n")
    shutil.rmtree(place)
    return values


def _shadow(
    place: Path, plan: Plan, number: int, base: LanguageModel, stage: Stage, bars: Bars
) -> LanguageModel:
    """The start model after it has learned its half of the candidates and unlearned it again."""
    # Another order of rows for each, as an attacker does not know the one of the run.
    experiment = replace(plan.experiment, seed=plan.experiment.seed + 1 + number)
    half = np.flatnonzero(plan.inside[number])
    rows = (*plan.candidates, *plan.data.retain, *plan.data.background)
    target = finetune_rows(
        base,
        rows,
        [*half, *range(len(plan.candidates), len(rows))],
        experiment,
        plan.training,
        checkpoints=place / "target",
        on_steps=stage.steps,
        say=bars.say,
    )

    def utility(model: LanguageModel) -> float:
        found = evaluate_model("model", model, plan.data, experiment, bars, target)
        return value_of(found.metrics, UTILITY)

    asked = experiment.requests
    data = replace(plan.data, forget=tuple(plan.candidates[row] for row in half))
    model = target
    for part, request in enumerate([data] if asked is None else requests.split(data, asked)):
        model = unlearn_rows(
            model,
            request.forget,
            request.retain,
            experiment,
            experiment.method,
            checkpoints=place / f"unlearned_{part}",
            on_steps=stage.steps,
            utility=utility,
            say=bars.say,
        ).merged()
    return model


def _values(model: LanguageModel, plan: Plan, bars: Bars) -> np.ndarray:
    """`lira.log_odds` of each candidate, `[n]`; nan for one that is too long."""
    limit = max_length(model, plan.experiment)
    found = encode_rows(model, plan.candidates, plan.experiment, limit, "candidates", bars.say)
    batch = plan.experiment.evaluation.batch_size
    stats = score(model.config, model.params, found.table, lora=model.lora, batch_size=batch)
    values = np.full(len(plan.candidates), np.nan)
    values[list(found.kept)] = lira.log_odds(mean_log_prob(stats.log_probs, stats.mask))
    return values
