"""From per-token statistics and generated text to numbers: pure numpy, one function per metric.

Every function returns one value per row, `[n]`, so that means, bootstrap intervals and
two-sample tests all start from the same array. A row a metric cannot speak about (no answer
token, no wrong option, an empty reference) is `nan` and is counted out by `entries.summarise`.

Arrays are aligned with the tokens: `log_probs[i, t] = log p(token[i, t] | token[i, :t])`,
`hits[i, t]` says that this token was the argmax, `mask[i, t]` that it belongs to the answer.
The mask includes the closing end token.
"""

from collections.abc import Mapping

import numpy as np

_MAX_EXPONENT = 700.0  # exp stays finite in float64


def mean_log_prob(log_probs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean log-probability of the answer tokens, the closing end token included.

    `l_i = (1 / |y_i|) Σ_t m_it log p(y_it | y_i,<t)`

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.

    Returns:
      float64 `[n]`; `nan` for rows without an answer token.

    >>> mean_log_prob(np.array([[0.0, -1.0, -3.0]]), np.array([[False, True, True]]))
    array([-2.])
    """
    _same_shape(log_probs, mask)
    total = np.where(mask, np.asarray(log_probs, np.float64), 0.0).sum(axis=1)
    return _divide(total, mask.sum(axis=1))


def answer_probability(log_probs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Probability of the answer, length-normalised: its geometric mean per token.

    `P_i = exp(l_i)`, with `l_i` from `mean_log_prob`.

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.

    Returns:
      `[n]` in [0, 1]; `nan` for rows without an answer token.

    Reference:
      Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, arXiv 2401.06121, 2.2.1.

    >>> answer_probability(np.log([[1.0, 0.5, 0.125]]), np.array([[False, True, True]]))
    array([0.25])
    """
    return np.exp(mean_log_prob(log_probs, mask))


def token_probability(
    log_probs: np.ndarray, mask: np.ndarray, *, final_eos: bool = True
) -> np.ndarray:
    """Mean probability of an answer token: the arithmetic mean, not the geometric one of TOFU.

    `P_i = (1 / |y_i|) Σ_t p(y_it | y_i,<t)`

    Args:
      log_probs: `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.
      final_eos: the last answer token is the closing end token and is left out.

    Returns:
      `[n]` in [0, 1]; `nan` where no answer token is left.

    Reference:
      Bushipaka et al., Standard vs. Modular Sampling, arXiv 2509.05316, A.3.

    >>> log_probs = np.log([[1.0, 0.5, 0.25, 0.9]])
    >>> token_probability(log_probs, np.array([[False, True, True, True]]))
    array([0.375])
    """
    _same_shape(log_probs, mask)
    mask = content_mask(mask, final_eos)
    known = np.where(mask, np.asarray(log_probs, np.float64), -np.inf)
    return _divide(np.exp(known).sum(axis=1), mask.sum(axis=1))


def option_probability(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Probability of the right answer among the offered ones.

    `P_i / (P_i + Σ_j W_ij)`; 0 where every option has probability 0.

    Args:
      correct: `[n]`, length-normalised probability of the right answer.
      wrong: `[n, k]`, of the wrong ones; `nan` where a row has fewer than k.

    Returns:
      `[n]` in [0, 1]; `nan` where the right answer or every wrong one is missing.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.1 (real authors and world facts).

    >>> option_probability(np.array([0.5]), np.array([[0.25, 0.25, np.nan]]))
    array([0.5])
    """
    correct, wrong = _row_of_options(correct, wrong)
    total = correct + np.where(np.isnan(wrong), 0.0, wrong).sum(axis=1)
    known = ~np.isnan(correct) & ~np.isnan(wrong).all(axis=1)
    ratio = np.divide(correct, total, out=np.zeros_like(correct), where=total > 0)
    return np.where(known, ratio, np.nan)


def harmonic_mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 where a value is 0.

    >>> harmonic_mean(np.array([[1.0, 0.5, 0.25], [1.0, 0.0, 1.0]])).round(3)
    array([0.429, 0.   ])
    """
    with np.errstate(divide="ignore", over="ignore"):
        return values.shape[-1] / (1 / values).sum(axis=-1)


def truth_ratio(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """How likely wrong answers are beside the right one, length-normalised.

    `R_i = (Π_j W_ij)^(1/k_i) / P_i = exp(mean_j w_ij - c_i)`

    where `c_i` and `w_ij` are mean log-probabilities, so that nothing underflows. The exponent
    is held within ±700 to keep R finite and positive.

    Args:
      correct: `[n]`, `mean_log_prob` of the right (paraphrased) answer.
      wrong: `[n, k]`, of the wrong (perturbed) ones; `nan` where a row has fewer than k.

    Returns:
      `[n]` > 0; `nan` where the right answer or every wrong one is missing.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.1; the mean over wrong answers is geometric, as in
      the code behind the published tables.

    >>> truth_ratio(np.log([0.5]), np.log([[0.5, 0.125]])).round(3)
    array([0.5])
    """
    correct, wrong = _row_of_options(correct, wrong)
    known = ~np.isnan(wrong)
    mean_wrong = _divide(np.where(known, wrong, 0.0).sum(axis=1), known.sum(axis=1))
    return np.exp(np.clip(mean_wrong - correct, -_MAX_EXPONENT, _MAX_EXPONENT))


def forget_truth_ratio(ratios: np.ndarray) -> np.ndarray:
    """Truth ratio on forget rows as a score: 1 when right and wrong are equally likely.

    `min(R, 1 / R)`

    Args:
      ratios: `[n]`, from `truth_ratio`.

    Returns:
      `[n]` in [0, 1]; `nan` stays `nan`.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.1.

    >>> forget_truth_ratio(np.array([0.5, 4.0]))
    array([0.5 , 0.25])
    """
    ratios = np.asarray(ratios, np.float64)
    return np.minimum(ratios, 1 / ratios)


def retain_truth_ratio(ratios: np.ndarray) -> np.ndarray:
    """Truth ratio on rows that should be kept as a score: 1 when wrong answers are unthinkable.

    `max(0, 1 - R)`

    Args:
      ratios: `[n]`, from `truth_ratio`.

    Returns:
      `[n]` in [0, 1]; `nan` stays `nan`.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.1.

    >>> retain_truth_ratio(np.array([0.25, 4.0]))
    array([0.75, 0.  ])
    """
    return np.maximum(0.0, 1 - np.asarray(ratios, np.float64))


def forget_quality(truth_ratios: np.ndarray, retrained_truth_ratios: np.ndarray) -> float:
    """Can the unlearned model be told from one that never saw the forget set?

    The p-value of the two-sample Kolmogorov-Smirnov test between their truth ratios on the forget
    rows: 1 means the same distribution, below 0.05 they can be told apart.

    Args:
      truth_ratios: `[n]`, of the model, from `truth_ratio`; `nan` is counted out.
      retrained_truth_ratios: `[m]`, of the retrained model.

    Returns:
      p in [0, 1]; `nan` if either side has no value.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.2.

    >>> forget_quality(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    from scipy.stats import ks_2samp

    ours, theirs = _present(truth_ratios), _present(retrained_truth_ratios)
    if not len(ours) or not len(theirs):
        return float("nan")
    return float(ks_2samp(ours, theirs).pvalue)


def model_utility(values: Mapping[str, float | None]) -> float:
    """What the model can still do: the harmonic mean, so one ruined ability ruins it.

    `k / Σ_i (1 / v_i)`; 0 if any value is 0.

    Args:
      values: name to number in [0, 1]. TOFU's nine: probability, ROUGE-L recall and truth ratio
        on the retain set, real authors and world facts.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: no value, or one that is missing, not finite or negative (its name is given):
        leaving it out would silently change what the number means.

    Reference:
      Maini et al., TOFU, arXiv 2401.06121, 2.2.1.

    >>> round(model_utility({"retain_rouge": 1.0, "retain_probability": 0.5}), 4)
    0.6667
    """
    numbers = {key: np.nan if value is None else float(value) for key, value in values.items()}
    bad = [key for key, value in numbers.items() if not (np.isfinite(value) and value >= 0)]
    if bad or not numbers:
        found = ", ".join(f"{key} is {values[key]}" for key in bad) or "there are none"
        raise ValueError(f"model_utility needs every value to be a number >= 0, but {found}")
    if min(numbers.values()) == 0:
        return 0.0
    return len(numbers) / sum(1 / value for value in numbers.values())


def tug_of_war(values: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """How near a model comes to the retrained one on several sets at once.

    `ToW = Π_i (1 - |v_i - r_i|)`

    With the forget, retain and test set it is ToW; with forget and retain alone, ToW*. It says
    nothing of sets that are not among them, nor whether answers are still language.

    Args:
      values: set to number in [0, 1], such as its mean ROUGE-L recall.
      retrained: the same of the retrained model.

    Returns:
      A number in [0, 1]; 1 for the retrained model itself.

    Raises:
      ValueError: no set, a set that only one of them has, or a value outside [0, 1] (it is named).

    Reference:
      Zhao et al., What makes unlearning hard and what to do about it, arXiv 2406.01257 (ToW, of
      accuracies); DareU, arXiv 2605.30919 (of ROUGE-L recall, and ToW*).

    >>> original, retrained = {"forget": 0.825, "retain": 0.895}, {"forget": 0.172, "retain": 0.908}
    >>> round(tug_of_war(original, retrained), 3)
    0.342
    """
    if not values or set(values) != set(retrained):
        raise ValueError(
            f"tug_of_war needs the same sets of both models, found {sorted(values)} and "
            f"{sorted(retrained)}"
        )
    for numbers in (values, retrained):
        for key, value in numbers.items():
            if not 0 <= value <= 1:
                raise ValueError(f"tug_of_war needs numbers in [0, 1], but {key} is {value}")
    return float(np.prod([1 - abs(values[key] - retrained[key]) for key in values]))


def exact_memorisation(hits: np.ndarray, mask: np.ndarray, *, final_eos: bool = True) -> np.ndarray:
    """Share of the answer's tokens that greedy decoding gets right, given the true prefix.

    `(1 / |y_i|) Σ_t 1[argmax p(. | y_i,<t) = y_it]`

    Args:
      hits: bool `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.
      final_eos: the last answer token is the closing end token; it says nothing about the
        content and is left out.

    Returns:
      `[n]` in [0, 1]; `nan` where no answer token is left.

    Reference:
      Tirumala et al., Memorization Without Overfitting, arXiv 2205.10770.

    >>> hits, mask = np.array([[True, True, False, True]]), np.array([[False, True, True, True]])
    >>> exact_memorisation(hits, mask)
    array([0.5])
    """
    _same_shape(hits, mask)
    mask = content_mask(mask, final_eos)
    return _divide((np.asarray(hits, bool) & mask).sum(axis=1), mask.sum(axis=1))


def extraction_strength(
    hits: np.ndarray, mask: np.ndarray, *, final_eos: bool = True
) -> np.ndarray:
    """How little of the answer must be given away for greedy decoding to produce the rest.

    `1 - k_i / |y_i|`, k = the smallest prefix length after which every argmax is right.
    A perfect model scores 1 and, other than in code that stops the search one token early, an
    always-wrong one scores 0 (k = |y|).

    Args:
      hits: bool `[n, T]`.
      mask: bool `[n, T]`, the answer tokens.
      final_eos: the last answer token is the closing end token and is left out: a model that
        only fails to stop has still given the answer away, and one that only stops has not.

    Returns:
      `[n]` in [0, 1]; `nan` where no answer token is left.

    Reference:
      Carlini et al., Extracting Training Data from Large Language Models, arXiv 2012.07805, 2021;
      in this form Wang et al., Towards Effective Evaluations and Comparisons for LLM Unlearning
      Methods, arXiv 2406.09179.

    >>> hits = np.array([[False, False, True, True, False]])
    >>> extraction_strength(hits, np.array([[False, True, True, True, True]])).round(3)
    array([0.667])
    """
    _same_shape(hits, mask)
    mask = content_mask(mask, final_eos)
    right = np.asarray(hits, bool) | ~mask
    right_to_the_end = np.cumprod(right[:, ::-1], axis=1)[:, ::-1].astype(bool)
    return _divide((right_to_the_end & mask).sum(axis=1), mask.sum(axis=1))


def content_mask(mask: np.ndarray, final_eos: bool) -> np.ndarray:
    """The mask, without the last answer token of each row if that is the end token."""
    mask = np.asarray(mask, bool)
    if not final_eos:
        return mask
    still_to_come = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (still_to_come > 1)


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Row means `[n]`; nan where nothing was counted."""
    empty = np.full(len(count), np.nan)
    return np.divide(np.asarray(total, np.float64), count, out=empty, where=count > 0)


def _present(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[~np.isnan(values)]


def _same_shape(array: np.ndarray, mask: np.ndarray) -> None:
    if np.ndim(mask) != 2 or np.shape(array) != np.shape(mask):
        raise ValueError(
            f"expected two arrays [n, T], got shapes {np.shape(array)} and {np.shape(mask)}"
        )


def _row_of_options(correct: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    correct, wrong = np.asarray(correct, np.float64), np.asarray(wrong, np.float64)
    if correct.ndim != 1 or wrong.ndim != 2 or len(correct) != len(wrong):
        raise ValueError(
            f"expected correct [n] and wrong [n, k], got shapes {correct.shape} and {wrong.shape}"
        )
    return correct, wrong
