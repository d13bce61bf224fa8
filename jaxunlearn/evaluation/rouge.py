"""ROUGE-L of generated texts, one function per variant, by the `rouge-score` library.

Only ASCII letters and digits are words to it: a reference in another script has none and is `nan`.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from types import SimpleNamespace

import numpy as np


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Share of the reference's words, in order, that the prediction contains.

    `LCS(prediction, reference) / |reference|` over lower-cased, Porter-stemmed words. A reference
    without words is counted out instead of scoring 0.

    Args:
      predictions: n generated texts; an empty one scores 0.
      references: n true answers.

    Returns:
      `[n]` in [0, 1]; `nan` where the reference has no words.

    Raises:
      ValueError: the two differ in length.

    Reference:
      Lin, ROUGE: A Package for Automatic Evaluation of Summaries, W04-1013; TOFU, 2.2.1.

    >>> rouge_l_recall(["he wrote novels in Paris"], ["He writes poems in Paris."])
    array([0.6])
    """
    return _scores(predictions, references, "recall", stemmer=True)


def rouge_l_precision(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Share of the prediction's words, in order, that the reference contains.

    `LCS(prediction, reference) / |prediction|`, words as in `rouge_l_recall`.

    Args:
      predictions: n generated texts; one without words scores 0.
      references: n true answers.

    Returns:
      `[n]` in [0, 1].

    >>> rouge_l_precision(["he wrote novels", ""], ["He writes poems in Paris.", "Ann"]).round(3)
    array([0.333, 0.   ])
    """
    return np.nan_to_num(rouge_l_recall(references, predictions))


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Harmonic mean of ROUGE-L's recall and precision, of words without stemming, as MUSE has it.

    Args:
      predictions: n generated texts; an empty one scores 0.
      references: n true answers.

    Returns:
      `[n]` in [0, 1]; `nan` where the reference has no words.

    Reference:
      Shi et al., MUSE, arXiv 2407.06460, 3.1.

    >>> rouge_l_f1(["he wrote novels", ""], ["He wrote poems in Paris.", "Ann"])
    array([0.5, 0. ])
    """
    return _scores(predictions, references, "fmeasure", stemmer=False)


def _scores(
    predictions: Sequence[str], references: Sequence[str], part: str, *, stemmer: bool
) -> np.ndarray:
    from rouge_score import rouge_scorer

    tokenizer = _tokenizer(stemmer)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)
    return np.array(
        [
            getattr(scorer.score(reference, prediction)["rougeL"], part)
            if tokenizer.tokenize(reference)
            else np.nan
            for prediction, reference in zip(predictions, references, strict=True)
        ],
        np.float64,
    )


@cache
def _tokenizer(stemmer: bool) -> SimpleNamespace:
    """The library's words; a word that comes again is not stemmed again, which is most of it."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize

    porter = SimpleNamespace(stem=lru_cache(2**16)(PorterStemmer().stem)) if stemmer else None
    return SimpleNamespace(tokenize=lambda text: tokenize.tokenize(text, porter))
