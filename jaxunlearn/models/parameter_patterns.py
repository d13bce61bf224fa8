"""Parameters by name: which leaves, and which of their layers, a regular expression matches."""

import re
from collections.abc import Mapping
from typing import Any

from jaxunlearn.errors import UserError

Path = tuple[str, ...]


def matching_layers(
    flat: Mapping[Path, Any], pattern: str | None, key: str
) -> dict[Path, list[int] | None]:
    """The leaves that a pattern names, and which of their layers; None for all of a leaf.

    It is searched for in names such as layers/mlp/down/kernel, and layers/5/mlp/down/kernel for
    one layer of a leaf.

    Args:
      flat: path to leaf; those under `layers` are stacked over layers on axis 0.
      pattern: regular expression; None: everything.
      key: the setting that it comes from, for messages.

    Raises:
      UserError: it is no regular expression, or matches nothing.
    """
    try:
        expression = re.compile(pattern or "")
    except re.error as error:
        raise UserError(f"{key}: not a regular expression: {error}") from None
    found: dict[Path, list[int] | None] = {}
    for path, leaf in flat.items():
        if expression.search("/".join(path)):
            found[path] = None
        elif path[0] == "layers":
            names = [f"layers/{layer}/{'/'.join(path[1:])}" for layer in range(leaf.shape[0])]
            layers = [layer for layer, name in enumerate(names) if expression.search(name)]
            if layers:
                found[path] = layers if len(layers) < len(names) else None
    if not found:
        raise UserError(
            f"{key}: {pattern!r} matches no parameter; there are "
            f"{', '.join('/'.join(path) for path in flat)} (layers/5/... names one layer)"
        )
    return found
