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


def init(params: Tree, rank: int, *, key: jax.Array) -> Tree:
    """Fresh float32 factors for every linear kernel in the layers; the branch starts at zero.

    a ~ U(-1/sqrt(in), 1/sqrt(in)) and b = 0, as the PEFT library has it.
    """
    kernels = {
        path: leaf
        for path, leaf in flatten_dict(params).items()
        if path[0] == "layers" and path[-1] == "kernel"
    }
    factors = {}
    for path, subkey in zip(sorted(kernels), jax.random.split(key, len(kernels)), strict=True):
        layers, rows, columns = kernels[path].shape
        bound = rows**-0.5
        factors[(*path[:-1], "a")] = jax.random.uniform(
            subkey, (layers, rows, rank), jnp.float32, -bound, bound
        )
        factors[(*path[:-1], "b")] = jnp.zeros((layers, rank, columns), jnp.float32)
    return unflatten_dict(factors)


def scale(factors: Tree, by: float | jax.Array) -> Tree:
    """The adapter times a number: every `b` is multiplied."""
    flat = flatten_dict(factors)
    return unflatten_dict({p: leaf * by if p[-1] == "b" else leaf for p, leaf in flat.items()})


def merge(params: Tree, scaled_factors: Tree) -> Tree:
    """Params with kernel + a @ b in place of every adapted kernel; dtype of the kernel is kept."""
    merged, flat = dict(flatten_dict(params)), flatten_dict(scaled_factors)
    for path in {path[:-1] for path in flat}:
        kernel = merged[(*path, "kernel")]
        delta = jnp.einsum("lir,lro->lio", flat[(*path, "a")], flat[(*path, "b")])
        merged[(*path, "kernel")] = (kernel.astype(delta.dtype) + delta).astype(kernel.dtype)
    return unflatten_dict(merged)
