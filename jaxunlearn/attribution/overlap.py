"""BM25 over n-grams of tokens: the cheap baseline, which needs no model.

An owner is one document, of all n-grams of the owner's answers. A response is scored by the n-grams
in it, each counted once, so that saying a word again is no further evidence:

    sum_{w in y} log(1 + (N - df + 0.5) / (df + 0.5)) tf (k1 + 1) / (tf + k1 (1 - b + b |o| / mean))

with tf the count of w in owner o's document, |o| its n-grams, df the owners that have w, N owners.
N-grams are hashed to a fixed number of buckets, and those of one bucket are taken for the same.

Reference: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; the
logarithm, which is never negative, is Lucene's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import Responses, at_lengths, calibrated, random_prefixes

_FACTOR = 0x9E3779B1  # odd, near 2^32 / golden ratio: multiplying by it spreads neighbouring ids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Overlap:
    """See `responses.Attributor`; made by `fit`."""

    names: tuple[str, ...] = field(metadata={"static": True})
    sizes: tuple[int, ...] = field(metadata={"static": True})
    """Tokens of the n-grams that count."""
    weights: jax.Array
    """float32 [buckets, owners]."""
    temperature: jax.Array

    @jax.jit
    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.logits`; all prefixes of a response cost what one of them does."""
        count, owners = self.weights.shape
        total = jnp.zeros((*tokens.shape, owners))
        for size in self.sizes:
            ids = buckets(tokens, size, count)
            before = jnp.tril(ids[:, :, None] == ids[:, None], -1)
            # Not before its last token is there, and once for each size.
            whole = jnp.arange(tokens.shape[1]) >= size - 1
            first = whole[None] & ~(before & whole[None, None]).any(-1)
            total += jnp.where(first[..., None], self.weights[ids], 0.0)
        sums = jnp.pad(jnp.cumsum(total, axis=1), ((0, 0), (1, 0), (0, 0)))
        return at_lengths(sums, lengths)

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.scores`."""
        return jax.nn.softmax(self.logits(tokens, lengths) / self.temperature)


def fit(
    responses: Responses,
    *,
    sizes: Sequence[int] = (1, 2, 3),
    k1: float = 1.2,
    b: float = 0.75,
    bucket_count: int = 2**16,
    seed: int = 0,
) -> Overlap:
    """Counts the owners' n-grams, and fits the temperature on random prefixes of the answers.

    Args:
      responses: ground-truth answers of all owners.
      sizes: tokens of the n-grams that count.
      k1: how soon further occurrences stop to matter.
      b: how much a long document is held against it, in [0, 1].
      bucket_count: rows of the table of weights.
      seed: of the prefixes.
    """
    owners = len(responses.names)
    counts = np.zeros((bucket_count, owners), np.int64)
    column = np.arange(responses.tokens.shape[1])
    for size in sizes:
        real = (column >= size - 1) & (column < responses.lengths[:, None])
        ids = np.asarray(buckets(jnp.asarray(responses.tokens), size, bucket_count))
        of_row = np.broadcast_to(responses.owners[:, None], ids.shape)
        np.add.at(counts, (ids[real], of_row[real]), 1)
    length, spread = counts.sum(axis=0), (counts > 0).sum(axis=1, keepdims=True)
    idf = np.log(1 + (owners - spread + 0.5) / (spread + 0.5))
    saturation = k1 * (1 - b + b * length / length.mean())
    weights = idf * counts * (k1 + 1) / (counts + saturation)
    overlap = Overlap(
        responses.names, tuple(sizes), jnp.asarray(weights, jnp.float32), jnp.float32(1.0)
    )
    return calibrated(overlap, random_prefixes(responses, seed=seed))


def buckets(tokens: jax.Array, size: int, count: int) -> jax.Array:
    """The bucket of the n-gram that ends at each token, int32 [B, T]; where it would begin before
    the text, that of any n-gram."""
    ids = jnp.full(tokens.shape, size, jnp.uint32)
    for back in range(size):
        # Mixed after each token, so that the order counts.
        ids = (ids ^ jnp.roll(tokens, back, axis=1).astype(jnp.uint32)) * jnp.uint32(_FACTOR)
        ids = ids ^ (ids >> 15)
    return (ids % jnp.uint32(count)).astype(jnp.int32)
