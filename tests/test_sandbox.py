"""Hostile code gets nothing done, and no verdict that it did not earn."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from jaxunlearn import sandbox, sandbox_child
from jaxunlearn.errors import UserError
from jaxunlearn.sandbox import Limits, Program, run_many, run_python

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in sandbox_child._CALLS,
    reason="seccomp is Linux's, and its calls are listed for x86-64 and aarch64",
)
TOKEN = "f0" * 16


@pytest.fixture
def token(monkeypatch):
    """The token of the next runs, so that a theft of it shows in their output."""
    monkeypatch.setattr(sandbox.secrets, "token_hex", lambda n: TOKEN)
    return TOKEN


def test_code_that_comes_to_its_end():
    outcome = run_python("import math\nx = math.factorial(5)\nprint('x is', x)", "assert x == 120")
    assert (outcome.status, outcome.passed, outcome.output) == ("passed", True, "x is 120\n")
    assert run_python("").passed
    assert not run_python("x = 119", "assert x == 120").passed
    assert run_python("print('so far')\n1 / 0").output.startswith("so far\nException")
    wrong = run_python("def f(:")
    assert wrong.status == "failed" and "SyntaxError" in wrong.output
    assert run_python("a = '\x00'").status == run_python("a = '\ud800'").status == "failed"


def test_what_code_needs_is_there():
    outcome = run_python(
        """
        from collections import Counter, namedtuple
        from dataclasses import dataclass
        from datetime import datetime
        import array, bisect, cmath, copy, hashlib, heapq, itertools, json, operator, random, re
        import statistics, string, sys, typing
        from enum import Enum
        Point = namedtuple("Point", "x y")
        @dataclass
        class Box:
            side: int
        Colour = Enum("Colour", "RED BLUE")
        assert datetime.strptime("2020-02-03", "%Y-%m-%d").day == 3
        assert hashlib.md5(b"a").hexdigest().startswith("0cc1")
        assert Counter("aab")["a"] == 2 and Box(2) == Box(2) and Point(1, 2).y == 2
        assert statistics.median([1, 5, 2]) == 2 and re.findall("a.", "abac") == ["ab", "ac"]
        def deep(n):
            return n and deep(n - 1)
        assert deep(900) == 0
        try:
            input()
        except EOFError:
            print(__name__, Colour.RED.name)
        """.replace("\n        ", "\n")
    )
    assert (outcome.status, outcome.output) == ("passed", "program RED\n")


def test_strings_hash_the_same_in_every_run():
    first, second = (run_python("print(hash('a'), list(set('abcdef')))").output for _ in "12")
    assert first == second


ATTEMPTS = (
    "open({secret!r}).read()",
    "open({secret!r}, 'w')",
    "open({new!r}, 'w')",
    "open('/proc/self/mem', 'r+b')",
    "os.open({secret!r}, os.O_RDONLY)",
    "os.remove({secret!r})",
    "os.rename({secret!r}, {new!r})",
    "os.truncate({secret!r}, 0)",
    "os.mkdir({new!r})",
    "os.symlink({secret!r}, {new!r})",
    "os.chmod({secret!r}, 0)",
    "os.stat({secret!r})",
    "os.listdir('/')",
    "os.chdir('/')",
    "os.getcwd()",
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "os.posix_spawn('/bin/true', ['true'], {{}})",
    "os.system('true') == 0 or 1 / 0",
    "os.popen('true')",
    "import subprocess",
    "import _posixsubprocess",
    "import multiprocessing",
    "import _thread; _thread.start_new_thread(print, ())",
    "import threading; threading.Thread(target=print).start()",
    "import socket",
    "import _socket; _socket.socket()",
    "import urllib.request",
    "import ctypes",
    "import mmap; mmap.mmap(-1, 4096)",
    "os.kill({parent}, 15)",
    "os.kill({parent}, 0)",
    "os.killpg(0, 9)",
    "import signal; signal.setitimer(signal.ITIMER_REAL, 0)",
    "sys.modules['resource'].setrlimit(0, (9**9, 9**9))",
    "os.nice(-5)",
    "os.setsid()",
    "os.pipe()",
    "os.dup(1)",
    "os.memfd_create('x')",
    "os.lseek(0, 0, 0)",
    "os.write({inherited}, b'x')",
    "os.read({inherited}, 1)",
    "sys.addaudithook(print); 1 / 0",
    "sys.settrace(print)",
    "__import__('gc').get_objects()",
    "[c for c in object.__subclasses__() if c.__name__ == 'CDLL'][0](None)",
)


def test_what_code_cannot_do(tmp_path):
    secret, new = tmp_path / "secret.txt", tmp_path / "new"
    secret.write_text("the launch code")
    inherited = os.open(secret, os.O_RDWR)
    os.set_inheritable(inherited, True)
    names = {"secret": str(secret), "new": str(new), "parent": os.getpid(), "inherited": inherited}
    attempts = [attempt.format(**names) for attempt in ATTEMPTS]
    outcome = run_python(
        f"import os, sys\ndone = []\nfor attempt in {attempts!r}:\n"
        "    try:\n        exec(attempt)\n        done.append(attempt)\n"
        "    except Exception:\n        pass\nprint(len(done), done)"
    )
    os.close(inherited)
    assert (outcome.status, outcome.output) == ("passed", "0 []\n")
    assert secret.read_text() == "the launch code" and not new.exists()


def test_the_kernel_refuses_every_other_call_whatever_the_interpreter_does():
    """All numbers below 1024 and their x32 twins, by machine code and with no audit hook."""
    code = f"""
import ctypes, json, os, platform, sys
sys.path.insert(0, {os.path.dirname(sandbox_child.__file__)!r})
import sandbox_child
sandbox_child.filter_calls()
libc = ctypes.CDLL(None, use_errno=True)
allowed = set(sandbox_child._CALLS[platform.machine()].values())
allowed |= {{335, 336}}  # uprobes: newer kernels pass them by every filter, and end the caller
wrong = []
for number in sorted(set(range(1024)) - allowed) + [n | 0x40000000 for n in range(1024)]:
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        wrong.append(number)
print(json.dumps(wrong))
sys.stdout.flush()
os._exit(0)
"""
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert json.loads(ran.stdout) == [], ran.stderr


def test_the_calls_are_named_as_the_kernel_numbers_them():
    """So few are allowed that each can be looked at; none of them opens, starts or sends."""
    tables = sandbox_child._CALLS
    assert set(tables["x86_64"]) == set(tables["aarch64"])
    risky = ("open", "socket", "connect", "clone", "fork", "exec", "kill", "link", "trace", "limit")
    assert not [name for name in tables["x86_64"] if any(word in name for word in risky)]
    assert all(len(set(table.values())) == len(table) for table in tables.values())


def running_children():
    children = []
    for process in psutil.process_iter(["cmdline"]):
        if str(sandbox._CHILD) in (process.info["cmdline"] or ()):
            children.append(process)
    return children


@pytest.mark.parametrize(
    "body",
    [
        "os.fork()",
        "os.forkpty()",
        "threading.Thread(target=bomb).start()",
        "subprocess()",
    ],
)
def test_a_fork_bomb_is_one_process(body):
    source = f"""
    import os, threading
    def bomb():
        while True:
            try:
                {body}
            except BaseException:
                pass
    bomb()
    """
    before = len(running_children())
    started = time.monotonic()
    assert run_python(textwrap.dedent(source), limits=Limits(seconds=1)).status == "timeout"
    assert time.monotonic() - started < 5
    assert len(running_children()) <= before


@pytest.mark.slow
def test_endless_code_is_ended():
    assert run_python("while True: pass", limits=Limits(seconds=0.8)).status == "timeout"
    assert run_python("while True: pass", limits=Limits(seconds=30, cpu_seconds=1)).status == (
        "timeout"
    )
    asleep = "import time\nwhile True: time.sleep(9)"
    assert run_python(asleep, limits=Limits(seconds=0.8)).status == "timeout"
    stubborn = "while True:\n try:\n  while True: open('/etc/passwd')\n except BaseException: pass"
    assert run_python(stubborn, limits=Limits(seconds=0.8)).status == "timeout"
    # One step of C code, which no exception of the interpreter could end.
    assert run_python("x = 7 ** 10 ** 9", limits=Limits(seconds=0.8)).status == "timeout"


def test_code_outlives_its_parent_not_for_long():
    limits = {"seconds": 0.5, "cpu_seconds": 9, "memory_mb": 512, "output_bytes": 9}
    request = {"source": "while True: pass", "check": "", "token": TOKEN, "limits": limits}
    ran = subprocess.run(
        [sys.executable, str(sandbox._CHILD)],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=9,
    )
    assert (ran.returncode, ran.stdout) == (-signal.SIGALRM, sandbox_child.READY)


@pytest.mark.parametrize("body", ["x = bytearray(2**30)", "x = [0]\nwhile True: x += x"])
def test_a_balloon_bursts(body):
    outcome = run_python(body, limits=Limits(memory_mb=256))
    assert outcome.status == "failed" and "MemoryError" in outcome.output
    assert run_python("x = bytearray(2**26)", limits=Limits(memory_mb=256)).passed


def test_output_is_bounded():
    limits = Limits(output_bytes=1000)
    assert run_python("print('a' * 999)", limits=limits).output == "a" * 999 + "\n"
    flood = "while True:\n try: print('a' * 10000, flush=True)\n except OSError: pass"
    outcome = run_python(flood, limits=Limits(output_bytes=1000, seconds=1))
    assert not outcome.passed and len(outcome.output) <= 1000 + len(TOKEN)
    assert run_python("print('a' * 2000)", limits=limits).status == "failed"


def test_nothing_is_inherited_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "the launch code")
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    outcome = run_python("import os, sys\nprint(sorted(os.environ), sys.argv[1:], sys.path)")
    assert "SECRET" not in outcome.output and str(tmp_path) not in outcome.output
    assert "site-packages" not in outcome.output
    assert not list(tmp_path.iterdir())


STEAL = """
def look(frame):
    while frame is not None:
        for names in (frame.f_locals, frame.f_globals):
            for value in list(names.values()):
                if isinstance(value, bytes): print('found', value)
        frame = frame.f_back
"""


@pytest.mark.parametrize(
    "body",
    [
        "print('passed'); print('ready'); print('0' * 64)",
        "import os; os.write(1, b'ready\\n' + b'0' * 64)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os; os.abort()",
        "x = '''",
        "if False:",
        "import _thread, time; _thread.interrupt_main(); time.sleep(1)",
        "import sys\nsys.unraisablehook = lambda a: a.object.__self__.append(1)",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None",
        "import builtins\nbuiltins.len = builtins.bool = lambda *a: 1",
        "import sys, time\ntime.sleep = lambda s: look(sys._getframe())\nfor _ in range(10**6): 0",
        "import sys\nlook(sys._getframe())",
        "try:\n    1 / 0\nexcept Exception as error:\n    look(error.__traceback__.tb_frame)",
        "import sys\nfor frame in sys._current_frames().values(): look(frame)",
        "import gc\nfor x in gc.get_objects():\n    if type(x) is list and not x: x.append(1)",
        "import gc\nprint(gc.get_referrers(gc.get_referrers))",
        "import sys\nprint([x for x in vars(sys.modules['__main__']).values()])",
        "import os\ntry: os.lseek(0, 0, 0)\nexcept OSError: pass\nprint(os.read(0, 9999))",
        "import sys, threading\nthreading.setprofile(look)\nsys.setprofile(look)",
        "import sys, time, _thread\nkept = []\n"
        "sys.excepthook = lambda k, e, trace: kept.append(trace) or time.sleep(2)\n"
        "_thread.interrupt_main()\nwhile not kept: time.sleep(0.1)\ntrace = kept[0]\n"
        "while trace: look(trace.tb_frame); trace = trace.tb_next",
        "import gc, sys\ngc.callbacks.append(lambda *a: look(sys._getframe()))\n"
        "gc.set_threshold(1)\nx = [[] for _ in range(10**5)]",
        "class A:\n    def __del__(self):\n        global kept\n        try: 1 / 0\n"
        "        except Exception as error: kept = error\n"
        "for _ in range(1000):\n    a = A(); a.a = a\n"
        "look(kept.__traceback__.tb_frame)",
    ],
)
def test_a_verdict_cannot_be_forged(token, body):
    outcome = run_python(
        f"answer = 41\n{STEAL}\n{body}", "assert answer == 42", limits=Limits(seconds=3)
    )
    assert not outcome.passed and token not in outcome.output


def test_many_at_once_in_order():
    programs = [Program(f"import time; time.sleep(2); x = {i}", "assert x") for i in range(2)]
    started = time.monotonic()
    assert [one.passed for one in run_many(programs, workers=2)] == [False, True]
    assert time.monotonic() - started < 3.9
    assert run_many([]) == []


def test_where_nothing_can_be_locked_in_nothing_is_run(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    monkeypatch.setattr(sandbox, "_CHILD", child)
    child.write_text("raise OSError('the kernel takes no seccomp filter')")
    with pytest.raises(UserError, match=r"locked in here .*no seccomp filter.* Linux") as e:
        run_python("print(1)")
    assert "\n" not in str(e.value)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(UserError, match=r"this is darwin.*; use Linux"):
            run_python("print(1)")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="no list of system calls for linux on riscv64"):
        sandbox_child.filter_calls()
