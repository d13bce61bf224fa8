"""How many different things a set of vectors says: the Vendi score.

Reference:
  Friedman and Dieng, The Vendi Score, arXiv 2210.02410. Reveal and Release (arXiv 2509.14624) takes
  it as the diversity of generated texts; to normalise it, and to count texts that are already
  there, is ours.
"""

import numpy as np


def vendi_score(vectors: np.ndarray, *, dual: bool | None = None) -> float:
    """Effective number of different rows: the exponential of an entropy (order q = 1).

    `VS = exp(-sum_i m_i log m_i)` over the eigenvalues m_i > 0 of `X X^T / n`, with the rows of X
    scaled to length 1. The dual form takes them from `X^T X / n`, which has the same ones.

    Args:
      vectors: [n, D], n >= 1. Rows without a direction, all zero, count as equal to each other and
        orthogonal to the others.
      dual: which form; None: the one with the smaller matrix.

    Returns:
      A number in [1, n]: 1 if all rows point one way, n if they are orthogonal.

    Raises:
      ValueError: no rows, or a vector that is not finite.

    >>> round(vendi_score(np.eye(4)), 6), round(vendi_score(np.ones((4, 2))), 6)
    (4.0, 1.0)
    """
    x_ND = np.asarray(vectors, np.float64)
    if x_ND.ndim != 2 or not len(x_ND) or not np.isfinite(x_ND).all():
        raise ValueError(f"found an array of shape {x_ND.shape}; give finite vectors, [n, D]")
    # The largest number first: the squares of a row may be too large, or vanish.
    largest = np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0)
    lost = largest == 0
    x_ND = np.hstack([x_ND / np.where(lost, 1.0, largest), lost])
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    n, dim = x_ND.shape
    gram = x_ND.T @ x_ND if (dim < n if dual is None else dual) else x_ND @ x_ND.T
    m = np.linalg.eigvalsh(gram / n)
    m = m[m > 0]
    return float(np.clip(np.exp(-np.sum(m * np.log(m))), 1.0, n))


def normalised_vendi_score(vectors: np.ndarray) -> float:
    """`(VS - 1) / (n - 1)`: 0 if all n rows point one way, 1 if they are orthogonal.

    Args:
      vectors: [n, D], n >= 1; one row alone has no diversity, 0.

    Returns:
      A number in [0, 1].
    """
    n = len(vectors)
    return (vendi_score(vectors) - 1) / (n - 1) if n > 1 else vendi_score(vectors) - 1


def joint_diversity(
    batch: np.ndarray, existing: np.ndarray, *, size: int, rng: np.random.Generator
) -> float:
    """Normalised Vendi score of a batch together with a sample of what is already there.

    A batch that says what is there already scores lower than one that says something new.

    Args:
      batch: [n, D], n >= 1.
      existing: [m, D], m >= 0.
      size: rows sampled from `existing`, without replacement; all if it has no more.
      rng: draws the sample.

    Returns:
      A number in [0, 1].
    """
    sample = rng.choice(len(existing), min(size, len(existing)), replace=False)
    return normalised_vendi_score(np.concatenate([batch, existing[sample]]))
