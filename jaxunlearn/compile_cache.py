"""Compiled programs are kept between commands, in a folder of the user's."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

SWITCH = "JAXUNLEARN_COMPILE_CACHE"


def use_cache(asked: bool = True) -> str | None:
    """Has JAX keep its programs in the user's cache folder; to be called before JAX is imported.

    A folder or switch of JAX's own, set in the environment, goes first.

    Args:
      asked: whether it is wanted; the environment may say off all the same.

    Returns:
      What to tell the user, if it cannot be.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    if not asked or os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no"):
        return None
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        return (
            f"{folder}: cannot be written to, so that every command compiles its programs anew;"
            f" set XDG_CACHE_HOME, or {SWITCH}=off to end this note"
        )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    return None


def cache_folder() -> Path:
    """Of this version of JAX on this kind of CPU: programs of another one may crash."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    kind = hashlib.sha256(_cpu().encode()).hexdigest()[:8]
    return Path(base) / "jaxunlearn" / f"jax-{version('jax')}-{platform.machine()}-{kind}"


def _cpu() -> str:
    """What the CPU can do, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
