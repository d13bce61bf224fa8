"""Metrics as open-unlearning computes them, where that is not what `metrics` and `privacy` do.

As of its commit d3d7cf9.

    option probability   1e-10 more below the line
    truth ratio          1e-10 more below the line, and again in its score on forget rows
    ROUGE-L recall       a reference without words scores 0 and is not counted out
    ROUGE-L of MUSE      the F1, not the recall
    extraction strength  at least 1 / |y|: the search for k stops one token early
    Min-K%, Min-K%++     k = 40, not 20; without the last answer token; 0 where none is left
    gradient norm        mean over parameter tensors, and not the norm of all of them together;
                         of the loss without the last answer token (`gradient_norm`)
    PrivLeak             of 1 - AUC, 1e-10 more below the line, in percent

Without the last answer token means: whatever it is, so also where a text has no end token. That is
`final_eos=True` of `metrics`, with which exact memorisation is the same on both sides.

Also the same: probability, the score of truth ratios on other rows, model utility, forget quality,
AUC, and the loss, zlib and reference attacks. Scores of attacks have the other sign there (higher =
less likely a member), and holdout rows are its positives: the AUC does not change by that.

Conventions are those of `metrics` and `privacy`, and so is `nan` for a row without an answer token.
A row that holds nothing but its end token scores 0 in extraction strength, Min-K% and Min-K%++, and
is counted.
"""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.evaluation import metrics, privacy, rouge

FRACTION = 0.4
"""Share of the tokens that its Min-K% looks at."""

_LEAST = 1e-10


def option_probability(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """`metrics.option_probability` as `P_i / (P_i + Σ_j W_ij + 1e-10)`.

    Args:
      correct: `[n]`, length-normalised probability of the right answer.
      wrong: `[n, k]`, of the wrong ones; `nan` where a row has fewer than k.

    Returns:
      `[n]` in [0, 1]; `nan` where the right answer or every wrong one is missing.

    >>> option_probability(np.array([1e-10]), np.array([[0.0, np.nan]])).round(6)
    array([0.5])
    """
    correct = np.asarray(correct, np.float64)
    share = metrics.option_probability(correct + _LEAST, wrong)
    return share * correct / (correct + _LEAST)


def truth_ratio(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """`metrics.truth_ratio` as `exp(mean_j w_ij) / (exp(c_i) + 1e-10)`.

    Args:
      correct: `[n]`, `mean_log_prob` of the right (paraphrased) answer.
      wrong: `[n, k]`, of the wrong (perturbed) ones; `nan` where a row has fewer than k.

    Returns:
      `[n]` in [0, 1e10]; `nan` where the right answer or every wrong one is missing.

    >>> truth_ratio(np.log([1e-10]), np.log([[1e-10, 1e-10]])).round(6)
    array([0.5])
    """
    return metrics.truth_ratio(np.log(np.exp(correct) + _LEAST), wrong)


def forget_truth_ratio(ratios: np.ndarray) -> np.ndarray:
    """`metrics.forget_truth_ratio` as `min(R, 1 / (R + 1e-10))`.

    Args:
      ratios: `[n]`, from `truth_ratio`.

    Returns:
      `[n]` in [0, 1]; `nan` stays `nan`.

    >>> forget_truth_ratio(np.array([0.0, 4.0])).round(6)
    array([0.  , 0.25])
    """
    ratios = np.asarray(ratios, np.float64)
    return np.minimum(ratios, 1 / (ratios + _LEAST))


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """`rouge.rouge_l_recall` with 0 where the reference has no words.

    Args:
      predictions: n generated texts.
      references: n true answers.

    Returns:
      `[n]` in [0, 1].

    >>> rouge_l_recall(["Paris", "Paris"], ["Paris, France", "?"])
    array([0.5, 0. ])
    """
    return np.nan_to_num(rouge.rouge_l_recall(predictions, references))


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L as in its MUSE suite: `2 P R / (P + R)` of precision and recall.

    Args:
      predictions: n generated texts.
      references: n true answers.

    Returns:
      `[n]` in [0, 1]; 0 where prediction and reference share no word.

    >>> rouge_l_f1(["Paris", "Rome"], ["Paris, France", "Paris"]).round(3)
    array([0.667, 0.   ])
    """
    recall = rouge_l_recall(predictions, references)
    precision = rouge.rouge_l_precision(predictions, references)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def extraction_strength(hits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`metrics.extraction_strength` with k_i at most `|y_i| - 1`.

    A model that is always wrong scores `1 / |y_i|`, as one that only gets the last token right.

    Args:
      hits: bool `[n, T]`.
      mask: bool `[n, T]`, the answer tokens; the last one is left out.

    Returns:
      `[n]` in [0, 1]; 0 where only the last token was there.

    >>> extraction_strength(np.zeros((1, 6), bool), np.ones((1, 6), bool))
    array([0.2])
    """
    strength = metrics.extraction_strength(hits, mask)
    length = metrics.content_mask(mask, True).sum(axis=1)
    return _zero_without_content(np.maximum(strength, 1 / np.maximum(length, 1)), mask)


def min_k(log_probs: np.ndarray, mask: np.ndarray, *, fraction: float = FRACTION) -> np.ndarray:
    """`privacy.min_k` without the last answer token.

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens; the last one is left out.
      fraction: share of the other ones, rounded down, but at least one token.

    Returns:
      `[n]`, higher = more likely a member; 0 where only the last token was there.

    >>> min_k(np.array([[0.0, -1.0, -3.0, -9.0]]), np.array([[False, True, True, True]]))
    array([-3.])
    """
    content = metrics.content_mask(mask, True)
    return _zero_without_content(privacy.min_k(log_probs, content, fraction=fraction), mask)


def min_k_plus_plus(
    log_probs: np.ndarray,
    means: np.ndarray,
    deviations: np.ndarray,
    mask: np.ndarray,
    *,
    fraction: float = FRACTION,
) -> np.ndarray:
    """`privacy.min_k_plus_plus` without the last answer token.

    It holds the variance at 1e-6 or more, which is the least deviation of `privacy`.

    Args:
      log_probs: `[n, T]`.
      means: `[n, T]`.
      deviations: `[n, T]`, standard deviations.
      mask: bool `[n, T]`, the answer tokens; the last one is left out.
      fraction: as in `min_k`.

    Returns:
      `[n]`, higher = more likely a member; 0 where only the last token was there.

    >>> mask, log_probs = np.array([[True, True, True]]), np.array([[-1.0, -3.0, -9.0]])
    >>> min_k_plus_plus(log_probs, log_probs + 1, np.array([[1.0, 0.5, 0.1]]), mask)
    array([-2.])
    """
    content = metrics.content_mask(mask, True)
    found = privacy.min_k_plus_plus(log_probs, means, deviations, content, fraction=fraction)
    return _zero_without_content(found, mask)


def priv_leak(auc: float, retrained_auc: float = 0.5) -> float:
    """`privacy.priv_leak` as `100 (a - a_r) / (a_r + 1e-10)`, a = 1 - AUC.

    The sign is the other one: above 0 the forget rows look more foreign than rows never seen.

    Args:
      auc: of the model by `min_k`, as `privacy.auc` gives it.
      retrained_auc: of the retrained model; 0.5 stands for one that is not there.

    Returns:
      A number in percent, >= -100.

    >>> round(priv_leak(0.75), 6)
    -50.0
    """
    return rel_diff(1 - auc, 1 - retrained_auc)


def rel_diff(value: float, retrained: float = 0.5) -> float:
    """`100 (v - v_r) / (v_r + 1e-10)`: any number of a model, relative to the retrained model's.

    Args:
      value: of the model.
      retrained: of the retrained one; 0.5 stands for one that is not there.

    Returns:
      A number in percent.

    >>> round(rel_diff(0.75), 6)
    50.0
    """
    return 100 * (value - retrained) / (retrained + _LEAST)


def _zero_without_content(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """0 where the last token is the only one of the answer."""
    return np.where(np.sum(mask, axis=1) == 1, 0.0, values)
