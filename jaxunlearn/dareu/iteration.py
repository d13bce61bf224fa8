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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import Attributor
from jaxunlearn.dareu import advantages as adv
from jaxunlearn.dareu import reward, rollout
from jaxunlearn.dareu.advantages import masked_mean
from jaxunlearn.dareu.policy import (
    Batch,
    Metrics,
    PolicySpec,
    PolicyState,
    Tree,
    updates,
    values_of,
)
from jaxunlearn.dareu.rollout import Prompts, Read, Rollout
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.training.statistics import Rows, aligned_logits, combine
from jaxunlearn.training.step import gather


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
    values = values_of(state.value, now.hidden)
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
    after, log = updates(spec, state, frozen, batch, numbers)
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
