"""Attribution by gradients: whose training answers move the model as a response would.

The feature of an answer y is the gradient of its loss without a question,
`phi(y) = grad_theta 1/|y| sum_t -log p(y_t | y_<t)`, at a checkpoint, exact or projected at random;
no model is retrained. Owner o scores the mean over the owner's answers d:

    dot     phi(y) . phi(d)                                          (TracIn)
    cosine  the same of features of length 1
    trak    phi(y)' (Phi'Phi + lambda I)^-1 phi(d), Phi of all answers (TRAK, without its weights)

and the sum over checkpoints. As each is linear in phi(d), an owner is one vector per checkpoint.

References:
  Pruthi et al., Estimating Training Data Influence by Tracing Gradient Descent, arXiv 2002.08484.
  Park et al., TRAK: Attributing Model Behavior at Scale, arXiv 2303.14186.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import (
    Responses,
    calibrated,
    check_readable,
    in_batches,
    random_prefixes,
    start_token,
)
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.statistics import combine
from jaxunlearn.training.trainable import split_params

Tree = Mapping[str, Any]
Kind = Literal["dot", "cosine", "trak"]

SPAN = 4096
"""Entries of a gradient that are projected at once: SPAN x dim signs exist at a time."""


@dataclass(frozen=True)
class Features:
    """What a feature is; static in a compiled program."""

    config: DecoderConfig
    start: int
    """Token before every response."""
    dim: int | None
    """Of the projection; None: the whole gradient."""
    rows_at_once: int
    """Gradients held at once, each as large as what it is taken of."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientAttributor:
    """See `responses.Attributor`; made by `fit`."""

    features: Features = field(metadata={"static": True})
    kind: Kind = field(metadata={"static": True})
    names: tuple[str, ...] = field(metadata={"static": True})
    checkpoints: tuple[tuple[Tree, Tree], ...]
    """What gradients are taken of, and the rest, as `combine` puts them together."""
    keys: jax.Array
    """Of the projections, [checkpoints]."""
    owner_vectors: jax.Array
    """[checkpoints, owners, X], with the checkpoints' weights in them."""
    temperature: jax.Array

    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.logits`; each prefix costs a backward pass."""
        if lengths.ndim == 2:
            flat = self.logits(
                jnp.repeat(jnp.asarray(tokens), lengths.shape[1], axis=0), lengths.reshape(-1)
            )
            return flat.reshape(*lengths.shape, -1)
        total = jnp.zeros((len(tokens), len(self.names)))
        for i, checkpoint in enumerate(self.checkpoints):
            found = gradient_features(self.features, *checkpoint, tokens, lengths, self.keys[i])
            found = unit(found) if self.kind == "cosine" else found
            total += jnp.matmul(found, self.owner_vectors[i].T, precision=_EXACT)
        return total

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.scores`."""
        return jax.nn.softmax(self.logits(tokens, lengths) / self.temperature)


def fit(
    checkpoints: Sequence[LanguageModel],
    responses: Responses,
    *,
    kind: Kind = "cosine",
    weights: Sequence[float] | None = None,
    dim: int | None = 512,
    only: str | None = None,
    ridge: float = 0.1,
    rows_at_once: int = 16,
    seed: int = 0,
) -> GradientAttributor:
    """Caches the owners' vectors and fits the temperature on random prefixes of the answers.

    An answer is near itself, so that the scores are calibrated for a model that says what it was
    trained on; of new texts they are too sure.

    Args:
      checkpoints: of one architecture, with the tokenizer of the responses; the gradients are those
        of the adapter's factors where a checkpoint has one, else of its params.
      responses: ground-truth answers of all owners.
      kind: see above.
      weights: of the checkpoints, such as TracIn's learning rates; None: all the same.
      dim: X of the projection; None: the whole gradient.
      only: regular expression over the params' paths; see `matching_layers`. None: all.
      ridge: lambda of trak, as a share of the mean eigenvalue of Phi'Phi.
      rows_at_once: gradients held at once.
      seed: of the projections and the prefixes.

    Raises:
      UserError: `only` matches nothing, or the model cannot read the responses.
      ValueError: trak without a projection, or not as many weights as checkpoints.
    """
    if kind == "trak" and dim is None:
        raise ValueError("trak: needs a projection, whose matrix of dim x dim it inverts")
    weights = np.full(len(checkpoints), 1 / len(checkpoints)) if weights is None else weights
    if len(weights) != len(checkpoints):
        raise ValueError(f"{len(weights)} weights for {len(checkpoints)} checkpoints")
    first = checkpoints[0]
    check_readable(first.config, responses)
    features = Features(first.config, start_token(first.tokenizer), dim, rows_at_once)
    split = tuple(_split(model, only) for model in checkpoints)
    keys = jax.random.split(jax.random.key(seed), len(split))
    vectors = []
    for checkpoint, key, weight in zip(split, keys, weights, strict=True):
        found = in_batches(
            partial(gradient_features, features, *checkpoint, key=key), responses, 4 * rows_at_once
        )
        found = np.asarray(unit(found)) if kind == "cosine" else found
        members = responses.owners == np.arange(len(responses.names))[:, None]
        means = members.astype(np.float64) @ found / members.sum(axis=1, keepdims=True)
        vectors.append(weight * (precondition(found, means, ridge) if kind == "trak" else means))
    attributor = GradientAttributor(
        features,
        kind,
        responses.names,
        split,
        keys,
        jnp.asarray(np.stack(vectors), jnp.float32),
        jnp.float32(1.0),
    )
    return calibrated(
        attributor, random_prefixes(responses, seed=seed), batch_size=4 * rows_at_once
    )


# Compiled by itself: it is the same program at the fit and for every checkpoint.
@partial(jax.jit, static_argnums=0)
def gradient_features(
    features: Features,
    trainable: Tree,
    frozen: Tree,
    tokens: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """The features of responses: float32 [n, dim], or [n, P] without a projection.

    Of an empty response it is 0.

    Args:
      features: what a feature is.
      trainable: what gradients are taken of; see `combine`.
      frozen: the rest.
      tokens: int32 [n, T], right-padded.
      lengths: int32 [n].
      key: of the projection.
    """

    def loss(trainable: Tree, tokens_T: jax.Array, length: jax.Array) -> jax.Array:
        params, factors = combine(trainable, frozen)
        row = jnp.pad(tokens_T, (1, 0), constant_values=features.start)[None]
        log_probs = transformer.token_log_probs(features.config, params, row, lora=factors)[0, 1:]
        seen = jnp.arange(len(tokens_T)) < length
        return -jnp.where(seen, log_probs, 0.0).sum() / jnp.maximum(length, 1)

    def feature(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        gradient = jax.grad(loss)(trainable, *row)
        if features.dim is not None:
            return project(gradient, features.dim, key=key)
        leaves = jax.tree.leaves(gradient)
        return jnp.concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in leaves])

    return jax.lax.map(feature, (tokens, lengths), batch_size=features.rows_at_once)


def project(tree: Tree, dim: int, *, key: jax.Array) -> jax.Array:
    """A random projection that keeps dot products in the mean: float32 [dim].

    Each entry is multiplied by `dim` signs over sqrt(dim); they are drawn again from the key
    whenever they are needed, SPAN rows at a time.

    Reference: Achlioptas, Database-friendly random projections, 2003.
    """
    total = jnp.zeros(dim)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf_key, span = jax.random.fold_in(key, number), min(SPAN, leaf.size)
        parts = -(-leaf.size // span)
        flat = jnp.pad(leaf.astype(jnp.float32).reshape(-1), (0, parts * span - leaf.size))

        def add(
            total: jax.Array, part: tuple[jax.Array, jax.Array], leaf_key: jax.Array = leaf_key
        ) -> tuple[jax.Array, None]:
            place, entries = part
            signs = _signs(jax.random.fold_in(leaf_key, place), len(entries), dim)
            return total + jnp.matmul(entries, signs, precision=_EXACT), None

        total, _ = jax.lax.scan(add, total, (jnp.arange(parts), flat.reshape(parts, span)))
    return total / dim**0.5


def _signs(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Float32 [rows, columns] of 1 and -1; every bit drawn is one of them."""
    words = jax.random.bits(key, (rows, -(-columns // 32)), jnp.uint32)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
    return 2.0 * bits.reshape(rows, -1)[:, :columns] - 1.0


def precondition(features: np.ndarray, vectors: np.ndarray, ridge: float) -> np.ndarray:
    """`(Phi'Phi + lambda I)^-1 v` of each vector, in float64.

    Its dot product with x_j is what a ridge regression on the rows of Phi tells of row v at x_j.

    Args:
      features: Phi, `[n, X]`.
      vectors: `[m, X]`.
      ridge: lambda as a share of the mean eigenvalue of Phi'Phi.
    """
    gram = features.T.astype(np.float64) @ features
    size = len(gram)
    return np.linalg.solve(gram + ridge * np.trace(gram) / size * np.eye(size), vectors.T).T


def unit(rows: jax.Array) -> jax.Array:
    """Rows of length 1, or of 0 where they are 0: [n, X]."""
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)


_EXACT = jax.lax.Precision.HIGHEST  # else a GPU rounds the factors to fewer bits


def _split(model: LanguageModel, only: str | None) -> tuple[Tree, Tree]:
    if model.adapter is None:
        return split_params(model, only, None, 0)
    scale = jnp.float32(model.adapter.scale)
    return {"lora": model.adapter.factors}, {"params": model.params, "lora_scale": scale}
