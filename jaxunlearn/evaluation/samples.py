"""Rows of a report with what each model answers, and what the answers give away."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxunlearn.data.rows import EvalSet
from jaxunlearn.evaluation.suite import Evaluation

if TYPE_CHECKING:
    from markupsafe import Markup

SAMPLES = 8
"""Rows of each set that the report shows."""
_WORD = re.compile(r"\w+")
_LONG = 4
# English words that carry no content, whatever their length; `doesn` is what \w makes of doesn't.
_FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also although always am among an and another any anyone
    are aren around as at be became because become been before being below between both but by can
    cannot could couldn did didn do does doesn doing don done down during each either else ever
    every few for from further had hadn has hasn have haven having he hence her here hers herself
    him himself his how however i if in indeed into is isn it its itself just like made make many
    may me might mine more most much must my myself neither never no nobody none nor not nothing now
    of off often on once one only onto or other others our ours ourselves out over own perhaps quite
    rather same shall she should shouldn since so some someone something still such than that the
    their theirs them themselves then there therefore these they this those though through
    throughout thus to together too toward towards under unless until up upon us very was wasn we
    well were weren what whatever when where whereas whether which while who whom whose why will
    with within without would wouldn yes yet you your yours yourself
    """.split()
)


def samples(
    sets: Mapping[str, EvalSet], evaluations: Mapping[str, Evaluation]
) -> list[dict[str, Any]]:
    """At most SAMPLES rows of each forget and retain set that all models answered.

    Returns:
      `{"set": role, "question", "answer", "generations": {model: text}}`.
    """
    found = []
    for name, chosen in sets.items():
        if chosen.role in ("general", "holdout") or not all(
            name in one.generations for one in evaluations.values()
        ):
            continue
        step = max(1, len(chosen.rows) // SAMPLES)
        for place in range(0, len(chosen.rows), step)[:SAMPLES]:
            row = chosen.rows[place]
            answers = {label: e.generations[name][place] for label, e in evaluations.items()}
            found.append(
                {
                    "set": chosen.role,
                    "question": row.question,
                    "answer": row.answer,
                    "generations": answers,
                }
            )
    return found


def leaked_words(question: str, answer: str, text: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a word that the true answer gives away.

    Such a word is in the answer and not in the question, in any case of letters, and carries
    content: it is no English function word, and has at least 4 letters, a digit or, in the answer,
    a capital.

    >>> leaked_words("Where was Ada born?", "Ada was born in Rome.", "In rome, Ada said")
    [('In ', False), ('rome', True), (', Ada said', False)]
    """
    known = {word.casefold() for word in _WORD.findall(question)}
    secret = {word.casefold() for word in _WORD.findall(answer) if _carries_content(word)} - known
    pieces, end = [], 0
    for word in _WORD.finditer(text):
        if word[0].casefold() in secret:
            pieces += [(text[end : word.start()], False), (word[0], True)]
            end = word.end()
    return [piece for piece in (*pieces, (text[end:], False)) if piece[0]]


def marked(question: str, answer: str, text: str) -> "Markup":
    """The text as HTML, everything in it escaped, with its leaked words in <mark>."""
    from markupsafe import Markup, escape

    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if leaked else escape(piece)
        for piece, leaked in leaked_words(question, answer, text)
    )


def _carries_content(word: str) -> bool:
    if word.casefold() in _FUNCTION_WORDS:
        return False
    return len(word) >= _LONG or any(char.isdigit() or char.isupper() for char in word)
