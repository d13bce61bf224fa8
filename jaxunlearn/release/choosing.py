"""How much of a forget adapter to subtract, and when to stop: pure functions of what was measured.

What we know of the paper (Reveal and Release, arXiv 2509.14624) names a balance between forgetting
and utility, and no rule; those here are ours. They need no forget set: the score is that of what
the model says itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxunlearn.methods.release_settings import Release

GRID = tuple(i / 10 for i in range(1, 11))
"""Weights that a line search tries."""


class Measured(NamedTuple):
    """A model with some weight of the forget adapter subtracted."""

    forget_weight: float
    score: float
    """Mean score of what it says."""
    retain_nll: float | None
    """Mean over answer tokens of retain rows; None: it is not finite, the model is destroyed."""


def utility_drop(now: float, start: float) -> float:
    """Share of the utility exp(-NLL) that is lost, from the NLLs; below 0 if it grew.

    >>> utility_drop(math.log(4), math.log(2))
    0.5
    """
    return 1 - math.exp(start - now)


def smallest(
    curve: Sequence[Measured], settings: Release, *, score: float, start_nll: float
) -> Measured | None:
    """The smallest weight that forgets enough and keeps enough; None if there is none.

    Args:
      curve: what was measured, by rising weight.
      settings: min_gain and the bound.
      score: before the iteration.
      start_nll: of the retain rows, under the start model.
    """
    for one in curve:
        forgets = one.score <= (1 - settings.min_gain) * score
        if forgets and keeps(one, settings, start_nll):
            return one
    return None


def keeps(one: Measured, settings: Release, start_nll: float) -> bool:
    """Whether there is any utility, and it is within the bound, if there is one."""
    if one.retain_nll is None:
        return False
    return settings.bound is None or utility_drop(one.retain_nll, start_nll) <= settings.bound
