"""A user's own function, named in the config as path/to/file.py:function."""

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxunlearn.errors import UserError


def names_user_function(name: str) -> bool:
    """Whether this is written as path/to/file.py:function."""
    file, colon, _ = name.rpartition(":")
    return bool(colon) and file.endswith(".py")


def user_function(name: str, *, key: str) -> Callable[..., Any]:
    """The function that path/to/file.py:function names; its file is run once, until it changes.

    Args:
      name: a relative path starts from the working directory.
      key: the config key that holds the name, for messages.

    Raises:
      UserError: the name is not of this form, or its file cannot be used.
    """
    if not names_user_function(name):
        raise UserError(f"{key}: found {name!r}; name a function as path/to/file.py:function")
    file, _, function = name.rpartition(":")
    path = Path(file).absolute()
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    try:
        module = _module(path, file_version(name))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{key}: {path} cannot be run: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{key}: {file} has no function {function!r}")
    return found


def file_version(name: str) -> str:
    """A hash of the file that path/to/file.py:function names."""
    return hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()[:16]


@functools.cache
def _module(file: Path, version: str) -> ModuleType:
    # A changed file is another module, also to a checkpoint.
    name = f"jaxunlearn_user_{file.stem}_{version}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
