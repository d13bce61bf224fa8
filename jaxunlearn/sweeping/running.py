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
from jaxunlearn.sweeping import grouped, shared
from jaxunlearn.sweeping.claims import Claims
from jaxunlearn.sweeping.settings import Settings
from jaxunlearn.sweeping.summary import over_seeds
from jaxunlearn.training import hosts
from jaxunlearn.training.loop import DivergedError
from jaxunlearn.writing import write_text

POLL = 0.5
"""Seconds between two looks at what other processes have done."""
_TABLE = "table"  # no run has this name: theirs have a value in them


def run(
    runs: Sequence[tuple[Settings, Experiment]],
    say: Callable[[str], None] = print,
    *,
    vectorize: int = 1,
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

    Returns:
      The summary over seeds (see `over_seeds`), and a line for each run that failed.

    Raises:
      UserError: every run failed.
    """
    folder = Path(runs[0][1].output)
    with Claims(folder / "shared" / "claims") as claims:
        board = _Board(folder, claims, say, vectorize)
        board.work([one for _, one in runs])
        done, failed = [], []
        for settings, one in runs:
            fault = board.fault(one)
            if fault is None:
                done.append((settings, one, RunFolder(one).summary))
            else:
                failed.append(f"{one.name}: {fault}")
        if not done:
            raise UserError(f"sweep: every run failed; {failed[0]}")
        summary = {**over_seeds(folder.name, done), "failed": failed}
        while not claims.take(_TABLE):
            time.sleep(POLL)
        summaries = [one for _, _, one in done]
        evaluations = [read_finished(folder / one["name"])[1] for one in summaries]
        report.write_comparison(folder / "comparison.html", summaries, evaluations)
        notes = [*summary["notes"], *(f"failed: {line}" for line in failed)]
        report.write_report(folder / "report.html", {**summary, "notes": notes})
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        write_text(folder / "sweep.json", text + "\n")
    return summary, failed


@dataclass
class _Board:
    """What is done, and what this process does."""

    folder: Path
    claims: Claims
    say: Callable[[str], None]
    vectorize: int

    def work(self, runs: Sequence[Experiment]) -> None:
        """Until all runs are done, here or by others."""
        self._tell_alone(runs)
        waiting = False
        while left := [one for one in runs if not self.ended(one)]:
            if any([self._do(one, left, runs) for one in left]):
                waiting = False
                continue
            if not waiting:
                self.say(f"waiting for {len(left)} runs of other processes")
            waiting = True
            time.sleep(POLL)

    def ended(self, one: Experiment) -> bool:
        """Whether a run is done or has failed."""
        place = self.folder / one.name
        whole = (place / "summary.json").is_file() and (place / "hf" / "config.json").is_file()
        return whole or self._failed(one).is_file()

    def fault(self, one: Experiment) -> str | None:
        """Why a run that has ended is not done; None: it is."""
        if self._failed(one).is_file():
            return json.loads(self._failed(one).read_text(encoding="utf-8"))["fault"]
        try:
            RunFolder(one)
        except UserError as error:
            return str(error)
        return None

    def _failed(self, one: Experiment) -> Path:
        return self.folder / "shared" / "failed" / f"{one.name}.json"

    def _do(self, one: Experiment, left: Sequence[Experiment], runs: Sequence[Experiment]) -> bool:
        """Does a run, if nobody else does, and with it those that are trained beside it."""
        stage = shared.fingerprint(one)
        place = self.folder / "shared" / "stages" / stage
        if self.ended(one) or not (place.is_dir() or self.claims.take(stage)):
            return False
        mine = [one] if self._take(one) else []
        try:
            self._guarded(mine, lambda each: shared.provide(each, place))
            self.claims.release(stage)
            if self.vectorize > 1 and mine and grouped.why_alone(one) is None:
                more = self._companions(one, left)
                mine += more
                self._guarded(more, lambda each: shared.provide(each, place))
                self._together([each for each in mine if not self.ended(each)])
            for each in mine:
                if not self.ended(each):
                    self.say(f"run {runs.index(each) + 1} of {len(runs)}: {each.name}")
                    self._guarded([each], experiment.run)
        finally:
            for name in (stage, *(each.name for each in mine)):
                self.claims.release(name)
        return bool(mine)

    def _take(self, one: Experiment) -> bool:
        if not self.claims.take(one.name):
            return False
        if self.ended(one):
            self.claims.release(one.name)
            return False
        return True

    def _guarded(self, runs: Sequence[Experiment], work: Callable[[Experiment], Any]) -> None:
        """Work on each run; one that fails has ended with that."""
        for one in runs:
            try:
                work(one)
            except hosts.PreemptedError:
                raise
            except Exception as error:
                fault, told = str(error), {}
                if not isinstance(error, UserError | DivergedError):
                    fault = f"{type(error).__name__}: {fault}"
                    told = {"traceback": traceback.format_exc()}
                self.say(f"failed: {one.name}: {fault}")
                text = json.dumps({"fault": fault, **told}, indent=2, ensure_ascii=False)
                write_text(self._failed(one), text + "\n")

    def _companions(self, one: Experiment, left: Sequence[Experiment]) -> list[Experiment]:
        """Runs that nobody does yet and that can be trained beside this one."""
        found: list[Experiment] = []
        for other in left:
            if len(found) == self.vectorize - 1:
                break
            fits = other is not one and not self.ended(other)
            if fits and grouped.alike(other) == grouped.alike(one) and self._take(other):
                found.append(other)
        return found

    def _together(self, runs: Sequence[Experiment]) -> None:
        """Trains them side by side; what does not come to its end so is left to the run itself."""
        if len(runs) < 2:
            return
        self.say(f"training {len(runs)} runs side by side: {', '.join(one.name for one in runs)}")
        try:
            grouped.train(runs)
        except hosts.PreemptedError:
            raise
        except Exception as error:
            self.say(f"not side by side but one after another: {type(error).__name__}: {error}")

    def _tell_alone(self, runs: Sequence[Experiment]) -> None:
        reasons = Counter(filter(None, map(grouped.why_alone, runs)))
        if self.vectorize > 1 and reasons:
            told = "; ".join(f"{count} because {why}" for why, count in reasons.items())
            self.say(f"--vectorize: of {len(runs)} runs are trained by themselves {told}")
