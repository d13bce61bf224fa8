"""Which generated texts become forget data: pure functions of texts and their scores.

Selection is not cosmetic. Texts that a model samples from itself at temperature 1 have a training
gradient of mean zero; dropping some by score gives it a direction. The paper (Reveal and Release,
arXiv 2509.14624) does not say in what we know of it how it filters; all bounds here are ours.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.config_reveal import Filters
from jaxunlearn.evaluation.text import repetition

Gram = tuple[str, ...]
FILTERS = ("score", "length", "repetition", "perplexity", "duplicate", "near_duplicate")
"""In the order in which they are applied."""


class Kept(NamedTuple):
    """What passed."""

    rows: np.ndarray
    """Ascending indices into the texts."""
    reasons: dict[int, str]
    """Of each dropped text the first filter that it did not pass."""
    fractions: dict[str, float]
    """Of each filter that was applied, in order, the share of the texts that came to it which it
    kept, 1 if none came. Their product is the share of all texts that are kept."""


def keep(
    texts: Sequence[str],
    scores: np.ndarray,
    filters: Filters,
    *,
    perplexities: np.ndarray | None = None,
    questions: Sequence[str] | None = None,
) -> Kept:
    """Texts that pass `score`, `length`, `repetition`, `perplexity`, `duplicate`, `near_duplicate`.

    The last two compare with texts that passed all others: of equal ones the first stays. Words
    are parted by white space, and compared without case.

    Args:
      texts: n of them.
      scores: [n], as a scorer gives them.
      filters: the bounds.
      perplexities: [n], if `max_perplexity` is set; one that is not finite is above the bound.
      questions: n, if one answer to two questions is not a duplicate.

    Returns:
      What is kept, in the order of the texts.

    Raises:
      ValueError: scores or perplexities are missing, or not as many as the texts.
    """
    n, words = len(texts), [tuple(text.casefold().split()) for text in texts]
    scores = _one_each(scores, n, "scores")
    lengths = np.array([len(ws) for ws in words], int)
    longest = math.inf if filters.max_words is None else filters.max_words
    fits: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "score": lambda rows: scores[rows] >= filters.min_score,
        "length": lambda rows: (lengths[rows] >= filters.min_words) & (lengths[rows] <= longest),
        "repetition": lambda rows: repetition([texts[i] for i in rows]) <= filters.max_repetition,
    }
    if filters.max_perplexity is not None:
        bound, values = filters.max_perplexity, _one_each(perplexities, n, "perplexities")
        fits["perplexity"] = lambda rows: values[rows] <= bound
    if filters.unique:
        whole = words
        if questions is not None:
            asked = (tuple(text.casefold().split()) for text in questions)
            whole = [(*q, "\n", *ws) for q, ws in zip(asked, words, strict=True)]
        fits["duplicate"] = lambda rows: _first_of_each([whole[i] for i in rows])
        fits["near_duplicate"] = lambda rows: _apart(
            [whole[i] for i in rows], filters.similarity, filters.gram
        )
    rows, reasons = np.arange(n), {}
    for reason, fit in fits.items():
        good = np.asarray(fit(rows), bool)
        reasons |= dict.fromkeys(rows[~good].tolist(), reason)
        rows = rows[good]
    return Kept(rows, reasons, shares([reasons.get(i) for i in range(n)], tuple(fits)))


def shares(dropped_by: Sequence[str | None], names: Sequence[str] = FILTERS) -> dict[str, float]:
    """Of each filter the share that it kept of what came to it, 1 if nothing came.

    Args:
      dropped_by: of each text the filter that it did not pass, or None.
      names: of the filters, in order.
    """
    left, found, counts = len(dropped_by), {}, Counter(dropped_by)
    for name in names:
        found[name] = (left - counts[name]) / left if left else 1.0
        left -= counts[name]
    return found


def grams(words: Sequence[str], n: int) -> frozenset[Gram]:
    """The set of n-grams of words; a shorter text is one gram by itself."""
    return frozenset(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def jaccard(one: frozenset[Gram], other: frozenset[Gram]) -> float:
    """`|A & B| / |A | B|` of sets that are not both empty."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _one_each(values: np.ndarray | None, n: int, name: str) -> np.ndarray:
    found = np.asarray([] if values is None else values, np.float64)
    if found.shape != (n,):
        raise ValueError(f"{name} have the shape {found.shape} for {n} texts; give one per text")
    return found


def _first_of_each(words: Sequence[Gram]) -> np.ndarray:
    first = {ws: row for row, ws in reversed(list(enumerate(words)))}
    return np.array([first[ws] == row for row, ws in enumerate(words)], bool)


def _apart(words: Sequence[Gram], bound: float, n: int) -> np.ndarray:
    """Which texts are below the bound to every earlier one that is.

    Two sets with Jaccard similarity >= t share a gram among the first |A| - ceil(t |A|) + 1 of A
    and the first of B, in any common order; with rare grams first, few pairs meet there (prefix
    filtering, Chaudhuri et al. 2006).
    """
    sets = [grams(ws, n) for ws in words]
    often = Counter(gram for found in sets for gram in found)
    holders: dict[Gram, list[int]] = defaultdict(list)
    good = np.zeros(len(words), bool)
    for row, found in enumerate(sets):
        least = math.ceil(bound * len(found) - 1e-9)  # 0.8 * 5 may be a little more than 4
        rarest = sorted(found, key=lambda gram: (often[gram], gram))
        prefix = rarest[: len(found) - max(least, 1) + 1]
        near = {other for gram in prefix for other in holders[gram]}
        good[row] = all(jaccard(found, sets[other]) < bound for other in near)
        if good[row]:
            for gram in prefix:
                holders[gram].append(row)
    return good
