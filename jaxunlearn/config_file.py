"""A YAML file plus dotted overrides to a typed config, and back."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxunlearn.config import Experiment
from jaxunlearn.errors import UserError
from jaxunlearn.validation import kind_of, validate

# Keys of a method's section that are no hyper-parameters of the method.
METHOD_KEYS = ("training", "sampling", "label", "version")
# What `jaxunlearn run` does when no file is given.
QUICKSTART: Mapping[str, Any] = {
    "finetune": {"epochs": 48, "batch_size": 32, "learning_rate": 3e-3},
    "method": {"name": "npo", "beta": 0.3, "retain_weight": 5.0},
    "baselines": [{"name": "grad_diff", "retain_weight": 5.0}],
    "training": {"epochs": 30, "batch_size": 20, "learning_rate": 2e-4},
    "evaluation": {"max_new_tokens": 24},
}


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads a YAML file (None: the built-in quickstart) and applies dotted overrides.

    Args:
      path: YAML file, read with the safe loader.
      overrides: dotted key to value, such as {"training.epochs": 3}; lists are indexed by number.
        Another `method.name` starts that section anew.

    Raises:
      UserError: for a missing or malformed file, an unknown key (names the closest known one), and
        a wrong type or range (names the key and what is allowed).
    """
    tree = dict(QUICKSTART) if path is None else _read_yaml(Path(path))
    tree = copy.deepcopy(tree)
    section, name = tree.get("method"), (overrides or {}).get("method.name")
    if name is not None and isinstance(section, dict) and section.get("name") != name:
        # The hyper-parameters that stand there are another method's.
        tree["method"] = {}
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    where = "built-in quickstart" if path is None else str(path)
    if not tree.get("name"):
        tree["name"] = "quickstart" if path is None else Path(path).stem
    return validate(Experiment, _nest_hyper(tree), where=where)


def dump(experiment: Experiment) -> dict[str, Any]:
    """The resolved config as plain data; `load` of its YAML gives the same experiment."""
    tree = dataclasses.asdict(experiment)
    flat = [
        {
            "name": m["name"],
            **m["hyper"],
            **{key: m[key] for key in METHOD_KEYS if m[key]},
        }
        for m in (tree["method"], *tree["baselines"])
    ]
    return {**tree, "method": flat[0], "baselines": flat[1:]}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the config file ({error.strerror}); give the path of a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {fault}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, found {kind_of(tree)}")
    return tree


def _set(tree: Any, dotted: str, value: Any) -> None:
    """Sets one dotted key in nested dicts and lists, making the sections on the way."""
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(tree, list):
            tree = tree[_index(tree, part, dotted)]
        else:
            # `parallel` is a word or, in its place, a mesh.
            if tree.get(part) is None or (part == "parallel" and isinstance(tree[part], str)):
                tree[part] = {}
            tree = tree[part]
        if not isinstance(tree, dict | list):
            raise UserError(f"--{dotted}: {part} is a single value, it has no keys below it")
    if isinstance(tree, list):
        tree[_index(tree, last, dotted)] = value
    else:
        tree[last] = value


def _index(items: list, part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(
            f"--{dotted}: {part!r} is no place in a list of {len(items)}; "
            f"use a number from 0 to {len(items) - 1}"
        )
    return int(part)


def _nest_hyper(tree: dict[str, Any]) -> dict[str, Any]:
    """Moves the keys beside a method's `name` into its `hyper` mapping."""

    def nest(method: Any) -> Any:
        if not isinstance(method, dict):
            return method
        own = {k: v for k, v in method.items() if k in ("name", *METHOD_KEYS)}
        return {**own, "hyper": {k: v for k, v in method.items() if k not in own}}

    tree = dict(tree)
    if "method" in tree:
        tree["method"] = nest(tree["method"])
    if isinstance(tree.get("baselines"), list):
        tree["baselines"] = [nest(method) for method in tree["baselines"]]
    return tree
