"""Weight tables: which tensor of a file holds which leaves of the params, both ways.

A table is a tuple of `Weight` rows. Import walks it to fill the params, export walks it to write
the file, and adapters find in it the names of the modules they sit on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.lora import added
from jaxunlearn.models.placement import fetch

Path = tuple[str, ...]


@dataclass(frozen=True)
class Weight:
    """One tensor of the file and the leaves of the params that it holds."""

    name: str
    """Tensor name; {layer} stands for the layer number of a tensor that every layer has."""
    shape: tuple[int, ...]
    """In the file."""
    parts: tuple[tuple[Path, int], ...]
    """Path of each leaf and its width on the output axis; several where the file fuses them."""
    transpose: bool = False
    """The file holds [out, in], the params hold [in, out]."""
    groups: int = 1
    """A fused output axis is this many groups, each of which holds all parts in turn."""

    @property
    def stacked(self) -> bool:
        """Whether the params hold all layers of this weight in one array."""
        return "{layer}" in self.name

    @property
    def module(self) -> str:
        """Name of the linear layer that this is the kernel of; empty for other weights."""
        return self.name.removesuffix(".weight") if self.parts[0][0][-1] == "kernel" else ""

    def names(self, num_layers: int) -> list[str]:
        """The file's tensor names, one for each layer if it is stacked."""
        return [self.name.format(layer=n) for n in range(num_layers if self.stacked else 1)]

    def leaf_shapes(self, num_layers: int) -> list[tuple[Path, tuple[int, ...]]]:
        """Path and shape of each leaf of the params."""
        lead = (num_layers,) if self.stacked else ()
        inputs = (self.shape[::-1] if self.transpose else self.shape)[:-1]
        return [(path, (*lead, *inputs, width)) for path, width in self.parts]

    @property
    def inputs(self) -> int:
        """Width of what a linear layer reads."""
        return self.shape[1] if self.transpose else self.shape[0]

    @property
    def outputs(self) -> int:
        """Width of what it returns, of all parts together."""
        return sum(width for _, width in self.parts)

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensor of the file as the leaves of one layer, in the layout of the params."""
        return self.split_outputs(array.T if self.transpose else array)

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `split`."""
        array = self.join_outputs(leaves)
        return np.ascontiguousarray(array.T if self.transpose else array)

    def split_outputs(self, array: np.ndarray) -> list[np.ndarray]:
        """[..., outputs] as one [..., width] for each part."""
        if len(self.parts) == 1:
            return [array]
        grouped = array.reshape(*array.shape[:-1], self.groups, -1)
        edges = np.cumsum([width // self.groups for _, width in self.parts])[:-1]
        pieces = np.split(grouped, edges, axis=-1)
        return [piece.reshape(*array.shape[:-1], -1) for piece in pieces]

    def join_outputs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `split_outputs`."""
        if len(self.parts) == 1:
            return leaves[0]
        lead = leaves[0].shape[:-1]
        pieces = [leaf.reshape(*lead, self.groups, -1) for leaf in leaves]
        return np.concatenate(pieces, axis=-1).reshape(*lead, -1)


def named_tensors(
    weights: Sequence[Weight], params: Mapping[str, Any], factors: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The params tensor by tensor, under the file's names and in the file's layout.

    One tensor at a time is merged with its adapter's factors, if there are some, made floats of if
    it is in int8, and copied to the host.
    """
    flat, adapted = flatten_dict(dict(params)), flatten_dict(dict(factors or {}))

    def of_layer(path: Path, layer: int) -> Any:
        leaf = flat[path][layer]
        pair = [adapted.get((*path[:-1], name)) for name in "ab"]
        if path[-1] == "kernel" and pair[0] is not None:
            return added(leaf, *(factor[layer] for factor in pair))
        return leaf.astype(leaf.dtype)

    for weight in weights:
        paths = [path for path, _ in weight.parts]
        if not weight.stacked:
            yield weight.name, weight.join(fetch([flat[path] for path in paths]))
            continue
        for layer, name in enumerate(weight.names(flat[paths[0]].shape[0])):
            yield name, weight.join(fetch([of_layer(path, layer) for path in paths]))


def linear(
    module: str,
    inputs: int,
    *parts: tuple[str, int],
    bias: bool = False,
    conv1d: bool = False,
    groups: int = 1,
) -> list[Weight]:
    """Kernel, and bias if there is one, of a linear layer.

    Args:
      module: its name in the file.
      inputs: width of what it reads.
      parts: dotted path and output width of each projection that the file keeps in it.
      bias: whether it has one.
      conv1d: the file holds [in, out], as GPT-2's do.
      groups: see `Weight`.
    """
    outputs = sum(width for _, width in parts)
    shape = (inputs, outputs) if conv1d else (outputs, inputs)
    kernel = Weight(f"{module}.weight", shape, _parts(module, parts, "kernel"), not conv1d, groups)
    if not bias:
        return [kernel]
    leaves = _parts(module, parts, "bias")
    return [kernel, Weight(f"{module}.bias", (outputs,), leaves, groups=groups)]


def norm(module: str, path: str, width: int, config: DecoderConfig) -> list[Weight]:
    """Scale, and bias if it is a LayerNorm."""
    leaves = ("scale", "bias") if config.norm == "layer" else ("scale",)
    names = {"scale": "weight", "bias": "bias"}
    return [
        Weight(f"{module}.{names[leaf]}", (width,), _parts(module, [(path, width)], leaf))
        for leaf in leaves
    ]


def embedding(name: str, path: str, rows: int, config: DecoderConfig) -> list[Weight]:
    """A table of vectors."""
    width = config.hidden_size
    return [Weight(name, (rows, width), ((tuple(path.split(".")), width),))]


def _parts(
    module: str, parts: Sequence[tuple[str, int]], leaf: str
) -> tuple[tuple[Path, int], ...]:
    top = ("layers",) if "{layer}" in module else ()
    return tuple(((*top, *path.split("."), leaf), width) for path, width in parts)
