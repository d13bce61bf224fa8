"""Membership inference: can the rows to forget be told from rows that no model was trained on?

Members are the forget rows, the others are holdout rows of the same kind. An attack gives each row
one score, `[n]`, higher = more likely a member; a row without answer tokens is `nan` and is counted
out. The loss attack is `mean_log_prob` itself (Yeom et al., arXiv 1709.01604). `auc` and
`tpr_at_fpr` say how well the scores tell the two apart: of a model that never saw either, AUC is
0.5 up to chance. Arrays are aligned with the tokens as in `metrics`.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxunlearn.evaluation.metrics import mean_log_prob

FRACTION = 0.2
"""Share of the tokens that Min-K% looks at; k = 20 in both papers."""

_LEAST_DEVIATION = 1e-3
"""Below it the probabilities of float32 cannot say what the deviation is."""


def zlib_score(log_probs: np.ndarray, mask: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The loss attack, relative to how much there is to know in the text.

    `l_i / |zlib(text_i)|`, `l_i` = `mean_log_prob` and the length in bytes, of UTF-8 text.

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.
      texts: n answers.

    Returns:
      `[n]`; `nan` for rows without an answer token.

    Reference:
      Carlini et al., Extracting Training Data from Large Language Models, arXiv 2012.07805, 2021.

    >>> log_probs, mask = np.array([[0.0, -1.0, -3.0]]), np.array([[False, True, True]])
    >>> zlib_score(log_probs, mask, ["ab"])  # two bytes and what zlib adds to them
    array([-0.2])
    """
    lengths = np.array([len(zlib.compress(text.encode())) for text in texts], np.float64)
    return mean_log_prob(log_probs, mask) / lengths


def min_k(log_probs: np.ndarray, mask: np.ndarray, *, fraction: float = FRACTION) -> np.ndarray:
    """Min-K%: mean log-probability of the answer's least likely tokens.

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.
      fraction: share of the answer tokens to look at, rounded down, but at least one token.

    Returns:
      `[n]`; `nan` for rows without an answer token.

    Reference:
      Shi et al., Detecting Pretraining Data from Large Language Models, arXiv 2310.16789, 2024.

    >>> min_k(np.array([[0.0, -1.0, -3.0]]), np.array([[False, True, True]]), fraction=0.5)
    array([-3.])
    """
    mask = np.asarray(mask, bool)
    lowest = np.where(mask, np.asarray(log_probs, np.float64), np.inf)
    lowest = np.sort(lowest, axis=1)
    lengths = mask.sum(axis=1)
    # 0.29 * 100 is a little less than 29.
    count = np.maximum(np.floor(fraction * lengths + 1e-9), 1)
    chosen = np.arange(mask.shape[1]) < count[:, None]
    total = np.where(chosen, lowest, 0.0).sum(axis=1)
    # nan is sorted behind all numbers.
    known = (lengths > 0) & ~np.isnan(lowest[:, -1])
    return np.where(known, total / count, np.nan)


def min_k_plus_plus(
    log_probs: np.ndarray,
    means: np.ndarray,
    deviations: np.ndarray,
    mask: np.ndarray,
    *,
    fraction: float = FRACTION,
) -> np.ndarray:
    """Min-K%++: Min-K% of log-probabilities that are standardised over the vocabulary.

    `min_k((log p(x_t) - mu_t) / sigma_t)`, mu and sigma of log p(v) for v drawn from p. Sigma is at
    least 0.001: a prediction that leaves nothing open has none to speak of.

    Args:
      log_probs: `[n, T]`.
      means: `[n, T]`, mu.
      deviations: `[n, T]`, sigma.
      mask: bool `[n, T]`, the answer tokens.
      fraction: as in `min_k`.

    Returns:
      `[n]`; `nan` for rows without an answer token.

    Reference:
      Zhang et al., Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large Language
      Models, arXiv 2404.02936, 2025.

    >>> mask = np.array([[False, True, True]])
    >>> log_probs, means = np.array([[0.0, -1.0, -3.0]]), np.array([[0.0, -2.0, -2.0]])
    >>> min_k_plus_plus(log_probs, means, np.array([[0.0, 1.0, 0.5]]), mask)
    array([-2.])
    """
    centred = np.asarray(log_probs, np.float64) - means
    return min_k(centred / np.maximum(deviations, _LEAST_DEVIATION), mask, fraction=fraction)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the ROC curve: how often a member scores higher than another row.

    `P(member > other) + P(member = other) / 2` over all pairs. 1 = every member is told from every
    other row, 0.5 = chance.

    Args:
      members: `[n]` scores; `nan` is counted out.
      others: `[m]` scores.

    Returns:
      A number in [0, 1]; `nan` if either side has no score.

    >>> auc(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
    0.875
    """
    members, others = _present(members), _present(others)
    if not len(members) or not len(others):
        return float("nan")
    others = np.sort(others)
    below = np.searchsorted(others, members, "left")
    not_above = np.searchsorted(others, members, "right")
    return float((below + not_above).sum() / (2 * len(members) * len(others)))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
    """Share of the members that are found when at most a share `fpr` of the others is accused.

    The largest `|{members >= t}| / n` over all thresholds t with `|{others >= t}| / m <= fpr`. It
    is a point of the step curve: nothing is interpolated. With fewer than `1 / fpr` others, no
    other row may be accused, and it is the share of members above all others.

    Args:
      members: `[n]` scores; `nan` is counted out.
      others: `[m]` scores.
      fpr: in [0, 1].

    Returns:
      A number in [0, 1]; `nan` if either side has no score.

    Reference:
      Carlini et al., Membership Inference Attacks From First Principles, arXiv 2112.03570.

    >>> tpr_at_fpr(np.array([4.0, 3.0, 2.0, 0.0]), np.array([3.0, 1.0]), 0.5)
    0.75
    """
    members, others = _present(members), _present(others)
    if not len(members) or not len(others):
        return float("nan")
    accused = int(fpr * len(others) + 1e-9)
    if accused == len(others):
        return 1.0
    return float((members > np.sort(others)[-1 - accused]).mean())


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """PrivLeak: AUC of a model, relative to that of the retrained one.

    `(AUC_u - AUC_r) / AUC_r`, both AUCs as in `auc`: higher = members are found. 0 is the goal;
    above it the forget rows still look like members (too little was unlearned), below it they look
    more foreign than rows that were never seen (too much was), which gives them away as well.

    Code that reports MUSE's numbers puts 1 - AUC in the place of AUC, in percent: there the sign
    is the other one and the size differs.

    Args:
      auc_unlearned: of the model, by Min-K%.
      auc_retrained: of the retrained model.

    Returns:
      A number >= -1; `nan` where AUC_r is 0 or either is `nan`.

    Reference:
      Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, arXiv 2407.06460.

    >>> priv_leak(0.75, 0.5)
    0.5
    """
    if auc_retrained == 0:
        return float("nan")
    return (auc_unlearned - auc_retrained) / auc_retrained


def _present(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    return scores[~np.isnan(scores)]
