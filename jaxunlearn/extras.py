"""Packages that only some features need, and that pip does not install with the library."""

from importlib.util import find_spec

from jaxunlearn.errors import UserError


def need(module: str, *, by: str, install: str) -> None:
    """Refuses to go on without a module, before any work is done.

    Args:
      module: as Python imports it.
      by: what needs it, such as a config key with its value.
      install: what pip is to install.

    Raises:
      UserError: it is not there; says what to type.
    """
    if find_spec(module) is None:
        raise UserError(f"{by} needs {module}, which is not installed; pip install {install}")
