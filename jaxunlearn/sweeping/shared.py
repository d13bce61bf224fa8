"""What the runs of a sweep have in common: target, retrained model, attribution, and their
evaluations, made once and put into the folder of every run that would make the same."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from jaxunlearn import config_file, experiment
from jaxunlearn.config import Experiment
from jaxunlearn.models.folders import new_folder
from jaxunlearn.runs import RunFolder
from jaxunlearn.writing import write_text

AFTERWARDS = (
    "name", "output", "method", "baselines", "sampling", "adapter", "training", "requests", "stop",
    "select", "parallel",
)  # fmt: skip
"""Sections of a config that change nothing before unlearning."""
MODELS = ("target", "retrained")
_LINKED = tuple(f"checkpoints/{name}" for name in MODELS)
_COPIED = ("attribution",)
_EVALUATIONS = tuple(f"evaluations/{name}.json" for name in MODELS)


def decides(key: str, one: Experiment) -> bool:
    """Whether a dotted key of the config has a part in what comes before unlearning."""
    section = key.partition(".")[0]
    return section not in AFTERWARDS and (section != "seed" or _uses_seed(one))


def fingerprint(one: Experiment) -> str:
    """A hash of the settings that decide the models before unlearning and their evaluations."""
    tree = {key: value for key, value in config_file.dump(one).items() if decides(key, one)}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _uses_seed(one: Experiment) -> bool:
    """Data from files, of a model that is there, are the same for every seed."""
    made = one.model.path is None or one.finetune is not None or one.attribution is not None
    return made or one.data.format in ("synthetic", "toy")


def provide(one: Experiment, folder: Path) -> None:
    """Puts what comes before unlearning into a run's folder; it is made there if no run has left it
    yet, and left for the others.

    What is in the run's folder already stays. Links where the file system has them, else copies:
    the folder of a run is complete without the shared one.

    Args:
      one: the run.
      folder: of the stages that are decided by the run's `fingerprint`.

    Raises:
      UserError: as `experiment.run`.
    """
    if folder.is_dir():
        _take(folder, RunFolder(one))
    else:
        experiment.prepare(one)
        _leave(RunFolder(one), folder)


def _leave(run: RunFolder, folder: Path) -> None:
    """A folder with the stages of a run, which appears complete or not at all."""
    rows = [row for row in run.curves() if row["model"] in MODELS]
    times = {what: s for what, s in run.timing.items() if what.split()[0] in (*MODELS, *_COPIED)}
    with new_folder(folder, overwrite=False) as out:
        _copy_folders(run.path, out)
        for name in _EVALUATIONS:
            if (run.path / name).is_file():
                write_text(out / name, (run.path / name).read_text(encoding="utf-8"))
        write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_text(out / "timing.json", json.dumps(times))


def _take(folder: Path, run: RunFolder) -> None:
    """What is taken first is of use without what comes after it."""
    run.create()
    for name in ("metrics.jsonl", "timing.json"):
        if not (run.path / name).exists():
            write_text(run.path / name, (folder / name).read_text(encoding="utf-8"))
    _copy_folders(folder, run.path)
    for name in _EVALUATIONS:
        if (folder / name).is_file() and not (run.path / name).exists():
            write_text(run.path / name, (folder / name).read_text(encoding="utf-8"))


def _copy_folders(source: Path, destination: Path) -> None:
    for names, copy in ((_LINKED, _link), (_COPIED, shutil.copy2)):
        for name in names:
            if (source / name).is_dir() and not (destination / name).exists():
                with new_folder(destination / name, overwrite=False) as out:
                    shutil.copytree(source / name, out, copy_function=copy, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    """Checkpoints are never changed, only removed; both folders may hold the same file."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
