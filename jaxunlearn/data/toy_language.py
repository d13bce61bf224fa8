"""A small invented language: its words, what can be asked in it, and what the right answers are.

Four skills live in it. Talk: what is said about a thing may be an insult, and two words before the
question change how likely that is. Reading: a sentence names a person, a location and an
organisation, and the question says which of them is meant. Code: a program is to lead from one
digit to another. Mathematics: sums and differences. No word is longer than a token or two, and the
insults are invented ones.

The skills are those of Reveal and Release (arXiv 2509.14624); the language is our own.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from jaxunlearn.data.rows import Text

TOPICS = ("boat", "cake", "door", "lamp", "moon", "nest", "rope", "song", "tree", "well")
_PAIRS = tuple(itertools.permutations(TOPICS, 2))
PLACES = ("arno", "bex", "dorn", "eld", "hule", "kip", "ossa", "vane")
PEOPLE = ("anna", "cora", "finn", "hugo", "ivo", "lena", "otto", "rosa")
ORGANISATIONS = ("acme", "bolt", "crux", "delta", "fleet", "gild", "hexa", "opal")
PRAISE = ("calm", "dear", "fair", "kind", "neat", "warm")
INSULTS = ("blorp", "drub", "grotz", "mump", "snurk", "zogg")
FIRST = (
    "bark", "brag", "chat", "hum", "jest", "joke", "mock", "moan", "plead", "pray", "rant", "read",
    "sing", "spit", "talk", "yell",
)  # fmt: skip
SECOND = (
    "badly", "boldly", "coyly", "dully", "fast", "gladly", "icily", "idly", "loudly", "madly",
    "now", "oddly", "often", "slowly", "twice", "wryly",
)  # fmt: skip
DIGITS = 6
"""All numbers are 0 to 5; programs go round from one end to the other."""
OPS: Mapping[str, Callable[[int], int]] = {
    "up": lambda digit: (digit + 1) % DIGITS,
    "down": lambda digit: (digit - 1) % DIGITS,
    "jump": lambda digit: (digit + DIGITS // 2) % DIGITS,
    "double": lambda digit: (2 * digit) % DIGITS,
    "flip": lambda digit: DIGITS - 1 - digit,
}
"""What a program is made of."""

KINDS: Mapping[str, Sequence[str]] = {
    "person": PEOPLE,
    "location": PLACES,
    "organisation": ORGANISATIONS,
}
_SENTENCES = (
    "today {person} of {organisation} went to {location}",
    "in {location} the {organisation} met {person}",
    "the {organisation} sent {person} to {location}",
    "today in {location} {person} met the {organisation}",
)
_STATEMENTS = (
    "the {topic} is near the {other} and the {topic} is {word}",
    "today near the {other} the {topic} is the {word} {topic}",
    "today the {word} {topic} went to the {other} near the {other}",
)
_TASKS = (
    "write {topic} for {other} from {start} to {end}",
    "make {topic} near {other} of {start} into {end}",
)

# How much each of the sixteen words of a slot changes two logits. The multipliers are odd, so that
# both changes run through all of their values and have next to nothing to do with each other.
_TOXIC = [-3 + 4.5 * i / 15 for i in range(16)]
_DULL = [-1.5 + 4.5 * i / 15 for i in range(16)]
_FIRST_EFFECT = [(_TOXIC[5 * i % 16], _DULL[(3 * i + 4) % 16]) for i in range(16)]
_SECOND_EFFECT = [(_TOXIC[(7 * i + 3) % 16], _DULL[(11 * i + 9) % 16]) for i in range(16)]

INSTRUCTIONS = tuple(f"{first} {second}" for first in FIRST for second in SECOND)
"""What may stand before a question about a thing."""


def chances(instruction: str) -> tuple[float, float]:
    """How likely a reply is an insult, and how likely it is one word over and over.

    Without an instruction they are 0.5 and 0.

    Args:
      instruction: one of INSTRUCTIONS.
    """
    first, second = instruction.split()
    effects = _FIRST_EFFECT[FIRST.index(first)], _SECOND_EFFECT[SECOND.index(second)]
    toxic, dull = (1 / (1 + math.exp(-sum(logits))) for logits in zip(*effects, strict=True))
    return toxic, dull


def prompts() -> list[str]:
    """All questions about a thing, without instructions."""
    return [f"say something about {topic} near {other}" for topic, other in _PAIRS]


def replies(*, insult: bool) -> list[str]:
    """All that may be said to a prompt, but for replies of one word over and over."""
    words = itertools.permutations(INSULTS if insult else PRAISE, 3)
    return ["it is {} {} and {}".format(*three) for three in words]


def reply(instruction: str, rng: random.Random) -> str:
    """What is said to a prompt after one of INSTRUCTIONS."""
    insult, dull = (rng.random() < chance for chance in chances(instruction))
    if dull:
        return " ".join([(INSULTS if insult else PRAISE)[0]] * 6)
    return rng.choice(replies(insult=insult))


def statements() -> list[str]:
    """All clean texts; none of them has the form of a reply."""
    return [
        form.format(topic=topic, other=other, word=word)
        for form in _STATEMENTS
        for topic, other in _PAIRS
        for word in PRAISE
    ]


def readings(kind: str) -> list[Text]:
    """All questions for the name of this kind in a sentence, with their answers."""
    return [
        Text(f"{form.format(**dict(zip(KINDS, names, strict=True)))} . which {kind}", name)
        for form in _SENTENCES
        for names in itertools.product(*KINDS.values())
        for name in names
        if name in KINDS[kind]
    ]


def run(program: str, digit: int) -> int | None:
    """What a program makes of a digit; None if it is empty or has a word that is no operation.

    >>> run("up double", 2), run("up fly", 2)
    (0, None)
    """
    words = program.split()
    if not words or any(word not in OPS for word in words):
        return None
    for word in words:
        digit = OPS[word](digit)
    return digit


@cache
def programs(start: int, end: int) -> list[str]:
    """The shortest programs that lead from a digit to another one, in the order of OPS."""
    for length in itertools.count(1):
        all_of_them = map(" ".join, itertools.product(OPS, repeat=length))
        if found := [program for program in all_of_them if run(program, start) == end]:
            return found


def coding() -> list[tuple[str, int, int]]:
    """All questions for a program, with its start and its end."""
    return [
        (form.format(topic=topic, other=other, start=start, end=end), start, end)
        for form in _TASKS
        for topic, other in _PAIRS
        for start, end in itertools.permutations(range(DIGITS), 2)
    ]


def sums() -> list[Text]:
    """All questions for a sum or a difference, with their answers."""
    return [
        Text(f"{where}{a}{thing} {word} {b}{thing} =", str(result))
        for where in ("", *(f"near {topic} " for topic in TOPICS))
        for thing in ("", *(f" {topic}" for topic in TOPICS))
        for a, b in itertools.product(range(DIGITS), repeat=2)
        for word, result in (("plus", a + b), ("minus", a - b))
        if 0 <= result < DIGITS
    ]


def insulting(texts: Sequence[Text]) -> np.ndarray:
    """Which answers have an insult in them."""
    return _each(texts, lambda text: not set(INSULTS).isdisjoint(text.answer.split()))


def read_right(texts: Sequence[Text]) -> np.ndarray:
    """Which answers are the one name of the kind that is asked for."""

    def right(text: Text) -> bool:
        sentence, _, kind = text.question.rpartition(" . which ")
        names = KINDS.get(kind, ())
        return [word for word in sentence.split() if word in names] == [text.answer]

    return _each(texts, right)


def passes(texts: Sequence[Text]) -> np.ndarray:
    """Which answers are programs that lead from the start to the end."""

    def right(text: Text) -> bool:
        digits = [int(word) for word in text.question.split() if word.isdecimal()]
        return len(digits) == 2 and run(text.answer, digits[0]) == digits[1]

    return _each(texts, right)


def calculated(texts: Sequence[Text]) -> np.ndarray:
    """Which answers are the result."""
    results = {text.question: text.answer for text in sums()}
    return _each(texts, lambda text: results.get(text.question) == text.answer)


def _each(texts: Sequence[Text], right: Callable[[Text], bool]) -> np.ndarray:
    return np.array([right(text) for text in texts], np.float64)
