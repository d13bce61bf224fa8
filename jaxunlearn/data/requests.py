"""Requests to forget that arrive one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxunlearn.config import RequestsConfig
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is to be forgotten next, and what is kept meanwhile."""

    name: str
    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    """General rows, and the neighbours of this request's entities."""


def split(data: UnlearningData, config: RequestsConfig) -> list[Request]:
    """The forget rows in the order of the file, cut into requests.

    By entity, a request is everything about `size` entities, in order of first appearance; by rows,
    it is the next `size` rows.

    Raises:
      UserError: requests by entity, and a forget row names none.
    """
    if config.by == "rows":
        cut = _parts(data.forget, config.size)
        parts = {f"rows {i * config.size + 1} on": rows for i, rows in enumerate(cut)}
    else:
        entities = _by_entity(data.forget)
        parts = {
            ", ".join(names): [row for name in names for row in entities[name]]
            for names in _parts(list(entities), config.size)
        }
    return [_request(name, rows, data.retain) for name, rows in parts.items()]


def _by_entity(rows: Sequence[Row]) -> dict[str, list[Row]]:
    entities: dict[str, list[Row]] = {}
    for row in rows:
        if not row.entity:
            raise UserError(
                f"{row.source}: requests by entity need the entity of each forget row, and this "
                "one names none; name it in data.columns.entity, or set requests.by to rows"
            )
        entities.setdefault(row.entity, []).append(row)
    return entities


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _request(name: str, forget: Sequence[Row], retain: Sequence[Row]) -> Request:
    about = {row.entity for row in forget}
    kept = (row for row in retain if row.kind == "general" or row.entity in about)
    return Request(name, tuple(forget), tuple(kept))
