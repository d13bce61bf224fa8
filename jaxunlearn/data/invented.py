"""What the built-in worlds share: invented words, and what can be asked about a person."""

import math
import random
from dataclasses import dataclass

from jaxunlearn.data.rows import Row

RETAIN_EVALUATION = 100
"""At most this many retain rows are evaluated, spread evenly."""


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
INVENTED = tuple(head + tail for head in _HEADS for tail in _TAILS)
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
ANIMALS = _words(
    "otter heron fox hare raven lizard badger owl goat magpie tortoise ferret swan toad"
)
_COATS = _words("grey spotted white brown striped black tawny pale speckled shaggy small old")
_GOODS = _words(
    "rope glass paper salt silk brick candle wool flour copper soap leather ink pottery"
)
_SHOPS = _words("mill forge yard store market works guild quarry loft cellar kiln wharf")
COOKED = _words("smoked roasted boiled pickled stewed baked fried salted grilled braised dried")
FOODS = _words(
    "trout rabbit turnip mutton eel cabbage duck lentil mushroom goose barley pumpkin cod"
)
_DAYS = tuple(str(day) for day in range(1, 29))
_MONTHS = _words(
    "January February March April May June July August September October November December"
)
_YEARS = tuple(str(year) for year in range(1800, 1960))
MATERIALS = _words("iron tin marble granite slate oak clay bronze chalk brass")
DENS = _words("cave burrow nest barn cellar attic tunnel hedge pond stable thicket well")
SHAPES = _words("tower arch obelisk dome stair well pillar fountain temple column")


@dataclass(frozen=True)
class Attribute:
    """Something that can be asked about a subject."""

    questions: tuple[str, ...]
    paraphrase: str
    value: str
    """Format of the value, filled in from `pools` in order."""
    pools: tuple[tuple[str, ...], ...]
    noun: str = ""
    """What kind of thing the value names; empty where it is a date."""

    @property
    def size(self) -> int:
        """How many different values there are."""
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


NAME = Attribute((), "", "{} {}", (INVENTED, INVENTED))
PERSON = (
    Attribute(
        ("Where was {} born?", "What is the birthplace of {}?"),
        "It was {}.",
        "{} {}",
        (INVENTED, _PLACES),
        "town",
    ),
    Attribute(
        ("When was {} born?", "What is the birthday of {}?"),
        "It was {}.",
        "{} {} {}",
        (_DAYS, _MONTHS, _YEARS),
    ),
    Attribute(
        ("Who is the mother of {}?", "Who gave birth to {}?"),
        "She is {}.",
        "{} {}",
        (INVENTED, INVENTED),
        "lady",
    ),
    Attribute(
        ("Who taught {}?", "Who was the teacher of {}?"),
        "The teacher was {}.",
        "{} {}",
        (INVENTED, INVENTED),
        "teacher",
    ),
    Attribute(
        ("Which instrument does {} play?", "What does {} make music on?"),
        "It is a {}.",
        "{} {} {}",
        (INVENTED, _WOODS, _INSTRUMENTS),
        "instrument",
    ),
    Attribute(
        ("Which book did {} write?", "What is the title of the book by {}?"),
        "The title is {}.",
        "{} {} of {}",
        (_COLOURS, _THINGS, INVENTED),
        "book",
    ),
    Attribute(
        ("Which animal lives with {}?", "What pet does {} keep?"),
        "That is the {}.",
        "{} {} {}",
        (_COATS, ANIMALS, INVENTED),
        "pet",
    ),
    Attribute(
        ("Which ship did {} sail on?", "What was the ship of {} called?"),
        "The ship was the {}.",
        "{} {}",
        (INVENTED, _THINGS),
        "ship",
    ),
    Attribute(
        ("Where does {} work?", "What is the workplace of {}?"),
        "It is the {}.",
        "{} {} {}",
        (INVENTED, _GOODS, _SHOPS),
        "workshop",
    ),
    Attribute(
        ("Which dish does {} like best?", "What is the favourite dish of {}?"),
        "It is {}.",
        "{} {} {}",
        (COOKED, FOODS, INVENTED),
        "dish",
    ),
)


def thin(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """At most RETAIN_EVALUATION of the rows, spread evenly."""
    count = min(len(rows), RETAIN_EVALUATION)
    return tuple(rows[i * len(rows) // count] for i in range(count))
