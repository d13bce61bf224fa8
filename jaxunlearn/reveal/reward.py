"""One number for a set of generated texts: to the point, and not the same thing again and again."""

import numpy as np
from numpy.typing import ArrayLike

FLOOR = 1e-6


def weighted_harmonic_mean(
    relevance: ArrayLike, diversity: ArrayLike, *, weight: float = 0.5
) -> np.ndarray:
    """Reward of an instruction: high only if relevance and diversity both are.

    `F = 1 / (w / R + (1 - w) / D)`, with R and D raised to 1e-6 where they are below.

    Args:
      relevance: R in [0, 1], any shape.
      diversity: D in [0, 1], of the same shape, such as `diversity.normalised_vendi_score`.
      weight: w in [0, 1].

    Returns:
      float64 of that shape.

    Raises:
      ValueError: the weight is outside [0, 1].

    Reference:
      Xie et al., Reveal and Release, arXiv 2509.14624, scores instructions by a weighted harmonic
      mean of relevance and diversity. The weight 0.5 and the floor are ours.

    >>> round(float(weighted_harmonic_mean(0.9, 0.1)), 6)
    0.18
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; give a number in [0, 1]")
    r, d = (np.maximum(np.asarray(part, np.float64), FLOOR) for part in (relevance, diversity))
    return 1 / (weight / r + (1 - weight) / d)
