"""Folders and JSON files of models: written whole or not at all, read with one-line faults."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.errors import UserError


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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes its final name only when the block ends well.

    Raises:
      UserError: the folder is already there and `overwrite` is false.
    """
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
