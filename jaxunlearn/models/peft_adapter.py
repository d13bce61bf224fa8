"""LoRA adapters in the PEFT library's layout: import onto a base model, and export."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models.checkpoint_hf import Placement, Quantize, load_folder, write_tokenizer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.families import family_of, read_config
from jaxunlearn.models.folders import new_folder, read_json, write_json
from jaxunlearn.models.hub import model_folder
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter
from jaxunlearn.models.placement import fetch
from jaxunlearn.models.tensor_files import DTYPES
from jaxunlearn.models.weights import Weight

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Whatever changes the function of an adapter beyond a scaled product of two matrices.
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "layer_replication", "alora_invocation_tokens", "use_bdlora",
    "arrow_config", "monteclora_config", "kasa_config",
)  # fmt: skip
# These put a part of the base's weights into the adapter and change the base for it.
_REFUSED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def load_adapter(
    folder: Path,
    *,
    dtype: str | None = None,
    placement: Placement | None = None,
    quantize: Quantize | None = None,
) -> LanguageModel:
    """A PEFT LoRA folder, on its base.

    Ranks and alphas may differ between modules; a module that only some layers adapt has zeros in
    the others.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      dtype: of the base's params; see `loading.load_model`.
      placement: of the base's params; see `loading.load_model`.
      quantize: the base; see `loading.load_model`.

    Raises:
      UserError: another kind of adapter, an option that is not supported, a tensor that is missing
        or fits nowhere, or a base that cannot be loaded.
    """
    where = folder / SETTINGS
    source = model_folder(_base(read_json(where), where))
    if (source / SETTINGS).is_file():
        raise UserError(f"{where}: the base {source} is an adapter itself; merge that one first")
    # First the small files: their faults show before the base is read.
    adapter = read_adapter(folder, read_json(source / "config.json"))
    base = load_folder(source, dtype=dtype, placement=placement, quantize=quantize)
    return replace(base, adapter=adapter)


def base_folder(path: str | Path) -> Path:
    """The model folder of a path or Hub id, without its weights if it comes from the Hub; of an
    adapter its base's.

    Raises:
      UserError: as `load_adapter`.
    """
    folder = model_folder(path, weights=False)
    if not (folder / SETTINGS).is_file():
        return folder
    return model_folder(_base(read_json(folder / SETTINGS), folder / SETTINGS), weights=False)


def read_adapter(folder: Path, hf_config: Mapping[str, Any]) -> Adapter:
    """The adapter of a PEFT LoRA folder, without its base.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      hf_config: the base's config.json.

    Raises:
      UserError: as `load_adapter`, but for the base.
    """
    settings, where = read_json(folder / SETTINGS), folder / SETTINGS
    _check_settings(settings, where)
    tensors = _read_tensors(folder / TENSORS)
    for module in sorted({n.rpartition(".lora_")[0] for n in tensors if ".lora_" in n}):
        if not _selected(settings, module.removeprefix(_PREFIX)):
            raise UserError(
                f"{where}: the adapter has tensors for {module.removeprefix(_PREFIX)}, which its "
                "target_modules, exclude_modules or layers_to_transform leave out"
            )
    config = read_config(hf_config, f"{where}: the base's config.json")
    factors: dict[tuple[str, ...], jax.Array] = {}
    usual = _scale(settings, "", where)
    for weight in _modules(config, hf_config):
        names = [name.removesuffix(".weight") for name in weight.names(config.num_layers)]
        pairs = [_take(tensors, name, weight, folder / TENSORS) for name in names]
        if not any(pairs):
            continue
        for pair, name in zip(pairs, names, strict=True):
            if pair is not None:
                rank = _chosen(settings, name, "rank_pattern", "r", where)
                if pair[0].shape[1] != rank:
                    raise UserError(
                        f"{folder / TENSORS}: {name} has rank {pair[0].shape[1]}, "
                        f"{SETTINGS} says {rank}"
                    )
                pair[1] *= np.float32(_scale(settings, name, where) / usual)
        rank = max(pair[0].shape[1] for pair in pairs if pair)
        a = np.stack([_padded(pair and pair[0], (weight.inputs, rank)) for pair in pairs])
        b = np.stack([_padded(pair and pair[1], (rank, weight.outputs)) for pair in pairs])
        for (path, _), part in zip(weight.parts, weight.split_outputs(b), strict=True):
            factors[(*path[:-1], "a")] = jnp.asarray(a)
            factors[(*path[:-1], "b")] = jnp.asarray(part)
    if tensors:
        raise UserError(
            f"{folder / TENSORS}: tensor {min(tensors)} has no place in the base model's layers"
        )
    return Adapter(unflatten_dict(factors), usual)


def export_adapter(
    model: LanguageModel, folder: str | Path, *, base: str | Path, overwrite: bool = False
) -> Path:
    """Writes the model's adapter as PEFT reads it, on top of the base model at `base`.

    Where the file fuses projections that are adapted one by one here, their factors are laid side
    by side: the rank adds up, the function is the same. Layers in which a module's factors are all
    0 are left out, and its other layers are named one by one.

    Raises:
      UserError: the model has no adapter, or the folder is already there.
    """
    if model.adapter is None:
        raise UserError(f"{folder}: the model has no adapter to export; train one with `adapter:`")
    from safetensors.numpy import save_file

    flat = flatten_dict(fetch(dict(model.adapter.factors)))
    table = _modules(model.config, model.hf_config)
    tensors, ranks = {}, {}
    for weight in table:
        pairs = {p: flat.get((*p[:-1], "a")) for p, _ in weight.parts}
        if all(a is None for a in pairs.values()):
            continue
        names = [name.removesuffix(".weight") for name in weight.names(model.config.num_layers)]
        joined = {name: _joined(weight, flat, layer) for layer, name in enumerate(names)}
        # An adapter of zeros everywhere is written whole, or nothing would say that it is there.
        used = {name: pair for name, pair in joined.items() if pair[0].any() or pair[1].any()}
        for name, (a, b) in (used or joined).items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
            ranks[name if 0 < len(used) < len(names) else _target(weight, table)] = a.shape[1]
    with new_folder(Path(folder), overwrite) as out:
        conv1d = not table[0].transpose
        write_json(out / SETTINGS, _settings(ranks, model.adapter.scale, str(base), conv1d))
        save_file(tensors, out / TENSORS, metadata={"format": "pt"})
        write_tokenizer(model, out)
    return Path(folder)


def _settings(ranks: Mapping[str, int], scale: float, base: str, conv1d: bool) -> dict[str, Any]:
    """adapter_config.json; alpha / r is the adapter's scale at every rank."""
    (usual, _), *_ = Counter(ranks.values()).most_common(1)
    other = {target: rank for target, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": scale * usual,
        "rank_pattern": other,
        "alpha_pattern": {target: scale * rank for target, rank in other.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "target_modules": sorted(ranks),
        "inference_mode": True,
    }


def _joined(weight: Weight, flat: Mapping, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors [in, r] and [r, out] of one file module, from those of its parts."""
    known = {p: tuple(flat[(*p[:-1], f)][layer] for f in "ab")
             for p, _ in weight.parts if (*p[:-1], "a") in flat}  # fmt: skip
    a_s = [a for a, _ in known.values()]
    if len(known) == len(weight.parts) and all(np.array_equal(a, a_s[0]) for a in a_s):
        return a_s[0], weight.join_outputs([b for _, b in known.values()])
    rank, start, rows = sum(a.shape[1] for a in a_s), 0, []
    for path, width in weight.parts:
        wide = np.zeros((rank, width), np.float32)
        if path in known:
            b = known[path][1]
            wide[start : start + len(b)] = b
            start += len(b)
        rows.append(wide)
    return np.concatenate(a_s, axis=1), weight.join_outputs(rows)


def _target(weight: Weight, table: Sequence[Weight]) -> str:
    """The shortest ending of the module's name that no other module shares."""
    pieces = weight.module.split(".")
    last = pieces[-1]
    alone = sum(other.module.split(".")[-1] == last for other in table) == 1
    return last if alone else ".".join(pieces[-2:])


def _modules(config: DecoderConfig, hf_config: Mapping[str, Any]) -> list[Weight]:
    """The linear layers that an adapter can sit on."""
    weights = family_of(hf_config, "the model's config").weights(config)
    return [weight for weight in weights if weight.stacked and weight.module]


def _check_settings(settings: Mapping[str, Any], where: Path) -> None:
    for key, allowed in {"peft_type": "LORA", "bias": "none"}.items():
        if settings.get(key, allowed) != allowed:
            raise UserError(f"{where}: {key} {settings[key]!r} is not supported; only {allowed!r}")
    for key in _REFUSED:
        if settings.get(key):
            raise UserError(f"{where}: {key} is not supported; train the adapter without it")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_REFUSED_STARTS):
        raise UserError(
            f"{where}: init_lora_weights {start!r} changes the base; convert the adapter to plain "
            "LoRA with PEFT first"
        )
    for key in ("r", "lora_alpha"):
        _positive(settings.get(key), key, where)
    kinds = {
        "use_rslora": bool, "rank_pattern": dict, "alpha_pattern": dict,
        "target_modules": list | str, "exclude_modules": list | str,
        "layers_to_transform": list | int, "task_type": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        if settings.get(key) is not None and not isinstance(settings[key], kind):
            raise UserError(f"{where}: {key} cannot be {settings[key]!r}")
    if settings.get("task_type", "CAUSAL_LM") not in ("CAUSAL_LM", None):
        raise UserError(
            f"{where}: task_type {settings['task_type']!r} is not supported; only 'CAUSAL_LM'"
        )
    if settings.get("layers_pattern"):
        raise UserError(f"{where}: layers_pattern is not supported; leave it out")
    regular = [*(settings.get("rank_pattern") or ()), *(settings.get("alpha_pattern") or ())]
    regular += [
        v for k in ("target_modules", "exclude_modules") if isinstance(v := settings.get(k), str)
    ]
    for pattern in regular:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is no regular expression ({error})") from None


def _positive(value: Any, key: str, where: Path) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise UserError(f"{where}: {key} must be a number above 0, found {value!r}")
    return value


def _selected(settings: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT puts the adapter on a module of this name."""

    def named(key: str) -> bool:
        wanted = settings.get(key)
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in wanted)

    if settings.get("exclude_modules") and named("exclude_modules"):
        return False
    # None: the library's own choice for the architecture, which the file shows.
    if settings.get("target_modules") is not None and not named("target_modules"):
        return False
    layers = settings.get("layers_to_transform")
    if layers is None or isinstance(settings.get("target_modules"), str):
        return True
    number = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    return number is not None and int(number[1]) in (
        layers if isinstance(layers, list) else [layers]
    )


def _base(settings: Mapping[str, Any], where: Path) -> str:
    base = settings.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"{where}: base_model_name_or_path is missing; put the base model there")
    revision = settings.get("revision")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else base


def _scale(settings: Mapping[str, Any], module: str, where: Path) -> float:
    """What the branch of a module is multiplied by."""
    rank = _chosen(settings, module, "rank_pattern", "r", where)
    alpha = _chosen(settings, module, "alpha_pattern", "lora_alpha", where)
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _chosen(
    settings: Mapping[str, Any], module: str, patterns: str, default: str, where: Path
) -> float:
    """A module's rank or alpha; patterns match as PEFT matches them."""
    for pattern, value in (settings.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return _positive(value, f"{patterns} {pattern}", where)
    return settings[default]


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); only safetensors are read") from None
    if not tensors:
        raise UserError(f"{file}: holds no tensors; save the adapter again")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or tensor.ndim != 2:
            raise UserError(
                f"{file}: tensor {name} is {tensor.dtype} {list(tensor.shape)}; factors are "
                f"matrices of {', '.join(map(str, DTYPES.values()))}"
            )
    return tensors


def _take(
    tensors: dict[str, np.ndarray], module: str, weight: Weight, file: Path
) -> list[np.ndarray] | None:
    """Factors [in, r] and [r, out] of one layer's module in float32, or None if it has none."""
    names = [f"{_PREFIX}{module}.lora_{factor}.weight" for factor in "AB"]
    there = [name for name in names if name in tensors]
    if not there:
        return None
    for name in names:
        if name not in tensors:
            raise UserError(f"{file}: tensor {name} is missing")
    a, b = (tensors.pop(name).T.astype(np.float32) for name in names)
    if a.shape[0] != weight.inputs or b.shape[1] != weight.outputs or a.shape[1] != b.shape[0]:
        raise UserError(
            f"{file}: {module} has factors {list(a.shape)} and {list(b.shape)}; the base model "
            f"has {weight.inputs} inputs and {weight.outputs} outputs there"
        )
    return [a, b]


def _padded(factor: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """The factor with zeros up to a larger rank; all zeros for a layer without one."""
    out = np.zeros(shape, np.float32)
    if factor is not None:
        out[: factor.shape[0], : factor.shape[1]] = factor
    return out
