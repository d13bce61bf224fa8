"""Which parameters a training changes: all, those of a pattern, or a fresh adapter's."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.config import AdapterConfig
from jaxunlearn.errors import UserError
from jaxunlearn.models import lora
from jaxunlearn.models.language_model import LanguageModel


def split_params(
    model: LanguageModel, train_only: str | None, adapter: AdapterConfig | None, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trains and what stays, as the step's `combine` puts them together again."""
    if adapter is not None:
        if train_only is not None:
            raise UserError("training.train_only: cannot be combined with adapter; remove one")
        factors = lora.init(model.params, adapter.rank, key=jax.random.key(seed))
        scale = jnp.float32(adapter.scale)
        return {"lora": factors}, {"params": model.params, "lora_scale": scale}
    flat = flatten_dict(dict(model.params))
    inside, outside, layers = {}, dict(flat), {}
    for path, chosen in _chosen_layers(flat, train_only).items():
        if chosen is None:
            inside[path] = outside.pop(path)
        else:
            layers[path] = jnp.asarray(chosen, jnp.int32)
            inside[path] = flat[path][layers[path]]
    frozen = {"params": unflatten_dict(outside)}
    if layers:
        frozen["layers"] = {"params": unflatten_dict(layers)}
    return {"params": unflatten_dict(inside)}, frozen


def _chosen_layers(
    flat: Mapping[tuple[str, ...], Any], train_only: str | None
) -> dict[tuple[str, ...], list[int] | None]:
    """The leaves that `train_only` names, and which of their layers; None for all of a leaf."""
    try:
        pattern = re.compile(train_only or "")
    except re.error as error:
        raise UserError(f"training.train_only: not a regular expression: {error}") from None
    found: dict[tuple[str, ...], list[int] | None] = {}
    for path, leaf in flat.items():
        if pattern.search("/".join(path)):
            found[path] = None
        elif path[0] == "layers":
            names = [f"layers/{layer}/{'/'.join(path[1:])}" for layer in range(leaf.shape[0])]
            layers = [layer for layer, name in enumerate(names) if pattern.search(name)]
            if layers:
                found[path] = layers if len(layers) < len(names) else None
    if not found:
        example = ", ".join("/".join(path) for path in list(flat)[:3])
        raise UserError(
            f"training.train_only: {train_only!r} matches no parameter; there are {example}, ... "
            "(layers/5/... names one layer)"
        )
    return found
