"""Requests to forget as adapter modules: a folder that keeps them, and models made of them.

A store is a folder with one PEFT folder for each module, index.json, the ordered list of what is
there, and config.json of the model that all are for, so that factors are read without its weights.
"""

import filecmp
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from flax.traverse_util import flatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models.adapter_algebra import concatenate, stack
from jaxunlearn.models.folders import read_json
from jaxunlearn.models.hf_config import portable
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter, Tree
from jaxunlearn.models.peft_adapter import SETTINGS, TENSORS, export_adapter, read_adapter
from jaxunlearn.validation import PLAIN_NAME
from jaxunlearn.writing import write_text

_INDEX, _CONFIG = "index.json", "config.json"


@dataclass(frozen=True)
class Module:
    """An adapter by name."""

    name: str
    """A plain folder name."""
    weight: float
    """What its delta is multiplied by where modules are put together; negative: taken off."""
    about: str = ""
    """Whom or what it is about, for people."""


class ModuleStore:
    """The modules of one model.

    Args:
      folder: need not be there yet; `write` makes it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def modules(self) -> list[Module]:
        """What is there, in the order in which it was first written.

        Raises:
          UserError: the index is damaged.
        """
        return [_module(one) for one in self._index()]

    def module(self, name: str) -> Module:
        """The entry of one.

        Raises:
          UserError: there is no such module.
        """
        return _module(self._entry(name))

    def path(self, name: str) -> Path:
        """A module's PEFT folder.

        Raises:
          UserError: there is no such module.
        """
        return self.folder / self._entry(name)["folder"]

    def rank(self, name: str) -> int:
        """A module's rank, the largest of its targets.

        Raises:
          UserError: there is no such module.
        """
        return self._entry(name)["rank"]

    def adapter(self, name: str) -> Adapter:
        """A module's adapter, bit for bit as it was written; where a file fuses projections that
        have adapters of their own (Phi-3, GPT-NeoX, GPT-2), another with the same function.

        Raises:
          UserError: there is no such module, or its folder is damaged.
        """
        return read_adapter(self.path(name), read_json(self.folder / "config.json"))

    def write(
        self, module: Module, adapter: Adapter, model: LanguageModel, base: str | Path
    ) -> None:
        """Keeps a module; one of this name that is there already is replaced, in its place.

        A kill leaves what was there or what is new: the new folder lies beside the old one until
        one write to the index decides. What is there already is not written again.

        Args:
          module: its entry.
          adapter: its factors, kept in float32.
          model: which the adapter is for; its params are not needed.
          base: folder or Hub id of that model's weights, for PEFT.

        Raises:
          UserError: the name is not plain, or the weight not finite.
        """
        if not PLAIN_NAME.fullmatch(module.name) or module.name in (_INDEX, _CONFIG):
            raise UserError(f"module {module.name!r}: must be a plain folder name without / in it")
        if not math.isfinite(module.weight):
            raise UserError(f"module {module.name}: its weight is {module.weight}; give a number")
        index = self._index()
        old = next((one for one in index if one["name"] == module.name), None)
        taken = None if old is None else old["folder"]
        # No plain name ends in ~: these two folders are this module's.
        place = f"{module.name}~" if taken == module.name else module.name
        if not (self.folder / _CONFIG).is_file():
            self._write_json(_CONFIG, portable(model.hf_config))
        made = export_adapter(
            replace(model, adapter=adapter), self.folder / place, base=base, overwrite=True
        )
        about = {**vars(module), "weight": float(module.weight)}
        new = {**about, "rank": _rank(adapter), "folder": place}
        if old == {**new, "folder": taken} and _same(made, self.folder / taken):
            rmtree(made)
            return
        self._write_json(_INDEX, [new if one is old else one for one in index] + [new] * (not old))
        if old is not None:
            rmtree(self.folder / taken, ignore_errors=True)

    def stacked(self, readers: Sequence[Sequence[str]] | None = None) -> Tree:
        """Adapters side by side for `generate(..., lora=, choice=)`: row by row another one.

        Args:
          readers: the names of the modules that count for each reader, at their weights; choice i
            is reader i, and -1 the model without any. None: one reader for each module, in the
            order of `modules`.

        Raises:
          UserError: there is no such module, or a reader has none.
        """
        if readers is None:
            readers = [[module.name] for module in self.modules()]
        for number, names in enumerate(readers):
            if not names:
                raise UserError(f"reader {number} has no module; leave it out and choose -1")
        names = {name for names in readers for name in names}
        parts = {name: (self._entry(name)["weight"], self.adapter(name)) for name in sorted(names)}
        rows = [zip(*(parts[name] for name in names), strict=True) for names in readers]
        return stack([concatenate(adapters, weights) for weights, adapters in rows])

    def _index(self) -> list[dict[str, Any]]:
        path = self.folder / _INDEX
        if not path.is_file():
            return []
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            keys = {"name", "weight", "about", "rank", "folder"}
            if not all(one.keys() == keys for one in entries):
                raise ValueError(f"an entry has other keys than {', '.join(sorted(keys))}")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove {self.folder} and run again"
            ) from None
        return entries

    def _entry(self, name: str) -> dict[str, Any]:
        index = self._index()
        for one in index:
            if one["name"] == name:
                return one
        there = ", ".join(one["name"] for one in index) or "none"
        raise UserError(f"{self.folder}: no module {name!r}; there are: {there}")

    def _write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        write_text(self.folder / name, text)


def modules_folder(run: Path, label: str) -> Path:
    """Where a run keeps the modules of a method."""
    return run / "modules" / label


def composed(model: LanguageModel, parts: Sequence[tuple[float, Adapter]]) -> LanguageModel:
    """The model with one adapter, the weighted sum of the parts.

    Args:
      model: an adapter of its own counts as one more part of weight 1.
      parts: weight and adapter; those of weight 0 are left out, so that without any the model is
        itself to the bit.

    Raises:
      UserError: the adapters are of different models.
    """
    parts = [(weight, adapter) for weight, adapter in parts if weight != 0]
    if not parts:
        return model
    if model.adapter is not None:
        parts = [(1.0, model.adapter), *parts]
    weights, adapters = zip(*parts, strict=True)
    return replace(model, adapter=concatenate(adapters, weights))


def _module(entry: dict[str, Any]) -> Module:
    return Module(entry["name"], entry["weight"], entry["about"])


def _rank(adapter: Adapter) -> int:
    """The largest of its targets."""
    flat = flatten_dict(adapter.factors)
    return max(leaf.shape[-1] for path, leaf in flat.items() if path[-1] == "a")


def _same(one: Path, other: Path) -> bool:
    """Whether two PEFT folders hold the same adapter, byte for byte."""
    files = (SETTINGS, TENSORS)
    return not any(filecmp.cmpfiles(one, other, files, shallow=False)[1:])
