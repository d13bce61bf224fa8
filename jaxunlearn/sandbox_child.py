"""The process in which `sandbox` runs untrusted code: it locks itself in, then runs it.

This file is run by itself, with nothing but the standard library, and talks to its parent over
standard input and output. It says READY before the code starts, and the parent's token after the
code has come to its end.
"""

import builtins
import gc
import json
import os
import platform
import signal
import sys
import time
from _thread import _count as thread_count
from _thread import allocate_lock, get_ident, stack_size, start_new_thread
from collections.abc import Mapping
from functools import partial
from operator import call
from typing import Any

READY = b"ready\n"
MODULES = (
    "_strptime", "abc", "array", "base64", "binascii", "bisect", "calendar", "cmath", "collections",
    "collections.abc", "contextlib", "copy", "dataclasses", "datetime", "decimal", "difflib",
    "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers",
    "operator", "queue", "random", "re", "statistics", "string", "struct", "sys", "textwrap",
    "time", "types", "typing", "unicodedata", "zlib",
)  # fmt: skip
"""What the code can import: loaded before it starts, for no file can be opened afterwards."""
STACK_BYTES = 16 * 2**20

# Names and numbers of the system calls that computing and printing need; all others fail.
_CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25, "madvise": 28,
        "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98,
        "sigaltstack": 131, "gettid": 186, "futex": 202, "restart_syscall": 219,
        "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
        "set_robust_list": 273, "getrandom": 318, "rseq": 334,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "mmap": 222, "mprotect": 226, "munmap": 215,
        "brk": 214, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216,
        "madvise": 233, "nanosleep": 101, "getpid": 172, "exit": 93, "gettimeofday": 169,
        "getrusage": 165, "sigaltstack": 132, "gettid": 178, "futex": 98, "restart_syscall": 128,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "exit_group": 94,
        "set_robust_list": 99, "getrandom": 278, "rseq": 293,
    },
}  # fmt: skip
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# linux/prctl.h, linux/seccomp.h and linux/bpf_common.h
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: with EPERM
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data

# Events of PEP 578 that computing and printing raise; all others are refused.
_EVENTS = frozenset(
    {
        "array.__new__", "builtins.id", "builtins.input", "builtins.input/result", "compile",
        "exec", "import", "object.__delattr__", "object.__getattr__", "object.__setattr__",
        "sys._getframe", "sys._getframemodulename", "sys.excepthook", "sys.unraisablehook",
        "time.sleep",
    }
)  # fmt: skip
# Attributes that lead from an object to the frames of the thread that it is used in.
_FRAMES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})


def limit_resources(limits: Mapping[str, Any]) -> None:
    """Sets the kernel's limits on this process; see `sandbox.Limits` for the keys."""
    import resource  # only here: the parent reads this file's names, where there may be none

    for kind, most in (
        (resource.RLIMIT_AS, limits["memory_mb"] * 2**20),
        (resource.RLIMIT_FSIZE, limits["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    # At the first SIGXCPU, which tells the parent why; at the second SIGKILL.
    most = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    # The parent ends this process in time; the timer does so where the parent has died.
    signal.setitimer(signal.ITIMER_REAL, 2 * limits["seconds"])


def filter_calls() -> None:
    """Lets the kernel refuse every system call of all threads but those of _CALLS, for ever.

    Raises:
      OSError: the kernel cannot do that.
    """
    import ctypes  # only here: what runs later is not to find it

    machine = platform.machine()
    if sys.platform != "linux" or machine not in _CALLS:
        raise OSError(f"no list of system calls for {sys.platform} on {machine}")
    numbers = sorted(_CALLS[machine].values())
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, _ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]

    class Step(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_uint16),
            ("yes", ctypes.c_uint8),
            ("no", ctypes.c_uint8),
            ("value", ctypes.c_uint32),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(Step)))

    program = Program(len(steps), (Step * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel has no PR_SET_NO_NEW_PRIVS")
    number = ctypes.c_long(_SECCOMP[machine])
    if libc.syscall(number, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def refuse_events() -> None:
    """Lets the interpreter refuse what is not of _EVENTS, and in this thread all but waiting."""
    # Locals of this call: the module's names and the built-in ones can be replaced by the code.
    allowed, frames, error = _EVENTS, _FRAMES, PermissionError
    main, current = get_ident(), get_ident

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event not in allowed or (current() == main and event != "time.sleep"):
            raise error(f"the sandbox refuses {event}")
        if event == "object.__getattr__" and values[1] in frames:
            raise error(f"the sandbox refuses {values[1]}")

    sys.addaudithook(hook)


def run(source: str, check: str, token: bytes) -> None:
    """Runs the code and then its check, and writes the token if both come to their end.

    They run in a thread whose stack has no Python frame but theirs, for a frame could be followed
    to the token. This thread looks up nothing that they can have put something else in the place
    of, and raises no event but that of waiting.
    """
    write, leave, wait, running = os.write, os._exit, time.sleep, thread_count
    namespace: dict[str, Any] = {"__name__": "program"}
    started, gate, ended = allocate_lock(), allocate_lock(), []
    started.acquire()
    gate.acquire()
    steps = (
        started.release,
        gate.acquire,
        partial(builtins.exec, source, namespace),
        partial(builtins.exec, check, namespace),
        partial(ended.append, True),
    )
    stack_size(STACK_BYTES)
    # An error ends the list before its last step, and is shown with `list` alone as its origin.
    start_new_thread(list, (map(call, steps),))
    started.acquire()
    filter_calls()
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    gc.collect()
    write(1, READY)
    refuse_events()
    gate.release()
    while running():
        wait(0.002)
    if ended:
        write(1, token)
    leave(0)


def main() -> None:
    """Reads a request of `sandbox.run_python` and obeys it."""
    with os.fdopen(os.dup(0), "rb") as stream:
        request = json.load(stream)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for name in MODULES:
        __import__(name)
    limit_resources(request["limits"])
    run(request["source"], request["check"], request["token"].encode())


if __name__ == "__main__":
    main()
