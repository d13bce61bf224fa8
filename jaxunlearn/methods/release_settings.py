"""Settings of Reveal-and-Release, which is a procedure and not a loss."""

from typing import Literal

from pydantic.dataclasses import dataclass

from jaxunlearn.methods.orthogonality import Penalty
from jaxunlearn.validation import STRICT, Count, Fraction, NonNegative


@dataclass(frozen=True, config=STRICT)
class Release:
    """How adapters are trained, subtracted and added, again and again.

    In each iteration the model reveals what it knows, a retain adapter and a forget adapter are
    trained from it, and

        W <- W + retain_weight * delta_retain - forget_weight * delta_forget.

    What we know of the paper does not say how it sets any of these; the defaults are ours.
    """

    iterations: Count = 3
    """At most."""
    forget_weight: NonNegative = 0.3
    """lambda: how much of the forget adapter is subtracted; 0: none, and none is trained."""
    retain_weight: NonNegative = 1.0
    """alpha: how much of the retain adapter is added; 0: none, and none is trained."""
    rows_from: Literal["revealed", "unfiltered", "forget_set"] = "revealed"
    """What the forget adapter learns: the model's own answers that pass the filters, all of its own
    answers (a control), or the real forget rows (an oracle)."""
    regenerate: bool = True
    """Whether the model reveals anew in each iteration, or only before the first."""
    coactive: bool = False
    """The forget adapter is trained with the retain adapter at work, as O-LoRA does; False: both
    from the same start."""
    orthogonality_weight: NonNegative = 0.0
    """Of the O-LoRA penalty between the two."""
    orthogonality: Penalty = "abs_sum"
    """Its form."""
    earlier: bool = False
    """The penalty also keeps apart from the forget adapters of earlier iterations."""
    ext_sub: bool = False
    """Only what the forget adapter does not share with the retain adapter is subtracted."""
    random: bool = False
    """Control: in the place of the forget adapter a random one of the same norms."""
    line_search: bool = False
    """forget_weight is the smallest of 0.1, 0.2 ... 1 that forgets at least min_gain of what is
    left and holds max_drop; if none does, that is the end."""
    min_gain: Fraction = 0.2
    """Line search: the least relative fall of the score in one iteration."""
    max_drop: Fraction | None = None
    """An iteration that takes more than this share of the start model's utility, exp(-NLL) of
    retain rows, is not used, and is the last; default: no bound, and .05 with line_search."""
    min_kept: Fraction = 0.05
    """Iterations end when a smaller share of what the model says passes the filters."""
    target_score: Fraction = 0.0
    """Iterations end when the mean score of what the model says is not above this."""

    @property
    def bound(self) -> float | None:
        """The largest fall of utility, if there is a bound."""
        return 0.05 if self.max_drop is None and self.line_search else self.max_drop
