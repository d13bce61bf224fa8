"""Runs Python code that nobody has read, such as a model's answers, where it can do no harm.

What holds however the code behaves is the kernel's doing: a seccomp filter that allows about thirty
system calls, those that computing, printing and ending need. There is no call among them that opens
a file, a socket, a process or a thread, and none that changes, reads or lists anything by its path,
sends a signal, or lifts a limit; root is held as anybody else. Besides there are limits on CPU
time, memory and output (setrlimit), a session and an empty working directory of its own, no
environment but a seed for hashes, no inherited files, and the parent, which ends the process group
in time.

The interpreter refuses the same things once more, by an audit hook (PEP 578). That gives clearer
errors and guards the verdict; it is no barrier against code that attacks the interpreter itself.

The verdict: printing anything, and ending early by whatever way, is no pass. The check is compiled
by itself, after the code, and a random token that the code has no reference to says that both came
to their end. Yet they share a process. Code that changes what its check relies on passes, such as a
result that says it equals everything or another `abs`; so might code that searches its own memory,
by a fault of the interpreter or what ctypes, which sets the filter up, leaves behind. That is a
wrong mark, and no way out.

There is no filter but on Linux, on x86-64 and aarch64. Elsewhere nothing is run.
"""

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jaxunlearn.errors import UserError
from jaxunlearn.sandbox_child import READY

_CHILD = Path(__file__).with_name("sandbox_child.py")
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class Limits:
    """What a run may use; it is one process of one thread, and has no files and no network."""

    seconds: float = 10.0
    """Of wall time, the start of the interpreter included."""
    cpu_seconds: int = 5
    memory_mb: int = 512
    """Address space, the interpreter included."""
    output_bytes: int = 64 * 1024
    """Standard output and error together; writing more fails."""


class Program(NamedTuple):
    """Code, and more code that runs after it with its names, such as its tests."""

    source: str
    check: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Literal["passed", "failed", "timeout"]
    """passed: the code and its check came to their end. failed: one raised an error, ended the
    process, or was ended by the kernel. timeout: wall or CPU time was over."""
    output: str
    """What it printed, errors too."""

    @property
    def passed(self) -> bool:
        """Whether the code and its check came to their end."""
        return self.status == "passed"


def run_python(source: str, check: str = "", *, limits: Limits = Limits()) -> Outcome:
    """Runs code and then its check, which sees its names, locked in as the module says.

    `__name__` is "program" in both, standard input is empty, and what can be imported are the
    pure modules of `sandbox_child.MODULES`. Strings hash the same in every run.

    Raises:
      UserError: this machine cannot lock a process in, so that nothing was run.
    """
    if sys.platform != "linux":
        raise _no_sandbox(f"this is {sys.platform}")
    token = secrets.token_hex(_TOKEN_BYTES // 2)
    request = {
        "source": source,
        "check": check,
        "token": token,
        "limits": dataclasses.asdict(limits)
        | {"output_bytes": limits.output_bytes + len(READY) + _TOKEN_BYTES},
    }
    with (
        tempfile.TemporaryDirectory() as empty,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as said,
    ):
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        # No site packages, no user's ones, nothing from the working directory, no output held back.
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-S", "-B", "-u", str(_CHILD)],
            stdin=asked,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=empty,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            code = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        output = said.read()
    over = code in (-signal.SIGALRM, -signal.SIGXCPU)
    if not output.startswith(READY) and not over:
        lines = output.decode(errors="replace").split("\n")
        raise _no_sandbox(" ".join(lines[-2:]).strip())
    passed = output.endswith(token.encode())
    text = output.removeprefix(READY).removesuffix(token.encode() if passed else b"")
    status = "passed" if passed else "timeout" if over else "failed"
    return Outcome(status, text.decode(errors="replace"))


def _no_sandbox(why: str) -> UserError:
    return UserError(
        f"sandbox: code cannot be locked in here ({why}), so none is run; use Linux with seccomp on"
        " x86-64 or aarch64, or leave data.execute out"
    )


def run_many(
    programs: Sequence[Program],
    *,
    workers: int | None = None,
    limits: Limits = Limits(),
) -> list[Outcome]:
    """Runs programs, each in a process of its own, so many at once; default: one per CPU core.

    Raises:
      UserError: as `run_python`.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda one: run_python(*one, limits=limits), programs))
