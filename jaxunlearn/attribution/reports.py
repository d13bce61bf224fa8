"""How good an attributor is: accuracy, calibration, and what it says as owners' words vanish."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxunlearn.attribution.responses import Attributor, Responses, in_batches


def accuracy(scores: np.ndarray, owners: np.ndarray) -> float:
    """Share of responses whose owner has the highest score; of equal ones the first counts.

    Args:
      scores: `[n, owners]`.
      owners: int `[n]`.
    """
    return float((np.argmax(scores, axis=1) == owners).mean())


def expected_calibration_error(scores: np.ndarray, owners: np.ndarray, *, bins: int = 15) -> float:
    """How far confidence is from accuracy: `sum_b n_b / n |accuracy_b - mean confidence_b|`.

    Confidence is the highest score; the bins are of equal width, (b / bins, (b + 1) / bins].

    Args:
      scores: `[n, owners]` in [0, 1].
      owners: int `[n]`.
      bins: how many.

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, 2017.

    >>> scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    >>> round(expected_calibration_error(scores, np.array([0, 1, 1]), bins=2), 3)
    0.133
    """
    confidence = scores.max(axis=1).astype(np.float64)
    right = np.argmax(scores, axis=1) == owners
    bin_of = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    gaps = (np.where(bin_of == b, right - confidence, 0.0).sum() for b in range(bins))
    return float(sum(map(abs, gaps)) / len(scores))


def masking_curve(
    attributor: Attributor,
    responses: Responses,
    counts: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> np.ndarray:
    """Mean score of the true owner when k tokens of each response are replaced.

    They are replaced by tokens drawn from all responses; what is replaced at a smaller k is
    replaced by the same at a larger one. A sound attributor falls along the curve.

    Args:
      attributor: of the responses' owners.
      responses: n rows.
      counts: the numbers k; of a shorter response all tokens are replaced.
      seed: of the draws.
      batch_size: responses at once.

    Returns:
      float64 `[len(counts)]`.
    """
    rng = np.random.default_rng(seed)
    real = np.arange(responses.tokens.shape[1]) < responses.lengths[:, None]
    place = np.where(real, rng.random(real.shape), 2.0).argsort(axis=1).argsort(axis=1)
    noise = rng.choice(responses.tokens[real], real.shape)
    rows = np.arange(len(responses))
    means = []
    for count in counts:
        masked = np.where(real & (place < count), noise, responses.tokens)
        scores = in_batches(
            attributor.scores, replace(responses, tokens=masked.astype(np.int32)), batch_size
        )
        means.append(scores[rows, responses.owners].mean(dtype=np.float64))
    return np.array(means)
