"""Multiple choice: which option is the most likely one, by its letter or by its text.

The prompts are those of lm-evaluation-harness for MMLU and WMDP (letters) and for ARC (texts), so
that numbers can be compared; no template is put around them, and the end token does not count.
"""

import string
from collections.abc import Callable, Sequence

import numpy as np

from jaxunlearn.data.rows import Row, Text
from jaxunlearn.evaluation.metrics import content_mask
from jaxunlearn.evaluation.results import Results


def has_options(row: Row) -> bool:
    """Whether it is a multiple-choice question."""
    return bool(row.options)


def letter_texts(row: Row) -> tuple[Text, ...]:
    """The question with its options, answered by each letter."""
    letters = string.ascii_uppercase[: len(row.options)]
    lines = [f"{one}. {option}" for one, option in zip(letters, row.options, strict=True)]
    asked = "\n".join([row.question, *lines, "Answer:"])
    return tuple(Text(asked, letter, raw=True) for letter in letters)


def option_texts(row: Row) -> tuple[Text, ...]:
    """The question alone, answered by the text of each option."""
    asked = f"Question: {row.question}\nAnswer:"
    return tuple(Text(asked, option, raw=True) for option in row.options)


def letter_accuracy(results: Results, name: str) -> np.ndarray:
    """Whether the right letter is the most likely one; [n], nan for a row without options.

    Reference:
      Hendrycks et al., arXiv 2009.03300 (MMLU); Li et al., arXiv 2403.03218 (WMDP).
    """
    return _accuracy(results, name, letter_texts)


def letter_probability(results: Results, name: str) -> np.ndarray:
    """Probability of the right letter among the letters, [n]; finer than accuracy."""
    rows = results.sets[name].rows
    found = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        log_probs = _log_probs(results, letter_texts(row))
        if len(log_probs) and np.isfinite(log_probs).all():
            weights = np.exp(log_probs - log_probs.max())
            found[i] = weights[row.options.index(row.answer)] / weights.sum()
    return found


def option_accuracy(results: Results, name: str) -> np.ndarray:
    """Whether the text of the right option is the most likely one (`acc`), [n]."""
    return _accuracy(results, name, option_texts)


def option_accuracy_normalised(results: Results, name: str) -> np.ndarray:
    """The same with log-probabilities divided by the letters of the option (`acc_norm`), [n]."""
    return _accuracy(results, name, option_texts, by_length=True)


def _accuracy(
    results: Results,
    name: str,
    texts: Callable[[Row], tuple[Text, ...]],
    *,
    by_length: bool = False,
) -> np.ndarray:
    rows = results.sets[name].rows
    found = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        log_probs = _log_probs(results, texts(row))
        if by_length:
            log_probs = log_probs / [len(option) for option in row.options]
        # A row with an option that was left out cannot be answered.
        if len(log_probs) and np.isfinite(log_probs).all():
            found[i] = float(row.options[int(log_probs.argmax())] == row.answer)
    return found


def _log_probs(results: Results, texts: Sequence[Text]) -> np.ndarray:
    """Log-probability of each answer, all its tokens together; nan for one that was left out."""
    log_probs, _, mask = results.scores.rows(texts)
    mask = content_mask(mask, results.final_eos)
    total = np.where(mask, np.asarray(log_probs, np.float64), 0.0).sum(axis=1)
    return np.where(mask.any(axis=1), total, np.nan)
