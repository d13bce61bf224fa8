"""One config with several values of some keys: a run for each combination, and one table of all."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import config_file, experiment
from jaxunlearn.config import Experiment
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import report
from jaxunlearn.evaluation.entries import over_runs
from jaxunlearn.runs import read_finished
from jaxunlearn.training.loop import DivergedError
from jaxunlearn.writing import write_text

Settings = dict[str, Any]


def expand(
    path: str | Path | None, grid: Mapping[str, Sequence[Any]], overrides: Mapping[str, Any]
) -> list[tuple[Settings, Experiment]]:
    """The settings of every combination of the grid's values, in its order, and their experiments.

    Args:
      path: YAML file; None: the built-in quickstart.
      grid: dotted key to its values.
      overrides: dotted key to value, for all runs.

    Returns:
      Each run has a folder of its own under `output/NAME`.

    Raises:
      UserError: no grid, a key with no or repeated values, or a config that is not valid.
    """
    if not grid:
        raise UserError("sweep: nothing to vary; give --grid KEY=VALUE,VALUE")
    for key, values in grid.items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise UserError(f"--grid {key}: give values that differ, as in --grid {key}=1,2")
    base = config_file.load(path, overrides)
    folder = str(Path(base.output) / str(base.name))
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        own = {**overrides, **settings, "output": folder, "name": _name(settings)}
        found.append((settings, experiment.resolve(config_file.load(path, own))))
    return found


def run(
    runs: Sequence[tuple[Settings, Experiment]], say: Callable[[str], None] = print
) -> tuple[dict[str, Any], list[str]]:
    """Runs them one after another; one that fails does not stop the others.

    Finished runs are not run again, so the same command goes on where it was cut off. The folder
    of the runs gets `report.html` and `sweep.json`, over seeds, and `comparison.html`, run by run;
    beside each page are its numbers as `.md` and `.csv`.

    Returns:
      The summary over seeds (see `over_seeds`), and a line for each run that failed.

    Raises:
      UserError: every run failed.
    """
    done, failed = [], []
    for number, (settings, one) in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {one.name}")
        try:
            done.append((settings, experiment.run(one)))
        except (UserError, DivergedError) as error:
            failed.append(f"{one.name}: {error}")
            say(f"failed: {error}")
    if not done:
        raise UserError(f"sweep: every run failed; {failed[0]}")
    folder = Path(runs[0][1].output)
    summary = over_seeds(folder.name, done)
    summaries = [one for _, one in done]
    evaluations = [read_finished(folder / one["name"])[1] for one in summaries]
    report.write_comparison(folder / "comparison.html", summaries, evaluations)
    report.write_report(folder / "report.html", summary)
    write_text(folder / "sweep.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary, failed


def over_seeds(name: str, done: Sequence[tuple[Settings, Mapping[str, Any]]]) -> dict[str, Any]:
    """One summary of several: of each model the mean over the runs that differ in `seed` alone.

    Args:
      name: of the summary.
      done: what was set, and the run's summary.

    Returns:
      As `summary.json`, with the "seeds". Of a number, "n" counts the rows of a run (the fewest
      where runs differ), "seeds" the runs that have a value, "ci" holds the least and the greatest
      value, and the standard deviation (of a sample) is "sd". Other settings that were varied are
      in the model's name.
    """
    values: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    trained: dict[str, list[Mapping[str, Any]]] = {}
    for settings, summary in done:
        apart = _name({key: value for key, value in settings.items() if key != "seed"})
        for model, metrics in summary["models"].items():
            label = f"{model} {apart}".strip()
            known = values.setdefault(label, {})
            for metric, entry in metrics.items():
                if entry["value"] is not None:
                    known.setdefault(metric, []).append(entry)
            if model in summary.get("training", {}):
                trained.setdefault(label, []).append(summary["training"][model])
    seeds = sorted({str(settings["seed"]) for settings, _ in done if "seed" in settings})
    over = f"seeds {', '.join(seeds)}" if seeds else "one run each"
    last = done[-1][1]
    return {
        "name": name,
        "seeds": seeds or [str(last["config"]["seed"])],
        "primary": list(values)[-1],
        "models": {
            label: {metric: over_runs(found) for metric, found in known.items()}
            for label, known in values.items()
        },
        "training": {label: _shared(found[0]) for label, found in trained.items()},
        "config": last["config"],
        "notes": [f"{len(done)} runs: means over {over}; small print: least and greatest value"],
    }


def _shared(training: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the seed."""
    return {key: value for key, value in training.items() if not key.startswith("selected_step")}


def _name(settings: Mapping[str, Any]) -> str:
    """A folder name that says what was set: `seed-0`, `beta-0.1-seed-0`."""
    words = [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join(words))
