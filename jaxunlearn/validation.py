"""Plain data to typed, checked settings: the types that they have, and faults in our words."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator
from pydantic.fields import FieldInfo

from jaxunlearn.errors import UserError


def _no_switch(value: Any) -> Any:
    """Python takes true for 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_no_switch)]
Integer = Annotated[int, BeforeValidator(_no_switch)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Integer, Field(ge=1)]
# A hyper-parameter is traced as a float32, which holds no larger whole numbers exactly.
Whole = Annotated[Integer, Field(ge=0, le=2**24)]
T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)
"""Of every section of a config."""
PLAIN_NAME = re.compile(r"[\w][\w.+-]*")
"""What can be the name of a folder."""


def one_of(expected: str) -> WrapValidator:
    """Of a union type: one fault for a value that is of none of its types, instead of one each."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected}, found {value!r}") from None

    return WrapValidator(check)


Scalar = Annotated[float | int | bool | str, one_of("a number, true or false, or a text")]


def validate(schema: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    """Builds the typed `schema` from plain data.

    Raises:
      UserError: one line with `where`, the dotted key, the fault, and the allowed values.
    """
    try:
        return TypeAdapter(schema).validate_python(tree)
    except ValidationError as error:
        faults = "; ".join(_explain(schema, fault) for fault in error.errors())
        raise UserError(f"{where}: {faults}") from None


def refuse_changed(section: Any, keys: Mapping[str, Sequence[str]], by: str, chosen: str) -> None:
    """A key that means something only for other choices must be what it is when left out."""
    for key, choices in keys.items():
        if chosen in choices:
            continue
        default = section.__dataclass_fields__[key].default
        if isinstance(default, FieldInfo):
            default = default.get_default(call_default_factory=True)
        if getattr(section, key) != default:
            raise ValueError(
                f"{key} means nothing for {by} {chosen}; remove it, or choose {by} "
                f"{' or '.join(choices)}"
            )


def _explain(schema: type, fault: Mapping[str, Any]) -> str:
    """One pydantic fault in our words."""
    location = [str(part) for part in fault["loc"]]
    if "hyper" in location:
        # In YAML hyper-parameters stand beside the method's name.
        location.remove("hyper")
    key = ".".join(location) or "config"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(schema)
        section = ".".join(location[:-1])
        here = [k for k in known if k.rpartition(".")[0] == section]
        same_name = [k for k in known if k.rpartition(".")[2] == location[-1]]
        near = difflib.get_close_matches(location[-1], [k.rpartition(".")[2] for k in here], 1, 0.5)
        best = [f"{section}.{near[0]}" if section else near[0]] if near else []
        best = best or same_name or difflib.get_close_matches(key, known, 1, 0.0)
        return f"unknown key {key}; the closest known key is {' or '.join(best)}"
    if fault["type"] in ("dataclass_type", "dataclass_exact_type"):
        return f"{key}: expected a section of keys, found {kind_of(fault['input'])}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{key}: {message}" if location else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {fault['input']!r}"


def _known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a config class."""
    keys = []
    for field in dataclasses.fields(schema):
        keys.append(prefix + field.name)
        for part in (field.type, *getattr(field.type, "__args__", ())):
            if dataclasses.is_dataclass(part):
                keys += _known_keys(part, f"{prefix}{field.name}.")
    return keys


def kind_of(value: Any) -> str:
    """What a value of a YAML file is, for messages."""
    return {list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), f"{type(value).__name__} {value!r}"
    )
