"""Where params and batches lie, so that a forward pass uses every local device.

Params that lie on one device are copied to all of them and the rows of a batch are dealt out; the
compiler then runs the same program on each device with its share of the rows. Params that are
already sharded over a mesh stay as they are, and the rows are dealt along its axes, but `tensor`.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxunlearn.models.language_model import LanguageModel


@dataclass(frozen=True)
class Spread:
    """Arrays on the devices of a mesh, and how rows are dealt to the same devices."""

    tree: Any
    """Arrays that every batch needs, such as (params, lora)."""
    mesh: Mesh | None
    """None: there is one device only, and nothing has to be moved."""

    def batch_size(self, least: int) -> int:
        """The smallest number of rows, not below `least`, that can be dealt out evenly."""
        parts = 1 if self.mesh is None else math.prod(map(self.mesh.shape.get, self._row_axes))
        return -(-least // parts) * parts

    def deal(self, rows: Any) -> Any:
        """Arrays [batch, ...] with each device's share of the rows on it."""
        if self.mesh is None:
            return rows
        return jax.device_put(rows, NamedSharding(self.mesh, PartitionSpec(self._row_axes)))

    def known(self) -> AbstractContextManager:
        """Where a program of whole batches runs, so that the model in it knows the mesh; see
        `on_mesh`."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def _row_axes(self) -> tuple[str, ...]:
        """Axes of the mesh whose devices have rows of their own."""
        return tuple(name for name in self.mesh.axis_names if name != "tensor")


def spread(tree: Any) -> Spread:
    """Arrays on all local devices: copied to each, or as they are if a mesh has them already.

    Nothing is copied twice: spreading what `spread` gave moves no data.

    Args:
      tree: arrays, each on one device or sharded over a mesh that they share; those on one device
        are copied to every device of that mesh.
    """
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if _is_sharded(leaf)]
    devices = meshes[0].devices if meshes else np.array(jax.local_devices())
    if devices.size == 1:
        return Spread(tree, None)
    names = meshes[0].axis_names if meshes else ("data",)
    # The model's code leaves intermediate shardings to the compiler, which explicit axes forbid.
    mesh = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))

    def home(leaf: Any) -> NamedSharding:
        spec = leaf.sharding.spec if _is_sharded(leaf) else PartitionSpec()
        return NamedSharding(mesh, spec)

    return Spread(jax.device_put(tree, jax.tree.map(home, tree)), mesh)


def spread_model(model: LanguageModel) -> LanguageModel:
    """The same model with its params and adapter spread, for several calls that need them."""
    factors = None if model.adapter is None else model.adapter.factors
    params, factors = spread((model.params, factors)).tree
    adapter = None if model.adapter is None else replace(model.adapter, factors=factors)
    return replace(model, params=params, adapter=adapter)


def fetch(tree: Any) -> Any:
    """Arrays on the host, also those that other processes have parts of; all of them call it."""

    def one(leaf: Any) -> np.ndarray:
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def cores() -> int:
    """Cores of the CPU if it is what computes, else 1."""
    return (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1


def side_by_side(
    work: Callable[..., Any], batches: Iterable[Any], at_once: int
) -> Iterator[tuple[Any, Any]]:
    """Every batch and what the work makes of it, in their order.

    On a CPU small programs leave all cores but one idle, so that as many batches are computed at
    the same time as there are cores; elsewhere they are computed one after the other.

    Args:
      work: what is to be done with a batch, until its results are on the host.
      batches: of any kind.
      at_once: most batches to work on at the same time.
    """
    batches = list(batches)
    at_once = min(at_once, cores())
    if at_once == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        yield from zip(batches, pool.map(work, batches), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_sharded(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
