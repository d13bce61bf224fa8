"""Entity-level agreement of named and true entities of a text, counted by seqeval."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data import ner
from jaxunlearn.data.rows import Row
from jaxunlearn.extras import need


def counts(rows: Sequence[Row], answers: Sequence[str]) -> np.ndarray:
    """Entities that an answer names rightly, that it names, and that there are.

    Args:
      rows: n rows of the format `ner`.
      answers: n generated answers.

    Returns:
      float64 [n, 3]; nan where a question is none of the format's.

    Raises:
      UserError: seqeval is not there.
    """
    found = np.full((len(rows), 3), np.nan)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        text = ner.text_of(row.question)
        if text is not None:
            said, true = (_spans(one) for one in bio(text, answer, row.answer))
            found[i] = len(said & true), len(said), len(true)
    return found


def _spans(tags: list[str]) -> set[tuple[str, int, int]]:
    need("seqeval", by="statistic entities", install="'jaxunlearn[tasks]'")
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(tags))


def bio(text: str, said: str, truth: str) -> tuple[list[str], list[str]]:
    """BIO tags of a text by the answer that was given, and by the true one.

    A name is marked wherever the text has its words and no longer name of the same answer stands.
    One that is marked nowhere gets a place of its own after the text, so that it is counted too.

    >>> bio("Ann Lee met Bo", "Ann | Cy", "Ann Lee")[0]
    ['B-NAME', 'O', 'O', 'O', 'B-NAME', 'O']
    >>> bio("Ann Lee met Bo", "Ann | Cy", "Ann Lee")[1]
    ['B-NAME', 'I-NAME', 'O', 'O', 'O', 'O']
    """
    marked = [_marked(text.split(" "), ner.names_in(answer)) for answer in (said, truth)]
    for name in sorted(marked[0][1] | marked[1][1]):
        for tags, nowhere in marked:
            tags += ["B-NAME" if name in nowhere else "O", "O"]
    return marked[0][0], marked[1][0]


def _marked(tokens: Sequence[str], names: Sequence[str]) -> tuple[list[str], set[str]]:
    """The tags of the tokens, and the names that are marked nowhere."""
    tags, nowhere = ["O"] * len(tokens), set(names)
    for words in sorted((name.split(" ") for name in names), key=lambda one: (-len(one), one)):
        for start in range(len(tokens) - len(words) + 1):
            end = start + len(words)
            if list(tokens[start:end]) == words and set(tags[start:end]) == {"O"}:
                tags[start:end] = ["B-NAME", *["I-NAME"] * (len(words) - 1)]
                nowhere.discard(" ".join(words))
    return tags, nowhere


def micro_f1(counted: np.ndarray) -> float:
    """2 right / (named + true) over all rows of `counts`; nan where nothing is named or true.

    >>> micro_f1(np.array([[1.0, 2.0, 1.0], [0.0, 0.0, 1.0]]))
    0.5
    """
    right, named, true = counted.sum(axis=0)
    return float(2 * right / (named + true)) if named + true else np.nan
