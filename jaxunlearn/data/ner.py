"""Named entities as questions: which people, places, organisations or other names a text has.

Made of CoNLL files; the answer is the distinct names in the order of the text, with SEPARATOR
between each two, or NONE. People are to be forgotten, the other types kept. Types are spelt as in
CoNLL-2003 and WikiGold (PER, LOC, ORG, MISC), WNUT 2017 or in full, in any case.

References: Tjong Kim Sang and De Meulder, W03-0419; Balasuriya et al., W09-3302 (WikiGold);
Derczynski et al., W17-4418 (WNUT 2017).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.data.conll import Sentence, read
from jaxunlearn.data.files import locate
from jaxunlearn.data.rows import EvalSet, Row, Text, Theme, UnlearningData
from jaxunlearn.data.splits import held_out
from jaxunlearn.errors import UserError
from jaxunlearn.extras import need

SEPARATOR = " | "
NONE = "none"
NONE_SHARE = 0.2
"""Most rows of a type that may have the answer NONE; none of the type to be forgotten has."""
QUESTIONS = {
    "person": "Which people are named in this text? ",
    "location": "Which places are named in this text? ",
    "organisation": "Which organisations are named in this text? ",
    "misc": "Which names of other things, such as works, products or events, are in this text? ",
}
"""Type to its question, which the text follows."""
INSTRUCTIONS = (
    "List every person.",
    "Look for first names and surnames.",
    "Name everybody who is mentioned, and nobody else.",
    "People only: no places, no companies.",
    "Who is it about?",
    "Copy the names of people as they are written.",
    "Mark the human beings in the sentence.",
    "Artists, players, politicians: find them all.",
)
"""That may bring out what a model knows of people."""
_TYPES = {
    **dict.fromkeys(("PER", "PERSON"), "person"),
    **dict.fromkeys(("LOC", "LOCATION"), "location"),
    **dict.fromkeys(
        ("ORG", "ORGANISATION", "ORGANIZATION", "CORPORATION", "GROUP"), "organisation"
    ),
    **dict.fromkeys(("MISC", "PRODUCT", "CREATIVE-WORK"), "misc"),
}
_FORGOTTEN = "person"


@dataclass(frozen=True)
class GoldScorer:
    """How many of a text's people an answer names, if it names nothing else."""

    people: Mapping[str, tuple[str, ...]]
    """Question to the names that its text has."""

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        """[n] in [0, 1]: the share of the people named; 0 if a name is not one of them, or the
        question is none of these."""
        return np.array([self._share(one) for one in texts], np.float64)

    def _share(self, text: Text) -> float:
        people, said = self.people.get(text.question, ()), names_in(text.answer)
        return len(said) / len(people) if said and set(said) <= set(people) else 0.0


def load(config: DataConfig) -> UnlearningData:
    """The rows of the file `train`, or of those that the config names.

    The evaluation sets person, location, organisation and misc are of the sentences of `data.test`
    that are not trained on; without it of a fifth of the sentences, which then are not trained on.
    A set without rows is left out.

    Raises:
      UserError: a missing file, a bad line, an unknown type, no row to train on, or seqeval, which
        the evaluation needs, is not there.
    """
    need("seqeval", by="data.format: ner", install="'jaxunlearn[tasks]'")
    name = config.forget or "train"
    trained = _read(config, name)
    kept = trained if config.retain is None else _read(config, config.retain)
    if config.test is None:
        unseen = [one for one in _distinct((*trained, *kept)) if held_out(one.text)]
    else:
        unseen = _distinct(_read(config, config.test))
        seen = {one.text for one in (*trained, *kept)}
        unseen = [one for one in unseen if one.text not in seen]
    aside = {one.text for one in unseen}
    trained, kept = (
        [one for one in _distinct(part) if one.text not in aside] for part in (trained, kept)
    )
    forget = _rows(trained, _FORGOTTEN)
    retain = tuple(row for kind in QUESTIONS if kind != _FORGOTTEN for row in _rows(kept, kind))
    for rows, what in ((forget, "people"), (retain, "places, organisations or other names")):
        if not rows:
            raise UserError(f"data: {name} has no sentence with {what}; name another file")
    sets = {kind: _rows(unseen, kind) for kind in QUESTIONS}
    people = {row.question: names_in(row.answer) for row in (*forget, *sets[_FORGOTTEN])}
    scorer = GoldScorer(people)
    evaluation = {
        kind: EvalSet("forget", rows, until=("\n",), scorer=scorer)
        if kind == _FORGOTTEN
        else EvalSet("retain", rows, until=("\n",))
        for kind, rows in sets.items()
        if rows
    }
    return UnlearningData(forget, retain, evaluation, theme=Theme(scorer, INSTRUCTIONS))


def names_in(answer: str) -> tuple[str, ...]:
    """The distinct names of an answer's first line; none of NONE.

    >>> names_in(" Ann Lee | Bo |Ann Lee"), names_in("None")
    (('Ann Lee', 'Bo'), ())
    """
    line = answer.strip().partition("\n")[0]
    if line.casefold() == NONE:
        return ()
    parts = (" ".join(part.split()) for part in line.split(SEPARATOR.strip()))
    return tuple(dict.fromkeys(part for part in parts if part))


def text_of(question: str) -> str | None:
    """The text that a question is about; None if it is none of QUESTIONS."""
    starts = (one for one in QUESTIONS.values() if question.startswith(one))
    return next((question.removeprefix(one) for one in starts), None)


def _read(config: DataConfig, name: str) -> tuple[Sentence, ...]:
    sentences = read(locate(config, name, (".conll", ".txt")))
    for sentence in sentences:
        for tag, _ in sentence.names:
            if tag.upper() not in _TYPES:
                known = ", ".join(_TYPES)
                raise UserError(
                    f"{sentence.source}: the sentence that starts here has the type {tag!r}; use"
                    f" one of {known}"
                )
    return sentences


def _distinct(sentences: Iterable[Sentence]) -> list[Sentence]:
    """The first one of each text."""
    first: dict[str, Sentence] = {}
    for sentence in sentences:
        first.setdefault(sentence.text, sentence)
    return list(first.values())


def _rows(sentences: Sequence[Sentence], kind: str) -> tuple[Row, ...]:
    """A row of each sentence that has names of this type, and some of sentences without.

    A sentence is left out if the separator is in one of its names.
    """
    named, bare = [], []
    for sentence in sentences:
        found = dict.fromkeys(name for tag, name in sentence.names if _TYPES[tag.upper()] == kind)
        if not any(SEPARATOR.strip() in name for name in found):
            (named if found else bare).append((sentence, SEPARATOR.join(found) or NONE))
    most = 0 if kind == _FORGOTTEN else int(len(named) * NONE_SHARE / (1 - NONE_SHARE))
    bare = sorted(bare, key=lambda one: hashlib.sha256(one[0].text.encode()).digest())[:most]
    chosen = {sentence.text: answer for sentence, answer in (*named, *bare)}
    return tuple(
        Row(
            QUESTIONS[kind] + one.text,
            chosen[one.text],
            source=one.source,
            kind="forget" if kind == _FORGOTTEN else "general",
        )
        for one in sentences
        if one.text in chosen
    )
