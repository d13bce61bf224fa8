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
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.methods.registry import Objective
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig

Tree = Mapping[str, Any]
Metrics = dict[str, jax.Array]

# AdamW's direction; learning rate and weight decay are applied by the step, as traced values.
ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a compiled step is specialised to; everything else is traced."""

    config: DecoderConfig
    objective: Objective
    decay: Literal["linear", "cosine", "constant"] = "linear"
    micro_batches: int = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes from step to step, and what a checkpoint holds."""

    step: jax.Array
    trainable: Tree
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A group of rows on the device; a batch of it has the same fields."""

    tokens: jax.Array
    """int32 [n, T]."""
    mask: jax.Array
    """bool [n, T], answer tokens."""
    reference_log_probs: jax.Array | None = None
    """[n, T] under the frozen start model, where the objective needs them."""


def init_state(trainable: Tree) -> TrainState:
    """A fresh state with float32 copies of the trainable parameters."""
    # A copy, because the state is donated to the step and the start model must outlive it.
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, ADAM.init(trainable))


def combine(trainable: Tree, frozen: Tree) -> tuple[Tree, Tree | None]:
    """The decoder's params and scaled adapter factors, from what trains and what does not.

    Both trees may hold parts of `params`; an adapter run trains `lora` and holds all of `params`
    and the branch's `lora_scale` frozen.
    """
    flat = {**flatten_dict(dict(frozen)), **flatten_dict(dict(trainable))}
    tree = unflatten_dict(flat)
    factors = tree.get("lora")
    return tree["params"], factors and lora.scale(factors, tree["lora_scale"])


def update(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    batch: Mapping[str, Rows],
    hyper: Mapping[str, jax.Array],
) -> tuple[TrainState, Metrics]:
    """One optimiser step; pure, to be placed by jit or by a parallel wrapper.

    The loss of a term is its sum over the whole batch divided by the batch's count of answer
    tokens (per-token terms) or sequences, so micro-batches add up to exactly the large batch.

    Args:
      spec: static choices.
      state: parameters in training and optimiser state.
      frozen: parameters that do not train; see `combine`.
      batch: group name to its rows of this step, B of each.
      hyper: the method's hyper-parameters, `{group}_weight` of each term, and `learning_rate`,
        `weight_decay`, `clip_norm`, `warmup_steps`, `total_steps`.

    Returns:
      The next state, and scalars: loss, `{group}_loss`, grad_norm, learning_rate.
    """
    counts = {group: _counts(rows.mask) for group, rows in batch.items()}
    loss_fn = partial(_loss, spec, frozen=frozen, counts=counts, hyper=hyper)
    (loss, losses), grads = _accumulate(loss_fn, state.trainable, batch, spec.micro_batches)

    norm = optax.tree.norm(grads)
    clip = jnp.minimum(1.0, hyper["clip_norm"] / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda g: g * clip, grads)
    direction, opt_state = ADAM.update(grads, state.opt_state)
    rate = learning_rate(state.step, hyper, spec.decay)
    decays = _decayed(state.trainable)
    trainable = jax.tree.map(
        lambda p, d, decayed: p - rate * (d + decayed * hyper["weight_decay"] * p),
        state.trainable,
        direction,
        decays,
    )
    metrics = {
        "loss": loss,
        **{f"{group}_loss": value for group, value in losses.items()},
        "grad_norm": norm,
        "learning_rate": rate,
    }
    return TrainState(state.step + 1, trainable, opt_state), metrics


@partial(jax.jit, static_argnames="spec", donate_argnames="state")
def run_steps(
    spec: StepSpec,
    state: TrainState,
    frozen: Tree,
    tables: Mapping[str, Rows],
    schedule: Mapping[str, jax.Array],
    count: jax.Array,
    hyper: Mapping[str, jax.Array],
) -> tuple[TrainState, Metrics]:
    """`count` updates in one dispatch.

    Args:
      spec: static choices.
      state: donated.
      frozen: parameters that do not train.
      tables: group name to all its rows.
      schedule: group name to row indices [C, B], -1 for an empty slot; the first `count` are used.
      count: number of steps, at most C; traced, so a shorter last chunk compiles nothing.
      hyper: traced numbers; see `update`.

    Returns:
      The state after the steps, and each metric as [C], of which `count` are filled.
    """

    def step(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, log = carry
        batch = {group: gather(tables[group], schedule[group][i]) for group in tables}
        state, metrics = update(spec, state, frozen, batch, hyper)
        return state, {name: log[name].at[i].set(metrics[name]) for name in log}

    names = ["loss", *(f"{g}_loss" for g in spec.objective.groups), "grad_norm", "learning_rate"]
    capacity = next(iter(schedule.values())).shape[0]
    log = {name: jnp.zeros(capacity, jnp.float32) for name in names}
    return jax.lax.fori_loop(0, count, step, (state, log))


def gather(table: Rows, index: jax.Array) -> Rows:
    """The rows of a table at [B] indices; an index of -1 gives a row that counts nothing."""
    rows = jax.tree.map(lambda x: x.at[jnp.maximum(index, 0)].get(mode="clip"), table)
    return dataclasses.replace(rows, mask=rows.mask & (index >= 0)[:, None])


def learning_rate(step: jax.Array, hyper: Mapping[str, jax.Array], decay: str) -> jax.Array:
    """Linear warm-up to `learning_rate`, then `decay` to zero at `total_steps`."""
    warmup = (step + 1) / jnp.maximum(hyper["warmup_steps"], 1)
    left = (hyper["total_steps"] - step) / jnp.maximum(
        hyper["total_steps"] - hyper["warmup_steps"], 1
    )
    left = jnp.clip(left, 0.0, 1.0)
    shape = {"linear": left, "cosine": 0.5 * (1 - jnp.cos(jnp.pi * left)), "constant": 1.0}[decay]
    return hyper["learning_rate"] * jnp.minimum(warmup, shape)


@partial(jax.jit, static_argnames="config")
def reference_log_probs(
    config: DecoderConfig, params: Tree, tokens: jax.Array, factors: Tree | None = None
) -> jax.Array:
    """Log-probabilities of every row under the start model: tokens [m, b, T] -> [m, b, T]."""
    return jax.lax.map(
        lambda rows: transformer.token_log_probs(config, params, rows, lora=factors), tokens
    )


def _accumulate(
    loss_fn: Callable, trainable: Tree, batch: Mapping[str, Rows], parts: int
) -> tuple[tuple[jax.Array, Metrics], Tree]:
    """Value and gradient of a loss that is a sum over rows, in `parts` passes."""
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return value_and_grad(trainable, batch)
    split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(value_and_grad, trainable, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, part: Mapping[str, Rows]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(trainable, part)), None

    return jax.lax.scan(add, zeros, split)[0]


def _loss(
    spec: StepSpec,
    trainable: Tree,
    batch: Mapping[str, Rows],
    *,
    frozen: Tree,
    counts: Mapping[str, Mapping[int, jax.Array]],
    hyper: Mapping[str, jax.Array],
) -> tuple[jax.Array, Metrics]:
    """This part's share of the batch loss, and of each term before its weight."""
    statistics = _statistics(spec, trainable, frozen, batch)
    losses = {}
    for term in spec.objective.terms:
        known, mask = statistics[term.group], batch[term.group].mask
        values = term.loss(
            *(known[name] for name in term.needs), **{name: hyper[name] for name in term.hyper}
        )
        chex.assert_shape(values, (mask.shape, mask.shape[:1])[values.ndim == 1])
        counted = mask if values.ndim == 2 else mask.any(-1)
        total = jnp.sum(jnp.where(counted, values, 0.0))
        losses[term.group] = total / counts[term.group][values.ndim]
    weighted = [hyper.get(f"{group}_weight", 1.0) * loss for group, loss in losses.items()]
    return sum(weighted), losses


def _statistics(
    spec: StepSpec, trainable: Tree, frozen: Tree, batch: Mapping[str, Rows]
) -> dict[str, dict[str, jax.Array]]:
    """What the terms ask for, per group, from one forward pass over all groups' rows together."""
    params, factors = combine(trainable, frozen)
    tokens = jnp.concatenate([rows.tokens for rows in batch.values()])
    whole: dict[str, jax.Array] = {}
    if spec.objective.needs("log_softmax"):
        whole["log_softmax"] = _log_softmax(spec.config, params, factors, tokens)
        at_tokens = jnp.take_along_axis(whole["log_softmax"], tokens[..., None], axis=-1)
        whole["log_probs"] = at_tokens[..., 0].at[:, 0].set(0.0)
    else:
        whole["log_probs"] = transformer.token_log_probs(spec.config, params, tokens, lora=factors)
    statistics: dict[str, dict[str, jax.Array]] = {}
    start = 0
    for group, rows in batch.items():
        size = rows.tokens.shape[0]
        known = {name: value[start : start + size] for name, value in whole.items()}
        known["seq_log_prob"] = _row_sum(known["log_probs"], rows.mask)
        if rows.reference_log_probs is not None:
            known["reference_seq_log_prob"] = _row_sum(rows.reference_log_probs, rows.mask)
        statistics[group] = known
        start += size
    for term in spec.objective.terms:
        if "reference_log_softmax" in term.needs:
            statistics[term.group]["reference_log_softmax"] = jax.lax.stop_gradient(
                _log_softmax(
                    spec.config, frozen.get("reference", params), None, batch[term.group].tokens
                )
            )
    return statistics


def _log_softmax(
    config: DecoderConfig, params: Tree, factors: Tree | None, tokens: jax.Array
) -> jax.Array:
    """[B, T, V]: the distribution that predicts token t; position 0 is predicted by nothing."""
    logits = transformer.logits(config, params, tokens, lora=factors)
    return jax.nn.log_softmax(jnp.pad(logits[:, :-1], ((0, 0), (1, 0), (0, 0))))


def _row_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1)


def _counts(mask: jax.Array) -> dict[int, jax.Array]:
    """Counts by the rank of a term's values: 2 for tokens, 1 for sequences; at least one."""
    return {2: jnp.maximum(mask.sum(), 1), 1: jnp.maximum(mask.any(-1).sum(), 1)}


def _decayed(trainable: Tree) -> Tree:
    """Weight decay spares norm scales and biases."""
    flat = flatten_dict(dict(trainable))
    return unflatten_dict({path: path[-1] not in ("scale", "bias") for path in flat})
