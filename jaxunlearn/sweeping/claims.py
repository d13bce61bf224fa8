"""Who does what, when several processes work on one folder: files that only one can make."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

BEAT = 10.0
"""Seconds between two signs of life of a claim."""
PATIENCE = 180.0
"""Seconds without one, after which a claim of another machine is void. Network file systems may
show a file's time a minute late."""


class Claims:
    """Claims on named pieces of work, in a folder that several processes share; a context manager,
    which gives all claims back at its end.

    A claim is a file `NAME/NUMBER` that is made exclusively; the one with the highest number holds.
    Nobody removes or changes the file of another, so that a void claim is taken over by one process
    only: by the one that makes the next number.

    Args:
      folder: made when missing; there may be one on a network file system.
      beat: seconds between two signs of life of this process.
      patience: seconds without a sign of life of another one.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self._folder, self._beat, self._patience = folder, beat, patience
        self._held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._heart.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Whether this process has the work of that name to itself now.

        Who gets it must look once more whether it is done: its last holder may have ended just now.
        """
        if name in self._held:
            return True
        place = self._folder / name
        place.mkdir(parents=True, exist_ok=True)
        known = sorted(place.iterdir())
        if known and not self._void(known[-1]):
            return False
        path = place / f"{int(known[-1].name) + 1 if known else 1:06}"
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump({"machine": _machine(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        self._held[name] = path
        return True

    def release(self, name: str) -> None:
        """Gives a claim back; one that this process does not have is left as it is."""
        path = self._held.pop(name, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def _void(self, path: Path) -> bool:
        """Whether the maker of a claim is gone: a process of this machine that is not there any
        more, or one that gives no sign of life."""
        try:
            changed = path.stat().st_mtime_ns
            holder = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except ValueError:
            holder = {}  # it is being written
        if holder.get("machine") == _machine() and not _alive(holder["pid"]):
            return True
        # By this process's clock alone: those of two machines differ.
        before, since = self._seen.get(path, (None, 0.0))
        if changed != before:
            self._seen[path] = changed, time.monotonic()
            return False
        return time.monotonic() - since > self._patience

    def _live(self) -> None:
        while not self._over.wait(self._beat):
            for path in list(self._held.values()):
                try:
                    os.utime(path)
                except OSError:
                    continue  # given back meanwhile, or the file system does not answer


def _machine() -> str:
    """What process numbers belong to: a machine, or a container on it."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(space) if space.is_symlink() else ''}".strip()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
