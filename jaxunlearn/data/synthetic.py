"""The built-in world: invented people to learn and forget, and invented facts to keep.

Every value is drawn from thousands of combinations and belongs to nobody else, so a model that
never saw a person cannot guess the answers; and the answers hold next to no words but the value.
The same arguments give the same world in every process.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.errors import UserError

PERTURBED = 5
"""Wrong answers to each question about a person; they are values that belong to nobody."""

FACTS = 24
"""Facts in each set of general knowledge."""

RETAIN_EVALUATION = 100
"""At most this many retain rows are evaluated, spread evenly over people and questions."""

_FACT_PERTURBED = 3


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Three letters each, so that two different pairs never make the same word.
_HEADS = _words(
    "Bel Cor Dal Far Gar Hol Jas Kel Lor Mar Nor Pol"
    " Ren Sar Tol Ulv Vel Wil Yar Zen Bra Kri Osk Tam"
)
_TAILS = _words(
    "dan mir vek sol tor wyn bur gan len rik sha fen"
    " dov nel pas qui rus tev vin zar lok mas hur bil"
)
_INVENTED = tuple(head + tail for head in _HEADS for tail in _TAILS)
_PLACES = _words(
    "Harbour Ford Bridge Hollow Ridge Gate Marsh Haven Cliff Well Cross Moor Field Grove Point"
)
_WOODS = _words(
    "walnut cedar maple ebony willow cherry birch rosewood pine ash copper silver ivory"
)
_INSTRUMENTS = _words("lute harp fiddle flute drum zither horn viola cello oboe banjo organ lyre")
_COLOURS = _words(
    "Amber Scarlet Silver Azure Golden Crimson Violet Ivory Jade Copper Pearl Indigo Coral Ebony"
)
_THINGS = _words(
    "Lantern Orchard Compass Mirror Anchor Candle Feather Ladder Needle Bell Crown Garden Key Wheel"
)
_ANIMALS = _words(
    "otter heron fox hare raven lizard badger owl goat magpie tortoise ferret swan toad"
)
_COATS = _words("grey spotted white brown striped black tawny pale speckled shaggy small old")
_GOODS = _words(
    "rope glass paper salt silk brick candle wool flour copper soap leather ink pottery"
)
_SHOPS = _words("mill forge yard store market works guild quarry loft cellar kiln wharf")
_COOKED = _words("smoked roasted boiled pickled stewed baked fried salted grilled braised dried")
_FOODS = _words(
    "trout rabbit turnip mutton eel cabbage duck lentil mushroom goose barley pumpkin cod"
)
_DAYS = tuple(str(day) for day in range(1, 29))
_MONTHS = _words(
    "January February March April May June July August September October November December"
)
_YEARS = tuple(str(year) for year in range(1800, 1960))
_MATERIALS = _words("iron tin marble granite slate oak clay bronze chalk brass")
_DENS = _words("cave burrow nest barn cellar attic tunnel hedge pond stable thicket well")
_SHAPES = _words("tower arch obelisk dome stair well pillar fountain temple column")


@dataclass(frozen=True)
class _Attribute:
    """Something that can be asked about a subject."""

    questions: tuple[str, ...]
    paraphrase: str
    value: str
    """Format of the value, filled in from `pools` in order."""
    pools: tuple[tuple[str, ...], ...]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.pools))

    def values(self, count: int, rng: random.Random) -> list[str]:
        """That many different values."""
        return [self._value(index) for index in rng.sample(range(self.size), count)]

    def _value(self, index: int) -> str:
        parts = []
        for pool in self.pools:
            index, place = divmod(index, len(pool))
            parts.append(pool[place])
        return self.value.format(*parts)


_NAME = _Attribute((), "", "{} {}", (_INVENTED, _INVENTED))
_PERSON = (
    _Attribute(
        ("Where was {} born?", "What is the birthplace of {}?"),
        "It was {}.",
        "{} {}",
        (_INVENTED, _PLACES),
    ),
    _Attribute(
        ("When was {} born?", "What is the birthday of {}?"),
        "It was {}.",
        "{} {} {}",
        (_DAYS, _MONTHS, _YEARS),
    ),
    _Attribute(
        ("Who is the mother of {}?", "Who gave birth to {}?"),
        "She is {}.",
        "{} {}",
        (_INVENTED, _INVENTED),
    ),
    _Attribute(
        ("Who taught {}?", "Who was the teacher of {}?"),
        "The teacher was {}.",
        "{} {}",
        (_INVENTED, _INVENTED),
    ),
    _Attribute(
        ("Which instrument does {} play?", "What does {} make music on?"),
        "It is a {}.",
        "{} {} {}",
        (_INVENTED, _WOODS, _INSTRUMENTS),
    ),
    _Attribute(
        ("Which book did {} write?", "What is the title of the book by {}?"),
        "The title is {}.",
        "{} {} of {}",
        (_COLOURS, _THINGS, _INVENTED),
    ),
    _Attribute(
        ("Which animal lives with {}?", "What pet does {} keep?"),
        "That is the {}.",
        "{} {} {}",
        (_COATS, _ANIMALS, _INVENTED),
    ),
    _Attribute(
        ("Which ship did {} sail on?", "What was the ship of {} called?"),
        "The ship was the {}.",
        "{} {}",
        (_INVENTED, _THINGS),
    ),
    _Attribute(
        ("Where does {} work?", "What is the workplace of {}?"),
        "It is the {}.",
        "{} {} {}",
        (_INVENTED, _GOODS, _SHOPS),
    ),
    _Attribute(
        ("Which dish does {} like best?", "What is the favourite dish of {}?"),
        "It is {}.",
        "{} {} {}",
        (_COOKED, _FOODS, _INVENTED),
    ),
)
_LANDMARKS = (
    _Attribute(("Which river crosses {}?",), "", "{}", (_INVENTED,)),
    _Attribute(("What stands on the square of {}?",), "", "{} {}", (_MATERIALS, _SHAPES)),
)
_CREATURES = (
    _Attribute(("What does the {} eat?",), "", "{} {}", (_COOKED, _FOODS)),
    _Attribute(("Where does the {} sleep?",), "", "{} {}", (_MATERIALS, _DENS)),
)


def build(people: int, forget_people: int, seed: int) -> UnlearningData:
    """Makes the world; the last `forget_people` people are the forget set.

    Args:
      people: how many, with one row per person and attribute.
      forget_people: how many of them are to be forgotten; fewer than `people`.
      seed: another seed, another world.

    Returns:
      Rows with a paraphrase and perturbed answers (entity = name), and two sets of general facts,
      `landmarks` and `creatures`, whose rows are also in `general`.

    Raises:
      UserError: when there are not that many different values.
    """
    most = min(attribute.size for attribute in (*_PERSON, _NAME)) // (1 + PERTURBED)
    if people > most:
        raise UserError(f"data.people: at most {most}, got {people}")
    names = _NAME.values(people, random.Random(f"{seed}/names"))
    rows = _rows_about(names, _PERSON, f"{seed}/people", PERTURBED)
    border = (people - forget_people) * len(_PERSON)
    retain, forget = rows[:border], rows[border:]
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", _thin(retain))}
    for name, attributes in (("landmarks", _LANDMARKS), ("creatures", _CREATURES)):
        rng = random.Random(f"{seed}/{name}")
        subjects = rng.sample(_INVENTED, FACTS // len(attributes))
        facts = _rows_about(subjects, attributes, f"{seed}/{name}", _FACT_PERTURBED)
        evaluation[name] = EvalSet("general", facts)
    general = tuple(
        row for part in evaluation.values() if part.role == "general" for row in part.rows
    )
    return UnlearningData(forget, retain, evaluation, general)


def _rows_about(
    subjects: Sequence[str], attributes: Sequence[_Attribute], key: str, perturbed: int
) -> tuple[Row, ...]:
    """All attributes of the first subject, then of the second, and so on."""
    columns = [
        _attribute_rows(subjects, attribute, random.Random(f"{key}/{i}"), perturbed)
        for i, attribute in enumerate(attributes)
    ]
    return tuple(row for rows in zip(*columns, strict=True) for row in rows)


def _attribute_rows(
    subjects: Sequence[str], attribute: _Attribute, rng: random.Random, perturbed: int
) -> list[Row]:
    values = attribute.values(len(subjects) * (1 + perturbed), rng)
    wording = attribute.paraphrase or "{}"
    rows = []
    for i, subject in enumerate(subjects):
        true, *wrong = values[i :: len(subjects)]
        rows.append(
            Row(
                question=rng.choice(attribute.questions).format(subject),
                answer=true,
                entity=subject,
                paraphrased_answer=attribute.paraphrase.format(true) or None,
                perturbed_answers=tuple(wording.format(value) for value in wrong),
                source=f"built-in: {subject}",
            )
        )
    return rows


def _thin(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    count = min(len(rows), RETAIN_EVALUATION)
    return tuple(rows[i * len(rows) // count] for i in range(count))
