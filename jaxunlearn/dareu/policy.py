"""The policy that DareU trains: its state, and the updates on a batch of rewarded responses.

    theta <- theta - rate * grad(loss(A) + distill_weight * KL(start || pi))

joint, or the two terms by turns. `iteration` makes the batches, and has the reference.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.dareu import policy_losses, rollout
from jaxunlearn.dareu.advantages import masked_mean
from jaxunlearn.dareu.rollout import Rollout
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.training.optimizers import OPTIMIZERS
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows, aligned_logits, combine
from jaxunlearn.training.step import accumulate, clip_by_norm, learning_rate

Tree = Mapping[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """What the compiled iteration is specialised to; everything else is traced."""

    config: DecoderConfig
    choices: DareU
    stop_tokens: tuple[int, ...]
    forget_owners: tuple[bool, ...]
    """Which owners of the attribution function are to be forgotten."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    micro_batches: int = 1
    optimizer: str = "adamw"
    entropy_bonus: bool = False
    layout: Layout = ONE_DEVICE

    @property
    def steps(self) -> int:
        """Optimiser steps in one iteration."""
        return self.choices.updates * (2 if self.choices.schedule == "alternate" else 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyState:
    """What changes from iteration to iteration, and what a checkpoint holds."""

    step: jax.Array
    """Iterations that are done; the random draws of the next derive from it."""
    trainable: Tree
    opt_state: Any
    value: Tree
    """Of the value head: kernel [D] and bias."""
    value_opt_state: Any
    old: Tree | None
    """What draws the responses; None: the current policy does."""


class Batch(NamedTuple):
    """What all updates of an iteration share; the first axis is rows, so that it can be parted."""

    rollout: Rollout
    old_log_probs: jax.Array
    old_values: jax.Array
    advantages: jax.Array
    returns: jax.Array
    """[B, R]: what the values are to become."""
    retain: Rows
    teacher_logits: jax.Array
    """[b, T, V] of the start model."""


def init_state(spec: PolicySpec, trainable: Tree) -> PolicyState:
    """A fresh state with float32 copies of the trainable parameters, and values of 0."""
    copied = partial(jax.tree.map, lambda x: jnp.array(x, jnp.float32, copy=True))
    trainable, optimizer = copied(trainable), OPTIMIZERS[spec.optimizer]
    value = {"kernel": jnp.zeros(spec.config.hidden_size), "bias": jnp.zeros(())}
    old = copied(trainable) if spec.choices.old_refresh == "epoch" else None
    return PolicyState(
        jnp.zeros((), jnp.int32),
        trainable,
        optimizer.init(trainable),
        value,
        optimizer.init(value),
        old,
    )


def values_of(head: Tree, hidden: jax.Array) -> jax.Array:
    """What the value head expects, [B, R]; the policy does not learn from it."""
    hidden = jax.lax.stop_gradient(hidden).astype(jnp.float32)
    return hidden @ head["kernel"] + head["bias"]


def updates(
    spec: PolicySpec, state: PolicyState, frozen: Tree, batch: Batch, numbers: Mapping[str, Any]
) -> tuple[PolicyState, Metrics]:
    """The state after all updates on a batch, and what the last of them says."""
    optimizer, choices = OPTIMIZERS[spec.optimizer], spec.choices
    options = {**numbers["optimizer"], "weight_decay": numbers["weight_decay"]}
    both = [(1.0, 1.0)] if choices.schedule == "joint" else [(1.0, 0.0), (0.0, 1.0)]
    there = {"responses": batch.rollout.mask, "retain": batch.retain.mask}
    rows = spec.layout.total({name: mask.any(-1).sum() for name, mask in there.items()})
    counts = {name: jnp.maximum(count, 1) for name, count in rows.items()}

    def update(carry: PolicyState, now: tuple[jax.Array, jax.Array]) -> tuple[Any, Metrics]:
        index, weights = now
        loss_fn = partial(
            _loss, spec, frozen=frozen, counts=counts, weights=weights, numbers=numbers
        )
        both = (carry.trainable, carry.value)
        (loss, log), (grads, value_grads) = accumulate(
            loss_fn, both, batch, spec.micro_batches, spec.layout
        )
        grads, norm = clip_by_norm(grads, numbers["clip_norm"])
        value_grads, _ = clip_by_norm(value_grads, numbers["clip_norm"])
        step = state.step * spec.steps + index
        rate, value_rate = (
            learning_rate(step, {**numbers, "learning_rate": numbers[name]}, spec.decay)
            for name in ("learning_rate", "value_learning_rate")
        )
        trainable, opt_state = optimizer.update(
            grads, carry.opt_state, carry.trainable, rate=rate, hyper=options, hessian=None
        )
        value, value_opt_state = optimizer.update(
            value_grads, carry.value_opt_state, carry.value, rate=value_rate, hyper=options,
            hessian=None,
        )  # fmt: skip
        carry = dataclasses.replace(
            carry,
            trainable=trainable,
            opt_state=opt_state,
            value=value,
            value_opt_state=value_opt_state,
        )
        return carry, {**log, "loss": loss, "grad_norm": norm, "learning_rate": rate}

    weights = jnp.tile(jnp.array(both), (choices.updates, 1))
    state, log = jax.lax.scan(update, state, (jnp.arange(spec.steps), weights))
    last = jax.tree.map(lambda x: x[-1], log)
    # Where updates alternate, the last one with a reward is the one before.
    params, factors = combine(state.trainable, frozen)
    read = rollout.read(spec.config, params, factors, batch.rollout, numbers["temperature"])
    known = (read.log_probs, batch.old_log_probs, batch.advantages, batch.rollout.mask)
    moved = policy_losses.ratio_diagnostics(*spec.layout.gathered(known), clip=numbers["clip"])
    return dataclasses.replace(state, step=state.step + 1), {**last, **moved}


def _loss(
    spec: PolicySpec,
    trained: tuple[Tree, Tree],
    part: Batch,
    *,
    frozen: Tree,
    counts: Mapping[str, jax.Array],
    weights: jax.Array,
    numbers: Mapping[str, Any],
) -> tuple[jax.Array, Metrics]:
    """This part's share of the loss, and of each term before its weight."""
    trainable, value = trained
    params, factors = combine(trainable, frozen)
    drawn, temperature = part.rollout, numbers["temperature"]
    read = rollout.read(spec.config, params, factors, drawn, temperature)
    terms = policy_losses.ppo_loss(
        read.log_probs, part.old_log_probs, part.advantages, drawn.mask, clip=numbers["clip"]
    )
    logits = aligned_logits(spec.config, params, factors, part.retain.tokens)
    held = policy_losses.distillation(logits, part.teacher_logits, part.retain.mask)
    # The paper's mean over t, then over d.
    log = {
        "policy_loss": masked_mean(terms, drawn.mask, -1).sum() / counts["responses"],
        "distill_loss": masked_mean(held, part.retain.mask, -1).sum() / counts["retain"],
    }
    total = weights[0] * log["policy_loss"]
    total += weights[1] * numbers["distill_weight"] * log["distill_loss"]
    if spec.choices.algorithm == "ppo":
        errors = policy_losses.value_loss(
            values_of(value, read.hidden),
            part.old_values,
            part.returns,
            drawn.mask,
            clip=numbers["value_clip"],
        )
        log["value_loss"] = masked_mean(errors, drawn.mask, -1).sum() / counts["responses"]
        total += weights[0] * numbers["value_weight"] * log["value_loss"]
    if spec.entropy_bonus:
        undecided = rollout.entropies(spec.config, params, read, drawn.mask, temperature)
        bonus = masked_mean(undecided, drawn.mask, -1).sum() / counts["responses"]
        total -= weights[0] * numbers["entropy_weight"] * bonus
    return total, log
