"""What decides a training, as one number: a checkpoint of another training is refused by it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.step import StepSpec


def fingerprint(
    model: LanguageModel,
    tables: Mapping[str, TokenTable],
    schedule: Mapping[str, np.ndarray],
    spec: StepSpec,
    numbers: Mapping[str, Any],
    adapter: AdapterConfig | None,
    seed: int,
    training: TrainingConfig,
    apart_from: Mapping[str, Any] | None,
) -> str:
    """A hash of everything that decides the training's outcome."""
    digest = hashlib.sha256()
    terms = [(t.group, t.loss.__module__, t.loss.__name__) for t in spec.objective.terms]
    settings = (
        spec.config,
        terms,
        spec.decay,
        spec.micro_batches,
        training.train_only,
        spec.optimizer,
        spec.objective.layer,
        *([spec.objective.orthogonality] if apart_from else []),
    )
    digest.update(repr((settings, adapter, seed if adapter else None)).encode())
    digest.update(repr(jax.tree.map(float, dict(numbers))).encode())
    for group in sorted(tables):
        table = tables[group]
        arrays = [table.tokens, table.answer_mask, schedule[group]]
        for array in arrays if table.labels is None else [*arrays, table.labels]:
            digest.update(np.ascontiguousarray(array).tobytes())
    trees = [dict(model.params), *([] if apart_from is None else [dict(apart_from)])]
    for path, leaf in (item for tree in trees for item in sorted(flatten_dict(tree).items())):
        for array in jax.tree.leaves(leaf):  # of a kernel in int8 there are two
            digest.update(f"{path} {checksum(array)}".encode())
    return digest.hexdigest()


def table_digest(tables: Mapping[str, TokenTable]) -> str:
    """A hash of the names and the rows of token tables."""
    digest = hashlib.sha256()
    for group, table in sorted(tables.items()):
        digest.update(f"{group} {table.tokens.shape}".encode())
        for array in (table.tokens, table.answer_mask, table.labels):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def checksum(array: Any) -> int:
    """A number that two arrays share only if they hold the same bits, or by a rare chance.

    A sum of integers, modulo 2^32: unlike one of floats it is the same however the array is cut
    over devices. Odd weights make values in each other's place another array.
    """
    return int(_checksum(jnp.asarray(array)))


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    while bits.ndim:
        weights = 2 * jnp.arange(bits.shape[-1], dtype=jnp.uint32) + 1
        bits = jnp.sum(bits * weights[(None,) * (bits.ndim - 1)], axis=-1, dtype=jnp.uint32)
    return bits
