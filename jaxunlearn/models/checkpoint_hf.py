"""Hugging Face folders: import, export, and adapters in PEFT's layout.

Only safetensors are read: nothing in a model folder is ever executed.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models.families import Family, Weight, family_of
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter
from jaxunlearn.models.transformer import DecoderConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.*",
)  # fmt: skip


def load_model(folder: str | Path) -> LanguageModel:
    """Loads a Hugging Face folder, dtype kept.

    A folder with an `adapter_config.json` is a PEFT adapter: its base is loaded and the adapter put
    beside it. A folder without tokenizer files gives a model whose `tokenizer` is None.

    Raises:
      UserError: missing folder, no safetensors, unsupported model_type, a tensor that is missing,
        extra or of another shape than config.json says, or a damaged file; names the place.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the path of a Hugging Face model folder")
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(folder)
    hf_config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    family = family_of(hf_config, where)
    config = family.read_config(hf_config, where)
    generation = folder / "generation_config.json"
    return LanguageModel(
        config=config,
        params=_read_params(folder, family, config),
        tokenizer=read_tokenizer(folder),
        hf_config=hf_config,
        generation_config=read_json(generation) if generation.is_file() else {},
        folder=folder,
    )


def export_model(
    model: LanguageModel,
    folder: str | Path,
    *,
    card: str = "",
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Writes an ordinary Hugging Face folder; an adapter is merged first.

    The folder appears complete or not at all: it is written beside its place and renamed.

    Args:
      model: what is written, each tensor in its own dtype.
      folder: the new folder.
      card: text of the model card, README.md.
      overwrite: replace a folder that is already there.
      max_shard_bytes: larger models are split into shards with an index.

    Raises:
      UserError: the folder is already there and `overwrite` is false.
    """
    model = model.merged()
    family = family_of(model.hf_config, "the model's config")
    tensors = _tensors(model.params, family.weights(model.config))
    with new_folder(Path(folder), overwrite) as out:
        write_side_files(model, out)
        _write_shards(out, tensors, max_shard_bytes)
        if card:
            (out / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def write_side_files(model: LanguageModel, out: Path) -> None:
    """Writes config.json, generation_config.json and the tokenizer's files."""
    family = family_of(model.hf_config, "the model's config")
    dtype = str(model.params["embed"]["embedding"].dtype)
    hf_config = {
        **model.hf_config,
        **family.write_config(model.config),
        "architectures": [family.architecture],
        # transformers 4 reads torch_dtype, transformers 5 reads dtype.
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    ids = {k: hf_config.get(k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = model.generation_config or {k: v for k, v in ids.items() if v is not None}
    write_json(out / "config.json", hf_config)
    write_json(out / "generation_config.json", generation)
    _write_tokenizer(model, out)


def export_adapter(
    model: LanguageModel, folder: str | Path, *, base: str | Path, overwrite: bool = False
) -> Path:
    """Writes the model's adapter in PEFT's layout, on top of the base model at `base`.

    Raises:
      UserError: the model has no adapter, or the folder is already there.
    """
    if model.adapter is None:
        raise UserError(f"{folder}: the model has no adapter to export; train one with `adapter:`")
    from safetensors.numpy import save_file

    family = family_of(model.hf_config, "the model's config")
    flat = flatten_dict(jax.device_get(model.adapter.factors))
    tensors, targets = {}, set()
    for weight in family.weights(model.config):
        path = weight.path[:-1]
        if weight.path[-1] != "kernel" or (*path, "a") not in flat:
            continue
        module = weight.name.removesuffix(".weight")
        targets.add(module.rpartition(".")[2])
        for layer in range(model.config.num_layers):
            name = f"base_model.model.{module.format(layer=layer)}"
            for factor, suffix in (("a", "lora_A"), ("b", "lora_B")):
                matrix = flat[(*path, factor)][layer].T
                tensors[f"{name}.{suffix}.weight"] = np.ascontiguousarray(matrix)
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": model.adapter.rank,
        "lora_alpha": model.adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "inference_mode": True,
    }
    with new_folder(Path(folder), overwrite) as out:
        write_json(out / "adapter_config.json", adapter_config)
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_tokenizer(model, out)
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: {path.name} is missing; this is not a complete model folder"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_params(folder: Path, family: Family, config: DecoderConfig) -> dict[str, Any]:
    """Every tensor of the folder, exactly once, into the params tree."""
    with contextlib.ExitStack() as stack:
        source = _open_tensors(folder, stack)
        flat = {
            weight.path: _read_weight(folder, source, weight, config.num_layers)
            for weight in family.weights(config)
        }
        _check_leftovers(folder, source, family, flat)
    return unflatten_dict({path: jnp.asarray(value) for path, value in flat.items()})


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor name to its open safetensors file; entries are taken out as they are used."""
    from safetensors import SafetensorError, safe_open

    source: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            handle = stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: damaged or truncated safetensors file ({error}); fetch it again"
            ) from None
        for name in handle.keys():
            if name in source:
                raise UserError(f"{path}: tensor {name} is also in another shard")
            source[name] = handle
    return source


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name:
                raise UserError(f"{index}: shard {name!r} points outside the folder; refused")
            if not (folder / name).is_file():
                raise UserError(f"{index}: shard {name} is missing; fetch the folder again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for ending in ("*.bin", "*.pt", "*.pth") for p in folder.glob(ending))
    found = f"only a pickle ({pickles[0]}), which is never opened" if pickles else "no weights"
    raise UserError(
        f"{folder}: holds {found}; {SINGLE} is needed: save the model again with "
        "safe_serialization=True"
    )


def _read_weight(folder: Path, source: dict[str, Any], weight: Weight, layers: int) -> np.ndarray:
    """One leaf of the params, from its tensor or from the tensors of all layers."""
    if not weight.stacked:
        return _take(folder, source, weight.name, weight)
    names = [weight.name.format(layer=layer) for layer in range(layers)]
    arrays = [_take(folder, source, name, weight) for name in names]
    mixed = [n for n, a in zip(names, arrays, strict=True) if a.dtype != arrays[0].dtype]
    if mixed:
        raise UserError(f"{folder}: tensor {mixed[0]} has another dtype than {names[0]}")
    return np.stack(arrays)


def _take(folder: Path, source: dict[str, Any], name: str, weight: Weight) -> np.ndarray:
    """Reads one tensor and marks it as used."""
    if name not in source:
        raise UserError(f"{folder}: tensor {name} is missing from the weights")
    array = source.pop(name).get_tensor(name)
    if array.shape != weight.shape:
        raise UserError(
            f"{folder}: tensor {name} has shape {list(array.shape)}, "
            f"config.json asks for {list(weight.shape)}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{folder}: tensor {name} holds {array.dtype}, not floating-point numbers")
    return array.T if weight.transpose else array


def _check_leftovers(
    folder: Path, source: Mapping[str, Any], family: Family, flat: Mapping[tuple[str, ...], Any]
) -> None:
    """What the table did not use: nothing, or what is known to be redundant."""
    for name, handle in source.items():
        if name.endswith(family.ignored):
            continue
        if name == "lm_head.weight":  # a tied head that was written out all the same
            if np.array_equal(handle.get_tensor(name), flat[("embed", "embedding")]):
                continue
            raise UserError(
                f"{folder}: lm_head.weight differs from the embedding although config.json says "
                "tie_word_embeddings; set it to false"
            )
        raise UserError(f"{folder}: tensor {name} has no place in this model; nothing was loaded")


def _tensors(params: Mapping[str, Any], table: tuple[Weight, ...]) -> dict[str, np.ndarray]:
    """The params under the file's names and in the file's layout."""
    flat = flatten_dict(params)
    tensors = {}
    for weight in table:
        value = np.asarray(jax.device_get(flat[weight.path]))
        layers = value if weight.stacked else value[None]
        for number, layer in enumerate(layers):
            name = weight.name.format(layer=number)
            tensors[name] = np.ascontiguousarray(layer.T if weight.transpose else layer)
    return tensors


def _write_shards(folder: Path, tensors: Mapping[str, np.ndarray], limit: int) -> None:
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(value.nbytes for value in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _load_adapter(folder: Path) -> LanguageModel:
    """A PEFT LoRA folder onto its base."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings = read_json(folder / "adapter_config.json")
    where = folder / "adapter_config.json"
    unsupported = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False}
    for key, allowed in unsupported.items():
        if settings.get(key, allowed) != allowed:
            raise UserError(f"{where}: {key} {settings[key]!r} is not supported; only {allowed!r}")
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if settings.get(key):
            raise UserError(f"{where}: {key} is not supported; train the adapter without it")
    base = load_model(settings.get("base_model_name_or_path") or "")
    file = folder / "adapter_model.safetensors"
    try:
        source = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); only safetensors are read") from None
    factors = {}
    for weight in family_of(base.hf_config, str(where)).weights(base.config):
        module = weight.name.removesuffix(".weight")
        for factor, suffix in (("a", "lora_A"), ("b", "lora_B")):
            names = [
                f"base_model.model.{module.format(layer=layer)}.{suffix}.weight"
                for layer in range(base.config.num_layers)
            ]
            if weight.path[-1] == "kernel" and names[0] in source:
                missing = [name for name in names if name not in source]
                if missing:
                    raise UserError(f"{file}: tensor {missing[0]} is missing")
                layers = np.stack([source.pop(name).T for name in names])
                factors[(*weight.path[:-1], factor)] = jnp.asarray(layers)
    if source:
        raise UserError(f"{file}: tensor {min(source)} has no place in the base model")
    adapter = Adapter(unflatten_dict(factors), settings["r"], settings["lora_alpha"])
    return LanguageModel(**{**base.__dict__, "adapter": adapter})


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None when it has no tokenizer files."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    from jaxunlearn.data.tokens import load_tokenizer

    return load_tokenizer(folder)


def _write_tokenizer(model: LanguageModel, out: Path) -> None:
    if model.folder is not None:
        for pattern in _TOKENIZER_FILES:
            for file in model.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
    elif model.tokenizer is not None:
        model.tokenizer.save_pretrained(out)


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes its final name only when the block ends well."""
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: already there; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            old = temporary.with_suffix(".old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
