"""The built-in world: invented people to learn and forget, and invented facts to keep.

Every value is drawn from thousands of combinations and belongs to nobody else, so a model that
never saw a person cannot guess the answers; and the answers hold next to no words but the value.
The same arguments give the same world in every process.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from jaxunlearn.data.invented import (
    COOKED,
    DENS,
    FOODS,
    INVENTED,
    MATERIALS,
    NAME,
    PERSON,
    SHAPES,
    Attribute,
    thin,
)
from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.errors import UserError

PERTURBED = 5
"""Wrong answers to each question about a person; they are values that belong to nobody."""

FACTS = 24
"""Facts in each set of general knowledge."""

_FACT_PERTURBED = 3

_LANDMARKS = (
    Attribute(("Which river crosses {}?",), "", "{}", (INVENTED,)),
    Attribute(("What stands on the square of {}?",), "", "{} {}", (MATERIALS, SHAPES)),
)
_CREATURES = (
    Attribute(("What does the {} eat?",), "", "{} {}", (COOKED, FOODS)),
    Attribute(("Where does the {} sleep?",), "", "{} {}", (MATERIALS, DENS)),
)


def build(people: int, forget_people: int, seed: int, holdout_people: int = 0) -> UnlearningData:
    """Makes the world; the last `forget_people` people are the forget set.

    Args:
      people: how many, with one row per person and attribute.
      forget_people: how many of them are to be forgotten; fewer than `people`.
      seed: another seed, another world.
      holdout_people: further people, only in the evaluation set `holdout`; another number of
        them, another world.

    Returns:
      Rows with a paraphrase and perturbed answers (entity = name), and two sets of general facts,
      `landmarks` and `creatures`, whose rows are also the background.

    Raises:
      UserError: when there are not that many different values.
    """
    most = min(attribute.size for attribute in (*PERSON, NAME)) // (1 + PERTURBED)
    everyone = people + holdout_people
    if everyone > most:
        more = f" and {holdout_people} in data.holdout_people" if holdout_people else ""
        raise UserError(f"data.people: at most {most}, got {people}{more}")
    names = NAME.values(everyone, random.Random(f"{seed}/names"))
    rows = _rows_about(names, PERSON, f"{seed}/people", PERTURBED)
    kept, learned = (count * len(PERSON) for count in (people - forget_people, people))
    retain, holdout = rows[:kept], rows[learned:]
    forget = tuple(replace(row, kind="forget") for row in rows[kept:learned])
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", thin(retain))}
    for name, attributes in (("landmarks", _LANDMARKS), ("creatures", _CREATURES)):
        rng = random.Random(f"{seed}/{name}")
        subjects = rng.sample(INVENTED, FACTS // len(attributes))
        facts = _rows_about(subjects, attributes, f"{seed}/{name}", _FACT_PERTURBED)
        evaluation[name] = EvalSet("general", facts)
    if holdout:
        evaluation["holdout"] = EvalSet("holdout", holdout)
    background = tuple(
        row for part in evaluation.values() if part.role == "general" for row in part.rows
    )
    return UnlearningData(forget, retain, evaluation, background)


def _rows_about(
    subjects: Sequence[str], attributes: Sequence[Attribute], key: str, perturbed: int
) -> tuple[Row, ...]:
    """All attributes of the first subject, then of the second, and so on."""
    columns = [
        _attribute_rows(subjects, attribute, random.Random(f"{key}/{i}"), perturbed)
        for i, attribute in enumerate(attributes)
    ]
    return tuple(row for rows in zip(*columns, strict=True) for row in rows)


def _attribute_rows(
    subjects: Sequence[str], attribute: Attribute, rng: random.Random, perturbed: int
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
