"""Settings of a sweep whose adapters are trained side by side, by one program."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxunlearn import config_file, experiment
from jaxunlearn.config import Experiment
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.progress import Bars
from jaxunlearn.runs import RunFolder
from jaxunlearn.stages import Stages
from jaxunlearn.sweeping import shared
from jaxunlearn.training.together import Member, train_together
from jaxunlearn.unlearning_job import unlearning_job

_TRACED = ("learning_rate", "warmup", "weight_decay", "clip_norm", "optimizer_options")


def why_alone(one: Experiment) -> str | None:
    """Why a run cannot be trained beside others; None: it can."""
    if one.adapter is None:
        return "it trains parameters of the model itself, not an adapter"
    for key in ("requests", "stop", "select", "attribution"):
        if getattr(one, key) is not None:
            return f"it has a section {key}"
    for method in (one.method, *one.baselines):
        if registry.kind_of(method.name) != "loss":
            return f"{method.name} does not train along a schedule"
        if registry.objective(method)[0].needs("reinforced_logits"):
            return f"{method.name} trains a second model"
    return None


def alike(one: Experiment) -> str:
    """The same for runs that differ in traced numbers alone, and in seeds that change neither the
    data nor the models before unlearning."""
    tree = config_file.dump(one)
    rest = {key: tree[key] for key in shared.AFTERWARDS if key not in ("name", "output")}
    rest["training"] = _without_numbers(rest["training"])
    rest["method"], rest["baselines"] = (
        _method(rest["method"]),
        [_method(method) for method in rest["baselines"]],
    )
    return json.dumps([shared.fingerprint(one), rest], sort_keys=True)


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    """Its numbers are traced; of those that are not, the training itself finds out."""
    kept = {
        k: v for k, v in method.items() if isinstance(v, bool) or not isinstance(v, float | int)
    }
    return {**kept, "training": _without_numbers(method.get("training", {}))}


def _without_numbers(training: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in training.items() if key not in _TRACED}


def train(runs: Sequence[Experiment]) -> None:
    """Does the trainings of runs that are `alike`; each run then finds its own done in its folder.

    Args:
      runs: resolved; what comes before unlearning is in the folder of each.

    Raises:
      UserError: as `experiment.run`.
    """
    first, folders = runs[0], [RunFolder(one) for one in runs]
    with Bars() as bars:
        work = Stages(first, folders[0], bars)
        target = work.target()
        for label in experiment.labels(first):
            begin = time.perf_counter()
            with bars.stage(f"{label} x {len(runs)}") as bar:
                members = [
                    # The bar moves as long as one of them does: others may diverge.
                    _member(label, one, folder, work, target, bar.steps)
                    for one, folder in zip(runs, folders, strict=True)
                ]
                train_together(target, members, first.adapter)
            for folder in folders:
                share = (time.perf_counter() - begin) / len(runs)
                folder.add_timing(f"{label} training", share)


def _member(
    label: str,
    one: Experiment,
    folder: RunFolder,
    work: Stages,
    target: LanguageModel,
    show: Callable[..., None],
) -> Member:
    method, data = experiment.labels(one)[label], work.data
    # What there is to say of the rows, each run says itself.
    job = unlearning_job(target, data.forget, data.retain, one, method, say=_quiet)
    groups = job.objective.groups
    return Member(
        {group: job.tables[group] for group in groups},
        {group: job.indices[group] for group in groups},
        job.objective,
        job.hyper,
        job.training,
        one.seed,
        folder.checkpoints(label),
        folder.logger(label, show),
    )


def _quiet(*_: Any) -> None:
    pass
