"""What every attack is given, and how a model is measured: all numbers are of all forget rows."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.config import Experiment
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import suite
from jaxunlearn.evaluation.entries import summarise
from jaxunlearn.evaluation.robustness import Measured
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.progress import Stage
from jaxunlearn.tables import max_length

Values = dict[str, np.ndarray]
"""probability and rouge of each forget row, `[n]`."""


@dataclass(frozen=True)
class Options:
    """How hard the attacks try; None and (): as the run suggests (see `running.resolve`)."""

    steps: int | None = None
    rows: int | None = None
    learning_rate: float | None = None
    samples: int = 8
    only: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    """Labels of the run's methods."""
    shadows: int = 0
    """Shadow models of the membership attack; 0: it is not made."""

    def __post_init__(self):
        """Refuse what cannot be."""
        for name, least in (("steps", 0), ("rows", 1), ("samples", 1), ("shadows", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}: is {value}; use {least} or more")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"--learning-rate: is {rate}; use a number above 0")


@dataclass(frozen=True)
class Case:
    """One model under attack."""

    model: LanguageModel
    forget: Sequence[Row]
    retain: Sequence[Row]
    experiment: Experiment
    options: Options
    """Resolved."""
    stage: Stage
    before: Values
    """Of the model as it is."""


def measure(
    model: LanguageModel, rows: Sequence[Row], experiment: Experiment, stage: Stage
) -> Values:
    """Length-normalised probability of each row's answer and ROUGE-L recall of the greedy one; nan
    where none."""
    evaluation = suite.evaluate(
        model,
        {"forget": EvalSet("forget", tuple(rows))},
        dataclasses.replace(experiment.evaluation, suite="memory", compat="paper", embedder=None),
        template=experiment.data.template,
        max_length=max_length(model, experiment),
        on_rows=lambda done, total: stage.update(done, total, "texts"),
    )
    return {name: evaluation.of_role("forget", name) for name in ("probability", "rouge")}


def measured(name: str, values: Values) -> Measured:
    """Values of the rows as one line of a result."""
    return {"name": name, **{metric: summarise(rows) for metric, rows in values.items()}}
