"""What a model's program knows of the mesh that it is compiled for: `jax.set_mesh` says it.

The rows of a batch lie along the mesh's axes of `ROWS`; elsewhere nothing here has an effect.
"""

import math

import jax
from jax.sharding import PartitionSpec

Axes = tuple[str, ...]

ROWS: Axes = ("data", "fsdp")
"""Axes of a mesh along which the rows of a batch are dealt."""
APART: Axes = ("data",)
"""Those along which rows are dealt while the devices of the others share a table of the
vocabulary."""
VOCABULARY: Axes = ("tensor", "fsdp")
"""Those others: each of their devices has the head's columns of some tokens."""
FEATURES: Axes = ("fsdp",)
"""Those along which the embedding's columns are cut."""


def laid(x: jax.Array, *cuts: Axes) -> jax.Array:
    """An array with its first axes cut along these axes of the mesh, and all others whole.

    Args:
      x: of any rank.
      cuts: for each of the first axes of `x`; () leaves it whole, as does a mesh without them, or
        one that does not divide it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fits = [
        _there(cut) if size % shares(cut) == 0 else ()
        for cut, size in zip(cuts, x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(cut or None for cut in fits)))


def by_rows(x: jax.Array) -> jax.Array:
    """Activations [B, ...], each row kept whole on its device.

    Left to itself, the compiler may cut activations as it finds the parameters cut, and hold all
    rows on every device.
    """
    return laid(x, ROWS)


def shares(axes: Axes = ROWS) -> int:
    """How many parts there are along axes of the mesh: how many devices have rows of their own."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _there(axes))


def _there(axes: Axes) -> Axes:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in axes if name in mesh.axis_names)
