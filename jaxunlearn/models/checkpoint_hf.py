"""Hugging Face model folders: import and export, tensor by tensor."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.data import tokens
from jaxunlearn.errors import UserError
from jaxunlearn.models.families import Family, family_of, read_config
from jaxunlearn.models.folders import new_folder, read_json, write_json
from jaxunlearn.models.hf_config import portable
from jaxunlearn.models.int8 import Int8, is_layer_kernel, to_int8
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.tensor_files import DTYPES, Header, TensorFolder, write_tensors
from jaxunlearn.models.weights import Weight, named_tensors

SHARD_BYTES = 5 * 10**9
Placement = Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding]
"""Path and shape of a leaf of the params to where it lies."""
Quantize = Literal["int8"]

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.*",
)  # fmt: skip
_HEADS = ("lm_head.weight", "embed_out.weight")


def load_folder(
    folder: Path,
    *,
    dtype: str | None = None,
    placement: Placement | None = None,
    quantize: Quantize | None = None,
) -> LanguageModel:
    """A model from its Hugging Face folder; see `loading.load_model`, which takes adapters too."""
    params = read_params(folder, dtype=dtype, placement=placement, quantize=quantize)
    return bare_model(folder, params)


def bare_model(folder: Path, params: Mapping[str, Any]) -> LanguageModel:
    """Params with the config and tokenizer files of a folder."""
    hf_config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    return LanguageModel(
        config=read_config(hf_config, str(folder / "config.json")),
        params=params,
        tokenizer=read_tokenizer(folder),
        hf_config=hf_config,
        generation_config=read_json(generation) if generation.is_file() else {},
        folder=folder,
    )


def read_params(
    folder: Path,
    *,
    dtype: str | None = None,
    placement: Placement | None = None,
    quantize: Quantize | None = None,
) -> dict[str, Any]:
    """The params tree of a folder; every tensor of the files is used exactly once.

    Beside the params, one tensor at a time is in host memory.

    Args:
      folder: with config.json and safetensors.
      dtype: of the params; default: as in the file.
      placement: sharding of each leaf; default: all on the first device.
      quantize: int8: the kernels of the layers are `Int8`, and never floats but on the host.

    Raises:
      UserError: no safetensors, unsupported model_type, a tensor that is missing, extra or of
        another shape or dtype than config.json says, or a damaged file; names the place.
    """
    where = str(folder / "config.json")
    hf_config = read_json(folder / "config.json")
    config, family = read_config(hf_config, where), family_of(hf_config, where)
    table, params = family.weights(config), {}
    with TensorFolder(folder) as files:
        names = _check_tensors(folder, files, family, table, config.num_layers)
        for weight in table:
            rows = names[weight.name]
            kept = DTYPES[files.headers[rows[0]].dtype]
            leaves = [
                (_Int8Leaf if quantize and is_layer_kernel(path) else _Leaf)(
                    path, shape, jnp.dtype(dtype or kept), placement
                )
                for path, shape in weight.leaf_shapes(config.num_layers)
            ]
            for layer, name in enumerate(rows):
                for leaf, part in zip(leaves, weight.split(files.read(name)), strict=True):
                    leaf.put(layer if weight.stacked else None, part)
            params.update({leaf.path: leaf.array() for leaf in leaves})
    return unflatten_dict(params)


def export_model(
    model: LanguageModel,
    folder: str | Path,
    *,
    card: str = "",
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes an ordinary Hugging Face folder; an adapter is merged, int8 becomes floats.

    The folder appears complete or not at all: it is written beside its place and renamed. Beside
    the params, one tensor at a time is in memory.

    Args:
      model: what is written, each tensor in its own dtype.
      folder: the new folder.
      card: text of the model card, README.md.
      overwrite: replace a folder that is already there.
      max_shard_bytes: larger models are split into shards with an index.

    Raises:
      UserError: the folder is already there and `overwrite` is false.
    """
    flat = flatten_dict(dict(model.params))
    table = family_of(model.hf_config, "the model's config").weights(model.config)
    # Wide types first: no tensor then begins off its own alignment.
    table = sorted(table, key=lambda weight: -flat[weight.parts[0][0]].dtype.itemsize)
    headers = list(_headers(table, flat, model.config.num_layers))
    with new_folder(Path(folder), overwrite) as out:
        write_side_files(model, out)
        tensors = (tensor for _, tensor in named_tensors(table, model.params, model.lora))
        write_tensors(out, headers, tensors, max_shard_bytes)
        if card:
            (out / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def write_side_files(model: LanguageModel, out: Path) -> None:
    """Writes config.json, generation_config.json and the tokenizer's files."""
    family = family_of(model.hf_config, "the model's config")
    dtype = str(model.params["embed"]["embedding"].dtype)
    hf_config = {
        **portable(model.hf_config),
        "architectures": [family.architecture],
        # transformers 4 reads torch_dtype, transformers 5 reads dtype.
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    ids = {k: hf_config.get(k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = model.generation_config or {k: v for k, v in ids.items() if v is not None}
    write_json(out / "config.json", hf_config)
    write_json(out / "generation_config.json", generation)
    write_tokenizer(model, out)


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None when it has no tokenizer files."""
    if not any((folder / name).is_file() for name in tokens.TOKENIZER_FILES):
        return None
    return tokens.load_tokenizer(folder)


def write_tokenizer(model: LanguageModel, out: Path) -> None:
    """Writes the tokenizer as its files were, chat template included."""
    if model.folder is not None:
        for pattern in _TOKENIZER_FILES:
            for file in model.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
    elif model.tokenizer is not None:
        model.tokenizer.save_pretrained(out)


def _headers(table: Sequence[Weight], flat: Mapping, num_layers: int) -> Iterator[Header]:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for weight in table:
        code = codes[flat[weight.parts[0][0]].dtype]
        for name in weight.names(num_layers):
            yield Header(name, weight.shape, code)


def _check_tensors(
    folder: Path, files: TensorFolder, family: Family, table: Sequence[Weight], num_layers: int
) -> dict[str, list[str]]:
    """The names in the files of each row of the table, once all is known to fit."""
    left = dict(files.headers)
    names = {}
    for weight in table:
        rows = weight.names(num_layers)
        short = [name.removeprefix(family.prefix) for name in rows]
        rows = short if short[0] in left else rows
        for name in rows:
            if name not in left:
                raise UserError(f"{folder}: tensor {name} is missing from the weights")
            _check_header(folder, left.pop(name), weight, files.headers[rows[0]])
        names[weight.name] = rows
    embedding = next(w.name for w in table if w.parts[0][0] == ("embed", "embedding"))
    _check_leftovers(folder, files, family, left, *names[embedding])
    return names


def _check_header(folder: Path, header: Header, weight: Weight, first: Header) -> None:
    if header.shape != weight.shape:
        raise UserError(
            f"{folder}: tensor {header.name} has shape {list(header.shape)}, "
            f"config.json asks for {list(weight.shape)}"
        )
    if header.dtype not in DTYPES:
        raise UserError(
            f"{folder}: tensor {header.name} holds {header.dtype}, not one of {', '.join(DTYPES)}"
        )
    if header.dtype != first.dtype:
        raise UserError(
            f"{folder}: tensor {header.name} holds {header.dtype}, but {first.name} holds "
            f"{first.dtype}; all layers must have one dtype"
        )


def _check_leftovers(
    folder: Path,
    files: TensorFolder,
    family: Family,
    left: Iterable[str],
    embedding: str,
) -> None:
    """What the table did not use: nothing, or what is known to be redundant."""
    for name in left:
        if name.endswith(family.ignored):
            continue
        same_kind = files.headers[name][1:] == files.headers[embedding][1:]
        if name not in _HEADS or not same_kind:
            raise UserError(
                f"{folder}: tensor {name} has no place in this model; nothing was loaded"
            )
        # A tied head that was written out all the same.
        if files.read(name).tobytes() != files.read(embedding).tobytes():
            raise UserError(
                f"{folder}: {name} differs from the embedding although config.json says "
                "tie_word_embeddings; set it to false"
            )


class _Leaf:
    """One leaf of the params while it is read: a buffer for each part that lies on this host."""

    def __init__(
        self,
        path: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype,
        placement: Placement | None,
    ):
        self.path, self.shape = path, shape
        self.sharding = None if placement is None else placement(path, shape)
        self.spans = {None: self._span((slice(None),) * len(shape))}
        if self.sharding is not None:
            places = self.sharding.addressable_devices_indices_map(shape)
            self.spans = {device: self._span(index) for device, index in places.items()}
        self.buffers = {
            span: _aligned(tuple(stop - start for start, stop in span), dtype)
            for span in set(self.spans.values())
        }

    def put(self, layer: int | None, part: np.ndarray) -> None:
        """Fills in one layer, or the whole leaf if layers are not stacked."""
        for span, buffer in self.buffers.items():
            if layer is None:
                buffer[...] = part[_slices(span)].astype(buffer.dtype, copy=False)
            elif span[0][0] <= layer < span[0][1]:
                inner = part[_slices(span[1:])]
                buffer[layer - span[0][0]] = inner.astype(buffer.dtype, copy=False)

    def array(self) -> jax.Array:
        """The leaf on its devices."""
        if self.sharding is None:
            return jax.device_put(self.buffers[self.spans[None]])
        shards = [jax.device_put(self.buffers[span], d) for d, span in self.spans.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, shards)

    def _span(self, index: Sequence[slice]) -> tuple[tuple[int, int], ...]:
        return tuple(part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True))


class _Int8Leaf:
    """The same of a stack of kernels, each of which is in int8 as soon as it is read."""

    def __init__(
        self,
        path: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype,
        placement: Placement | None,
    ):
        self.path, self.dtype = path, dtype
        scales = (*shape[:-2], 1, shape[-1])
        self.values = _Leaf((*path, "values"), shape, jnp.dtype("int8"), placement)
        self.scale = _Leaf((*path, "scale"), scales, jnp.dtype("float32"), placement)

    def put(self, layer: int, part: np.ndarray) -> None:
        """Fills in one layer."""
        kernel = to_int8(part.astype(self.dtype, copy=False))
        self.values.put(layer, kernel.values)
        self.scale.put(layer, kernel.scale)

    def array(self) -> Int8:
        """The kernels on their devices."""
        return Int8(self.values.array(), self.scale.array(), str(self.dtype))


def _slices(span: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(*edges) for edges in span)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that JAX's CPU backend takes over without a copy."""
    alignment = 64
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)
