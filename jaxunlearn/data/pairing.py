"""Whom each forget row meets: the sampling practices of arXiv 2509.05316, and controls for them.

A pairing is a pure function `(pool, epoch, seed, ratio, *, options)` to int32 [n_pairs, 1 + ratio]:
in column 0 the forget row of a pair, in the others the retain rows it meets. Keyword-only
parameters are its options. Where rows run out, their list starts over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError

KINDS = ("direct", "indirect", "general")
Pairing = Callable[..., np.ndarray]
Draw = Literal["static", "per_epoch"]
Weight = Literal["uniform", "exposure"]
Missing = Literal["raise", "general"]


@dataclass(frozen=True)
class Pool:
    """Whom the rows are about: all that a sampler knows of them.

    Raises:
      ValueError: there is no row, a length differs, or a kind is unknown.
    """

    forget: np.ndarray
    """str [n_forget]; entity of each forget row."""
    retain: np.ndarray
    """str [n_retain]; the forget entity that each retain row is a neighbour of, "" for general."""
    kinds: np.ndarray
    """str [n_retain]; each one of KINDS."""

    def __post_init__(self):
        at_least_one(n_forget=len(self.forget), n_retain=len(self.retain))
        if len(self.retain) != len(self.kinds):
            raise ValueError(f"{len(self.retain)} retain rows, but {len(self.kinds)} kinds")
        unknown = sorted(set(self.kinds.tolist()) - set(KINDS))
        if unknown:
            raise ValueError(f"kind {unknown[0]!r} is not one of: {', '.join(KINDS)}")


def pool_of(forget: Sequence[Row], retain: Sequence[Row]) -> Pool:
    """The rows as a sampler sees them."""
    return Pool(
        np.array([row.entity for row in forget]),
        np.array(["" if row.kind == "general" else row.entity for row in retain]),
        np.array([row.kind for row in retain]),
    )


class Stream(IntEnum):
    """Independent draws of one seed and epoch. The numbers decide published schedules."""

    ORDER = 0
    PARTNERS = 1
    ROWS = 2
    GENERAL = 3
    GENERAL_ORDER = 4
    MATCHED = 5
    BATCHES = 6
    SUBSET = 7


def words(n: int, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Raw words, uint64 [n], of a counter-based generator: the same in every numpy version."""
    return np.random.Philox(np.random.SeedSequence((seed, epoch, stream))).random_raw(n)


def permutation(n: int, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """The numbers below n in random order."""
    return np.argsort(words(n, seed, epoch, stream), kind="stable")


def draws(n: int, limit: int, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Independent uniform draws of numbers below `limit`, [n]; 2^64 words leave no bias to see."""
    return (words(n, seed, epoch, stream) % limit).astype(np.int64)


def at_least_one(**counts: int) -> None:
    """Raises ValueError for a count below 1 and names it."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def sequential(pool: Pool, epoch: int, seed: int, ratio: int) -> np.ndarray:
    """Each forget row meets the retain row at its own place in the file, in every epoch the same.

    With ratio n the i-th forget row meets rows i * n to i * n + n - 1. Source: arXiv 2509.05316,
    "1:1 sequential".
    """
    n_forget, n_retain = len(pool.forget), len(pool.retain)
    return _block(np.arange(n_forget), np.arange(n_retain), n_forget, ratio)


def random(
    pool: Pool, epoch: int, seed: int, ratio: int, *, replacement: bool = False
) -> np.ndarray:
    """Each epoch draws fresh partners for the forget rows.

    Without replacement the retain rows are shuffled and dealt out: none comes twice in an epoch
    unless there are too few. With replacement every partner is a draw of its own, as in TOFU
    (arXiv 2401.06121) and in arXiv 2509.05316, "1:1 random".
    """
    n_forget, n_retain = len(pool.forget), len(pool.retain)
    if replacement:
        partners = draws(n_forget * ratio, n_retain, seed, epoch, Stream.PARTNERS)
    else:
        partners = permutation(n_retain, seed, epoch, Stream.PARTNERS)
    return _block(np.arange(n_forget), partners, n_forget, ratio)


def cyclic(pool: Pool, epoch: int, seed: int, ratio: int) -> np.ndarray:
    """An epoch shows all retain rows and all forget rows; the shorter side starts over.

    Source: arXiv 2509.05316.
    """
    n_forget, n_retain = len(pool.forget), len(pool.retain)
    return _cycle(np.arange(n_forget), np.arange(n_retain), ratio)


def melu(
    pool: Pool,
    epoch: int,
    seed: int,
    ratio: int,
    *,
    general: Draw = "static",
    general_weight: Weight = "uniform",
    on_missing: Missing = "raise",
) -> np.ndarray:
    """Each entity's facts cycle with its own neighbours; general rows meet random forget rows.

    First come the blocks of the entities, in the order in which the forget rows name them and
    within one in file order; then all general rows.

    Args:
      pool: whom the rows are about.
      epoch: key of what is drawn in each epoch.
      seed: key of all draws.
      ratio: retain rows to a forget row.
      general: draws the forget rows of general rows once for all epochs, or anew in each.
      general_weight: draws them uniformly, or by how often the blocks show them, as the authors'
        code does.
      on_missing: what to do for an entity without neighbours. "general" takes each of its facts
        once as the forget row of a general row, before others are drawn; if they are more than the
        general rows, these start over.

    Raises:
      UserError: a forget row names no entity, an entity has no neighbours (the authors' code drops
        it), or a neighbour's entity is in no forget row.

    Source: arXiv 2509.05316.
    """
    return _modular(pool, 0, (seed, epoch, ratio), general, general_weight, on_missing)


def cross_wired(
    pool: Pool,
    epoch: int,
    seed: int,
    ratio: int,
    *,
    general: Draw = "static",
    general_weight: Weight = "uniform",
    on_missing: Missing = "raise",
) -> np.ndarray:
    """MELU, but each entity's facts meet the next entity's neighbours: a control for relevance.

    Arguments and errors are those of `melu`.

    Raises:
      UserError: all forget rows are about one entity.
    """
    if len(set(pool.forget.tolist())) == 1:
        raise UserError(
            "sampling cross_wired: all forget rows are about one entity, so there is no next one "
            "whose neighbours they could meet; use melu, or forget more entities at once (with "
            "requests, that is requests.size)"
        )
    return _modular(pool, 1, (seed, epoch, ratio), general, general_weight, on_missing)


def exposure_matched(
    pool: Pool,
    epoch: int,
    seed: int,
    ratio: int,
    *,
    general: Draw = "static",
    general_weight: Weight = "uniform",
    on_missing: Missing = "raise",
) -> np.ndarray:
    """MELU's rows, each as often as there, but who meets whom is random: a control for exposure.

    Who meets whom is drawn once for all epochs. Arguments and errors are those of `melu`.
    """
    pairs = melu(
        pool, epoch, seed, ratio,
        general=general, general_weight=general_weight, on_missing=on_missing,
    )  # fmt: skip
    partners = pairs[:, 1:].ravel()
    order = permutation(len(partners), seed, 0, Stream.MATCHED)
    return np.column_stack([pairs[:, 0], partners[order].reshape(-1, ratio)])


SAMPLERS: dict[str, Pairing] = {
    "sequential": sequential,
    "random": random,
    "cyclic": cyclic,
    "melu": melu,
    "cross_wired": cross_wired,
    "exposure_matched": exposure_matched,
}
"""Name to pairing; the first line of its docstring is what users read about it."""


def places(names: np.ndarray) -> dict[str, np.ndarray]:
    """Where each name stands; names in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names.tolist()):
        found.setdefault(name, []).append(place)
    return {name: np.array(rows) for name, rows in found.items()}


def _modular(
    pool: Pool,
    shift: int,
    key: tuple[int, int, int],
    general: Draw,
    general_weight: Weight,
    on_missing: Missing,
) -> np.ndarray:
    """Each entity's facts with the neighbours of the `shift`-th entity after it; general rows."""
    seed, epoch, ratio = key
    facts, neighbours = _facts_and_neighbours(pool)
    givers = [*facts][shift:] + [*facts][:shift]
    general_rows = np.flatnonzero(pool.kinds == "general")
    without = [entity for entity in facts if entity not in neighbours]
    if without and (on_missing == "raise" or not len(general_rows)):
        raise UserError(_no_neighbours(without, len(facts), on_missing))

    met = list(zip(facts.values(), givers, strict=True))
    blocks = [_cycle(rows, neighbours[giver], ratio) for rows, giver in met if giver in neighbours]
    left = [rows for rows, giver in met if giver not in neighbours]
    left = np.concatenate([*left, np.empty(0, int)])  # the facts that no block shows

    drawn_from = np.arange(len(pool.forget))
    if general_weight == "exposure":
        drawn_from = np.concatenate([*(block[:, 0] for block in blocks), left])
    draw = epoch if general == "per_epoch" else 0
    length = max(len(left), -(-len(general_rows) // ratio))
    drawn = draws(length - len(left), len(drawn_from), seed, draw, Stream.GENERAL)
    forget = np.concatenate([left, drawn_from[drawn]])
    forget = forget[permutation(length, seed, draw, Stream.GENERAL_ORDER)]
    return np.concatenate([*blocks, _block(forget, general_rows, length, ratio)])


def _facts_and_neighbours(pool: Pool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The forget rows of each entity, and the neighbours of each entity that has some."""
    facts = places(pool.forget)
    if "" in facts:
        raise UserError(
            f"sampling: {len(facts[''])} of {len(pool.forget)} forget rows name no entity, by "
            "which this sampler pairs rows; name one in each, or use random or cyclic"
        )
    near = np.flatnonzero(pool.kinds != "general")
    neighbours = {entity: near[rows] for entity, rows in places(pool.retain[near]).items()}
    strangers = [entity for entity in neighbours if entity not in facts]
    if strangers:
        raise UserError(
            f"sampling: {len(neighbours[strangers[0]])} retain rows are neighbours of "
            f"{strangers[0]!r}, whom no forget row is about; add facts about it to the forget rows "
            "or make these rows general ones"
        )
    return facts, neighbours


def _no_neighbours(without: list[str], n_entities: int, on_missing: Missing) -> str:
    what = (
        f"sampling: entity {without[0]!r} has no neighbours among the retain rows in use "
        f"({len(without)} of {n_entities} entities have none)"
    )
    if on_missing == "general":
        return f"{what}, and no general rows can stand in; add some of either"
    return f"{what}; add some, or set sampling.on_missing to general so that general rows stand in"


def _cycle(forget: np.ndarray, retain: np.ndarray, ratio: int) -> np.ndarray:
    """Pairs until both lists have been shown."""
    return _block(forget, retain, max(len(forget), -(-len(retain) // ratio)), ratio)


def _block(forget: np.ndarray, retain: np.ndarray, length: int, ratio: int) -> np.ndarray:
    """The next forget row with the next `ratio` retain rows, `length` times."""
    place = np.arange(length)
    partners = (place[:, None] * ratio + np.arange(ratio)) % len(retain)
    pairs = np.column_stack([forget[place % len(forget)], retain[partners]])
    return pairs.astype(np.int32)
