"""The runs of a sweep: each done once, by whichever process gets to it, and reported together."""

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxunlearn import experiment
from jaxunlearn.config import Experiment
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import report
from jaxunlearn.runs import RunFolder, read_finished
from jaxunlearn.sweeping import grouped, rungs, shared
from jaxunlearn.sweeping.claims import Claims
from jaxunlearn.sweeping.rungs import Halving, Runs
from jaxunlearn.sweeping.summary import Done, over_seeds
from jaxunlearn.training.loop import DivergedError
from jaxunlearn.writing import write_text

POLL = 0.5
"""Seconds between two looks at what other processes have done."""
_TABLE = "table"  # no run has this name: theirs have a value in them


def run(
    runs: Runs,
    say: Callable[[str], None] = print,
    *,
    vectorize: int = 1,
    halving: Halving | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Does the runs that are not done yet; one that fails does not stop the others.

    Processes that do the same runs in the same folder share them, and all come to the same end. A
    process that was stopped may be started again. What comes before unlearning is made once for all
    runs for which it is the same. The folder of the runs gets `report.html` and `sweep.json`, over
    seeds, and `comparison.html`, run by run; beside each page are its numbers as `.md` and `.csv`.

    Args:
      runs: as `expand` gives them.
      say: called with what the user should know.
      vectorize: train so many adapters side by side, where runs can be.
      halving: train the better ones to the end only; see `rungs.climb`.

    Returns:
      The summary over seeds (see `over_seeds`), under "halving" with what `rungs.climb` tells,
      and a line for each run that failed.

    Raises:
      UserError: every run failed, or as `rungs.plan`.
    """
    planned = None if halving is None else rungs.plan(runs, halving)
    folder, lost, climbed = Path(runs[0][1].output), {}, None
    with Claims(folder / "shared" / "claims") as claims:
        board = _Board(folder, claims, say, vectorize)
        board.tell_alone([one for _, one in runs])
        if planned is not None:
            runs, climbed, lost = rungs.climb(runs, planned, halving, board.finish, say)
        done, faults = board.finish(runs)
        if not done:
            raise UserError(f"sweep: every run failed; {': '.join(next(iter(faults.items())))}")
        failed = [f"{place}: {fault}" for place, fault in {**lost, **faults}.items()]
        summary = {**over_seeds(folder.name, done), "failed": failed}
        if climbed is not None:
            summary |= {"halving": climbed, "notes": [*summary["notes"], *rungs.notes(climbed)]}
        if note := _others(folder, runs):
            summary["notes"].append(note)
        while not claims.take(_TABLE):
            time.sleep(POLL)
        _report(folder, summary, done)
    return summary, failed


def _report(folder: Path, summary: dict[str, Any], done: Sequence[Done]) -> None:
    """Writes the pages of a sweep and its summary."""
    summaries = [one for _, _, one in done]
    evaluations = [read_finished(folder / one["name"])[1] for one in summaries]
    report.write_comparison(folder / "comparison.html", summaries, evaluations)
    notes = [*summary["notes"], *(f"failed: {line}" for line in summary["failed"])]
    climbed = summary.get("halving")
    tables = {} if climbed is None else {"Successive halving": rungs.table(climbed)}
    report.write_report(folder / "report.html", {**summary, "notes": notes}, tables=tables)
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    write_text(folder / "sweep.json", text + "\n")


def _others(folder: Path, runs: Runs) -> str | None:
    """What is to be said of runs that an earlier sweep left in the folder."""
    names = {path.parent.name for path in folder.glob("*/summary.json")}
    count = len(names - {one.name for _, one in runs})
    if not count:
        return None
    return (
        f"{count} finished run{'s' * (count > 1)} of other settings, in the same folder,"
        f" {'are' if count > 1 else 'is'} not in this report; `jaxunlearn report` compares any runs"
    )


@dataclass
class _Board:
    """What is done, and what this process does."""

    folder: Path
    claims: Claims
    say: Callable[[str], None]
    vectorize: int

    def finish(self, runs: Runs) -> tuple[list[Done], dict[str, str]]:
        """Does runs until all have ended, here or elsewhere: those that are done, and of the others
        why they are not, by their places in the folder."""
        self._work([one for _, one in runs])
        done, faults = [], {}
        for settings, one in runs:
            fault = self._fault(one)
            if fault is None:
                done.append((settings, one, RunFolder(one).summary))
            else:
                faults[self._place(one)] = fault
        return done, faults

    def _place(self, one: Experiment) -> str:
        """Of a run's folder, in that of the sweep."""
        return (Path(one.output) / one.name).relative_to(self.folder).as_posix()

    def _work(self, runs: Sequence[Experiment]) -> None:
        waiting = False
        while left := [one for one in runs if not self._ended(one)]:
            if any([self._do(one, left, runs) for one in left]):
                waiting = False
                continue
            if not waiting:
                self.say(f"waiting for {len(left)} runs of other processes")
            waiting = True
            time.sleep(POLL)

    def _ended(self, one: Experiment) -> bool:
        """Whether a run is done or has failed."""
        place = self.folder / self._place(one)
        whole = (place / "summary.json").is_file() and (place / "hf" / "config.json").is_file()
        return whole or self._failed(one).is_file()

    def _fault(self, one: Experiment) -> str | None:
        """Why a run that has ended is not done; None: it is."""
        if self._failed(one).is_file():
            return json.loads(self._failed(one).read_text(encoding="utf-8"))["fault"]
        try:
            RunFolder(one)
        except UserError as error:
            return str(error)
        return None

    def _failed(self, one: Experiment) -> Path:
        return self.folder / "shared" / "failed" / f"{self._place(one)}.json"

    def _do(self, one: Experiment, left: Sequence[Experiment], runs: Sequence[Experiment]) -> bool:
        """Does a run, if nobody else does, and with it those that are trained beside it."""
        stage = shared.fingerprint(one)
        place = self.folder / "shared" / "stages" / stage
        if self._ended(one) or not (place.is_dir() or self.claims.take(stage)):
            return False
        mine = [one] if self._take(one) else []
        try:
            self._guarded(mine, lambda each: shared.provide(each, place))
            self.claims.release(stage)
            if self.vectorize > 1 and mine and grouped.why_alone(one) is None:
                more = self._companions(one, left)
                mine += more
                self._guarded(more, lambda each: shared.provide(each, place))
                self._together([each for each in mine if not self._ended(each)])
            for each in mine:
                if not self._ended(each):
                    self.say(f"run {runs.index(each) + 1} of {len(runs)}: {self._place(each)}")
                    self._guarded([each], experiment.run)
        finally:
            for name in (stage, *map(self._place, mine)):
                self.claims.release(name)
        return bool(mine)

    def _take(self, one: Experiment) -> bool:
        if not self.claims.take(self._place(one)):
            return False
        if self._ended(one):
            self.claims.release(self._place(one))
            return False
        return True

    def _guarded(self, runs: Sequence[Experiment], work: Callable[[Experiment], Any]) -> None:
        """Work on each run; one that fails has ended with that."""
        for one in runs:
            try:
                work(one)
            except Exception as error:
                fault, told = str(error), {}
                if not isinstance(error, UserError | DivergedError):
                    fault = f"{type(error).__name__}: {fault}"
                    told = {"traceback": traceback.format_exc()}
                self.say(f"failed: {self._place(one)}: {fault}")
                text = json.dumps({"fault": fault, **told}, indent=2, ensure_ascii=False)
                write_text(self._failed(one), text + "\n")

    def _companions(self, one: Experiment, left: Sequence[Experiment]) -> list[Experiment]:
        """Runs that nobody does yet and that can be trained beside this one."""
        found: list[Experiment] = []
        for other in left:
            if len(found) == self.vectorize - 1:
                break
            fits = other is not one and not self._ended(other)
            if fits and grouped.alike(other) == grouped.alike(one) and self._take(other):
                found.append(other)
        return found

    def _together(self, runs: Sequence[Experiment]) -> None:
        """Trains them side by side; what does not come to its end so is left to the run itself."""
        if len(runs) < 2:
            return
        self.say(f"training {len(runs)} runs side by side: {', '.join(map(self._place, runs))}")
        try:
            grouped.train(runs)
        except Exception as error:
            self.say(f"not side by side but one after another: {type(error).__name__}: {error}")

    def tell_alone(self, runs: Sequence[Experiment]) -> None:
        reasons = Counter(filter(None, map(grouped.why_alone, runs)))
        if self.vectorize > 1 and reasons:
            told = "; ".join(f"{count} because {why}" for why, count in reasons.items())
            self.say(f"--vectorize: of {len(runs)} runs are trained by themselves {told}")
