"""Looks at a model while it trains: what ends the training, and which state is its result."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxunlearn.models.language_model import LanguageModel


@dataclass(frozen=True)
class Watch:
    """Looks at the model every so many steps and ends a training that costs too much."""

    every: int
    measure: Callable[[LanguageModel], float]
    crossed: Callable[[float], bool]
    rollback: bool
    """Whether the result is the last state that was still good."""
    say: Callable[[str], None] = print
    name: str = "the watched metric"


class Look(NamedTuple):
    """What one look found; nan where it could not be measured."""

    step: int
    value: float
    """Of the metric that decides."""
    utility: float


@dataclass(frozen=True)
class Selection:
    """Looks at the model every so many steps, and at its end; the best of these states is the
    result of the training."""

    every: int
    measure: Callable[[int, LanguageModel], tuple[float, float]]
    """Of step and model: the metric that decides, and the model utility."""
    metric: str
    goal: Literal["min", "max"]
    least_utility: float | None = None
    """What the model utility of the best state must be; None: anything."""
    patience: int | None = None
    """The training ends after so many looks without a better state; None: at its last step."""
    say: Callable[[str], None] = print

    def best(self, looks: Sequence[Look]) -> Look:
        """The look with the best metric among those with enough utility; if there is none, the one
        with the greatest utility. Of equal ones the first."""
        sign = 1 if self.goal == "min" else -1
        found = [look for look in looks if self._qualifies(look)]
        if found:
            return min(found, key=lambda look: sign * look.value)
        return max(looks, key=lambda look: -math.inf if math.isnan(look.utility) else look.utility)

    def exhausted(self, looks: Sequence[Look]) -> bool:
        """Whether as many looks as there is patience for came after the best one."""
        if self.patience is None or not looks:
            return False
        return len(looks) - 1 - looks.index(self.best(looks)) >= self.patience

    def told(self, looks: Sequence[Look], steps: int) -> str:
        """Which state of a training of so many steps is its result, and why."""
        best, last = self.best(looks), looks[-1].step
        result = f"the result is that of step {best.step} of {steps}"
        bound = f"a model utility of at least {self.least_utility or 0.0:.3g}"
        if self._qualifies(best):
            which = "least" if self.goal == "min" else "greatest"
            enough = "" if self.least_utility is None else f" with {bound}"
            text = f"{result}: the {which} {self.metric} ({best.value:.3g}) of those{enough}"
        else:
            measured = any(not math.isnan(look.value) for look in looks)
            fault = f"no step has {bound}" if measured else f"{self.metric} could not be measured"
            text = f"{fault}; {result}, with the greatest model utility ({best.utility:.3g})"
        if last < steps and self.exhausted(looks):
            count = "1 look" if self.patience == 1 else f"{self.patience} looks"
            text += f"; training ended at step {last}, after {count} without a better one"
        return text

    def _qualifies(self, look: Look) -> bool:
        enough = self.least_utility is None or look.utility >= self.least_utility
        return not math.isnan(look.value) and enough
