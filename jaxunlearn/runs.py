"""The run folder: what a run writes, how it is resumed, and when it is refused."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxunlearn import config_file
from jaxunlearn.config import Experiment
from jaxunlearn.data import sampling
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.suite import Evaluation, limit_sets
from jaxunlearn.training import hosts
from jaxunlearn.writing import write_text

_PACKAGES = (
    "jaxunlearn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers",
    "tokenizers", "numpy",
)  # fmt: skip


class RunFolder:
    """The files of one run; nothing is written before `create`.

    Args:
      experiment: the resolved config; a folder that holds another one is refused.

    Raises:
      UserError: the folder is already used by another run or for something else.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        hosts.need_same("the config", repr(config_file.dump(experiment)))
        self.shared = Path(experiment.output) / str(experiment.name)
        """Where all processes of the run find each other's checkpoints."""
        self.path = hosts.own_folder(self.shared)
        self.config_path = self.path / "config.yaml"
        if self.config_path.exists():
            self._check_same(experiment)
        elif self.path.exists() and (not self.path.is_dir() or _names(self.path)):
            raise UserError(f"{self.path}: there already and not a run folder; set another --name")

    def create(self) -> None:
        """Makes the folder and writes the resolved config."""
        if not self.config_path.exists():
            tree = config_file.dump(self.experiment)
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
            write_text(self.config_path, text)

    def _check_same(self, experiment: Experiment) -> None:
        old = config_file.dump(config_file.load(self.config_path))
        new = config_file.dump(experiment)
        # The result does not depend on the devices, so that a run may go on on others.
        # Nor on how its place is called.
        for key in ("parallel", "output"):
            old[key] = new[key]
        changed = sorted(k for k, v in _flat(new).items() if _flat(old).get(k) != v)
        changed += sorted(_flat(old).keys() - _flat(new).keys())
        if changed:
            told = [f"{k}: the file has changed" if k.endswith("_version") else k for k in changed]
            raise UserError(
                f"{self.path}: already holds a run with another config (differs in "
                f"{', '.join(told[:5])}); choose another --name or remove the folder"
            )

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that is complete, else None."""
        return _read_json(self.path / "summary.json")

    def checkpoints(self, stage: str) -> Path:
        """Folder of a training stage's checkpoints."""
        return self.shared / "checkpoints" / stage

    def write_environment(self, data: UnlearningData, model: Path | None) -> dict[str, Any]:
        """Records versions, devices, the start model's folder and data fingerprints."""
        import jax

        parts = {"forget": data.forget, "retain": data.retain}
        further = self.experiment.data.sets
        parts |= {
            name: part.rows
            for name, part in data.evaluation.items()
            if part.role == "holdout" or name in further
        }
        sets = limit_sets(data.evaluation, self.experiment.evaluation.limit)
        versions = {name: _version(name) for name in _PACKAGES}
        environment = {
            **versions,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": self._devices(f"{jax.device_count()} x {jax.devices()[0].device_kind}"),
            # The folder of a Hub model ends in the commit that was used.
            **({} if model is None else {"model": str(model)}),
            "data": {name: _told(rows) for name, rows in parts.items()},
            "evaluated": {name: _told(one.rows) for name, one in sets.items()},
        }
        self.write_json("environment.json", environment)
        return environment

    def _devices(self, now: str) -> str:
        """Those of this start, behind those of earlier ones if they were others."""
        before = (_read_json(self.path / "environment.json") or {}).get("device", now)
        return before if before.split(", then ")[-1] == now else f"{before}, then {now}"

    def log(self, stage: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Appends lines to metrics.jsonl: what steps did, or what a look after one found."""
        lines = [json.dumps({"model": stage, **row}) for row in rows]
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))

    def logger(self, stage: str, show: Callable[..., None]) -> Callable[..., None]:
        """What a training stage calls with (steps done, steps in all, a dict per new step), to be
        logged and shown; a stage that is resumed logs again what came after its checkpoint."""
        first = True

        def on_steps(done: int, total: int, log: list[dict[str, float]]) -> None:
            nonlocal first
            if first:
                self.forget_log(stage, log[0]["step"])
                first = False
            self.log(stage, log)
            show(done, total, log)

        return on_steps

    def forget_log(self, stage: str, first_step: int) -> None:
        """Drops logged lines that a resumed stage will log again."""
        kept = [r for r in self.curves() if r["model"] != stage or r["step"] < first_step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    def curves(self) -> list[dict[str, Any]]:
        """All logged lines; a last line that a kill cut short is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def write_schedule(self, stage: str, description: Mapping[str, Any]) -> None:
        """Keeps what a stage's schedule shows."""
        self.write_json(f"schedules/{stage}.json", description)

    def model_curves(self) -> list[dict[str, Any]]:
        """All logged lines, the stages of one model counted through."""
        rows, steps, offset = self.curves(), {}, {}
        for row in rows:
            steps[row["model"]] = row["step"]
        total: Counter[str] = Counter()
        for stage, count in steps.items():
            offset[stage] = total[model_of(stage)]
            total[model_of(stage)] += count
        return [
            {**row, "model": model_of(row["model"]), "step": row["step"] + offset[row["model"]]}
            for row in rows
        ]

    def trainings(self) -> dict[str, dict[str, Any]]:
        """Model to its number of steps, the median over them of tokens per second, what its
        schedule shows, and the step that was selected: selected_step, or selected_steps with one
        for each request."""
        rates: dict[str, list[float]] = {}
        for row in self.model_curves():
            if "tokens_per_second" in row:
                rates.setdefault(row["model"], []).append(row["tokens_per_second"])
        shown: dict[str, list[dict[str, Any]]] = {}
        # Request 10 comes after request 9.
        for path in sorted((self.path / "schedules").glob("*.json"), key=_by_number):
            shown.setdefault(model_of(path.stem), []).append(_read_json(path) or {})
        return {
            model: {
                **(sampling.together(shown[model]) if model in shown else {}),
                **_selected(shown.get(model, []), requests=self.experiment.requests is not None),
                "steps": len(found),
                "tokens_per_second": round(statistics.median(found)),
            }
            for model, found in rates.items()
        }

    def profiles(self) -> dict[str, Any]:
        """Stage to what its traced steps took, of those that were traced."""
        found = sorted(self.path.glob("traces/*/steps.json"))
        return {path.parent.name: _read_json(path) for path in found}

    def read_evaluation(self, stage: str) -> Evaluation | None:
        """A finished evaluation of this run, or None."""
        return _read_evaluation(self.path, stage)

    def write_evaluation(self, stage: str, evaluation: Evaluation) -> None:
        """Keeps an evaluation."""
        self.write_json(f"evaluations/{stage}.json", dataclasses.asdict(evaluation))

    @property
    def timing(self) -> dict[str, float]:
        """Seconds of each stage so far, over all starts of this run."""
        return _read_json(self.path / "timing.json") or {}

    def add_timing(self, what: str, seconds: float) -> None:
        """Adds to the time a stage has taken."""
        total = round(self.timing.get(what, 0.0) + seconds, 2)
        self.write_json("timing.json", {**self.timing, what: total})

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run atomically."""
        write_text(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_finished(folder: Path) -> tuple[dict[str, Any], Evaluation | None]:
    """The summary of a finished run, and its main method's evaluation if that was kept.

    Raises:
      UserError: it is no folder of a finished run, or a file of it is damaged.
    """
    summary = _read_json(folder / "summary.json")
    if summary is None:
        raise UserError(f"{folder}: no summary.json here; give the folder of a finished run")
    if not {"name", "models", "primary"} <= summary.keys():
        raise UserError(f"{folder / 'summary.json'}: is not the summary of a run; run it again")
    stage = summary["primary"]
    if "requests" in summary:
        stage = request_stage(stage, len(summary["requests"][stage]["requests"]))
    return summary, _read_evaluation(folder, stage)


def request_stage(label: str, number: int) -> str:
    """The name of a method's training for one request; no label has an @."""
    return f"{label}@{number}"


def model_of(stage: str) -> str:
    """The label of the model that a stage trains."""
    return stage.partition("@")[0]


def _read_evaluation(folder: Path, stage: str) -> Evaluation | None:
    path = folder / "evaluations" / f"{stage}.json"
    saved = _read_json(path)
    try:
        return None if saved is None else Evaluation(**saved)
    except TypeError as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is made again") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is made again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not a JSON object); remove it, it is made again")
    return value


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.stem), path.stem


def _selected(parts: Sequence[Mapping[str, Any]], *, requests: bool) -> dict[str, Any]:
    steps = [part["selected_step"] for part in parts if "selected_step" in part]
    if not steps:
        return {}
    return {"selected_steps": steps} if requests else {"selected_step": steps[0]}


def _names(folder: Path) -> list[str]:
    """What is in a folder, other than a config that a kill left half written."""
    return [entry.name for entry in folder.iterdir() if entry.name != ".config.yaml.tmp"]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {prefix: {}} if prefix and not tree else {}
    for key, child in items:
        flat |= _flat(child, f"{prefix}.{key}" if prefix else str(key))
    return flat


def fingerprint(rows: Iterable[Row]) -> str:
    """A hash of what rows say and whom they are about."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((*row.key, row.entity, row.kind, row.options)).encode())
    return digest.hexdigest()[:16]


def _told(rows: Sequence[Row]) -> str:
    return f"{len(rows)} rows, sha256 {fingerprint(rows)}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
