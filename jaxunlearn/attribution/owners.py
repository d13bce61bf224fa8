"""Whose rows are whose: owners from the rows' entities."""

from collections.abc import Sequence

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError


def owners_of(
    forget: Sequence[Row], retain: Sequence[Row], *, group: int = 1
) -> tuple[list[str], list[str]]:
    """The owner of every forget row and of every retain row.

    Args:
      forget: rows, each with an entity.
      retain: the same.
      group: so many entities that follow one another are one owner; it is called by the first and
        the last of them.

    Raises:
      UserError: a row has no entity, or an owner has rows on both sides.
    """
    sides = []
    for name, rows in (("forget", forget), ("retain", retain)):
        for row in rows:
            if not row.entity:
                raise UserError(
                    f"attribution: {name} row {row.source or row.question!r} has no entity, which"
                    " says who its owner is; add one to each row"
                )
        entities = list(dict.fromkeys(row.entity for row in rows))
        blocks = [entities[i : i + group] for i in range(0, len(entities), group)]
        known = {one: _named(block) for block in blocks for one in block}
        sides.append([known[row.entity] for row in rows])
    both = set(sides[0]) & set(sides[1])
    if both:
        raise UserError(
            f"attribution: {min(both)} owns forget rows and retain rows; an owner is forgotten as a"
            " whole, so move them to one side or name their entities apart"
        )
    return sides[0], sides[1]


def _named(block: Sequence[str]) -> str:
    return block[0] if len(block) == 1 else f"{block[0]} … {block[-1]}"
