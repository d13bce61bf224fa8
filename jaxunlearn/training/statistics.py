"""What the terms of an objective know about a batch, from forward passes over its rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.methods.registry import Objective, Term
from jaxunlearn.models import lens, lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig

Tree = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A group of rows on the device; a batch of it has the same fields."""

    tokens: jax.Array
    """int32 [n, T]."""
    mask: jax.Array
    """bool [n, T], answer tokens."""
    labels: jax.Array | None = None
    """int32 [n, T]: what the model is to say in the place of each token; None: the tokens."""
    reference_log_probs: jax.Array | None = None
    """[n, T] under the frozen start model, where the objective needs them."""

    @property
    def targets(self) -> jax.Array:
        """int32 [n, T]: what the terms ask about."""
        return self.tokens if self.labels is None else self.labels


def combine(trainable: Tree, frozen: Tree) -> tuple[Tree, Tree | None]:
    """The decoder's params and scaled adapter factors, from what trains and what does not.

    Both trees may hold parts of `params`; an adapter run trains `lora` and holds all of `params`
    and the branch's `lora_scale` frozen. Where only some layers of a leaf train, `frozen` holds
    the whole leaf, and under `layers` which of them the trainable leaf is.
    """
    flat, changed = flatten_dict(dict(frozen)), flatten_dict(dict(trainable))
    for path, leaf in changed.items():
        chosen = flat.pop(("layers", *path), None)
        flat[path] = leaf if chosen is None else flat[path].astype(leaf.dtype).at[chosen].set(leaf)
    tree = unflatten_dict(flat)
    factors = tree.get("lora")
    return tree["params"], factors and lora.scale(factors, tree["lora_scale"])


def statistics(
    config: DecoderConfig,
    objective: Objective,
    trainable: Tree,
    frozen: Tree,
    batch: Mapping[str, Rows],
    *,
    blocks: int = 1,
) -> dict[str, dict[str, jax.Array]]:
    """What the terms ask for, per group, from one forward pass over all groups' rows together.

    Args:
      config: the model's shape.
      objective: the terms, and what they need.
      trainable: see `combine`.
      frozen: see `combine`; also `reference` and `reinforced`, the params of other models.
      batch: group name to its rows, B of each.
      blocks: of rows, each on other devices; the rows of a block stay together when those of
        all groups are put into one array, so that none has to move.

    Returns:
      Group name to statistic name to array; `methods.losses` says what each is.
    """
    params, factors = combine(trainable, frozen)
    tokens = together([rows.tokens for rows in batch.values()], blocks)
    targets = together([rows.targets for rows in batch.values()], blocks)
    whole = _forward(config, objective, params, factors, tokens, targets)
    found: dict[str, dict[str, jax.Array]] = {}
    start = 0
    for group, rows in batch.items():
        size = rows.tokens.shape[0]
        known = {name: _taken(value, blocks, start, size) for name, value in whole.items()}
        known |= {"targets": rows.targets, "mask": rows.mask}
        known["answer_length"] = jnp.maximum(rows.mask.sum(-1), 1).astype(jnp.float32)
        if "log_probs" in known:
            known["seq_log_prob"] = _row_sum(known["log_probs"], rows.mask)
        if rows.reference_log_probs is not None:
            known["reference_seq_log_prob"] = _row_sum(rows.reference_log_probs, rows.mask)
        found[group] = known
        start += size
    if "alternative" in batch:
        for name in ("seq_log_prob", "reference_seq_log_prob"):
            found["forget"][f"alternative_{name}"] = found["alternative"].get(name)
    for term in objective.terms:
        if term.group in batch:
            found[term.group] |= _frozen_statistics(
                config, objective, term, frozen, params, batch[term.group].tokens
            )
    return found


def _forward(
    config: DecoderConfig,
    objective: Objective,
    params: Tree,
    factors: Tree | None,
    tokens: jax.Array,
    targets: jax.Array,
) -> dict[str, jax.Array]:
    """What the terms ask for of the trained model, from as little of it as will do."""
    found: dict[str, jax.Array] = {}
    if objective.needs("logits"):
        found["logits"] = aligned_logits(config, params, factors, tokens)
        log_probs = jax.nn.log_softmax(found["logits"])
        at_targets = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        found["log_probs"] = at_targets.at[:, 0].set(0.0)
    elif any(map(objective.needs, ("log_probs", "seq_log_prob", "alternative_seq_log_prob"))):
        found["log_probs"] = transformer.token_log_probs(
            config, params, tokens, targets=targets, lora=factors
        )
    if objective.needs("hidden"):
        layer = layer_of(config, objective)
        found["hidden"] = lens.residual_stream(config, params, tokens, layer, lora=factors)
    return found


def _frozen_statistics(
    config: DecoderConfig,
    objective: Objective,
    term: Term,
    frozen: Tree,
    params: Tree,
    tokens: jax.Array,
) -> dict[str, jax.Array]:
    """What a term asks for of models that do not train; with an adapter the reference is the bare
    params."""
    reference = frozen.get("reference", params)
    found: dict[str, jax.Array] = {}
    if "reference_logits" in term.needs:
        found["reference_logits"] = aligned_logits(config, reference, None, tokens)
    if "reinforced_logits" in term.needs:
        found["reinforced_logits"] = aligned_logits(config, frozen["reinforced"], None, tokens)
    if "reference_hidden" in term.needs:
        layer = layer_of(config, objective)
        found["reference_hidden"] = lens.residual_stream(config, reference, tokens, layer)
    return jax.lax.stop_gradient(found)


def layer_of(config: DecoderConfig, objective: Objective) -> int:
    """The layer whose output `hidden` is; by default at the depth of RMU's 7 of Zephyr's 32."""
    return config.num_layers * 7 // 32 if objective.layer is None else objective.layer


def aligned_logits(
    config: DecoderConfig, params: Tree, factors: Tree | None, tokens: jax.Array
) -> jax.Array:
    """[B, T, V]: of the distribution that predicts token t; entry 0, which is predicted by nothing,
    holds what follows the last token."""
    return jnp.roll(transformer.logits(config, params, tokens, lora=factors), 1, axis=1)


def together(groups: Sequence[jax.Array], blocks: int) -> jax.Array:
    """Rows [B, ...] of several groups as one array.

    Args:
      groups: of each as many rows in a block as it has rows / blocks.
      blocks: the first block of all groups comes first, then the second of all.
    """
    parts = [rows.reshape(blocks, -1, *rows.shape[1:]) for rows in groups]
    whole = jnp.concatenate(parts, axis=1)
    return whole.reshape(-1, *whole.shape[2:])


def _taken(whole: jax.Array, blocks: int, start: int, size: int) -> jax.Array:
    """The `size` rows of the group that begins after `start` rows of others."""
    parts = whole.reshape(blocks, -1, *whole.shape[1:])
    rows = parts[:, start // blocks : (start + size) // blocks]
    return rows.reshape(size, *whole.shape[1:])


def _row_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1)


@partial(jax.jit, static_argnames="config")
def reference_log_probs(
    config: DecoderConfig, params: Tree, tokens: jax.Array, factors: Tree | None = None
) -> jax.Array:
    """Log-probabilities of every row under the start model: tokens [m, b, T] -> [m, b, T]."""
    return jax.lax.map(
        lambda rows: transformer.token_log_probs(config, params, rows, lora=factors), tokens
    )
