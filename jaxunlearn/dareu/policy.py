"""One iteration of DareU as one compiled program: responses, rewards, advantages, updates.

    for each batch of prompts:
        y ~ pi_old                                         rollout.respond
        r = prefix_rewards(chi(owner_scores)) - kl_weight * KL
        A from r                                           advantages
        repeat: theta <- theta - rate * grad(loss(A) + distill_weight * KL(start || pi))

Reference: Lu et al., De-attribute to forget for LLM unlearning (DareU), arXiv 2605.30919, algorithm
1. What it leaves open is a setting; see `methods.dareu_settings`.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import Attributor
from jaxunlearn.dareu import advantages as adv
from jaxunlearn.dareu import policy_losses, reward, rollout
from jaxunlearn.dareu.advantages import masked_mean
from jaxunlearn.dareu.rollout import Prompts, Read, Rollout
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.training.optimizers import OPTIMIZERS
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows, aligned_logits, combine
from jaxunlearn.training.step import accumulate, clip_by_norm, gather, learning_rate

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


def iterate(
    spec: PolicySpec,
    state: PolicyState,
    frozen: Tree,
    attributors: tuple[Attributor, Attributor],
    prompts: Prompts,
    retain: Rows,
    chosen: Mapping[str, np.ndarray],
    refresh: np.bool_,
    numbers: Mapping[str, Any],
) -> tuple[PolicyState, Metrics]:
    """One batch of responses and all updates on it, on the devices of the layout.

    Args:
      spec: static choices.
      state: donated.
      frozen: parameters that do not train; see `statistics.combine`. Without an adapter also
        `reference`, those of the start model.
      attributors: what rewards, and what only looks on; of the same owners.
      prompts: of all forget rows.
      retain: all retain rows.
      chosen: `forget` [b] and `retain` [c], row indices; -1 is an empty slot. b and c are multiples
        of the layout's shards times the micro-batches.
      refresh: bool, whether an epoch begins, so that the current policy is now the old one.
      numbers: those of the settings, and learning_rate, value_learning_rate, weight_decay,
        clip_norm, warmup_steps, total_steps, run_seed and the options of the optimiser.

    Returns:
      The next state, and scalars of this iteration: of its responses reward, attribution (without
      the incoherent class), attribution_held_out, kl (to the start model), entropy, start_nll
      (under the start model), repetition, length and ended (share that came to their end); and of
      its last update loss, policy_loss, distill_loss, value_loss, grad_norm, and those of
      `ratio_diagnostics`. learning_rate is that of the last update too.
    """
    before = (state, frozen, attributors, prompts, retain)
    return spec.layout.run(iterate_in_jit, spec, before, chosen, (refresh, numbers))


def _iterate(
    spec: PolicySpec,
    state: PolicyState,
    frozen: Tree,
    attributors: tuple[Attributor, Attributor],
    prompts: Prompts,
    retain: Rows,
    chosen: Mapping[str, jax.Array],
    refresh: jax.Array,
    numbers: Mapping[str, Any],
) -> tuple[PolicyState, Metrics]:
    choices, layout = spec.choices, spec.layout
    chosen = layout.deal(chosen)
    if choices.old_refresh == "epoch":
        old = jax.tree.map(partial(jnp.where, refresh), state.trainable, state.old)
    else:
        old = None
    rows = jnp.repeat(chosen["forget"], choices.samples)
    asked = jax.tree.map(lambda x: x[jnp.maximum(rows, 0)], prompts)
    key = jax.random.key(numbers["run_seed"].astype(jnp.uint32))
    behaviour = combine(state.trainable if old is None else old, frozen)
    drawn = rollout.respond(
        spec.config,
        *behaviour,
        asked,
        rows >= 0,
        limit=choices.max_new_tokens,
        stop_tokens=jnp.array(spec.stop_tokens, jnp.int32),
        temperature=numbers["temperature"],
        key=jax.random.fold_in(key, state.step),
        first=layout.place_in_batch(len(rows)),
    )
    read = partial(rollout.read, spec.config, rollout=drawn, temperature=numbers["temperature"])
    params, factors = combine(state.trainable, frozen)
    start = frozen.get("reference", params)
    now, at_start = read(params, factors), read(start, None)
    before = now if old is None else read(*behaviour)
    known = gather(retain, chosen["retain"])
    counted = reward.counted_owners(
        asked.owners, jnp.array(spec.forget_owners), against=choices.against
    )
    rewards = _rewards(spec, attributors[0], drawn, counted, numbers)
    wanted = jnp.minimum(asked.answer_lengths, choices.max_new_tokens)
    rewards -= reward.missing_costs(drawn.mask, wanted, cost=numbers["missing_cost"])
    rewards -= numbers["kl_weight"] * reward.kl_estimates(
        now.log_probs,
        (at_start if old is None else before).log_probs,
        drawn.mask,
        estimator=choices.kl_estimator,
    )
    values = _values(state.value, now.hidden)
    # They are compared over the whole batch.
    everywhere = layout.gathered((rewards, values, drawn.mask))
    gains, returns = layout.own(advantages(choices, *everywhere, numbers))
    batch = Batch(
        drawn,
        before.log_probs,
        values,
        gains,
        returns,
        known,
        aligned_logits(spec.config, start, None, known.tokens),
    )
    state = dataclasses.replace(state, old=old)
    after, log = _updates(spec, state, frozen, batch, numbers)
    told = _told(spec, (params, start), drawn, (now, at_start), counted, attributors, numbers)
    told["reward"] = masked_mean(everywhere[0], everywhere[2])
    return layout.hold(after), {**log, **told}


iterate_in_jit = jax.jit(_iterate, static_argnames="spec", donate_argnames="state")


def advantages(
    choices: DareU,
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    numbers: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Advantages of all tokens [B, R], and what their values are to become [B, R].

    ppo takes generalised advantages over the value head. grpo takes discounted sums of rewards that
    are compared within the group (of one reward for a response, that itself); rloo compares whole
    responses, by their mean reward, or by the sum where the level is sequence.

    Args:
      choices: algorithm, level, samples, whiten, group_std.
      rewards: [B, R].
      values: [B, R], of the value head.
      mask: bool [B, R].
      numbers: gamma, gae_lambda.
    """
    if choices.algorithm == "ppo":
        gains = adv.gae(rewards, values, mask, gamma=numbers["gamma"], lam=numbers["gae_lambda"])
        returns = gains + values
        return (adv.whiten(gains, mask) if choices.whiten else gains), returns
    size, sequence = choices.samples, choices.level == "sequence"
    if choices.algorithm == "grpo" and not sequence:
        centred = adv.group_advantages(rewards, mask, group_size=size, by_std=choices.group_std)
        return adv.discounted_returns(centred, mask, gamma=numbers["gamma"]), values
    responses, counts = rewards.sum(-1), mask.any(-1)
    if choices.algorithm == "grpo":
        of_row = adv.group_advantages(responses, counts, group_size=size, by_std=choices.group_std)
    else:
        responses = responses if sequence else masked_mean(rewards, mask, -1)
        of_row = adv.leave_one_out(responses, counts, group_size=size)
    return jnp.where(mask, of_row[:, None], 0.0), values


def _rewards(
    spec: PolicySpec,
    attributor: Attributor,
    drawn: Rollout,
    counted: jax.Array,
    numbers: Mapping[str, Any],
) -> jax.Array:
    """What each token earns by attribution, [B, R]."""
    choices, lengths, count = spec.choices, drawn.lengths, spec.choices.prefixes
    if choices.level == "sequence":
        kappa = jnp.maximum(lengths, 1)
    elif choices.kappa is None:
        kappa = reward.segment_lengths(lengths, choices.slices)
    else:
        kappa = choices.kappa
    found = rollout.attributed(
        attributor,
        drawn.tokens,
        reward.slice_ends(lengths, kappa, count),
        counted,
        incoherence=choices.incoherence,
    )
    costs = reward.chi(found, scale=numbers["scale"])
    return reward.prefix_rewards(costs, drawn.mask, kappa, level=choices.level)


def _values(head: Tree, hidden: jax.Array) -> jax.Array:
    """[B, R]; the policy does not learn from what is expected of it."""
    hidden = jax.lax.stop_gradient(hidden).astype(jnp.float32)
    return hidden @ head["kernel"] + head["bias"]


def _updates(
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
            _values(value, read.hidden),
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


def _told(
    spec: PolicySpec,
    models: tuple[Tree, Tree],
    drawn: Rollout,
    reads: tuple[Read, Read],
    counted: jax.Array,
    attributors: tuple[Attributor, Attributor],
    numbers: Mapping[str, Any],
) -> Metrics:
    """What the responses are like, before any update on them; models and reads are those of the
    policy and of the start model."""
    mask, there, lengths = drawn.mask, drawn.mask.any(-1), drawn.lengths
    temperature = numbers["temperature"]

    def mean(values: jax.Array, counts: jax.Array = there) -> jax.Array:
        return masked_mean(*spec.layout.gathered((values.astype(jnp.float32), counts)))

    ends = jnp.isin(drawn.tokens, jnp.array(spec.stop_tokens, jnp.int32)) & mask
    undecided = rollout.entropies(spec.config, models[0], reads[0], mask, temperature)
    far = rollout.divergences(spec.config, models, reads, mask, temperature)
    whole = [
        rollout.attributed(one, drawn.tokens, lengths[:, None], counted)[:, 0]
        for one in attributors
    ]
    return {
        "attribution": mean(whole[0]),
        "attribution_held_out": mean(whole[1]),
        "kl": mean(far, mask),
        "entropy": mean(undecided, mask),
        "start_nll": -mean(reads[1].log_probs, mask),
        "repetition": mean(rollout.repeats(drawn.tokens, mask)),
        "length": mean(lengths),
        "ended": mean(ends.any(-1)),
    }
