"""What a bandit can be told."""

from dataclasses import dataclass
from typing import Literal

from jaxunlearn.validation import Count, NonNegative, Positive


@dataclass(frozen=True)
class Bandit:
    """Settings of a bandit; a compiled program is specialised to them."""

    mode: Literal["ucb", "thompson", "greedy", "random", "linucb"] = "ucb"
    """See `select`. `linucb` is ucb with a linear model, fitted by ridge regression."""
    width: Count = 64
    """Units of the network's one hidden layer."""
    bonus: NonNegative = 1.0
    """Weight of the deviation."""
    lam: Positive = 0.1
    """Ridge of the design matrix, and of the fit."""
    design: Literal["diagonal", "full"] = "diagonal"
    """U of a network's P weights: P or P^2 numbers. That of linucb is always full."""
    rate: Positive = 3e-3
    """Adam's learning rate."""
    steps: Count = 500
    """Adam's steps in one fit."""
    sub_pool: Count = 250
    """Arms among which one is selected."""
    init: Literal["mean_field", "he", "normal"] = "mean_field"
    """Initial weights. `he`: N(0, 2 / inputs) in both layers, biases 0. `mean_field`: the same, but
    N(0, 1 / width^2) out of the hidden layer, because an output layer of He's size predicts about
    -1 to 1 where nothing was pulled: its regret on the quadratic fixture is 26, not 9. `normal`:
    everything N(0, 1), biases too (INSTINCT)."""
    design_points: Literal["accumulated", "recomputed", "selected"] = "accumulated"
    """What is in U. `accumulated`: each pull with its gradient at the weights that selected it
    (NeuralUCB), the initial ones at the weights of the first fit. `recomputed`: all pulls, at the
    weights of the last fit. `selected`: as accumulated, without the initial pulls (INSTINCT's
    quirk)."""
    standardise: Literal["pool", "pulled"] = "pool"
    """Mean and deviation of contexts: over the whole pool, or over the pulled ones and none before
    the first fit (INSTINCT's quirk)."""
    fit_initial: bool = True
    """False: the initial pulls are not fitted before the first selection (INSTINCT's quirk)."""
    repeat_arms: bool = False
    """Whether an arm may be pulled again (INSTINCT's quirk)."""


INSTINCT = Bandit(
    width=100,
    rate=1e-3,
    steps=1000,
    sub_pool=1000,
    init="normal",
    design_points="selected",
    standardise="pulled",
    fit_initial=False,
    repeat_arms=True,
)
"""As the code of INSTINCT (arXiv 2310.02905) has it, in float32 instead of float64."""
