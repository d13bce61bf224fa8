"""Several processes as one program, and leaving in order when the machine is taken away.

Every process runs the same code on the same data. What one process decides by itself, such as how
long something took, must not change which programs it starts: the others would wait for ever.
"""

import atexit
import contextlib
import hashlib
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxunlearn.errors import UserError

_asked = threading.Event()
_connected = False
_deferred = 0
_questions = 0


class PreemptedError(BaseException):
    """The process was asked to leave; what it had done is saved.

    Not an Exception, as little as KeyboardInterrupt is: it may be raised within any library, which
    must not take it for a fault of its own.
    """


def connect(where: str) -> None:
    """Makes this process one of several; before anything else that JAX does.

    Args:
      where: "auto" on TPU pods, Slurm, GKE and the like, where JAX knows the others; elsewhere
        "HOST:PORT,N,I": address of process 0, number of processes, number of this one.

    Raises:
      UserError: the address is malformed, or the others could not be found.
    """
    if where == "auto":
        arguments: tuple[Any, ...] = ()
    else:
        parts = where.split(",")
        host, _, port = parts[0].rpartition(":")
        numbers = (port, *parts[1:])
        if len(parts) != 3 or not host or not all(p.isdecimal() for p in numbers):
            raise UserError(
                f"--distributed: {where!r} is not HOST:PORT,N,I, such as 10.0.0.1:1234,2,0"
            )
        if not 0 < int(port) < 2**16:
            raise UserError(f"--distributed: there is no port {port}; use 1 to {2**16 - 1}")
        arguments = (parts[0], int(parts[1]), int(parts[2]))
        if arguments[2] >= arguments[1]:
            raise UserError(
                f"--distributed: process {arguments[2]} of {arguments[1]}; they count from 0"
            )
        # JAX waits for up to five minutes, and says nothing.
        print(f"waiting for all {arguments[1]} processes at {parts[0]}", file=sys.stderr)
    global _connected
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--distributed: the processes could not be connected ({first}); outside of a cluster"
            " that JAX knows give HOST:PORT,N,I"
        ) from None
    _connected = True


def own_folder(folder: Path) -> Path:
    """Where this process writes what belongs into a folder that all see.

    The first process writes to the folder itself. The others, which compute the same, write to a
    copy of what is there, so that all see the same as they go on; it is removed at their end.
    """
    if not several():
        return folder
    meet(f"before {folder}")
    mine = folder
    if not is_first():
        place = Path(tempfile.mkdtemp(prefix="jaxunlearn-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        mine = place / folder.name
        if folder.is_dir():
            left_out = shutil.ignore_patterns("checkpoints", "traces", ".*")
            shutil.copytree(folder, mine, ignore=left_out)
    meet(f"after {folder}")
    return mine


def several() -> bool:
    """Whether other processes compute the same."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what there is to be one of."""
    return jax.process_index() == 0


def need_same(what: str, told: str) -> None:
    """All processes must have come here with the same text.

    Raises:
      UserError: they have not; in all of them.
    """
    if not several():
        return
    digest = np.frombuffer(hashlib.sha256(told.encode()).digest(), np.uint8).astype(np.int32)
    found = multihost_utils.process_allgather(digest)
    if (found != found[0]).any():
        raise UserError(
            f"--distributed: {what} differs between the processes; start the same command with the"
            " same files everywhere"
        )


def meet(where: str) -> None:
    """Waits until all processes are here."""
    if several():
        multihost_utils.sync_global_devices(where)


def agreed(number: float) -> float:
    """The first process's number, for all."""
    if not several():
        return number
    return float(multihost_utils.broadcast_one_to_all(jax.numpy.float32(number)))


def listen() -> None:
    """From now on SIGTERM is a request to leave. Connected processes listen already."""
    if not _connected and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_signal)
        # While Python ends there is nothing left to leave.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """A request to leave is only noted in here, for `asked_to_leave`; elsewhere it is followed at
    once."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def asked_to_leave() -> bool:
    """Whether this process, or any of several, was asked to; all of them get the same answer.

    All processes must call it as often.
    """
    global _questions
    if not _connected:
        return _asked.is_set()
    _questions += 1
    return bool(multihost_utils.reached_preemption_sync_point(_questions))


def leave(what: str) -> None:
    """Ends the program.

    Raises:
      PreemptedError: always.
    """
    raise PreemptedError(f"preempted {what}; the same command goes on from there")


def _on_signal(number: int, frame: Any) -> None:
    _asked.set()
    if not _deferred:
        leave("between two trainings")
