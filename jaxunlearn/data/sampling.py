"""Which forget row meets which retain row at which step: index schedules made ahead of time.

A schedule is a pure function of its arguments. What is drawn is keyed by (seed, epoch), so neither
the batch size nor the number of devices nor the number of epochs changes an epoch's draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EMPTY = -1
"""An empty slot: the last batch of an epoch is filled up with it."""

_FORGET, _RETAIN, _ROWS = range(3)  # independent streams of one seed


@dataclass(frozen=True)
class Schedule:
    """Row indices for every step."""

    forget: np.ndarray
    """int32 [steps, B]; each forget row once per epoch, EMPTY in slots without a row."""
    retain: np.ndarray
    """int32 [steps, B]; the partner of the forget row in the same slot, EMPTY beside EMPTY."""


Sampler = Callable[[int, int, int, int, int], Schedule]


def random(n_forget: int, n_retain: int, epochs: int, batch_size: int, seed: int) -> Schedule:
    """Each epoch draws fresh partners for the forget rows, without replacement.

    In each epoch the retain rows are shuffled, and forget row k meets the (k mod n_retain)-th of
    them: no retain row comes twice in an epoch unless there are more forget than retain rows.

    Args:
      n_forget: number of forget rows, at least 1.
      n_retain: number of retain rows, at least 1.
      epochs: passes over the forget rows.
      batch_size: slots in a step, B.
      seed: key of all draws.

    Returns:
      The schedule of epochs * ceil(n_forget / B) steps.

    Raises:
      ValueError: when a count is below 1.
    """
    _at_least_one(n_retain=n_retain)
    forget = _orders(n_forget, epochs, seed, _FORGET)
    partners = [_permutation(n_retain, seed, epoch, _RETAIN) for epoch in range(epochs)]
    retain = [partner[order % n_retain] for order, partner in zip(forget, partners, strict=True)]
    return Schedule(_batches(forget, batch_size), _batches(retain, batch_size))


def cyclic(n_forget: int, n_retain: int, epochs: int, batch_size: int, seed: int) -> Schedule:
    """Walks through the retain rows in order, on and on, so that all are seen equally often.

    The walk goes on from epoch to epoch: after any number of slots the counts of two retain rows
    differ by at most one. The forget rows are shuffled anew in each epoch. Arguments and errors are
    those of `random`.
    """
    _at_least_one(n_retain=n_retain)
    forget = _orders(n_forget, epochs, seed, _FORGET)
    retain = [(np.arange(n_forget) + epoch * n_forget) % n_retain for epoch in range(epochs)]
    return Schedule(_batches(forget, batch_size), _batches(retain, batch_size))


SAMPLERS: dict[str, Sampler] = {"random": random, "cyclic": cyclic}
"""Name to function; the first line of its docstring is what users read about it."""


def epochs(n_rows: int, epochs: int, batch_size: int, seed: int) -> np.ndarray:
    """Rows for ordinary training: every row once per epoch, shuffled anew in each.

    Returns:
      int32 [epochs * ceil(n_rows / batch_size), batch_size], EMPTY in slots without a row.

    Raises:
      ValueError: when a count is below 1.
    """
    return _batches(_orders(n_rows, epochs, seed, _ROWS), batch_size)


def _orders(n: int, epochs: int, seed: int, stream: int) -> list[np.ndarray]:
    _at_least_one(n_rows=n, epochs=epochs)
    return [_permutation(n, seed, epoch, stream) for epoch in range(epochs)]


def _permutation(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Sorted raw words of a counter-based generator: the same in every numpy version."""
    words = np.random.Philox(np.random.SeedSequence((seed, epoch, stream))).random_raw(n)
    return np.argsort(words, kind="stable")


def _batches(orders: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Cuts each epoch into steps of its own: [epochs * ceil(n / B), B]."""
    _at_least_one(batch_size=batch_size)
    table = np.stack(orders).astype(np.int32)
    missing = -table.shape[1] % batch_size
    filled = np.pad(table, ((0, 0), (0, missing)), constant_values=EMPTY)
    return filled.reshape(-1, batch_size)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
