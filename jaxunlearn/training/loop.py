"""From a schedule to a trained model: dispatch steps, watch the losses, checkpoint, resume."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.methods.registry import Objective
from jaxunlearn.models import lora
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training import hosts, profiling
from jaxunlearn.training.batches import batch_tokens, device_rows, padded, padded_slots, step_widths
from jaxunlearn.training.checkpoint import Checkpoints
from jaxunlearn.training.fingerprint import fingerprint
from jaxunlearn.training.optimizers import OPTIMIZERS, resolve_options
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.profiling import flops_per_token
from jaxunlearn.training.statistics import Rows, combine
from jaxunlearn.training.step import StepSpec, TrainState, init_state, run_steps
from jaxunlearn.training.trainable import split_params
from jaxunlearn.training.watching import Look, Selection, Watch

CAPACITY = 32  # most steps in one dispatch
DISPATCH_SECONDS = 2.0  # aimed-at time of one dispatch: progress stays live, start-up costs little
FIRST_STEP = "no update came before it: the method's own loss gives it; mend that or its numbers"

OnSteps = Callable[[int, int, list[dict[str, float]]], None]


class DivergedError(RuntimeError):
    """A loss became infinite or not a number; the message says where and what to do."""


def train(
    model: LanguageModel,
    tables: Mapping[str, TokenTable],
    schedule: Mapping[str, np.ndarray],
    objective: Objective,
    hyper: Mapping[str, float],
    training: TrainingConfig,
    *,
    adapter: AdapterConfig | None = None,
    reinforced: LanguageModel | None = None,
    apart_from: Mapping[str, Any] | None = None,
    seed: int = 0,
    layout: Layout = ONE_DEVICE,
    checkpoints: Path | None = None,
    on_steps: OnSteps | None = None,
    watch: Watch | None = None,
    selection: Selection | None = None,
    finish: Callable[[LanguageModel], LanguageModel] = lambda trained: trained,
    on_end: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Trains a model along a schedule.

    Args:
      model: the start model, also the frozen reference; it is left as it is.
      tables: group name to token table, all of one width T.
      schedule: group name to row indices [steps, B]; -1 is an empty slot.
      objective: what each step minimises.
      hyper: its hyper-parameters.
      training: optimiser settings; `epochs` is already in the schedule.
      adapter: train a fresh LoRA adapter instead of the parameters.
      reinforced: a second frozen model, for objectives that compare with one.
      apart_from: factors that the adapter is kept orthogonal to, for objectives that ask for it.
      seed: of the adapter's initial factors.
      layout: where parameters and rows lie; it changes only how long it takes.
      checkpoints: folder to save to and to resume from; None saves nothing.
      on_steps: called after each dispatch with (steps done, steps in all, one dict per new step).
      watch: what may end the training early. States are then saved where it looks and finds
        nothing wrong, and nowhere else.
      selection: what chooses the result among the states that it looks at; needs `checkpoints`.
        States are then saved there too.
      finish: makes the result, and what is looked at, of a trained model.
      on_end: called with the step that the training came to, and the step of its result.

    Returns:
      The trained model, its parameters in the start model's dtypes.

    Raises:
      UserError: `train_only` matches nothing, or a checkpoint is foreign or damaged.
      ValueError: a selection without a folder of checkpoints.
      PreemptedError: the process was asked to leave; the state is saved, or with a watch or a
        selection the last one that was looked at.
      DivergedError: a loss or gradient is not finite and `watch` does not roll back; the last good
        checkpoint is kept.
    """
    if selection is not None and checkpoints is None:
        raise ValueError("selection: needs a folder of checkpoints, which keep the best state")
    model, steps = layout.placed(model.merged()), len(next(iter(schedule.values())))
    spec, trainable, frozen, numbers = prepare(
        model, objective, hyper, training, steps, adapter, seed, layout
    )
    if reinforced is not None:
        frozen["reinforced"] = reinforced.merged().params
    if apart_from is not None:
        frozen["apart_from"] = apart_from
    frozen = layout.place(frozen)
    state = init_state(
        layout.place(trainable),
        optimizer=training.optimizer,
        retain_weight=hyper.get("retain_weight", 1.0),
    )
    state = layout.place(state)

    def finished(state: TrainState) -> LanguageModel:
        final = OPTIMIZERS[training.optimizer].final(state.opt_state, state.trainable)
        return finish(trained_model(model, final, frozen, adapter))

    def advance(state: TrainState, store: Checkpoints | None, looks: list[Look]) -> _End:
        at, given_up = int(state.step), selection is not None and selection.exhausted(looks)
        if at == steps or given_up:
            return _End(state, at, looks)
        rows = device_rows(model, tables, objective, layout)
        slots = padded_slots(schedule, layout.shards * training.micro_batches)
        run = _Run(spec, frozen, rows, slots, step_widths(tables, schedule), numbers)
        if watch is None and selection is None:
            every = training.checkpoint_every
            return _End(_advance(run, state, steps, tables, every, store, on_steps), steps, [])
        return _watched(
            run, _End(state, at, looks), tables, watch, selection, finished, store, on_steps
        )

    def result(end: _End, store: Checkpoints | None) -> LanguageModel:
        state = end.state
        if end.looks:
            selection.say(selection.told(end.looks, steps))
            best = selection.best(end.looks).step
            if best != int(state.step):
                state, _ = store.restore(state, best)
        if on_end is not None:
            on_end(end.step, int(state.step))
        return finished(state)

    if checkpoints is None:
        with hosts.deferring():
            return result(advance(state, None, []), None)
    mark = fingerprint(model, tables, schedule, spec, numbers, adapter, seed, training, apart_from)
    with hosts.deferring(), Checkpoints(checkpoints, mark) as store:
        state, known = store.restore(state)
        return result(advance(state, store, [Look(*one) for one in known]), store)


def prepare(
    model: LanguageModel,
    objective: Objective,
    hyper: Mapping[str, float],
    training: TrainingConfig,
    steps: int,
    adapter: AdapterConfig | None,
    seed: int,
    layout: Layout = ONE_DEVICE,
) -> tuple[StepSpec, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Static choices, trainable and frozen parameters, and numbers of the update step, for a model
    with its adapter merged. Arguments and errors are those of `train`."""
    check_layout(training, layout)
    trainable, frozen = split_params(model, training.train_only, adapter, seed)
    if any(map(objective.needs, ("reference_logits", "reference_hidden"))) and adapter is None:
        frozen["reference"] = model.params
    spec = StepSpec(
        model.config, objective, training.decay, training.micro_batches, training.optimizer, layout
    )
    return spec, trainable, frozen, traced_numbers(hyper, training, steps, seed)


def check_layout(training: TrainingConfig, layout: Layout) -> None:
    """An optimiser's estimates must be those of one device.

    Raises:
      UserError: they would not be.
    """
    name = training.optimizer
    if OPTIMIZERS[name].estimate is None or layout.shards == 1:
        return
    if layout.mapped:
        raise UserError(
            f"training.optimizer: {name} looks at a whole batch, which no device has under pmap;"
            " leave parallel out, or give it a mesh"
        )
    if training.micro_batches > 1:
        raise UserError(
            f"training.micro_batches: on several devices {name} needs 1; set it, or parallel: jit"
        )


class _End(NamedTuple):
    """Where a training has come to."""

    state: TrainState
    """The one there; after a rollback an earlier one."""
    step: int
    looks: list[Look]


@dataclasses.dataclass(frozen=True)
class _Run:
    """Everything of a training stage that no step changes."""

    spec: StepSpec
    frozen: Mapping[str, Any]
    rows: Mapping[str, Rows]
    schedule: Mapping[str, np.ndarray]
    widths: np.ndarray
    """[steps]: columns of each step's batch, by its longest row; a function of the schedule alone,
    so that a resumed run computes each step in the same shape."""
    numbers: Mapping[str, Any]

    @property
    def steps(self) -> int:
        return len(self.widths)

    def alike(self, step: int) -> int:
        """How many steps from this one on have its width."""
        other = np.flatnonzero(self.widths[step:] != self.widths[step])
        return int(other[0]) if len(other) else self.steps - step

    def dispatch(
        self, state: TrainState, start: int, count: int
    ) -> tuple[TrainState, list[dict[str, float]], float]:
        """The state after `count` steps, their metrics, and when the devices had the work."""
        part = {
            group: padded(index[start : start + count], CAPACITY, -1)
            for group, index in self.schedule.items()
        }
        rows = jax.tree.map(lambda table: table[:, : self.widths[start]], self.rows)
        state, log = run_steps(
            self.spec, state, self.frozen, rows, part, np.int32(count), self.numbers
        )
        handed = time.perf_counter()
        log = jax.device_get(log)
        rows = [{name: float(log[name][i]) for name in log} for i in range(count)]
        return state, rows, handed


def _advance(
    run: _Run,
    state: TrainState,
    end: int,
    tables: Mapping[str, TokenTable],
    checkpoint_every: int,
    store: Checkpoints | None,
    on_steps: OnSteps | None,
) -> TrainState:
    """From the state's step to step `end`."""
    steps, step, count, profile = run.steps, int(state.step), 1, profiling.current()
    while step < end:
        to_checkpoint = min(checkpoint_every - step % checkpoint_every, end - step)
        count, width = min(count, run.alike(step), to_checkpoint), int(run.widths[step])
        count = count if profile is None else profile.within(count, width)
        begin = time.perf_counter()
        state, log, handed = run.dispatch(state, step, count)
        seconds = hosts.agreed(time.perf_counter() - begin)
        for offset, metrics in enumerate(log):
            for key in ("loss", "grad_norm"):
                if not math.isfinite(metrics[key]):
                    cause = "lower training.learning_rate" if step + offset else FIRST_STEP
                    raise DivergedError(
                        f"{run.spec.objective.name}: the {key} is {metrics[key]} at step "
                        f"{step + offset + 1} of {steps}; {cause}"
                    )
            tokens = batch_tokens(tables, run.schedule, step + offset)
            metrics["step"] = step + offset + 1
            metrics["tokens_per_second"] = tokens * count / seconds
        if profile is not None:
            tokens = sum(batch_tokens(tables, run.schedule, step + i) for i in range(count))
            flops = flops_per_token(run.spec.config, state.trainable, run.frozen, width) * tokens
            profile.ran(count, width, tokens, flops, begin, handed)
        step += count
        if store is not None and (step == end or step % checkpoint_every == 0):
            store.save(state)
        if on_steps is not None:
            on_steps(step, steps, log)
        if hosts.asked_to_leave():
            if store is not None:
                store.save(state)
            hosts.leave(f"after step {step} of {steps}")
        count = int(np.clip(count * DISPATCH_SECONDS / seconds, 1, CAPACITY))
    return state


def _watched(
    run: _Run,
    start: _End,
    tables: Mapping[str, TokenTable],
    watch: Watch | None,
    selection: Selection | None,
    finished: Callable[[TrainState], LanguageModel],
    store: Checkpoints | None,
    on_steps: OnSteps | None,
) -> _End:
    """To the end of the schedule, or to where a look ends it."""
    state, step, looks = start.state, start.step, start.looks
    rollback = watch is not None and watch.rollback
    periods = [one.every for one in (watch, selection) if one is not None]
    ended = False
    while not ended and step < run.steps:
        good = run.spec.layout.kept(state) if rollback else None
        # Of states that were looked at, the best is the result.
        back = "training ends here" if looks else f"the result is that of step {step}"
        end = min(run.steps, *(step + every - step % every for every in periods))
        try:
            state = _advance(run, state, end, tables, run.steps, None, on_steps)
        except DivergedError as error:
            if not rollback:
                raise
            watch.say(f"{error}; {back}")
            return _End(run.spec.layout.place(good), step, looks)
        now, last = finished(state), end == run.steps
        if watch is not None and (last or end % watch.every == 0):
            value = watch.measure(now)
            if ended := watch.crossed(value):
                watch.say(
                    f"{run.spec.objective.name}: {watch.name} is {value:.3g} after step {end} of "
                    f"{run.steps}; {back if rollback else 'training ends here'}"
                )
                if rollback:
                    return _End(run.spec.layout.place(good), end, looks)
        step, before = end, looks
        if selection is not None and (last or ended or end % selection.every == 0):
            looks = [*looks, Look(end, *selection.measure(end, now))]
        del now  # it may be a second copy of all parameters
        if not ended and store is not None:
            kept = [selection.best(known).step for known in (before, looks) if known]
            store.save(state, looks, kept)
        ended = ended or (selection is not None and selection.exhausted(looks))
    return _End(state, step, looks)


def trained_model(
    model: LanguageModel,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    adapter: AdapterConfig | None,
) -> LanguageModel:
    """The start model with what was trained: an adapter, or parameters in the model's dtypes.

    Args:
      model: the start model, without an adapter.
      trainable: see `statistics.combine`.
      frozen: the same.
      adapter: whose factors were trained; None: parameters were.
    """
    if adapter is not None:
        factors = lora.Adapter(trainable["lora"], adapter.scale)
        return dataclasses.replace(model, adapter=factors)
    params, _ = combine(trainable, frozen)
    kept = jax.tree.map(lambda leaf, start: leaf.astype(start.dtype), params, dict(model.params))
    return dataclasses.replace(model, params=kept)


def traced_numbers(
    hyper: Mapping[str, float], training: TrainingConfig, steps: int, seed: int
) -> dict[str, Any]:
    """Every number that a compiled step takes, float32 scalars: those of a method, of the schedule
    of `steps` steps, and under `optimizer` the optimiser's own.

    Raises:
      UserError: an unknown option of the optimiser, or one out of range.
    """
    numbers = {
        **hyper,
        "run_seed": seed,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "clip_norm": training.clip_norm,
        "warmup_steps": round(training.warmup * steps),
        "total_steps": steps,
        "optimizer": resolve_options(training.optimizer, training.optimizer_options),
    }
    return jax.tree.map(jnp.float32, numbers)
