"""Where a training lies: on one device, on a mesh of devices, or on all of them by pmap.

The update step is the same pure function each time, and so is its result, up to the order in which
numbers are added. On a mesh the compiler distributes it: parameters, adapter and optimiser state
lie as `RULES` say, and each device has its share of the rows of a batch. Under pmap each device
runs the step on its own rows, and `Layout.total` adds up counts and gradients.
"""

import functools
import math
import re
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.config_parallel import MeshConfig, ParallelConfig
from jaxunlearn.errors import UserError
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.on_mesh import ROWS

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")

_WIDE, _NARROW = r"(attention/[qkv]|mlp/(gate|up))", r"(attention/o|mlp/down)"
RULES = (
    (r"(^|/)embed/embedding$", P("tensor", "fsdp")),
    (r"(^|/)embed/(positions|soft)$", P(None, "fsdp")),
    (r"(^|/)lm_head/kernel$", P("fsdp", "tensor")),
    (rf"{_WIDE}/kernel(/values)?$", P(None, "fsdp", "tensor")),
    (rf"{_NARROW}/kernel(/values)?$", P(None, "tensor", "fsdp")),
    (rf"{_WIDE}/kernel/scale$", P(None, None, "tensor")),
    (rf"{_NARROW}/kernel/scale$", P(None, None, "fsdp")),
    (rf"{_WIDE}/bias$", P(None, "tensor")),
    (rf"{_NARROW}/bias$", P()),
    (rf"{_WIDE}/a$", P(None, "fsdp", None)),
    (rf"{_WIDE}/b$", P(None, None, "tensor")),
    (rf"{_NARROW}/a$", P(None, "tensor", None)),
    (rf"{_NARROW}/b$", P(None, None, "fsdp")),
    (r"norm/(scale|bias)$", P()),
    (r"(^|/)(tokens|mask|labels|reference_log_probs)$", P()),
)
"""How a leaf is cut along the axes of a mesh, by the end of its path; the first match decides.
Optimiser states hold trees like that of the parameters, so that the same rules are theirs."""


def partition(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """How a leaf is cut.

    Args:
      path: such as "params/layers/mlp/up/kernel".
      shape: of the leaf; numbers and vectors are not cut at all.
      sizes: of the mesh's axes; one that does not divide the leaf's axis does not cut it.

    Raises:
      ValueError: no rule is about such a leaf.
    """
    if len(shape) < 2:
        return P()
    for pattern, spec in RULES:
        if re.search(pattern, path):
            names = (*spec, *[None] * (len(shape) - len(spec)))
            fits = [name and n % sizes[name] == 0 for name, n in zip(names, shape, strict=True)]
            return P(*(name if fit else None for name, fit in zip(names, fits, strict=True)))
    raise ValueError(f"{path}: no rule of the partition table is about it; add one to RULES")


@dataclass(frozen=True)
class Layout:
    """Where arrays lie; hashable, so that a program can be compiled for it."""

    mesh: Mesh | None = None
    """None: one device."""
    mapped: bool = False
    """pmap along the mesh's only axis; every device has a copy of all but the rows."""

    @property
    def shards(self) -> int:
        """Blocks of rows of a batch that lie on different devices."""
        if self.mesh is None:
            return 1
        return math.prod(self.mesh.shape[name] for name in self._row_axes)

    @property
    def blocks(self) -> int:
        """The blocks that one program sees: under pmap it is one device's."""
        return 1 if self.mapped else self.shards

    @property
    def _row_axes(self) -> tuple[str, ...]:
        return self.mesh.axis_names if self.mapped else ROWS

    def home(self, path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
        """Where a leaf of parameters, adapter, state or token tables lies, by `RULES`."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        spec = P() if self.mapped else partition("/".join(path), shape, dict(self.mesh.shape))
        return NamedSharding(self.mesh, spec)

    def shardings(self, tree: Any) -> Any:
        """The same of all leaves of a tree of arrays or of their shapes."""

        def home(path: Any, leaf: Any) -> jax.sharding.Sharding:
            words = jax.tree_util.keystr(path, simple=True, separator="/")
            return self.home((words,), np.shape(leaf))

        return jax.tree_util.tree_map_with_path(home, tree)

    def place(self, tree: T) -> T:
        """The same arrays, each where it belongs; those that are there already are not moved."""
        # Also on one device: an array that is bound to none compiles another program than the
        # result of a step, which is.
        return jax.device_put(tree, self.shardings(tree))

    def kept(self, tree: T) -> T:
        """A copy that `place` brings back, whatever becomes of these arrays."""
        return jax.device_get(tree) if self.mesh is None else jax.tree.map(jnp.copy, tree)

    def copied(self, tree: T) -> T:
        """The same arrays, whole on every device."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    def placed(self, model: LanguageModel) -> LanguageModel:
        """The model, without an adapter, with its parameters where they belong."""
        return model if self.mesh is None else replace(model, params=self.place(model.params))

    def shares(self, rows: T, axis: int = 0) -> T:
        """Arrays of rows with each device's share along an axis on it."""
        if self.mesh is None:
            return rows
        home = NamedSharding(self.mesh, P(*[None] * axis, self._row_axes))
        return jax.device_put(rows, home)

    def hold(self, tree: T) -> T:
        """In a compiled program: keeps the leaves of a state where they belong."""
        if self.mesh is None or self.mapped:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def deal(self, rows: T, axis: int = 0) -> T:
        """In a compiled program: gives each device its share along an axis of arrays of rows."""
        if self.mesh is None or self.mapped:
            return rows
        home = NamedSharding(self.mesh, P(*[None] * axis, self._row_axes))
        return jax.lax.with_sharding_constraint(rows, jax.tree.map(lambda _: home, rows))

    def gathered(self, tree: T) -> T:
        """In a program under pmap: arrays of all devices' rows; elsewhere they are that already."""
        if not self.mapped:
            return tree
        return jax.lax.all_gather(tree, self.mesh.axis_names[0], tiled=True)

    def own(self, tree: T) -> T:
        """The inverse of `gathered`: this device's rows."""
        if not self.mapped:
            return tree

        def cut(rows: jax.Array) -> jax.Array:
            size = len(rows) // self.shards
            return jax.lax.dynamic_slice_in_dim(rows, self.place_in_batch(size), size)

        return jax.tree.map(cut, tree)

    def place_in_batch(self, rows: int) -> jax.Array | int:
        """In a compiled program: where the first of the rows that it sees is in the batch."""
        return rows * jax.lax.axis_index(self.mesh.axis_names[0]) if self.mapped else 0

    def known(self) -> AbstractContextManager:
        """Where a program is compiled, so that the model in it knows the mesh; see `on_mesh`."""
        return nullcontext() if self.mesh is None or self.mapped else jax.set_mesh(self.mesh)

    def total(self, tree: T) -> T:
        """In a program under pmap: sums over all devices; elsewhere they are there already."""
        return jax.lax.psum(tree, self.mesh.axis_names) if self.mapped else tree

    def run(
        self,
        program: Callable[..., T],
        spec: Hashable,
        before: tuple[Any, ...],
        rows: Any,
        after: tuple[Any, ...],
    ) -> T:
        """What a program computes, `program(spec, *before, rows, *after)`, on these devices.

        Args:
          program: jitted; `spec` is static and the first of `before` is donated.
          spec: its static choices, this layout among them.
          before: arguments.
          rows: a tree of arrays whose last axes are the rows of a batch, a multiple of the shards.
          after: arguments.
        """
        if not self.mapped:
            with self.known():
                return program(spec, *before, rows, *after)

        def cut(x: Any) -> Any:
            return x.reshape(*x.shape[:-1], self.shards, -1).swapaxes(0, -2)

        mapped = over_devices(self, program, spec, len(before), len(after))
        return mapped(*before, jax.tree.map(cut, rows), *after)


@functools.lru_cache
def over_devices(
    layout: Layout, program: Callable[..., T], spec: Hashable, before: int, after: int
) -> Callable[..., T]:
    """A jitted program by pmap, for arguments as in `Layout.run`: each device has its own block of
    the rows, which come as [devices, ..., b]. The same program again compiles nothing."""
    return jax.pmap(
        functools.partial(program.__wrapped__, spec),
        axis_name=layout.mesh.axis_names[0],
        in_axes=(*[None] * before, 0, *[None] * after),
        out_axes=None,
        donate_argnums=0,
        devices=list(layout.mesh.devices),
    )


ONE_DEVICE = Layout()


def layout_of(parallel: ParallelConfig) -> Layout:
    """The layout that a config asks for, over all devices.

    Raises:
      UserError: its mesh has another number of devices than there are.
    """
    devices = jax.devices()
    count = len(devices)
    if parallel == "pmap":
        return Layout(Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,)), mapped=True)
    if parallel == "jit" or (parallel == "auto" and count == 1):
        return ONE_DEVICE
    asked = MeshConfig() if parallel == "auto" else parallel
    inner = asked.fsdp * asked.tensor
    data = asked.data or max(1, count // inner)
    if data * inner != count:
        kind = devices[0].platform.upper()
        raise UserError(
            f"parallel: data {data} x fsdp {asked.fsdp} x tensor {asked.tensor} is"
            f" {data * inner} devices, but there are {count} ({kind}); make the product {count},"
            " or leave parallel out"
        )
    shape = (data, asked.fsdp, asked.tensor)
    # The model's code leaves intermediate shardings to the compiler, which explicit axes forbid.
    return Layout(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3))
