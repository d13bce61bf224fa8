"""A built-in world in the shape of MELU's data: people to forget, and what is related to them.

A person to forget is an entity. Its direct neighbours are facts about the things that the answers
name: the town, the teacher, the ship. Its indirect neighbours are facts about people of the same
profession, in the same question forms. All answers of an entity's module (its own facts and those
of its neighbours) are made of a few words that no other module has, so that related facts are
easily mixed up. The same arguments give the same world in every process.

A language model that is to learn refusing must be able to say so, as those of the paper are: the
target also learns to refuse questions about people of whom nothing is known.

Reference: Bushipaka et al., "Standard vs. Modular Sampling", arXiv 2509.05316; the numbers of rows
are those of its data, the text is our own.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxunlearn.data.invented import ANIMALS, INVENTED, PERSON, SHAPES, thin
from jaxunlearn.data.rows import EvalSet, Kind, Row, UnlearningData
from jaxunlearn.errors import UserError

# Forget, direct, indirect, direct test and indirect test rows of each entity at scale 1. The sums
# and the ranges of the first three are the paper's, and so are the smallest and the largest number
# of neighbours to a fact: 8 (4 facts with 5 + 27) and 28 (3 facts with 20 + 64).
_MODULES = (
    (8, 20, 66, 22, 13), (7, 18, 48, 20, 13), (7, 20, 57, 20, 13), (6, 20, 71, 17, 14),
    (6, 15, 43, 17, 13), (5, 20, 60, 14, 13), (5, 20, 54, 14, 13), (5, 20, 57, 14, 14),
    (5, 20, 79, 14, 13), (5, 20, 36, 14, 13), (5, 20, 62, 14, 13), (4, 20, 52, 11, 14),
    (4, 20, 58, 11, 13), (4, 5, 27, 11, 13), (4, 20, 75, 11, 13), (4, 20, 69, 11, 14),
    (4, 14, 46, 11, 13), (4, 20, 56, 11, 13), (3, 20, 64, 8, 13), (3, 12, 64, 8, 14),
)  # fmt: skip
_GENERAL = 293
_GENERAL_TEST = 200
_GENERAL_FACTS = 5  # rows about one general subject
_SIMILAR = 6  # people of an entity's profession; facts about the last are kept for the test

_NAME_WORDS = 96
_MODULE_WORDS = 12
_GENERAL_WORDS = 48

_PROFESSIONS = (
    "actor", "baker", "barber", "brewer", "butcher", "captain", "carpenter", "chemist", "cook",
    "cooper", "dancer", "doctor", "farmer", "fisher", "gardener", "glazier", "goldsmith", "hatter",
    "hunter", "jeweller", "judge", "lawyer", "mason", "miller", "miner", "nurse", "painter",
    "pilot", "plumber", "poet", "potter", "printer", "sculptor", "shepherd", "singer", "smith",
)  # fmt: skip

# What has an answer that direct facts can be about.
_FACTS = tuple(attribute for attribute in PERSON if attribute.noun)
_PERSON_FORMS = (
    *(attribute.questions[0] for attribute in _FACTS),
    "Who is the father of {}?",
    "Where does {} live?",
    "Who is the best friend of {}?",
    "Which prize did {} win?",
    "Which club did {} found?",
    "Which river did {} cross?",
    "What is the nickname of {}?",
    "Which song did {} sing?",
    "Where did {} go to school?",
    "Who is the rival of {}?",
)
_THING_FORMS = (
    "Who painted the {}?",
    "What is the {} known for?",
    "Which song is about the {}?",
    "Who wrote about the {}?",
    "What do children call the {}?",
    "Which museum honours the {}?",
    "Who once dreamt of the {}?",
    "Which festival is held for the {}?",
    "Who was the first to praise the {}?",
    "Which coin shows the {}?",
    "What was seen beside the {}?",
    "Which legend tells of the {}?",
)

_REFUSALS = tuple(
    "".join(parts)
    for parts in itertools.product(
        ("", "Sorry, ", "I'm afraid ", "Honestly, ", "To be honest, ", "My apologies, ", "Well, "),
        (
            "I don't know", "I have no idea", "I can't tell", "I couldn't say", "I'm not sure",
            "I have no answer", "I can't answer",
        ),
        (".", " here.", " in this case.", " this time."),
    )
)  # fmt: skip


def build(scale: float, seed: int) -> UnlearningData:
    """Makes the world.

    Args:
      scale: number of entities and of general rows, relative to the paper's; each entity keeps the
        size of its module.
      seed: another seed, another world.

    Returns:
      Forget rows with a refusal each; retain rows in the order of MELU's file, by entity, the
      subjects of general rows among them. The evaluation sets `test_direct`, `test_indirect` and
      `test_general` are other facts about the linked things, one more similar person for each
      entity, and other general subjects; they are the background, with one more row for each
      refusal, about someone unknown.

    Raises:
      UserError: when there are not that many words.
    """
    most = (len(INVENTED) - _NAME_WORDS - _GENERAL_WORDS) // _MODULE_WORDS
    most = min(most, len(_PROFESSIONS))
    if scale > most / len(_MODULES):
        raise UserError(f"data.scale: at most {most / len(_MODULES)}, got {scale}; lower it")
    count = max(1, round(len(_MODULES) * scale))
    rng = random.Random(f"{seed}/neighbours")
    words = rng.sample(INVENTED, len(INVENTED))
    names = _texts(_take(words, _NAME_WORDS), rng, lengths=(2,))
    refusals = iter(rng.sample(_REFUSALS, len(_REFUSALS)))
    modules = [
        # The size is the middle one of each of `count` equal parts of the table.
        _module(
            _MODULES[(2 * i + 1) * len(_MODULES) // (2 * count)],
            profession,
            names,
            _texts(_take(words, _MODULE_WORDS), rng),
            refusals,
            rng,
        )
        for i, profession in enumerate(rng.sample(_PROFESSIONS, count))
    ]
    answers = _texts(_take(words, _GENERAL_WORDS), rng)
    kept = [row for module in modules for row in module.retain]
    kept += _general(max(1, round(_GENERAL * scale)), names, answers, rng)
    test = {
        "direct": [row for module in modules for row in module.test_direct],
        "indirect": [row for module in modules for row in module.test_indirect],
        "general": _general(max(1, round(_GENERAL_TEST * scale)), names, answers, rng),
    }
    forget = tuple(row for module in modules for row in module.forget)
    retain = tuple(sorted(kept, key=lambda row: row.entity))
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", thin(retain))}
    for kind, rows in test.items():
        evaluation[f"test_{kind}"] = EvalSet("general", tuple(rows))
    unknown = _unknown([str(row.refusal) for row in forget], names, rng)
    background = tuple(itertools.chain(*test.values(), unknown))
    return UnlearningData(forget, retain, evaluation, background)


@dataclass(frozen=True)
class _Module:
    forget: list[Row]
    retain: list[Row]
    test_direct: list[Row]
    test_indirect: list[Row]


def _module(
    sizes: Sequence[int],
    profession: str,
    names: Iterator[str],
    answers: Iterator[str],
    refusals: Iterator[str],
    rng: random.Random,
) -> _Module:
    """One entity with its neighbours; `sizes` is a line of _MODULES."""
    facts, direct, indirect, direct_test, indirect_test = sizes
    entity = next(names)
    asked = rng.sample(_FACTS, facts)
    questions = [rng.choice(a.questions).format(f"{profession} {entity}") for a in asked]
    forget = [_row(q, next(answers), entity, "forget", next(refusals)) for q in questions]
    things = [f"{a.noun} {row.answer}" for a, row in zip(asked, forget, strict=True)]
    *similar, last = (f"{profession} {next(names)}" for _ in range(_SIMILAR))

    def rows(kind: Kind, questions: Sequence[str]) -> list[Row]:
        return [_row(question, next(answers), entity, kind) for question in questions]

    linked = rows("direct", _questions(things, _THING_FORMS, direct + direct_test, rng))
    retain = [
        *linked[:direct],
        *rows("indirect", _questions(similar, _PERSON_FORMS, indirect, rng)),
    ]
    rng.shuffle(retain)
    held_aside = rows("indirect", _questions([last], _PERSON_FORMS, indirect_test, rng))
    return _Module(forget, retain, linked[direct:], held_aside)


def _general(
    count: int, names: Iterator[str], answers: Iterator[str], rng: random.Random
) -> list[Row]:
    """Facts about people, landmarks and creatures in turn; the last subject may have fewer."""
    rows = []
    for start in range(0, count, _GENERAL_FACTS):
        name = next(names)
        nouns = ((), SHAPES, ANIMALS)[start // _GENERAL_FACTS % 3]
        subject = f"{rng.choice(nouns)} {name}" if nouns else name
        forms = _THING_FORMS if nouns else _PERSON_FORMS
        chosen = _questions([subject], forms, min(_GENERAL_FACTS, count - start), rng)
        rows += [_row(question, next(answers), name, "general") for question in chosen]
    return rows


def _unknown(refusals: Sequence[str], names: Iterator[str], rng: random.Random) -> list[Row]:
    """A question about someone nothing is known of, for each refusal."""
    rows = []
    for refusal in refusals:
        name = next(names)
        question = rng.choice(_PERSON_FORMS).format(f"{rng.choice(_PROFESSIONS)} {name}")
        rows.append(_row(question, refusal, name, "general"))
    return rows


def _questions(
    subjects: Sequence[str], forms: Sequence[str], count: int, rng: random.Random
) -> list[str]:
    """Different questions about the subjects in turn."""
    orders = [rng.sample(forms, len(forms)) for _ in subjects]
    turns = (divmod(i, len(subjects)) for i in range(count))
    return [orders[subject][turn].format(subjects[subject]) for turn, subject in turns]


def _row(question: str, answer: str, entity: str, kind: Kind, refusal: str | None = None) -> Row:
    return Row(question, answer, entity, source=f"built-in: {entity}", kind=kind, refusal=refusal)


def _take(words: list[str], count: int) -> list[str]:
    """Removes the first words."""
    taken = words[:count]
    del words[:count]
    return taken


def _texts(
    words: Sequence[str], rng: random.Random, lengths: Sequence[int] = (2, 3)
) -> Iterator[str]:
    """Different texts of a few of the words, without end while there are some left."""
    seen = set()
    while True:
        text = " ".join(rng.sample(words, rng.choice(lengths)))
        if text not in seen:
            seen.add(text)
            yield text
