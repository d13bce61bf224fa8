"""Low-rank adapters on the linear layers: make, scale, merge.

The factors form a tree that mirrors the params: where the params have a `kernel` [L, in, out], the
adapter has `a` [L, in, r] and `b` [L, r, out]. The decoder adds x @ a @ b beside x @ kernel, so a
factor tree that goes into the decoder is already scaled (`Adapter.scaled`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.models.int8 import Int8, is_layer_kernel
from jaxunlearn.models.parameter_patterns import matching_layers

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """LoRA factors and what their branch is multiplied by (LoRA, arXiv 2106.09685)."""

    factors: Tree
    scale: float
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2312.03732)."""

    @property
    def scaled(self) -> Tree:
        """Factors with the scale multiplied into `b`, ready for the decoder."""
        return scale(self.factors, self.scale)


def init(params: Tree, rank: int, *, key: jax.Array, targets: str | None = None) -> Tree:
    """Fresh float32 factors for linear kernels in the layers; the branch starts at zero.

    a ~ U(-1/sqrt(in), 1/sqrt(in)) and b = 0, as the PEFT library has it. A kernel that only some
    layers are to adapt has a = 0 too in the others: both gradients are 0 there, and so it stays.

    Args:
      params: whose kernels are adapted.
      rank: of every adapter.
      key: of the draws; a kernel's do not depend on what else is adapted.
      targets: regular expression over the kernels' paths; see `matching_layers`. None: all.

    Raises:
      UserError: `targets` is no regular expression, or matches nothing.
    """
    kernels = {path: leaf for path, leaf in flatten_dict(params).items() if is_layer_kernel(path)}
    chosen = matching_layers(kernels, targets, "adapter.targets")
    factors = {}
    for path, subkey in zip(sorted(kernels), jax.random.split(key, len(kernels)), strict=True):
        if path not in chosen:
            continue
        count, rows, columns = kernels[path].shape
        bound = rows**-0.5
        a = jax.random.uniform(subkey, (count, rows, rank), jnp.float32, -bound, bound)
        if chosen[path] is not None:
            a = jnp.where(jnp.isin(jnp.arange(count), jnp.array(chosen[path]))[:, None, None], a, 0)
        factors[(*path[:-1], "a")] = a
        factors[(*path[:-1], "b")] = jnp.zeros((count, rank, columns), jnp.float32)
    return unflatten_dict(factors)


def scale(factors: Tree, by: float | jax.Array) -> Tree:
    """The adapter times a number: every `b` is multiplied."""
    flat = flatten_dict(factors)
    return unflatten_dict({p: leaf * by if p[-1] == "b" else leaf for p, leaf in flat.items()})


def merge(params: Tree, scaled_factors: Tree) -> Tree:
    """Params with kernel + a @ b in place of every adapted kernel.

    The sum is computed in float32 and rounded once, to the dtype of the kernel; one in int8 becomes
    floats of the dtype that it had before.
    """
    merged, flat = dict(flatten_dict(params)), flatten_dict(scaled_factors)
    for path in {path[:-1] for path in flat}:
        kernel = merged[(*path, "kernel")]
        merged[(*path, "kernel")] = added(kernel, flat[(*path, "a")], flat[(*path, "b")])
    return unflatten_dict(merged)


def added(kernel: jax.Array | Int8, a: jax.Array, b: jax.Array) -> jax.Array:
    """kernel + a @ b, as `merge` computes it."""
    return (wide(kernel) + product(a, b)).astype(kernel.dtype)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full float32, on every kind of device."""
    return jnp.matmul(wide(a), wide(b), precision=jax.lax.Precision.HIGHEST)


def wide(x: jax.Array | Int8) -> jax.Array:
    """The array in float32, or in float64 if it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
