"""The update step: a pure function of (state, rows, hyper-parameters), the same for every method.

Many steps run in one dispatch: the token tables live on the device, a step gathers its rows by
index. Everything a sweep may change (learning rate, loss weights, beta, ...) is a traced value, so
changing it never compiles anything anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.methods.orthogonality import orthogonality_penalty
from jaxunlearn.methods.registry import Objective, keywords
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.training.optimizers import OPTIMIZERS, perturbed
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows, aligned_logits, combine, statistics, together

Tree = Mapping[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a compiled step is specialised to; everything else is traced."""

    config: DecoderConfig
    objective: Objective
    decay: Literal["linear", "cosine", "constant"] = "linear"
    micro_batches: int = 1
    optimizer: str = "adamw"
    layout: Layout = ONE_DEVICE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes from step to step, and what a checkpoint holds."""

    step: jax.Array
    trainable: Tree
    opt_state: Any
    dual: jax.Array
    """The retain weight of methods that adapt it; float32 scalar."""


def init_state(
    trainable: Tree, *, optimizer: str = "adamw", retain_weight: float = 1.0
) -> TrainState:
    """A fresh state with float32 copies of the trainable parameters."""
    # A copy, because the state is donated to the step and the start model must outlive it.
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    dual = jnp.asarray(retain_weight, jnp.float32)
    opt_state = OPTIMIZERS[optimizer].init(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, opt_state, dual)


def update(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    batch: Mapping[str, Rows],
    hyper: Mapping[str, Any],
) -> tuple[TrainState, Metrics]:
    """One optimiser step; pure, to be placed by jit or by a parallel wrapper.

    The loss of a term is its sum over the whole batch divided by the batch's count of answer
    tokens (per-token terms) or sequences, so micro-batches add up to exactly the large batch.

    Args:
      spec: static choices.
      state: parameters in training and optimiser state.
      frozen: parameters that do not train; see `combine`.
      batch: group name to its rows of this step, B of each.
      hyper: the method's hyper-parameters, `{group}_weight` of each term,
        `orthogonality_weight` where the objective has such a penalty, `learning_rate`,
        `weight_decay`, `clip_norm`, `warmup_steps`, `total_steps`, `run_seed`, and under
        `optimizer` the options of that.

    Returns:
      The next state, and scalars: loss, `{group}_loss`, `orthogonality_loss` where the objective
      has one, grad_norm, learning_rate.
    """
    if spec.objective.dual is not None:
        hyper = {**hyper, "retain_weight": state.dual}
    optimizer = OPTIMIZERS[spec.optimizer]
    options = {**hyper["optimizer"], "weight_decay": hyper["weight_decay"]}
    (loss, losses), grads = _gradients(spec, state.trainable, frozen, batch, hyper)
    if optimizer.sharpness_aware:
        uphill = perturbed(state.trainable, grads, options["radius"])
        _, grads = _gradients(spec, uphill, frozen, batch, hyper)
    dual = state.dual
    if spec.objective.dual is not None:
        dual = _call(spec.objective.dual, state.dual, losses["retain"], hyper=hyper)

    grads, norm = clip_by_norm(grads, hyper["clip_norm"])
    rate = learning_rate(state.step, hyper, spec.decay)
    hessian = None
    if optimizer.estimate is not None:
        hessian = partial(_hessian, spec, state, frozen, batch, hyper)
    trainable, opt_state = optimizer.update(
        grads, state.opt_state, state.trainable, rate=rate, hyper=options, hessian=hessian
    )
    metrics = {
        "loss": loss,
        **{f"{group}_loss": value for group, value in losses.items()},
        "grad_norm": norm,
        "learning_rate": rate,
    }
    return TrainState(state.step + 1, trainable, opt_state, dual), metrics


def run_steps(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    tables: Mapping[str, Rows],
    schedule: Mapping[str, np.ndarray],
    count: np.int32,
    hyper: Mapping[str, Any],
) -> tuple[TrainState, Metrics]:
    """`count` updates in one dispatch, on the devices of the layout.

    Args:
      spec: static choices.
      state: donated.
      frozen: parameters that do not train.
      tables: group name to all its rows.
      schedule: group name to row indices [C, B], -1 for an empty slot; the first `count` are used.
        B is a multiple of the layout's shards times the micro-batches.
      count: number of steps, at most C; traced, so a shorter last chunk compiles nothing.
      hyper: traced numbers; see `update`.

    Returns:
      The state after the steps, and each metric as [C], of which `count` are filled.
    """
    return spec.layout.run(steps_in_jit, spec, (state, frozen, tables), schedule, (count, hyper))


def _steps(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    tables: Mapping[str, Rows],
    schedule: Mapping[str, jax.Array],
    count: jax.Array,
    hyper: Mapping[str, Any],
) -> tuple[TrainState, Metrics]:
    def step(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, log = carry
        batch = {group: gather(tables[group], schedule[group][i]) for group in tables}
        state, metrics = update(spec, state, frozen, spec.layout.deal(batch), hyper)
        return spec.layout.hold(state), {n: log[n].at[i].set(metrics[n]) for n in log}

    groups = [term.group for term in spec.objective.terms]
    if spec.objective.orthogonality is not None:
        groups.append("orthogonality")
    names = ["loss", *(f"{group}_loss" for group in groups), "grad_norm", "learning_rate"]
    capacity = next(iter(schedule.values())).shape[0]
    log = {name: jnp.zeros(capacity, jnp.float32) for name in names}
    return jax.lax.fori_loop(0, count, step, (state, log))


steps_in_jit = jax.jit(_steps, static_argnames="spec", donate_argnames="state")


def gather(table: Rows, index: jax.Array) -> Rows:
    """The rows of a table at [B] indices; an index of -1 gives a row that counts nothing."""
    rows = jax.tree.map(lambda x: x.at[jnp.maximum(index, 0)].get(mode="clip"), table)
    return dataclasses.replace(rows, mask=rows.mask & (index >= 0)[:, None])


def clip_by_norm(grads: Tree, most: jax.Array) -> tuple[Tree, jax.Array]:
    """Gradients scaled down to a global norm of `most`, and the norm that they had."""
    norm = optax.tree.norm(grads)
    by = jnp.minimum(1.0, most / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * by, grads), norm


def learning_rate(step: jax.Array, hyper: Mapping[str, Any], decay: str) -> jax.Array:
    """Linear warm-up to `learning_rate`, then `decay` to zero at `total_steps`."""
    warmup = (step + 1) / jnp.maximum(hyper["warmup_steps"], 1)
    left = (hyper["total_steps"] - step) / jnp.maximum(
        hyper["total_steps"] - hyper["warmup_steps"], 1
    )
    left = jnp.clip(left, 0.0, 1.0)
    shape = {"linear": left, "cosine": 0.5 * (1 - jnp.cos(jnp.pi * left)), "constant": 1.0}[decay]
    return hyper["learning_rate"] * jnp.minimum(warmup, shape)


def accumulate(
    loss_fn: Callable[..., Any],
    trainable: Tree,
    batch: Any,
    parts: int,
    layout: Layout = ONE_DEVICE,
) -> tuple[tuple[jax.Array, Any], Tree]:
    """Value and gradient of a loss that is a sum over rows, in `parts` passes.

    Args:
      loss_fn: (trainable, batch) to the loss, and more that is a sum over rows.
      trainable: what the gradient is taken of.
      batch: a tree of arrays whose first axes are divisible by `parts` times the layout's blocks.
      parts: passes.
      layout: where the rows lie.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return layout.total(value_and_grad(trainable, batch))

    def cut(x: jax.Array) -> jax.Array:
        # A pass takes from every device's rows, so that none of them idles and none moves.
        x = x.reshape(layout.blocks, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, -1, *x.shape[3:])

    split = layout.deal(jax.tree.map(cut, batch), axis=1)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(value_and_grad, trainable, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(trainable, part)), None

    return layout.total(jax.lax.scan(add, zeros, split)[0])


def _gradients(
    spec: StepSpec,
    trainable: Tree,
    frozen: Tree,
    batch: Mapping[str, Rows],
    hyper: Mapping[str, Any],
) -> tuple[tuple[jax.Array, Metrics], Tree]:
    """Loss and terms of a batch, and the gradient to follow."""
    if spec.objective.rectify is None:
        counts = {group: _counts(rows.mask, spec.layout) for group, rows in batch.items()}
        loss_fn = partial(_loss, spec, frozen=frozen, counts=counts, hyper=hyper)
        found = accumulate(loss_fn, trainable, batch, spec.micro_batches, spec.layout)
        if spec.objective.orthogonality is None:
            return found
        return _kept_apart(spec, found, trainable["lora"], frozen["apart_from"], hyper)
    # Unweighted: a retain weight of 0 must not take away the direction to rectify against.
    found = term_gradients(spec, trainable, frozen, batch, hyper)
    losses = {name: loss for name, ((loss, _), _) in found.items()}
    weights = {name: hyper[f"{name}_weight"] for name in losses}
    retain = found["retain"][1]
    rectified = _call(spec.objective.rectify, found["forget"][1], retain, hyper=hyper)
    grads = jax.tree.map(
        lambda f, r: weights["forget"] * f + weights["retain"] * r, rectified, retain
    )
    return (sum(weights[name] * loss for name, loss in losses.items()), losses), grads


def _kept_apart(
    spec: StepSpec,
    found: tuple[tuple[jax.Array, Metrics], Tree],
    factors: Tree,
    others: Tree,
    hyper: Mapping[str, Any],
) -> tuple[tuple[jax.Array, Metrics], Tree]:
    """Loss, terms and gradient of a batch, with the penalty added once, not by micro-batch."""
    (loss, losses), grads = found
    weight = hyper["orthogonality_weight"]
    penalty, slope = jax.value_and_grad(
        partial(orthogonality_penalty, others, form=spec.objective.orthogonality)
    )(factors)
    grads = {**grads, "lora": jax.tree.map(lambda g, s: g + weight * s, grads["lora"], slope)}
    return (loss + weight * penalty, {**losses, "orthogonality": penalty}), grads


def term_gradients(
    spec: StepSpec,
    trainable: Tree,
    frozen: Tree,
    batch: Mapping[str, Rows],
    hyper: Mapping[str, Any],
) -> dict[str, tuple[tuple[jax.Array, Metrics], Tree]]:
    """Loss, terms and gradient of `forget` and `retain` each by itself, before their weights.

    Args:
      spec: static choices; the objective has both terms.
      trainable: parameters in training.
      frozen: parameters that do not train.
      batch: group name to its rows; all groups but `retain` belong to the forget term.
      hyper: traced numbers; see `update`.
    """
    parts = {
        "forget": {g: rows for g, rows in batch.items() if g != "retain"},
        "retain": {"retain": batch["retain"]},
    }
    ones = {"forget_weight": 1.0, "retain_weight": 1.0}
    counts = {group: _counts(rows.mask, spec.layout) for group, rows in batch.items()}
    loss_fn = partial(_loss, spec, frozen=frozen, counts=counts, hyper=hyper, weights=ones)
    return {
        name: accumulate(loss_fn, trainable, part, spec.micro_batches, spec.layout)
        for name, part in parts.items()
    }


def _hessian(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    batch: Mapping[str, Rows],
    hyper: Mapping[str, Any],
) -> Tree:
    """An estimate of the Hessian's diagonal, from the first micro-batch."""
    first = jax.tree.map(lambda x: x[: x.shape[0] // spec.micro_batches], batch)
    counts = {group: _counts(rows.mask, spec.layout) for group, rows in first.items()}
    blocks = spec.layout.blocks
    tokens = together([rows.tokens for rows in first.values()], blocks)
    mask = together([rows.mask for rows in first.values()], blocks)
    # A row's labels depend on its slot alone, so that empty slots, which even out devices, change
    # nothing.
    slots = [n * 2**20 + jnp.arange(len(rows.mask)) for n, rows in enumerate(first.values())]
    slots = together(slots, blocks)

    def loss(trainable: Tree) -> jax.Array:
        return _loss(spec, trainable, first, frozen=frozen, counts=counts, hyper=hyper)[0]

    def sampled_loss(trainable: Tree, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = aligned_logits(spec.config, *combine(trainable, frozen), tokens)
        keys = jax.vmap(partial(jax.random.fold_in, key))(slots)
        labels = jax.vmap(jax.random.categorical)(keys, jax.lax.stop_gradient(logits))
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
        count = jnp.maximum(mask.sum(), 1)
        return -jnp.sum(jnp.where(mask, log_probs[..., 0], 0.0)) / count, count

    key = jax.random.fold_in(jax.random.key(hyper["run_seed"].astype(jnp.uint32)), state.step)
    return OPTIMIZERS[spec.optimizer].estimate(
        state.trainable, key, loss=loss, sampled_loss=sampled_loss
    )


def _call(function: Callable, *args: Any, hyper: Mapping[str, Any]) -> Any:
    """A method's function with the hyper-parameters that it names."""
    return function(*args, **{name: hyper[name] for name in keywords(function)})


def _loss(
    spec: StepSpec,
    trainable: Tree,
    batch: Mapping[str, Rows],
    *,
    frozen: Tree,
    counts: Mapping[str, Mapping[int, jax.Array]],
    hyper: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
) -> tuple[jax.Array, Metrics]:
    """This part's share of the batch loss, and of each term before its weight.

    `weights` stand in for those of the hyper-parameters.
    """
    known_of = statistics(
        spec.config, spec.objective, trainable, frozen, batch, blocks=spec.layout.blocks
    )
    losses = {}
    for term in spec.objective.terms:
        if term.group not in batch:
            continue
        known, mask = known_of[term.group], batch[term.group].mask
        values = _call(term.loss, *(known[name] for name in term.needs), hyper=hyper)
        chex.assert_shape(values, (mask.shape, mask.shape[:1])[values.ndim == 1])
        counted = mask if values.ndim == 2 else mask.any(-1)
        total = jnp.sum(jnp.where(counted, values, 0.0))
        losses[term.group] = total / counts[term.group][values.ndim]
    weights = hyper if weights is None else weights
    weighted = [weights.get(f"{group}_weight", 1.0) * loss for group, loss in losses.items()]
    return sum(weighted), losses


def _counts(mask: jax.Array, layout: Layout = ONE_DEVICE) -> dict[int, jax.Array]:
    """Counts by the rank of a term's values: 2 for tokens, 1 for sequences; at least one."""
    counts = layout.total({2: mask.sum(), 1: mask.any(-1).sum()})
    return {rank: jnp.maximum(count, 1) for rank, count in counts.items()}
