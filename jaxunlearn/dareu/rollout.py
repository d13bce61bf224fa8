"""Responses to prompts, and what a policy says of them: functions inside one compiled program.

Axes: B responses, P columns of prompts, R columns of responses, D model, K prefixes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import Attributor
from jaxunlearn.dareu.policy_losses import entropy
from jaxunlearn.dareu.reward import owner_scores
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.methods import logit_losses
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.decoding import Draw, decode
from jaxunlearn.models.generate import left_pad
from jaxunlearn.models.head import head_log_probs, head_logits, in_parts

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is put to the policy; of n rows, or of a batch of them."""

    tokens: jax.Array
    """int32 [n, P], padded on the left."""
    starts: jax.Array
    """int32 [n], the column where each begins."""
    owners: jax.Array
    """int32 [n], the owner of each, as an index into the attribution function's names."""
    answer_lengths: jax.Array
    """int32 [n], tokens of each row's own answer with the one that ends it."""


class Rollout(NamedTuple):
    """Responses that were drawn."""

    tokens: jax.Array
    """int32 [B, R]; 0 after the response."""
    mask: jax.Array
    """bool [B, R], the response with the token that ends it; nothing of an empty slot."""
    whole: jax.Array
    """int32 [B, P + R]: prompt and response, padded on the right."""
    first: jax.Array
    """int32 [B]: the column of `whole` where the response begins."""

    @property
    def lengths(self) -> jax.Array:
        """int32 [B]: tokens of each response."""
        return self.mask.sum(axis=-1)


class Read(NamedTuple):
    """What a model says of responses."""

    hidden: jax.Array
    """[B, R, D]: what predicts each token."""
    log_probs: jax.Array
    """float32 [B, R], at the sampling temperature."""


def prompts_of(table: TokenTable, owners: np.ndarray) -> Prompts:
    """The prompts of a table's rows, on the device.

    Args:
      table: n rows.
      owners: int32 [n].
    """
    pairs = zip(table.tokens, table.prompt_lengths, strict=True)
    prompts = [row[:length] for row, length in pairs]
    tokens, starts = left_pad(prompts, len(prompts), max(map(len, prompts)))
    lengths = (table.lengths - table.prompt_lengths).astype(np.int32)
    return Prompts(*map(jnp.asarray, (tokens, starts, owners, lengths)))


def respond(
    config: DecoderConfig,
    params: Tree,
    factors: Tree | None,
    prompts: Prompts,
    counted: jax.Array,
    *,
    limit: int,
    stop_tokens: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    first: jax.Array | int = 0,
) -> Rollout:
    """Draws a response to each prompt.

    Args:
      config: the policy's shape.
      params: its parameters.
      factors: its adapter, scaled, or None.
      prompts: B of them.
      counted: bool [B]; the others are empty slots.
      limit: most tokens of a response, R.
      stop_tokens: int32 [S], ids that end one.
      temperature: of the draws.
      key: of the draws; a row's depend on its place in the batch, and on no other row.
      first: the place of the first of these rows in the whole batch.
    """
    batch, width = prompts.tokens.shape
    rows = jnp.where(counted, first + jnp.arange(batch), -1)
    drawn, counts = decode(
        config,
        limit,
        "plain",
        params,
        factors,
        prompts.tokens,
        prompts.starts,
        rows,
        None,
        jnp.int32(limit),
        stop_tokens,
        Draw(temperature, jnp.int32(0), jnp.float32(1.0)),
        key,
    )
    mask = (jnp.arange(limit) < jnp.minimum(counts + 1, limit)[:, None]) & counted[:, None]
    drawn = jnp.where(mask, drawn, 0)
    # Padding goes from the left of the prompt to the right of the response.
    both = jnp.concatenate([prompts.tokens, drawn], axis=1)
    column = jnp.arange(width + limit) + prompts.starts[:, None]
    whole = jnp.take_along_axis(both, column, axis=1, mode="fill", fill_value=0)
    return Rollout(drawn, mask, whole, width - prompts.starts)


def read(
    config: DecoderConfig,
    params: Tree,
    factors: Tree | None,
    rollout: Rollout,
    temperature: jax.Array,
) -> Read:
    """What a model says of the responses, in one forward pass."""
    hidden = transformer.hidden_states(config, params, rollout.whole, lora=factors)
    place = rollout.first[:, None] - 1 + jnp.arange(rollout.tokens.shape[1])
    hidden = jnp.take_along_axis(hidden, place[..., None], axis=1)
    kernel = transformer.head_kernel(config, params)
    log_probs = head_log_probs(
        hidden, kernel, rollout.tokens, config.logit_softcap, temperature=temperature
    )
    return Read(hidden, jnp.where(rollout.mask, log_probs, 0.0))


def entropies(
    config: DecoderConfig, params: Tree, read: Read, mask: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Entropy of the prediction of each token, [B, R]."""
    kernel = transformer.head_kernel(config, params)

    def of_part(hidden: jax.Array, counts: jax.Array) -> jax.Array:
        return entropy(_logits(config, hidden, kernel) / temperature, counts)

    return in_parts(of_part, read.hidden, mask, logits=kernel.shape[1])


def divergences(
    config: DecoderConfig,
    models: tuple[Tree, Tree],
    reads: tuple[Read, Read],
    mask: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """KL(p || q) of the predictions of two models at each token, over the whole vocabulary.

    Args:
      config: their shape.
      models: parameters of p's and of q's model.
      reads: what the two say of the same responses.
      mask: bool [B, R].
      temperature: of both.

    Returns:
      [B, R].
    """
    kernels = [transformer.head_kernel(config, params) for params in models]

    def of_part(*arrays: jax.Array) -> jax.Array:
        *hidden, counts = arrays
        p, q = (
            _logits(config, one, kernel) / temperature
            for one, kernel in zip(hidden, kernels, strict=True)
        )
        return jnp.where(counts, logit_losses.kl(q, p), 0.0)

    hidden = [read.hidden for read in reads]
    return in_parts(of_part, *hidden, mask, logits=2 * kernels[0].shape[1])


def _logits(config: DecoderConfig, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    # Folded to rows for the same reason as in `transformer.Projection`.
    rows = hidden.reshape(-1, hidden.shape[-1])
    return head_logits(rows, kernel, config.logit_softcap).reshape(*hidden.shape[:-1], -1)


def attributed(
    attributor: Attributor,
    tokens: jax.Array,
    lengths: jax.Array,
    counted: jax.Array,
    *,
    incoherence: bool = False,
) -> jax.Array:
    """How much of each prefix is attributed to the owners that count.

    Args:
      attributor: the function.
      tokens: int32 [B, R], responses.
      lengths: int32 [B, K], tokens of each prefix.
      counted: bool [B, owners].
      incoherence: whether a class of incoherent texts, if it has one, counts too.

    Returns:
      float32 [B, K] in [0, 1].
    """
    if incoherence and getattr(attributor, "has_incoherent", False):
        shares = attributor.probabilities(tokens, lengths)
        counted = jnp.concatenate([counted, jnp.ones((len(counted), 1), bool)], axis=1)
    else:
        shares = attributor.scores(tokens, lengths)
    return owner_scores(shares, counted)


def repeats(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the pairs of neighbouring tokens that stood in the response before, [B].

    Args:
      tokens: int32 [B, R].
      mask: bool [B, R], the response, from the first column on.

    >>> x = jnp.array([[5, 6, 5, 6, 5, 0], [1, 2, 3, 0, 0, 0]])
    >>> print(repeats(x, x > 0))
    [0.5 0. ]
    """
    same = (tokens[:, 1:, None] == tokens[:, None, 1:]) & (
        tokens[:, :-1, None] == tokens[:, None, :-1]
    )
    seen = jnp.tril(same, -1).any(-1) & mask[:, 1:]
    return seen.sum(-1) / jnp.maximum(mask[:, 1:].sum(-1), 1)
