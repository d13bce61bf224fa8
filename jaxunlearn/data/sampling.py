"""Which forget row meets which retain rows at which step: index schedules made ahead of time.

A pairing (see `pairing`) makes the pairs of an epoch, an order arranges them, and they are cut into
batches. A schedule is a pure function of its arguments. What is drawn is keyed by (seed, epoch), so
neither the number of devices nor the number of epochs changes an epoch's draws.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from jaxunlearn.data.pairing import (
    SAMPLERS,
    Pool,
    Stream,
    at_least_one,
    permutation,
    places,
    words,
)
from jaxunlearn.errors import UserError

EMPTY = -1
"""An empty slot: the last batch of an epoch is filled up with it."""

Subset = Literal["full", "direct", "indirect", "balanced"]
Order = Literal["shuffle", "contiguous", "entity_batch", "round_robin"]
_LEFT_OUT = {"full": (), "direct": ("indirect",), "indirect": ("direct",)}


@dataclass(frozen=True)
class Schedule:
    """Row indices for every step."""

    forget: np.ndarray
    """int32 [steps, B], EMPTY in slots without a row."""
    retain: np.ndarray
    """int32 [steps, B * ratio]; the partners of slot b are in columns b * ratio to
    b * ratio + ratio - 1, EMPTY beside EMPTY. Where the two come in turn, one of them is all EMPTY
    in each step."""


def schedule(
    name: str,
    pool: Pool,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    steps: int | None = None,
    ratio: int = 1,
    subset: Subset = "full",
    order: Order = "shuffle",
    forget_epochs: int | None = None,
    **options: Any,
) -> Schedule:
    """The batches of a sampler.

    Args:
      name: one of SAMPLERS.
      pool: whom the rows are about.
      epochs: how often the sampler makes its pairs.
      batch_size: slots in a step, B.
      seed: key of all draws.
      steps: exactly so many steps, whatever `epochs` says.
      ratio: retain rows to a forget row.
      subset: the retain rows in use, see `subset`; indices are those of the whole table.
      order: "shuffle" permutes the pairs anew in each epoch, "contiguous" leaves them as the
        sampler made them. The others know modules: the pairs of one forget entity, and those that
        hold general rows only. "entity_batch" fills each batch from one module, "round_robin"
        takes a pair of each module in turn; both shuffle within a module.
      forget_epochs: each of the first so many epochs comes as its forget rows alone and then its
        retain rows alone, each later one as its retain rows alone; None: both in one step.
      **options: of the sampler, its keyword-only parameters.

    Raises:
      UserError: the rows do not have what the sampler or the subset asks for.
      ValueError: a count is below 1.
    """
    at_least_one(epochs=epochs, batch_size=batch_size, ratio=ratio)
    rows, part = _restricted(pool, subset, seed)
    pairing = partial(SAMPLERS[name], part, seed=seed, ratio=ratio, **options)

    def batches(epoch: int) -> np.ndarray:
        pairs = pairing(epoch=epoch)
        pairs[:, 1:] = rows[pairs[:, 1:]]
        made = ORDERS[order](pairs, _module_numbers(pool, pairs), batch_size, seed, epoch)
        return made if forget_epochs is None else _in_turn(made, forget=epoch < forget_epochs)

    if steps is None:
        table = np.concatenate([batches(epoch) for epoch in range(epochs)])
    else:
        at_least_one(steps=steps)
        endless = itertools.chain.from_iterable(map(batches, itertools.count()))
        table = np.stack(list(itertools.islice(endless, steps)))
    return Schedule(table[..., 0], table[..., 1:].reshape(len(table), -1))


def steps_of(
    name: str,
    pool: Pool,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    ratio: int = 1,
    subset: Subset = "full",
    order: Order = "shuffle",
    **options: Any,
) -> int:
    """How many steps a sampler takes in so many epochs; arguments and errors of `schedule`."""
    made = schedule(
        name, pool, epochs=epochs, batch_size=batch_size, seed=seed,
        ratio=ratio, subset=subset, order=order, **options,
    )  # fmt: skip
    return len(made.forget)


def subset(pool: Pool, name: Subset, seed: int) -> np.ndarray:
    """The retain rows that a data practice of arXiv 2509.05316 uses, int [n], in file order.

    "direct" and "indirect" leave the other kind of neighbours out; "balanced" keeps, of each
    entity's indirect neighbours, at most as many as it has direct ones, drawn by seed. General rows
    always stay.

    Raises:
      UserError: no row is left.
    """
    kept = _balanced(pool, seed) if name == "balanced" else ~np.isin(pool.kinds, _LEFT_OUT[name])
    if not kept.any():
        raise UserError(
            f"sampling.subset: {name} leaves none of the {len(kept)} retain rows; use full"
        )
    return np.flatnonzero(kept)


def describe(pool: Pool, schedule: Schedule) -> dict[str, Any]:
    """What a schedule shows, as plain values.

    Returns:
      steps; pairs (a forget row with its partners); forget_rows; exposures of the forget rows and
      of the retain rows, as min, mean and max over all rows of the pool, with the number of retain
      rows never seen; and same_entity_rate, the share of meetings with a neighbour of the forget
      row's own entity among those with any neighbour, of which there are neighbours_met (None: 0).
    """
    seen = np.bincount(schedule.retain[schedule.retain != EMPTY], minlength=len(pool.retain))
    shown = np.bincount(schedule.forget[schedule.forget != EMPTY], minlength=len(pool.forget))
    ratio = schedule.retain.shape[1] // schedule.forget.shape[1]
    forget, retain = np.repeat(schedule.forget, ratio, axis=1).ravel(), schedule.retain.ravel()
    near = (forget != EMPTY) & (retain != EMPTY) & (pool.kinds[retain] != "general")
    same = pool.forget[forget[near]] == pool.retain[retain[near]]
    return {
        "steps": len(schedule.forget),
        "pairs": int(shown.sum()),
        "forget_rows": len(pool.forget),
        "forget_exposures": _spread(shown),
        "retain_exposures": _spread(seen),
        "retain_never_seen": int((seen == 0).sum()),
        "neighbours_met": int(near.sum()),
        "same_entity_rate": float(same.mean()) if near.any() else None,
    }


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several schedules after one another show, each on forget rows of its own.

    Args:
      parts: from `describe`, at least one.

    Returns:
      Steps, pairs, forget_rows, forget_exposures, neighbours_met and same_entity_rate, as
      `describe` has them.
    """
    rows, pairs = ([part[key] for part in parts] for key in ("forget_rows", "pairs"))
    shown = [part["forget_exposures"] for part in parts]
    met = sum(part["neighbours_met"] for part in parts)
    same = sum((part["same_entity_rate"] or 0.0) * part["neighbours_met"] for part in parts)
    return {
        "steps": sum(part["steps"] for part in parts),
        "pairs": sum(pairs),
        "forget_rows": sum(rows),
        "forget_exposures": {
            "min": min(one["min"] for one in shown),
            "mean": float(np.average([one["mean"] for one in shown], weights=rows)),
            "max": max(one["max"] for one in shown),
        },
        "neighbours_met": met,
        "same_entity_rate": same / met if met else None,
    }


def epochs(n_rows: int, epochs: int, batch_size: int, seed: int) -> np.ndarray:
    """Rows for ordinary training: every row once per epoch, shuffled anew in each.

    Returns:
      int32 [epochs * ceil(n_rows / batch_size), batch_size], EMPTY in slots without a row.

    Raises:
      ValueError: when a count is below 1.
    """
    at_least_one(n_rows=n_rows, epochs=epochs, batch_size=batch_size)
    orders = [permutation(n_rows, seed, epoch, Stream.ROWS) for epoch in range(epochs)]
    table = np.concatenate([_cut(order[:, None], batch_size) for order in orders])
    return table[..., 0].astype(np.int32)


def _shuffled(
    pairs: np.ndarray, modules: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    return _cut(pairs[permutation(len(pairs), seed, epoch, Stream.ORDER)], batch_size)


def _contiguous(
    pairs: np.ndarray, modules: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    return _cut(pairs, batch_size)


def _entity_batch(
    pairs: np.ndarray, modules: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    parts = [_cut(pairs[part], batch_size) for part in _parts(modules, seed, epoch)]
    batches = np.concatenate(parts)
    return batches[permutation(len(batches), seed, epoch, Stream.BATCHES)]


def _round_robin(
    pairs: np.ndarray, modules: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    parts = _parts(modules, seed, epoch)
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    taken = np.concatenate(parts)[np.argsort(turn, kind="stable")]
    return _cut(pairs[taken], batch_size)


ORDERS: dict[Order, Callable[..., np.ndarray]] = {
    "shuffle": _shuffled,
    "contiguous": _contiguous,
    "entity_batch": _entity_batch,
    "round_robin": _round_robin,
}
"""Name to function of (pairs, modules, batch_size, seed, epoch): batches [n, B, 1 + ratio]."""


def _parts(modules: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
    """The pairs of each module, shuffled; modules in the order of their numbers."""
    order = permutation(len(modules), seed, epoch, Stream.ORDER)
    order = order[np.argsort(modules[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(modules[order])) + 1)


def _module_numbers(pool: Pool, pairs: np.ndarray) -> np.ndarray:
    """Number of each pair's module: entities by first appearance, then the general pairs."""
    facts = places(pool.forget)
    number = np.empty(len(pool.forget), int)
    for place, rows in enumerate(facts.values()):
        number[rows] = place
    general = (pool.kinds[pairs[:, 1:]] == "general").all(axis=1)
    return np.where(general, len(facts), number[pairs[:, 0]])


def _cut(pairs: np.ndarray, batch_size: int) -> np.ndarray:
    """Batches of the pairs in their order: [ceil(n / B), B, columns]."""
    missing = -len(pairs) % batch_size
    filled = np.pad(pairs, ((0, missing), (0, 0)), constant_values=EMPTY)
    return filled.reshape(-1, batch_size, pairs.shape[1])


def _in_turn(batches: np.ndarray, *, forget: bool) -> np.ndarray:
    """An epoch's forget rows alone, if they are to come, and then its retain rows alone."""
    column = np.arange(batches.shape[2])
    shown, kept = np.where(column == 0, batches, EMPTY), np.where(column > 0, batches, EMPTY)
    return np.concatenate([shown, kept]) if forget else kept


def _restricted(pool: Pool, name: Subset, seed: int) -> tuple[np.ndarray, Pool]:
    """The rows of a subset, and the pool of them alone."""
    rows = subset(pool, name, seed)
    return rows, Pool(pool.forget, pool.retain[rows], pool.kinds[rows])


def _balanced(pool: Pool, seed: int) -> np.ndarray:
    kept = pool.kinds != "indirect"
    drawn = words(len(kept), seed, 0, Stream.SUBSET)
    direct = places(pool.retain[pool.kinds == "direct"])
    indirect = np.flatnonzero(pool.kinds == "indirect")
    for entity, places_of in places(pool.retain[indirect]).items():
        rows = indirect[places_of]
        chosen = np.argsort(drawn[rows], kind="stable")[: len(direct.get(entity, ()))]
        kept[rows[chosen]] = True
    return kept


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {"min": int(counts.min()), "mean": float(counts.mean()), "max": int(counts.max())}
