"""Other answers to the forget rows' questions: refusals, and those of other rows."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "I'm afraid I can't answer that.",
    "That is something I know nothing about.",
    "I couldn't tell you.",
    "Sorry, I don't have that information.",
    "This is unknown to me.",
    "I have no idea.",
    "I can't help with this question.",
    "I never learned about that.",
    "No answer comes to my mind.",
    "I don't have any details on this.",
    "My knowledge doesn't cover that.",
    "I'm unable to say.",
    "I'd have to pass on this one.",
)


def refusals(rows: Sequence[Row], seed: int) -> tuple[str, ...]:
    """The rows' own refusals; where a row has none, which one depends on seed and place alone.

    Raises:
      UserError: a row of a data set that should have refusals and has not.
    """
    for row in rows:
        if row.refusal == "":
            raise UserError(
                f"{row.source}: has no refusal, and the method trains on refusals; add a column"
                " idk with one for each forget row, or map yours with data.columns.refusal"
            )
    return tuple(
        REFUSALS[number % len(REFUSALS)] if row.refusal is None else row.refusal
        for row, number in zip(rows, _words(len(rows), seed), strict=True)
    )


def other_answers(rows: Sequence[Row], seed: int) -> tuple[str, ...]:
    """For each row the answer of another one, no answer used twice; a single row keeps its own."""
    # A random cycle through all rows: everyone gets the next one's answer.
    order = np.argsort(_words(len(rows), seed), kind="stable")
    giver = np.empty_like(order)
    giver[order] = np.roll(order, -1)
    return tuple(rows[place].answer for place in giver)


def _words(n: int, seed: int) -> np.ndarray:
    """Raw words of a counter-based generator: the same in every numpy version."""
    return np.random.Philox(np.random.SeedSequence((seed, 7))).random_raw(n)
