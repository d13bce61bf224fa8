"""A language model that names the owner of a response: frozen, with an adapter and a linear head.

It reads the last token's hidden state. As attention is causal, one forward pass gives the scores of
every prefix of a response.

Reference: Lu et al., De-attribute to Forget for LLM Unlearning (DareU), arXiv 2605.30919, 2026. The
paper trains on whole answers and has no incoherent class: `prefix_share=0` and
`incoherent_rows=0`. Its dropout of 0.1 in the adapter is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.attribution.corruption import corrupt
from jaxunlearn.attribution.responses import Responses, at_lengths, check_readable, start_token
from jaxunlearn.config_attribution import ClassifierSettings
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel

Tree = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Classifier:
    """See `responses.Attributor`."""

    config: DecoderConfig = field(metadata={"static": True})
    names: tuple[str, ...] = field(metadata={"static": True})
    start: int = field(metadata={"static": True})
    """Token before every response."""
    params: Tree
    """Of the frozen model."""
    factors: Tree
    """The adapter's, already scaled."""
    head: Tree
    """kernel [D, C] and bias [C]; the class after the owners, if there is one, is incoherence."""
    temperature: jax.Array

    @property
    def has_incoherent(self) -> bool:
        """Whether there is a class of incoherent text."""
        return self.head["bias"].shape[0] > len(self.names)

    @jax.jit
    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.logits`; also of the incoherent class."""
        return _logits(
            self.config, self.params, self.factors, self.head, self.start, tokens, lengths
        )

    def probabilities(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Of all classes, float32 [B, C] or [B, K, C]; they sum to 1.

        A reward that is not to be won by incoherence takes `p[..., i] + p[..., -1]` for owner i.
        """
        return jax.nn.softmax(self.logits(tokens, lengths) / self.temperature)

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.scores`."""
        return self.probabilities(tokens, lengths)[..., : len(self.names)]


def train(
    base: LanguageModel, responses: Responses, settings: ClassifierSettings, *, seed: int = 0
) -> tuple[Classifier, np.ndarray]:
    """Trains an adapter and a head on the answers of all owners, in one compiled loop.

    Every step sees as many rows of each owner; the loss is the mean cross-entropy.

    Args:
      base: with the tokenizer of the responses; it stays as it is. An adapter is merged first.
      responses: ground-truth answers.
      settings: how it is trained.
      seed: of the adapter, the order of rows, the prefixes and the corruptions.

    Returns:
      The classifier with temperature 1, and the loss of every step.

    Raises:
      UserError: a token that the model does not have, or answers longer than its limit.
    """
    base = base.merged()
    check_readable(base.config, responses)
    classes = len(responses.names) + bool(settings.incoherent_rows)
    key_adapter, key_steps = jax.random.split(jax.random.key(seed))
    factors = lora.init(
        base.params, settings.adapter.rank, key=key_adapter, targets=settings.adapter.targets
    )
    head = {
        "kernel": jnp.zeros((base.config.hidden_size, classes), jnp.float32),
        "bias": jnp.zeros(classes, jnp.float32),
    }
    start = start_token(base.tokenizer)
    rows = tuple(map(jnp.asarray, (responses.tokens, responses.lengths, responses.owners)))
    schedule = _schedule(responses.owners, settings, np.random.default_rng(seed))
    (factors, head), losses = _fit(
        base.config, settings, start, base.params, (factors, head), rows, schedule, key_steps
    )
    factors = lora.scale(factors, settings.adapter.scale)
    return (
        Classifier(
            base.config, responses.names, start, base.params, factors, head, jnp.float32(1.0)
        ),
        jax.device_get(losses),
    )


def _logits(
    config: DecoderConfig,
    params: Tree,
    factors: Tree,
    head: Tree,
    start: int,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=start)
    hidden_BTD = transformer.hidden_states(config, params, tokens, lora=factors)
    last = at_lengths(hidden_BTD.astype(jnp.float32), lengths)
    return last @ head["kernel"] + head["bias"].reshape((1,) * (last.ndim - 1) + (-1,))


def _schedule(
    owners: np.ndarray, settings: ClassifierSettings, rng: np.random.Generator
) -> np.ndarray:
    """Rows of every step, int32 [steps, owners x rows_per_owner]: permutations, end to end."""
    of_owner = [np.flatnonzero(owners == owner) for owner in range(owners.max() + 1)]
    per_step = settings.rows_per_owner
    steps = settings.epochs * -(-max(map(len, of_owner)) // per_step)
    columns = []
    for rows in of_owner:
        passes = -(-steps * per_step // len(rows))
        order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
        columns.append(order[: steps * per_step].reshape(steps, per_step))
    return np.concatenate(columns, axis=1).astype(np.int32)


@partial(jax.jit, static_argnames=("config", "settings", "start"))
def _fit(
    config: DecoderConfig,
    settings: ClassifierSettings,
    start: int,
    params: Tree,
    trainable: tuple[Tree, Tree],
    rows: tuple[jax.Array, jax.Array, jax.Array],
    schedule: jax.Array,
    key: jax.Array,
) -> tuple[tuple[Tree, Tree], jax.Array]:
    """Adapter and head after the schedule, and the losses [steps]."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay),
    )

    def loss(trainable: tuple[Tree, Tree], batch: tuple[jax.Array, ...]) -> jax.Array:
        tokens, lengths, classes, counted = batch
        factors = lora.scale(trainable[0], settings.adapter.scale)
        logits = _logits(config, params, factors, trainable[1], start, tokens, lengths)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        return jnp.where(counted, values, 0.0).sum() / counted.sum()

    def step(carry: tuple[Any, Any], now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        trainable, moments = carry
        value, gradient = jax.value_and_grad(loss)(trainable, _batch(settings, rows, *now))
        updates, moments = optimizer.update(gradient, moments, trainable)
        return (optax.apply_updates(trainable, updates), moments), value

    keys = jax.random.split(key, len(schedule))
    (trainable, _), losses = jax.lax.scan(
        step, (trainable, optimizer.init(trainable)), (schedule, keys)
    )
    return trainable, losses


def _batch(
    settings: ClassifierSettings,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    chosen: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, ...]:
    """Tokens, lengths, classes and what counts: the chosen rows, then corrupted ones of any owner.

    The class of these is the last one.
    """
    tokens, lengths, owners = rows
    keys = jax.random.split(key, 5)
    sources = jax.random.randint(keys[0], (settings.incoherent_rows,), 0, len(tokens))
    taken = jnp.concatenate([chosen, sources])
    cut = jax.random.bernoulli(keys[1], settings.prefix_share, taken.shape)
    prefix = jax.random.randint(keys[2], taken.shape, 1, lengths[taken] + 1)
    seen, count = jnp.where(cut, prefix, lengths[taken]), len(chosen)
    classes, counted = owners[chosen], jnp.ones(count, bool)
    if not settings.incoherent_rows:
        return tokens[taken], seen, classes, counted
    others = jax.random.randint(keys[3], sources.shape, 0, len(tokens))
    made, made_lengths, changed = corrupt(
        tokens[sources], seen[count:], tokens[others], lengths[others], key=keys[4]
    )
    return (
        jnp.concatenate([tokens[chosen], made]),
        jnp.concatenate([seen[:count], made_lengths]),
        jnp.concatenate([classes, jnp.full(sources.shape, owners.max() + 1)]),
        jnp.concatenate([counted, changed]),
    )
