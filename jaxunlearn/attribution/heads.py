"""A network with a linear head that names the owner of a response, and how both are trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.attribution.corruption import corrupt
from jaxunlearn.attribution.responses import Responses
from jaxunlearn.config_attribution import ClassifierSettings, EncoderSettings

Tree = Mapping[str, Any]


class Network(Protocol):
    """What the head reads; hashable, so that it can be static in a compiled program."""

    @property
    def width(self) -> int:
        """D of the states."""
        ...

    def states(
        self, trained: Tree, frozen: Tree, tokens: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        """Float32 states of responses as far as they are seen.

        Args:
          trained: parameters that are trained.
          frozen: those that are not.
          tokens: int32 [B, T], right-padded.
          lengths: int32 [B] or [B, K].

        Returns:
          [B, D] or [B, K, D].
        """
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Classifier:
    """See `responses.Attributor`; made by `fit`."""

    network: Network = field(metadata={"static": True})
    names: tuple[str, ...] = field(metadata={"static": True})
    frozen: Tree
    """Parameters of the network that were not trained."""
    trained: Tree
    """Those that were."""
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
        return _logits(self.network, (self.trained, self.head), self.frozen, tokens, lengths)

    def probabilities(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Of all classes, float32 [B, C] or [B, K, C]; they sum to 1.

        A reward that is not to be won by incoherence takes `p[..., i] + p[..., -1]` for owner i.
        """
        return jax.nn.softmax(self.logits(tokens, lengths) / self.temperature)

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.scores`."""
        return self.probabilities(tokens, lengths)[..., : len(self.names)]


def fit(
    network: Network,
    trained: Tree,
    frozen: Tree,
    responses: Responses,
    settings: ClassifierSettings | EncoderSettings,
    *,
    seed: int,
    key: jax.Array,
) -> tuple[Classifier, np.ndarray]:
    """Trains a network and a head on the answers of all owners, in one compiled loop.

    Every step sees as many rows of each owner; the loss is the mean cross-entropy. The head starts
    at zero.

    Args:
      network: static.
      trained: where its training starts.
      frozen: what stays as it is.
      responses: ground-truth answers.
      settings: how it is trained.
      seed: of the order of rows.
      key: of the prefixes and the corruptions.

    Returns:
      The classifier with temperature 1, and the loss of every step.
    """
    classes = len(responses.names) + bool(settings.incoherent_rows)
    head = {
        "kernel": jnp.zeros((network.width, classes), jnp.float32),
        "bias": jnp.zeros(classes, jnp.float32),
    }
    rows = tuple(map(jnp.asarray, (responses.tokens, responses.lengths, responses.owners)))
    schedule = _schedule(responses.owners, settings, np.random.default_rng(seed))
    (trained, head), losses = _fit(network, settings, frozen, (trained, head), rows, schedule, key)
    classifier = Classifier(network, responses.names, frozen, trained, head, jnp.float32(1.0))
    return classifier, jax.device_get(losses)


def _logits(
    network: Network,
    trainable: tuple[Tree, Tree],
    frozen: Tree,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    trained, head = trainable
    states = network.states(trained, frozen, tokens, lengths)
    return states @ head["kernel"] + head["bias"].reshape((1,) * (states.ndim - 1) + (-1,))


def _schedule(
    owners: np.ndarray, settings: ClassifierSettings | EncoderSettings, rng: np.random.Generator
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


@partial(jax.jit, static_argnames=("network", "settings"))
def _fit(
    network: Network,
    settings: ClassifierSettings | EncoderSettings,
    frozen: Tree,
    trainable: tuple[Tree, Tree],
    rows: tuple[jax.Array, jax.Array, jax.Array],
    schedule: jax.Array,
    key: jax.Array,
) -> tuple[tuple[Tree, Tree], jax.Array]:
    """Network and head after the schedule, and the losses [steps]."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay),
    )

    def loss(trainable: tuple[Tree, Tree], batch: tuple[jax.Array, ...]) -> jax.Array:
        tokens, lengths, classes, counted = batch
        logits = _logits(network, trainable, frozen, tokens, lengths)
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
    settings: ClassifierSettings | EncoderSettings,
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
