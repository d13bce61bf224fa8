"""Claims: one process has a piece of work, and the work of one that is gone is taken over."""

import json
import os
import subprocess
import sys
import time

import pytest

from jaxunlearn.sweeping.claims import Claims

RACE = """
import sys, time
from pathlib import Path
from jaxunlearn.sweeping.claims import Claims
folder, start = Path(sys.argv[1]), float(sys.argv[2])
with Claims(folder) as claims:
    while time.time() < start:
        pass
    won = [name for name in map(str, range(40)) if claims.take(name)]
    time.sleep(1)  # until all have tried
print(*won)
"""


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def claim_of(folder, name, **holder):
    """A claim that another process has made."""
    with Claims(folder) as claims:
        assert claims.take(name)
        (path,) = (folder / name).iterdir()
        text = {**json.loads(path.read_text()), **holder}
    path.write_text(json.dumps(text))
    return path


def test_one_has_it_until_it_gives_it_back(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("work") and one.take("work")
        assert not other.take("work")
        assert other.take("other work")
        other.release("work")  # not its own
        assert not other.take("work")
        one.release("work")
        assert other.take("work") and not one.take("work")
    with Claims(tmp_path) as later:
        assert later.take("work")


def races(folder, processes=4):
    start = str(time.time() + 3)
    command = [sys.executable, "-c", RACE, str(folder), start]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return [name for process in started for name in process.communicate()[0].split()]


@pytest.mark.slow
def test_of_several_processes_one_wins(tmp_path, gone):
    assert sorted(races(tmp_path / "new"), key=int) == list(map(str, range(40)))
    for name in map(str, range(40)):
        claim_of(tmp_path / "left", name, pid=gone)
    assert sorted(races(tmp_path / "left"), key=int) == list(map(str, range(40)))


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, gone):
    claim_of(tmp_path, "dead", pid=gone)
    claim_of(tmp_path, "living", pid=os.getppid())
    with Claims(tmp_path) as claims, Claims(tmp_path) as late:
        assert claims.take("dead") and not claims.take("living")
        assert not late.take("dead")


def test_another_machine_is_judged_by_its_signs_of_life(tmp_path, gone):
    """Its process numbers say nothing here, and neither do its clock and ours."""
    path = claim_of(tmp_path, "work", machine="elsewhere", pid=gone)
    os.utime(path, (0, 0))
    with Claims(tmp_path, patience=0.2) as claims:
        for _ in range(3):
            assert not claims.take("work")
            os.utime(path)
            time.sleep(0.25)
        assert not claims.take("work")
        time.sleep(0.25)
        assert claims.take("work")


def test_a_holder_gives_signs_of_life(tmp_path):
    with Claims(tmp_path, beat=0.02) as claims:
        claims.take("work")
        (path,) = (tmp_path / "work").iterdir()
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert path.stat().st_mtime > 0
    assert not path.exists()


def test_a_claim_that_is_being_written_is_respected(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "000001").write_text("")
    with Claims(tmp_path) as claims:
        assert not claims.take("work")
