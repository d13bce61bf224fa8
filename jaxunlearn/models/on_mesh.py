"""What a model's program knows of the mesh that it is compiled for: `jax.set_mesh` says it.

The rows of a batch lie along the mesh's axes of `ROWS`; elsewhere nothing here has an effect.
"""

import math

import jax
from jax.sharding import PartitionSpec

ROWS = ("data", "fsdp")
"""Axes of a mesh along which the rows of a batch are dealt."""


def by_rows(x: jax.Array) -> jax.Array:
    """Activations [B, ...], each row kept whole on its device.

    Left to itself, the compiler may cut activations as it finds the parameters cut, and hold all
    rows on every device.
    """
    axes = _axes()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def shares() -> int:
    """How many devices have rows of their own."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _axes())


def _axes() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in ROWS if name in mesh.axis_names)
