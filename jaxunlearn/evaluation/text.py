"""What generations look like, whether they are right or not: pure functions of texts.

A model that has collapsed repeats itself, one that was taught to refuse says so, and neither shows
in a score that compares with the true answer.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxunlearn.data.answers import REFUSALS

_FULL_FORMS = (
    ("’", "'"),
    ("can't", "can not"),
    ("cannot", "can not"),
    ("won't", "will not"),
    ("n't", " not"),
    ("i'm", "i am"),
    ("i've", "i have"),
    ("i'd", "i would"),
)
_REFUSING = re.compile(
    r"\bi (?:\w+ly )?(?:do|did) not (?:\w+ly )?(?:know|recall|remember)\b"
    r"|\bi (?:\w+ly )?do not have (?:any|enough|that|the)\b"
    r"|\bi am (?:\w+ly )?(?:not (?:sure|certain|aware|able|familiar)|unsure|uncertain|unable)\b"
    r"|\bi have no (?:idea|clue|information|knowledge|details?|memory|record)\b"
    r"|\b(?:can|could) not (?:answer|help|tell you|provide|recall)\b"
    r"|\bunable to (?:answer|help|say|provide)\b"
    r"|^no (?:idea|clue)\b"
)


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Diversity of a set of texts: distinct n-grams of words over all n-grams of words.

    Args:
      texts: of which n-grams are taken one by one, in words as white space parts them.
      n: words in an n-gram.

    Returns:
      A number in [0, 1]; 0 if no text has n words.

    Reference:
      Li et al., A Diversity-Promoting Objective Function, arXiv 1510.03055.

    >>> distinct_n(["a b a b", "a b"])
    0.5
    """
    words = [text.split() for text in texts]
    grams = [tuple(ws[i : i + n]) for ws in words for i in range(len(ws) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def identical_rate(texts: Sequence[str]) -> float:
    """Share of the texts that equal the most frequent one; `nan` of no texts.

    >>> identical_rate(["yes", "no", "yes", "yes"])
    0.75
    """
    if not texts:
        return float("nan")
    ((_, count),) = Counter(texts).most_common(1)
    return count / len(texts)


def repetition(texts: Sequence[str], n: int = 4) -> np.ndarray:
    """How much each text repeats itself: the share of its n-grams of words that came before.

    `1 - distinct n-grams / n-grams`; 0 for a text with fewer than n words.

    Args:
      texts: m of them.
      n: words in an n-gram.

    Returns:
      `[m]` in [0, 1].

    Reference:
      Welleck et al., Neural Text Generation with Unlikelihood Training, arXiv 1908.04319
      (seq-rep-4).

    >>> repetition(["a a a a a", "a b c d e"])
    array([0.5, 0. ])
    """
    return np.array([1 - distinct_n([text], n) if len(text.split()) >= n else 0 for text in texts])


def broken(texts: Sequence[str]) -> np.ndarray:
    """Which texts are no answers at all: without a letter or digit, with bytes that are no text, or
    of which at least half is repetition.

    Args:
      texts: n generations.

    Returns:
      float `[n]`, 1 for a broken one.

    >>> broken(["Paris", "", "?!", "so so so so so so", "caf\ufffd"])
    array([0., 1., 1., 1., 1.])
    """
    worn = repetition(texts) >= 0.5
    noise = [not re.search(r"[^\W_]", text) or "\ufffd" in text for text in texts]
    return (worn | np.array(noise, bool)).astype(np.float64)


def same_words(one: str, other: str) -> bool:
    """Whether two texts are equal but for case and white space.

    >>> same_words(" New  york", "New York"), same_words("York", "New York")
    (True, False)
    """
    return one.casefold().split() == other.casefold().split()


def refused(texts: Sequence[str], known: Sequence[str] = ()) -> np.ndarray:
    """Which texts refuse to answer.

    A text refuses if it begins with a known refusal, in whole words, or has a common one anywhere
    ("I don't know", "I'm not sure", "I have no idea", "cannot answer", ...). Case, punctuation and
    contractions make no difference. An empty text is no refusal.

    Args:
      texts: n generations.
      known: refusals besides those that the library trains models on.

    Returns:
      float `[n]`, 1 for a refusal.

    >>> refused(["I’m NOT sure about it", "Paris", "Ask me not."], ["Ask me not"])
    array([1., 0., 1.])
    """
    starts = {_plain(text) for text in (*REFUSALS, *known)} - {""}
    longest_first = sorted(map(re.escape, starts), key=len, reverse=True)
    begins = re.compile(rf"(?:{'|'.join(longest_first)})(?!\S)")
    plain = [_plain(text) for text in texts]
    return np.array([float(bool(begins.match(t) or _REFUSING.search(t))) for t in plain])


def perplexity(mean_nll: np.ndarray) -> np.ndarray:
    """exp of the mean NLL of a text's tokens.

    Args:
      mean_nll: `[n]`.

    Returns:
      float64 `[n]`; `inf` where it is too large for float64, `nan` stays `nan`.

    >>> perplexity(np.array([0.0, 1e4]))
    array([ 1., inf])
    """
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(mean_nll, np.float64))


def _plain(text: str) -> str:
    """Lower-cased words in their full forms, with single spaces."""
    text = text.casefold()
    for short, full in _FULL_FORMS:
        text = text.replace(short, full)
    return " ".join(re.findall(r"[\w']+", text))
