"""Safetensors folders, one tensor at a time: read from one file or shards, write the same.

Only safetensors are read: nothing in a model folder is ever executed. Files are read without a
memory map, whose pages would count beside the params, and written as a stream, which the library
does not offer.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp  # its types must be known before numpy can read bfloat16
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.models.folders import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": jnp.dtype("float32"), "BF16": jnp.dtype("bfloat16"), "F16": jnp.dtype("float16")}
"""What weights may be, by safetensors' names."""


class Header(NamedTuple):
    """What a file says of one tensor before its data."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """A name of safetensors, such as BF16."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorFolder:
    """The tensors of one model folder, by name; a context manager that closes the files."""

    def __init__(self, folder: Path):
        """Opens every file and reads the headers, no data.

        Raises:
          UserError: no safetensors, a missing or damaged shard, or an index that is not true.
        """
        self.headers: dict[str, Header] = {}
        self._files: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        with contextlib.ExitStack() as stack:
            for file in _weight_files(folder):
                self._open(file, stack)
            _check_index(folder / INDEX, self._files)
            self._stack = stack.pop_all()

    def __enter__(self) -> "TensorFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        return self._handles[self._files[name]].get_tensor(name)

    def _open(self, file: Path, stack: contextlib.ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = stack.enter_context(safe_open(file, framework="numpy", backend="pread"))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: damaged or truncated safetensors file ({error}); fetch it again"
            ) from None
        self._handles[file] = handle
        for name in handle.keys():
            if name in self._files:
                raise UserError(f"{file}: tensor {name} is also in {self._files[name].name}")
            slices = handle.get_slice(name)
            self._files[name] = file
            self.headers[name] = Header(name, tuple(slices.get_shape()), slices.get_dtype())


def write_tensors(
    folder: Path, headers: Sequence[Header], tensors: Iterable[np.ndarray], limit: int
) -> None:
    """Writes one file, or shards with an index; one tensor at a time is in memory.

    Args:
      folder: where to.
      headers: of every tensor.
      tensors: the tensors, in the same order.
      limit: most bytes of a shard; a larger tensor gets one of its own.
    """
    shards: list[list[Header]] = [[]]
    for header in headers:
        if shards[-1] and sum(h.size for h in [*shards[-1], header]) > limit:
            shards.append([])
        shards[-1].append(header)
    rest, weight_map = iter(tensors), {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else SINGLE
        _write_file(folder / file, shard, itertools.islice(rest, len(shard)))
        weight_map.update({header.name: file for header in shard})
    if len(shards) > 1:
        total = sum(header.size for header in headers)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_file(path: Path, headers: Sequence[Header], tensors: Iterable[np.ndarray]) -> None:
    """The safetensors format: length of the header, header, then the tensors end to end."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for header in headers:
        entries[header.name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [end, end + header.size],
        }
        end += header.size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for header, tensor in zip(headers, tensors, strict=True):
            if tensor.shape != header.shape or tensor.nbytes != header.size:
                raise ValueError(f"tensor {header.name} is not what its header says")
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for ending in ("*.bin", "*.pt", "*.pth") for p in folder.glob(ending))
    found = f"only a pickle ({pickles[0]}), which is never opened" if pickles else "no weights"
    raise UserError(
        f"{folder}: holds {found}; {SINGLE} is needed: save the model again with "
        "safe_serialization=True"
    )


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{index}: weight_map must map tensor names to files; fetch it again")
    return names


def _shards(index: Path) -> list[Path]:
    files = []
    for name in sorted(set(_weight_map(index).values())):
        if Path(name).name != name or "\\" in name:
            raise UserError(f"{index}: shard {name!r} points outside the folder; refused")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: shard {name} is missing; fetch the folder again")
        files.append(index.parent / name)
    if not files:
        raise UserError(f"{index}: names no tensors; fetch the folder again")
    return files


def _check_index(index: Path, found: dict[str, Path]) -> None:
    """The index must name every tensor, in the shard that it is in."""
    if not index.is_file():
        return
    named = _weight_map(index)
    for name in found:
        if name not in named:
            raise UserError(f"{index}: does not name tensor {name}; fetch the folder again")
    for name, file in named.items():
        if name not in found or found[name].name != file:
            raise UserError(f"{index}: tensor {name} is not in {file}; fetch the folder again")
