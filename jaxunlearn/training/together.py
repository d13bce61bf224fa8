"""Several trainings of adapters on one model as one program: the update step, vmapped.

What differs are numbers, seeds and schedules; the model and the token tables are there once. With
several devices the trainings are laid over them, a part on each, and nothing is exchanged.
"""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.methods.registry import Objective
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training import hosts
from jaxunlearn.training.batches import batch_tokens, device_rows, padded, step_widths
from jaxunlearn.training.checkpoint import Checkpoints
from jaxunlearn.training.fingerprint import fingerprint, table_digest
from jaxunlearn.training.loop import (
    CAPACITY,
    DISPATCH_SECONDS,
    OnSteps,
    prepare,
)
from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.step import Metrics, StepSpec, TrainState, Tree, init_state, steps_in_jit

AXIS = "sweep"


@dataclass(frozen=True)
class Member:
    """One of the trainings; see `train` for what its parts are."""

    tables: Mapping[str, TokenTable]
    schedule: Mapping[str, np.ndarray]
    objective: Objective
    hyper: Mapping[str, float]
    training: TrainingConfig
    seed: int
    checkpoints: Path
    on_steps: OnSteps


@partial(jax.jit, static_argnames="spec", donate_argnames="states")
def run_steps_together(
    spec: StepSpec,
    states: TrainState,
    frozen: Tree,
    tables: Mapping[str, Rows],
    schedules: Mapping[str, jax.Array],
    count: jax.Array,
    hyper: Mapping[str, Any],
) -> tuple[TrainState, Metrics]:
    """The steps of E trainings: leaves of states, schedules, hyper and of the result have a first
    axis [E]; frozen, tables and count are shared."""

    def one(state: TrainState, schedule: Any, numbers: Any) -> tuple[TrainState, Metrics]:
        return steps_in_jit(spec, state, frozen, tables, schedule, count, numbers)

    return jax.vmap(one)(states, schedules, hyper)


def train_together(
    model: LanguageModel, members: Sequence[Member], adapter: AdapterConfig
) -> list[bool]:
    """Trains fresh adapters; each comes to what `train` makes of the same arguments, but for
    rounding.

    The states are saved in the members' folders as `train` saves them, which so goes on from there,
    or is done. Trainings that have not the same shapes, rows or static settings, or have not come
    equally far, are parts of their own. One in which a loss is not finite goes no further; its last
    state is the last one that was saved.

    Args:
      model: the start model of all; it is left as it is.
      members: at least one.
      adapter: of all.

    Returns:
      For each member whether it came to its end.

    Raises:
      UserError: a checkpoint is foreign or damaged.
    """
    model = model.merged()
    parts: dict[Any, list[_Ready]] = defaultdict(list)
    with ExitStack() as stack:
        stack.enter_context(hosts.deferring())
        every = [_ready(model, member, adapter, stack) for member in members]
        for one in every:
            parts[one.alike].append(one)
        for part in parts.values():
            _advance(model, part)
    return [one.done for one in every]


@dataclass
class _Ready:
    """A member at the place from which it goes on."""

    member: Member
    spec: StepSpec
    frozen: Mapping[str, Any]
    numbers: Mapping[str, Any]
    state: TrainState
    store: Checkpoints

    @property
    def steps(self) -> int:
        return len(next(iter(self.member.schedule.values())))

    @property
    def done(self) -> bool:
        return int(self.state.step) == self.steps

    @property
    def alike(self) -> tuple[Any, ...]:
        """The same for trainings that one program can do side by side."""
        shapes = tuple((group, of.shape) for group, of in sorted(self.member.schedule.items()))
        every = self.member.training.checkpoint_every
        return self.spec, table_digest(self.member.tables), shapes, int(self.state.step), every


def _ready(
    model: LanguageModel, member: Member, adapter: AdapterConfig, stack: ExitStack
) -> _Ready:
    steps = len(next(iter(member.schedule.values())))
    hyper, training, seed = member.hyper, member.training, member.seed
    spec, trainable, frozen, numbers = prepare(
        model, member.objective, hyper, training, steps, adapter, seed
    )
    state = init_state(
        trainable, optimizer=training.optimizer, retain_weight=hyper.get("retain_weight", 1.0)
    )
    mark = fingerprint(
        model, member.tables, member.schedule, spec, numbers, adapter, seed, training, None
    )
    store = stack.enter_context(Checkpoints(member.checkpoints, mark))
    return _Ready(member, spec, frozen, numbers, store.restore(state)[0], store)


def _advance(model: LanguageModel, part: Sequence[_Ready]) -> None:
    """To the end of the schedule, which is equally long for all of them."""
    first = part[0]
    if first.done:
        return
    tables, start, steps = first.member.tables, int(first.state.step), first.steps
    widths = np.max([step_widths(tables, one.member.schedule) for one in part], axis=0)
    along, everywhere, filled = _places(len(part))
    lanes = [*part, *[part[-1]] * (filled - len(part))]

    def stacked(trees: Sequence[Any]) -> Any:
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *trees), along)

    states = stacked([jax.device_get(one.state) for one in lanes])
    numbers = stacked([jax.device_get(one.numbers) for one in lanes])
    shared = (first.frozen, device_rows(model, tables, first.member.objective))
    frozen, rows = jax.device_put(shared, everywhere)
    every = first.member.training.checkpoint_every
    alive, step, count = list(range(len(part))), start, 1
    while step < steps and alive:
        alike = int(np.argmin(np.append(widths[step:] == widths[step], False)))
        count = min(count, alike, every - step % every)
        schedule = stacked([_cut(one.member.schedule, step, count) for one in lanes])
        now = jax.tree.map(lambda table, width=widths[step]: table[:, :width], rows)
        begin = time.perf_counter()
        states, log = run_steps_together(
            first.spec, states, frozen, now, schedule, np.int32(count), numbers
        )
        log = jax.device_get(log)
        seconds = time.perf_counter() - begin
        alive = [place for place in alive if _finite(log, place, count)]
        if step + count == steps or (step + count) % every == 0:
            kept = jax.device_get(states)
            for place in alive:
                one = part[place]
                one.state = jax.tree.map(lambda leaf, at=place: jnp.asarray(leaf[at]), kept)
                one.store.save(one.state)
        for place in alive:
            member = part[place].member
            lines = _lines(member, log, place, step, count, seconds / len(part))
            member.on_steps(step + count, steps, lines)
        if hosts.asked_to_leave():
            hosts.leave(f"after step {step + count} of {steps}, at their last checkpoint")
        step += count
        count = int(np.clip(count * DISPATCH_SECONDS / seconds, 1, CAPACITY))


def _cut(schedule: Mapping[str, np.ndarray], start: int, count: int) -> dict[str, np.ndarray]:
    return {
        group: padded(index[start : start + count], CAPACITY, -1)
        for group, index in schedule.items()
    }


def _finite(log: Metrics, place: int, count: int) -> bool:
    return all(np.isfinite(log[key][place, :count]).all() for key in ("loss", "grad_norm"))


def _lines(
    member: Member, log: Metrics, place: int, start: int, count: int, seconds: float
) -> list[dict[str, float]]:
    """What `train` logs; of the time of a dispatch each member has an equal share."""
    return [
        {
            **{name: float(values[place, i]) for name, values in log.items()},
            "step": start + i + 1,
            "tokens_per_second": batch_tokens(member.tables, member.schedule, start + i)
            * count
            / seconds,
        }
        for i in range(count)
    ]


def _places(count: int) -> tuple[Any, Any, int]:
    """Where leaves with an axis of `count` trainings go, where all others go, and how many
    trainings there are with those that only fill the devices."""
    devices = jax.local_devices()[:count]
    if len(devices) == 1:
        return devices[0], devices[0], count
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    along, everywhere = (NamedSharding(mesh, spec) for spec in (P(AXIS), P()))
    return along, everywhere, math.ceil(count / len(devices)) * len(devices)
