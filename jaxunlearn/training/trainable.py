"""Which parameters a training changes: all, those of a pattern, or a fresh adapter's."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.config import AdapterConfig
from jaxunlearn.errors import UserError
from jaxunlearn.models import lora
from jaxunlearn.models.int8 import has_int8
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.parameter_patterns import matching_layers


def split_params(
    model: LanguageModel, train_only: str | None, adapter: AdapterConfig | None, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trains and what stays, as the step's `combine` puts them together again.

    Raises:
      UserError: a pattern that matches nothing or is beside an adapter, or a model in int8 without
        an adapter.
    """
    if adapter is not None:
        if train_only is not None:
            raise UserError("training.train_only: cannot be combined with adapter; remove one")
        key = jax.random.key(seed)
        factors = lora.init(model.params, adapter.rank, key=key, targets=adapter.targets)
        scale = jnp.float32(adapter.scale)
        return {"lora": factors}, {"params": model.params, "lora_scale": scale}
    if has_int8(model.params):
        raise UserError(
            "adapter: is missing, and weights in int8 cannot be trained; add an adapter, or load"
            " the model without quantize"
        )
    flat = flatten_dict(dict(model.params))
    inside, outside, layers = {}, dict(flat), {}
    for path, chosen in matching_layers(flat, train_only, "training.train_only").items():
        if chosen is None:
            inside[path] = outside.pop(path)
        else:
            layers[path] = jnp.asarray(chosen, jnp.int32)
            inside[path] = flat[path][layers[path]]
    frozen = {"params": unflatten_dict(outside)}
    if layers:
        frozen["layers"] = {"params": unflatten_dict(layers)}
    return {"params": unflatten_dict(inside)}, frozen
