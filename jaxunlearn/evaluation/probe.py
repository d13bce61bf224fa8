"""A linear probe: can a linear map of a hidden state tell the right answer from the others?

Reference: Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes,
arXiv 1610.01644. Answers are many and new at the test, so that the probe does not name a class: it
predicts a vector of the answer, and the answer whose vector is nearest is the one it tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
"""Of the ridge, as shares of the mean squared singular value of the inputs."""
_SAME = 1e-9  # cosines that are this close are the same


@dataclass(frozen=True)
class Ridge:
    """y = (x - mean of x) @ weights + mean of y."""

    weights: np.ndarray
    """float64 `[D, E]`."""
    inputs: np.ndarray
    """Mean of x, `[D]`."""
    outputs: np.ndarray
    """Mean of y, `[E]`."""
    strength: float
    """The one of STRENGTHS that was chosen."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`[n, D]` -> `[n, E]`."""
        return (np.asarray(x, np.float64) - self.inputs) @ self.weights + self.outputs


def fit_ridge(x: np.ndarray, y: np.ndarray) -> Ridge:
    """Ridge regression in closed form, in float64; leave-one-out chooses its strength.

    With `x - mean = U S V'` and `f = S² / (S² + lambda)` the fit is `H y`, `H = U f U' + 1/n`, and
    the error of a row that is left out is `(y - H y)_i / (1 - H_ii)`; of STRENGTHS times the mean
    of S² the lambda is taken whose errors have the least sum of squares.

    Args:
      x: `[n, D]`, n at least 2.
      y: `[n, E]`.

    Raises:
      ValueError: fewer than two rows.

    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> fit_ridge(x, 3 * x)(np.array([[4.0]])).round(1)
    array([[12.]])
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2:
        raise ValueError(f"a ridge needs at least 2 rows, got {len(x)}")
    inputs, outputs = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - inputs, full_matrices=False)
    power = s**2
    # Without any spread there is nothing to learn, and any lambda says so.
    unit = power.mean() or 1.0
    seen = u.T @ (y - outputs)

    def left_out(strength: float) -> float:
        shares = power / (power + strength * unit)
        errors = y - outputs - u @ (shares[:, None] * seen)
        own = (u**2 @ shares) + 1 / len(x)
        return float(((errors / (1 - own)[:, None]) ** 2).sum())

    best = min(STRENGTHS, key=left_out)
    weights = vt.T @ ((s / (power + best * unit))[:, None] * seen)
    return Ridge(weights, inputs, outputs, best)


def retrieval_ranks(
    predicted: np.ndarray, vectors: np.ndarray, answers: Sequence[str]
) -> tuple[np.ndarray, int]:
    """Place of each row's own answer among the different answers of all rows, by cosine.

    Args:
      predicted: `[n, E]`.
      vectors: `[n, E]`, of the answers; rows with the same answer have the same one.
      answers: n texts.

    Returns:
      `[n]`, 1 is the nearest; answers that are equally near share the mean of their places. And
      among how many: a guess is first once in so many times.

    >>> retrieval_ranks(np.array([[2.0, 1.0], [1.0, 0.0]]), np.eye(2), ["a", "b"])
    (array([1., 2.]), 2)
    """
    place = {answer: i for i, answer in enumerate(answers)}
    number = {answer: i for i, answer in enumerate(place)}
    near = _unit(predicted) @ _unit(np.asarray(vectors)[list(place.values())]).T
    own = near[np.arange(len(near)), [number[answer] for answer in answers]][:, None]
    above, equal = (near > own + _SAME).sum(axis=1), (np.abs(near - own) <= _SAME).sum(axis=1)
    return above + (equal + 1) / 2, len(place)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, or of 0 where they are 0."""
    vectors = np.asarray(vectors, np.float64)
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
