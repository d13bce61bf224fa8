"""Reading config.json: checked fields, and RoPE settings in every spelling there has been."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.models.rope import SCALINGS, Rope, Scaling

# Keys that may stand in a RoPE section; with any other one the meaning would be a guess.
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"} | {
    field.name for scaling in SCALINGS.values() for field in dataclasses.fields(scaling)
}


MOST = 2**31
"""No size or number in a config.json is larger."""


class Fields:
    """The fields of one config.json; a value that cannot be is refused with its key."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def error(self, message: str) -> UserError:
        """The fault, with the file it is in."""
        return UserError(f"{self.where}: {message}")

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands; null counts as missing."""
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; without a default it must be there."""
        value = self.get(key, default)
        if value is None:
            raise self.error(f"{key} is missing; this kind of model must state it")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(f"{key} must be a whole number of {least} or more, found {value!r}")
        if value > MOST:
            raise self.error(f"{key} must be at most {MOST}, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A number above 0, or None."""
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < MOST:
            raise self.error(f"{key} must be a number above 0, found {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, found {value!r}")
        return value

    def choice(self, key: str, known: Mapping[str, str], default: str) -> str:
        """Our word for a value that is one of `known`."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in known:
            names = ", ".join(known)
            raise self.error(f"{key} {value!r} is not supported; supported are: {names}")
        return known[value]

    def window(self, key: str = "sliding_window", default: int | None = None) -> int | None:
        """A sliding window; null means none, and nothing means the default."""
        if key in self.values and self.values[key] is None:
            return None
        return default if key not in self.values else self.count(key)

    def refuse(self, key: str, allowed: Any) -> None:
        """An option that no supported model uses must keep its usual value."""
        if self.get(key, allowed) != allowed:
            raise self.error(f"{key} {self.values[key]!r} is not supported; only {allowed!r} is")


def read_rope(
    fields: Fields,
    head_dim: int,
    *,
    theta: float = 10000.0,
    theta_key: str = "rope_theta",
    partial: float = 1.0,
    partial_key: str | None = None,
    section: str | None = None,
) -> Rope:
    """RoPE of one kind of layer, from transformers 4 keys or transformers 5 `rope_parameters`.

    Where both are there, `rope_scaling` goes first, as in transformers.

    Args:
      fields: of config.json.
      head_dim: dimensions of a head.
      theta: base where the file states none.
      theta_key: where transformers 4 states it, beside the RoPE settings.
      partial: share of a head's dimensions that turn where the file states none.
      partial_key: where transformers 4 states it; None: all must turn.
      section: key of `rope_parameters` that holds this kind of layer, for families with several.
    """
    old, new = (fields.get(key) or {} for key in ("rope_scaling", "rope_parameters"))
    for value in (old, new):
        if not isinstance(value, Mapping):
            raise fields.error(f"the RoPE settings must be a mapping, found {value!r}")
    rope = old or new
    if section is not None:
        nested = new.get(section, new if section == "full_attention" else {}) or {}
        rope = {**nested, **old}
    odd = sorted(set(rope) - _ROPE_KEYS - {"full_attention", "sliding_attention"})
    if odd:
        raise fields.error(f"RoPE setting {odd[0]!r} is not supported")
    # Beside the RoPE settings, this one goes before the same key within them.
    length = "original_max_position_embeddings"
    merged = {**fields.values, **rope, length: fields.get(length, rope.get(length))}
    inside, within = Fields(merged, f"{fields.where}: RoPE"), Fields(rope, f"{fields.where}: RoPE")
    share = within.number("partial_rotary_factor", fields.number(partial_key or "", partial))
    if partial_key is None:
        fields.refuse("partial_rotary_factor", 1.0)
        within.refuse("partial_rotary_factor", 1.0)
    dims = int(head_dim * share)
    if dims % 2 or not 0 < dims <= head_dim:
        raise fields.error(f"RoPE must turn an even number of a head's {head_dim} dimensions")
    return Rope(
        theta=within.number("rope_theta", fields.number(theta_key, theta)),
        dims=dims,
        scaling=_read_scaling(inside, rope, dims),
    )


def _read_scaling(fields: Fields, rope: Mapping[str, Any], dims: int) -> Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its first name
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = ", ".join(["default", *SCALINGS])
        raise fields.error(f"scaling {kind!r} is not supported; supported are: {known}")
    longest = fields.count("max_position_embeddings", 2048)
    fallback = {"original_max_position_embeddings": longest, "max_position_embeddings": longest}
    values = {}
    for field in dataclasses.fields(SCALINGS[kind]):
        default = None if field.default is dataclasses.MISSING else field.default
        values[field.name] = fields.get(field.name, fallback.get(field.name, default))
    original = fields.count("original_max_position_embeddings", longest)
    if kind in ("yarn", "longrope") and values["factor"] is None:
        values["factor"] = longest / original
    for field in dataclasses.fields(SCALINGS[kind]):
        values[field.name] = _checked(fields, kind, field, values[field.name], dims)
    return SCALINGS[kind](**values)


def _checked(fields: Fields, kind: str, field: dataclasses.Field, value: Any, dims: int) -> Any:
    """One setting of a scaling in its own type."""
    name = field.name
    if value is None:
        if field.default is None:
            return None
        raise fields.error(f"{kind} scaling needs {name}")
    if field.type is bool:
        return Fields({name: value}, fields.where).flag(name)
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, list) or len(value) != dims // 2:
            raise fields.error(f"{name} must be a list of {dims // 2} numbers")
        return tuple(Fields({name: v}, fields.where).number(name) for v in value)
    number = Fields({name: value}, fields.where).number(name)
    return int(number) if field.type is int else number


def portable(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with RoPE in both spellings: transformers 4 does not read `rope_parameters`."""
    rope = hf.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return dict(hf)
    whole = rope.get("full_attention", rope)
    old = {"rope_theta": whole.get("rope_theta", 10000.0), "rope_scaling": None}
    scaling = {k: v for k, v in whole.items() if k not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    if "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in whole:
        old["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if hf.get("model_type") == "gpt_neox":
        old = {"rotary_emb_base": old["rope_theta"], "rope_scaling": old["rope_scaling"]}
        old["rotary_pct"] = whole.get("partial_rotary_factor", 0.25)
    return {**hf, **old}
