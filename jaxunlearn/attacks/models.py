"""The models of a finished run, as attacks need them again."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxunlearn.config import Experiment
from jaxunlearn.data import requests
from jaxunlearn.data.rows import UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import labels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.starting import computed
from jaxunlearn.progress import Bars
from jaxunlearn.runs import RunFolder, request_stage
from jaxunlearn.stages import Stages


def check(
    folder: Path, experiment: Experiment, data: UnlearningData, chosen: Sequence[str]
) -> None:
    """The labels must be the run's, and their models must still be there.

    Raises:
      UserError: the run has no such method, or its checkpoints are gone.
    """
    known = list(labels(experiment))
    for label in chosen:
        if label not in known:
            raise UserError(f"--method: {folder} has no {label!r}; it has {', '.join(known)}")
        if label == known[-1]:
            continue
        stages = [] if experiment.finetune is None else ["target"]
        if experiment.requests is None:
            stages.append(label)
        else:
            count = len(requests.split(data, experiment.requests))
            stages += [request_stage(label, number) for number in range(1, count + 1)]
        gone = next((stage for stage in stages if not _kept(folder, stage)), None)
        if gone is not None:
            raise UserError(
                f"{folder / 'checkpoints' / gone}: is not there any more, and {label!r} cannot be "
                f"attacked without it; make it again: jaxunlearn run {folder / 'config.yaml'} "
                "--name NEW"
            )


def load(
    folder: Path, experiment: Experiment, chosen: Sequence[str], bars: Bars
) -> Iterator[tuple[str, LanguageModel]]:
    """Label and model, one after another: the target if it is there, the retrained model if the run
    has one (trained again if its checkpoint is gone), and the chosen methods' models."""
    methods = labels(experiment)
    with tempfile.TemporaryDirectory() as place:
        # A finished run is left as it is: its stages work in a folder of their own.
        moved = dataclasses.replace(experiment, output=place, name="attack")
        checkpoints = Path(place) / "attack" / "checkpoints"
        work = Stages(moved, RunFolder(moved), bars)
        checkpoints.mkdir(parents=True)
        if (folder / "checkpoints").is_dir():
            for kept in (folder / "checkpoints").iterdir():
                (checkpoints / kept.name).symlink_to(kept.absolute())
        if (folder / "attribution").is_dir():
            functions = Path(place) / "attack" / "attribution"
            functions.symlink_to((folder / "attribution").absolute())
        if experiment.finetune is None or _kept(folder, "target"):
            yield "target", work.target()
        retrained = work.retrained()
        if retrained is not None:
            yield "retrained", retrained
        del retrained
        for label in chosen:
            if label == list(methods)[-1]:
                yield label, computed(load_model(folder / "hf"), experiment.model)
            else:
                target = work.target()
                work.attribute(target)
                *_, (_, model, _) = work.unlearned(label, target, methods[label])
                yield label, model


def _kept(folder: Path, stage: str) -> bool:
    """Whether a training stage left a checkpoint; its folder is called by the step."""
    return any((folder / "checkpoints" / stage).glob("[0-9]*"))
