"""From prompts and owners to a model that was rewarded: iterations, guards, checkpoints, resume."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn.attribution.responses import Attributor
from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.dareu.iteration import iterate
from jaxunlearn.dareu.policy import PolicySpec, PolicyState, init_state
from jaxunlearn.dareu.rollout import Prompts
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training import hosts
from jaxunlearn.training.batches import padded_slots
from jaxunlearn.training.checkpoint import Checkpoints
from jaxunlearn.training.fingerprint import checksum
from jaxunlearn.training.loop import DivergedError, traced_numbers, trained_model
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.trainable import split_params


@dataclass(frozen=True)
class Job:
    """All that decides a training by reward."""

    start: LanguageModel
    """The model that is to forget, without an adapter."""
    attributors: tuple[Attributor, Attributor]
    """What rewards, and what only looks on."""
    forget_owners: tuple[bool, ...]
    """Which of their owners are to be forgotten."""
    prompts: Prompts
    retain: Rows
    schedule: Mapping[str, np.ndarray]
    """`forget` [iterations, b] and `retain` [iterations, c], row indices; -1 is an empty slot."""
    per_epoch: int
    """Iterations in one epoch."""
    settings: DareU
    training: TrainingConfig
    adapter: AdapterConfig | None
    seed: int
    layout: Layout = ONE_DEVICE

    @property
    def iterations(self) -> int:
        """Of the whole schedule."""
        return len(self.schedule["forget"])

    def spec(self) -> PolicySpec:
        """Its static choices."""
        return PolicySpec(
            self.start.config,
            self.settings.choices,
            self.start.stop_tokens,
            self.forget_owners,
            self.training.decay,
            self.training.micro_batches,
            self.training.optimizer,
            self.settings.entropy_weight > 0,
            self.layout,
        )

    def numbers(self) -> dict[str, Any]:
        """Every number that the iteration traces."""
        rate = self.settings.value_learning_rate or self.training.learning_rate
        hyper = {**self.settings.numbers, "value_learning_rate": rate}
        return traced_numbers(hyper, self.training, self.spec().steps * self.iterations, self.seed)


def train(
    job: Job,
    *,
    checkpoints: Path | None = None,
    on_steps: Callable[[int, int, list[dict[str, float]]], None] | None = None,
    on_end: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Trains by reward, going on where an earlier start was cut off.

    Args:
      job: all settings and data.
      checkpoints: folder to save to and to resume from; None saves nothing.
      on_steps: called after each iteration with (iterations done, in all, [its numbers]).
      on_end: called with the number of iterations that the result has behind it.
      say: called with why training ended early, if it did.

    Returns:
      The start model with the adapter that was trained, or with other parameters.

    Raises:
      UserError: a checkpoint is foreign or damaged.
      DivergedError: a loss is not finite; the last checkpoint is kept.
    """
    if checkpoints is None:
        state = _advance(job, *_begin(job), None, on_steps, say)
    else:
        with hosts.deferring(), Checkpoints(checkpoints, _fingerprint(job)) as store:
            frozen, fresh = _begin(job)
            state, ended = store.restore(fresh)
            if not ended:
                state = _advance(job, frozen, state, store, on_steps, say)
    if on_end is not None:
        on_end(int(state.step))
    return _finished(job, state)


def _begin(job: Job) -> tuple[dict[str, Any], PolicyState]:
    """What does not train, and the state before the first iteration."""
    start = job.layout.placed(job.start)
    trainable, frozen = split_params(start, job.training.train_only, job.adapter, job.seed)
    if job.adapter is None:
        frozen["reference"] = start.params
    frozen, trainable = job.layout.place(frozen), job.layout.place(trainable)
    return frozen, job.layout.place(init_state(job.spec(), trainable))


def _advance(
    job: Job,
    frozen: Mapping[str, Any],
    state: PolicyState,
    store: Checkpoints | None,
    on_steps: Callable[..., None] | None,
    say: Callable[[str], None],
) -> PolicyState:
    """To the end of the schedule, or to where a guard ends it."""
    spec, numbers, total = job.spec(), job.numbers(), job.iterations
    every = max(1, job.training.checkpoint_every // spec.steps)
    guarded = job.settings.max_kl is not None or job.settings.max_repetition is not None
    data = job.layout.copied((job.attributors, job.prompts, job.retain))
    schedule = padded_slots(job.schedule, job.layout.shards * spec.micro_batches)
    step = int(state.step)
    good = before = job.layout.kept(state) if guarded else None
    while step < total:
        chosen = {group: rows[step] for group, rows in schedule.items()}
        refresh = np.bool_(step % job.per_epoch == 0)
        begin = time.perf_counter()
        state, log = iterate(spec, state, frozen, *data, chosen, refresh, numbers)
        log = {name: float(value) for name, value in jax.device_get(log).items()}
        responses = (schedule["forget"][step] >= 0).sum() * job.settings.samples
        seconds = time.perf_counter() - begin
        _need_finite(log, step, total)
        why, bad = _crossed(job.settings, log)
        if bad:
            state = job.layout.place(good)
            why += f"; the result is that of {int(good.step)} iterations"
        elif guarded:
            good, before = before, job.layout.kept(state)
        step += 1
        # What was undone is not saved: a resumed training comes to the same end again.
        if store is not None and not bad and (why or step == total or step % every == 0):
            store.save(state, [[float(step)]] if why else [])
        if on_steps is not None:
            rate = float(responses * log["length"] / seconds)
            on_steps(step, total, [{**log, "step": step, "tokens_per_second": rate}])
        if not why and hosts.asked_to_leave():
            if store is not None:
                store.save(state)
            hosts.leave(f"after iteration {step} of {total}")
        if why:
            say(f"dareu: in iteration {step} of {total} {why}")
            break
    return state


def _crossed(settings: DareU, log: Mapping[str, float]) -> tuple[str, bool]:
    """Why training ends after an iteration, or nothing; and whether the policy that it began with
    is to be undone."""
    for name, most in (("kl", settings.max_kl), ("repetition", settings.max_repetition)):
        if most is not None and log[name] > most:
            return f"{name} is {log[name]:.3g}, more than max_{name}, {most:g}", True
    least = settings.target_attribution
    if least is not None and log["attribution_held_out"] <= least:
        found = log["attribution_held_out"]
        return f"the held-out attribution is {found:.3g}, the target {least:g}", False
    return "", False


def _need_finite(log: Mapping[str, float], step: int, total: int) -> None:
    for name, value in log.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"dareu: {name} is {value} in iteration {step + 1} of {total}; lower"
                " training.learning_rate"
            )


def _finished(job: Job, state: PolicyState) -> LanguageModel:
    start = job.layout.placed(job.start)
    _, frozen = split_params(start, job.training.train_only, job.adapter, job.seed)
    return trained_model(start, state.trainable, frozen, job.adapter)


def _fingerprint(job: Job) -> str:
    """A hash of everything that decides the outcome."""
    spec = replace(job.spec(), layout=ONE_DEVICE)
    digest = hashlib.sha256(repr((spec, job.adapter, job.training.train_only)).encode())
    digest.update(repr((job.settings, job.per_epoch)).encode())
    digest.update(repr(jax.tree.map(float, job.numbers())).encode())
    trees: Sequence[Any] = (
        dict(job.start.params), job.attributors, job.prompts, job.retain, dict(job.schedule)
    )  # fmt: skip
    for leaf in jax.tree.leaves(trees):
        digest.update(f"{np.shape(leaf)} {checksum(leaf)}".encode())
    return digest.hexdigest()
