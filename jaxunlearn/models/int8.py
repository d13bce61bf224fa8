"""Kernels of a frozen base in a byte a weight: LLM.int8() without outliers, for memory.

Each output of a layer's projection has one scale, max |w| / 127 over its inputs, and its weights
are whole numbers from -127 to 127. What computes with such a kernel makes floats of it, one layer
at a time; embeddings, head, norms and biases stay what they are.

Reference: Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale,
arXiv 2208.07339, section 2 (absmax quantisation, a scale for each column).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Array = Any
"""Of JAX or NumPy."""
LEVELS = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A kernel [..., in, out]; its two arrays are leaves of the params tree."""

    values: Array
    """int8 [..., in, out]."""
    scale: Array
    """float32 [..., 1, out]."""
    kept: str = field(metadata={"static": True})
    """Dtype of the kernel that it was made of."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return self.values.shape

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return self.values.size

    @property
    def dtype(self) -> jnp.dtype:
        """What the kernel is exported in, and merged with an adapter."""
        return jnp.dtype(self.kept)

    def astype(self, dtype: Any) -> Array:
        """The kernel as floats, rounded once."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)

    def __getitem__(self, layer: int) -> "Int8":
        """One layer of a stack."""
        return Int8(self.values[layer], self.scale[layer], self.kept)


def to_int8(kernel: Array) -> Int8:
    """The kernel [..., in, out] in int8: no weight is off by more than half a scale.

    Models are quantised on the host, by NumPy: XLA rounds a quotient otherwise on some devices, and
    a weight in the middle of two levels would then go to the other one.

    >>> found = to_int8(jnp.array([[10.0, 0.0], [-63.5, 0.0]]))
    >>> found.values.tolist(), found.scale.tolist()
    ([[20, 0], [-127, 0]], [[0.5, 0.0]])
    """
    xp = kernel.__array_namespace__()
    wide = kernel.astype(xp.float32)
    scale = xp.max(xp.abs(wide), axis=-2, keepdims=True) * xp.float32(1 / LEVELS)
    levels = xp.round(wide / xp.where(scale == 0, xp.float32(1), scale))
    # Beyond only where the scale is so small that it is rounded itself.
    values = xp.clip(levels, -LEVELS, LEVELS).astype(xp.int8)
    return Int8(values, scale, str(kernel.dtype))


def is_layer_kernel(path: tuple[str, ...]) -> bool:
    """Whether a leaf of the params is the kernel of a projection in the layers."""
    return path[0] == "layers" and path[-1] == "kernel"


def with_int8_kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params with every kernel of the layers in int8."""
    flat = flatten_dict(dict(params))
    return unflatten_dict({p: to_int8(x) if is_layer_kernel(p) else x for p, x in flat.items()})


def with_float_kernels(params: Mapping[str, Any]) -> Any:
    """The params with no kernel in int8: each in the dtype that it had before."""
    return jax.tree.map(
        lambda leaf: leaf.astype(leaf.dtype) if isinstance(leaf, Int8) else leaf,
        params,
        is_leaf=_is_int8,
    )


def has_int8(tree: Any) -> bool:
    """Whether there is a kernel in int8."""
    return any(map(_is_int8, jax.tree.leaves(tree, is_leaf=_is_int8)))


def matmul(rows: jax.Array, kernel: jax.Array | Int8, dtype: str) -> jax.Array:
    """rows [n, in] @ kernel [in, out], in a dtype."""

    if not _is_int8(kernel):
        return rows @ kernel.astype(dtype)

    # Else floats of all layers would be there at once: kept for the backward pass, or made before
    # a loop over steps or tokens that needs them in each turn.
    @jax.checkpoint
    def product(rows: jax.Array, kernel: Int8) -> jax.Array:
        rows, kernel = jax.lax.optimization_barrier((rows, kernel))
        return rows @ kernel.astype(dtype)

    return product(rows, kernel)


def _is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8)
