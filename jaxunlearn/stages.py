"""The stages of a run: start model, target, retrained model, unlearning, evaluation, report."""

import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jaxunlearn import config_file
from jaxunlearn.attribution import of_run
from jaxunlearn.attribution.of_run import Attributions
from jaxunlearn.checking import check_early
from jaxunlearn.config import Experiment, MethodConfig, TrainingConfig
from jaxunlearn.dareu import preparing as rewarding
from jaxunlearn.data import requests
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluating import (
    UTILITY,
    evaluate_model,
    notes,
    selection,
    value_of,
    with_comparison,
)
from jaxunlearn.evaluation import entities, over_requests, report, same_rows, suite
from jaxunlearn.evaluation.card import model_card
from jaxunlearn.evaluation.results import Table
from jaxunlearn.evaluation.samples import samples
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.methods import registry
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter
from jaxunlearn.models.peft_adapter import export_adapter
from jaxunlearn.models.starting import attention_note, base_model, loaded
from jaxunlearn.modules import Module, ModuleStore, modules_folder
from jaxunlearn.progress import Bars
from jaxunlearn.release import preparing
from jaxunlearn.release.driver import read as iterations
from jaxunlearn.release.driver import release
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.runs import RunFolder, request_stage
from jaxunlearn.tables import max_length, need_tokenizer
from jaxunlearn.training.parallel import layout_of
from jaxunlearn.training.profiling import profiled
from jaxunlearn.training.watching import Selection
from jaxunlearn.unlearning import finetune_rows, unlearn_rows

T = TypeVar("T")


class Stages:
    """The stages of a run, each resumable by itself."""

    def __init__(self, experiment: Experiment, folder: RunFolder, bars: Bars, profile: int = 0):
        self.experiment, self.folder, self.bars, self.profile = experiment, folder, bars, profile
        self.notes: list[str] = []
        self.judge: LanguageModel | None = None
        """The model before unlearning, once it is there; it embeds the texts of all models."""
        self.attributions: Attributions | None = None
        """Once they are fitted, if this run has any."""
        self._target_at: str | Path | None = None
        self._looked: tuple[weakref.ref[LanguageModel], Table] | None = None
        self.data = load_data(experiment)
        self.base = base_model(experiment, self.data, layout_of(experiment.parallel).home)
        need_tokenizer(self.base)
        if (note := attention_note(self.base, experiment.model)) is not None:
            self._note(note)
        self.limit = max_length(self.base, experiment)
        asked = experiment.requests
        self.releases: dict[str, list[dict[str, Any]]] = {}
        """Label of each procedure to its iterations."""
        self.requests = [] if asked is None else requests.split(self.data, asked)
        self.log = check_early(
            experiment, self.data, self.base, self.limit, self.requests, self._note
        )
        folder.create()
        self.environment = folder.write_environment(self.data, self.base.folder)

    def target(self) -> LanguageModel:
        """The model that is to forget."""
        if self.experiment.finetune is None:
            return self.base
        rows = self._all_rows()
        return self._finetuned("target", self.experiment.finetune, list(range(len(rows))))

    def attribute(self, target: LanguageModel) -> None:
        """Fits the attribution functions, if the run has any."""
        if self.experiment.attribution is None:
            return
        with self.bars.stage("attribution", passing=True):
            self.attributions = self._timed(
                "attribution training",
                lambda: of_run.fit(
                    target,
                    self.data,
                    self.experiment,
                    folder=self.folder.path / "attribution",
                    say=self._note,
                ),
            )
        # The functions read it, also when something is measured later.
        self._target_folder(target)
        self.data = self.attributions.attached(self.data, target, self.experiment)

    def retrained(self) -> LanguageModel | None:
        """The reference that never saw the forget rows: given, trained, or None."""
        if self.experiment.model.retrained is not None:
            return loaded(self.experiment.model.retrained, self.experiment.model)
        if self.experiment.finetune is None or not self.experiment.retrain:
            return None
        kept = list(range(len(self.data.forget), len(self._all_rows())))
        return self._finetuned("retrained", self.experiment.finetune, kept)

    def unlearn(
        self, label: str, target: LanguageModel, method: MethodConfig
    ) -> tuple[LanguageModel, list[Evaluation]]:
        """The target after one method, and its evaluation; after each request if there are some, or
        after each iteration of a procedure."""
        if registry.kind_of(method.name) == "rounds":
            return self._released(label, target, method)
        after = []
        for number, trained in enumerate(self.unlearned(label, target, method), 1):
            stage, model, adapter = trained
            if adapter is not None:
                self._keep(label, number, adapter, target)
            after.append(self.evaluate(stage, model))
        return model, after

    def unlearned(
        self, label: str, target: LanguageModel, method: MethodConfig
    ) -> Iterator[tuple[str, LanguageModel, Adapter | None]]:
        """The stage, its model and the adapter that it trained, if any: once, or after each request
        if there are some."""
        if self.experiment.requests is None:
            model = self._unlearn(label, target, method, self.data.forget, self.data.retain)
            yield label, model, model.adapter
            return
        model = target
        for number, request in enumerate(self.requests, 1):
            stage = request_stage(label, number)
            trained = self._unlearn(stage, model, method, request.forget, request.retain)
            # Merged, because the next request has an adapter of its own.
            model = trained.merged()
            yield stage, model, trained.adapter

    def _keep(self, label: str, number: int, adapter: Adapter, target: LanguageModel) -> None:
        """Stores a request's adapter; without requests all forget rows are the first."""
        about = self.requests[number - 1].name if self.requests else _about(self.data.forget)
        store = ModuleStore(modules_folder(self.folder.path, label))
        module = Module(f"request_{number}", 1.0, about)
        store.write(module, adapter, target, self._target_folder(target))

    def _target_folder(self, target: LanguageModel) -> str | Path:
        """Where the target's weights are, on top of which adapters are; exported if need be."""
        if self._target_at is None:
            self._target_at = self.experiment.model.path or ""
            if self.experiment.finetune is not None or target.adapter is not None:
                place = self.folder.path / "target"
                self._target_at = export_model(target, place, overwrite=True)
        return self._target_at

    def _released(
        self, label: str, target: LanguageModel, method: MethodConfig
    ) -> tuple[LanguageModel, list[Evaluation]]:
        model, after = target, []
        with self.bars.stage(label) as bar:
            job = preparing.prepare(
                target,
                self.data,
                self.experiment,
                method,
                base=self._target_folder(target),
                folder=self.folder.path / "release" / label,
                checkpoints=lambda stage: self.folder.checkpoints(f"{label}@{stage}"),
                logger=lambda stage: self.folder.logger(f"{label}@{stage}", bar.steps),
                say=lambda text: self._note(f"{label}: {text}"),
            )
            store = ModuleStore(modules_folder(self.folder.path, label))
            rounds = release(job, store)
            work = partial(self._timed, f"{label} training", lambda: next(rounds, None))
            for done, model in iter(work, None):
                stage = request_stage(label, done.number)
                after.append(self.evaluate(stage, model.merged()))
        self.releases[label] = [dataclasses.asdict(one) for one in iterations(job.folder)]
        if self.folder.read_evaluation(label) is None:
            self.folder.write_evaluation(label, after[-1])
        return model, after

    def _unlearn(
        self,
        stage: str,
        start: LanguageModel,
        method: MethodConfig,
        forget: Sequence[Row],
        retain: Sequence[Row],
    ) -> LanguageModel:
        by_loss = {
            "utility": lambda model: value_of(self._look(model), UTILITY),
            "selection": self._selection(stage),
        }
        if registry.kind_of(method.name) == "reward":
            work, options = rewarding.reward_rows, {"attributions": self.attributions}
        else:
            work, options = unlearn_rows, by_loss
        with self.bars.stage(stage) as bar, self._profiled(stage):
            return self._timed(
                f"{stage} training",
                lambda: work(
                    start,
                    forget,
                    retain,
                    self.experiment,
                    method,
                    checkpoints=self.folder.checkpoints(stage),
                    on_steps=self.folder.logger(stage, bar.steps),
                    on_schedule=partial(self.folder.write_schedule, stage),
                    say=self._note,
                    **options,
                ),
            )

    def _selection(self, stage: str) -> Selection | None:
        asked = self.experiment.select
        return asked and selection(
            asked,
            self._metrics(self.folder.read_evaluation("target")),
            self._look,
            lambda row: self.folder.log(stage, [row]),
            lambda text: self._note(f"{stage}: {text}"),
        )

    def _look(self, model: LanguageModel) -> Table:
        """The metrics of a model in training; `stop` and `select` may both ask for them."""
        if self._looked is None or self._looked[0]() is not model:
            evaluation = evaluate_model(
                "model", model, self.data, self.experiment, self.bars, self.judge, passing=True
            )
            self._looked = (weakref.ref(model), self._metrics(evaluation))
        return self._looked[1]

    def _metrics(self, evaluation: Evaluation) -> Table:
        retrained = self.folder.read_evaluation("retrained")
        return with_comparison(self.experiment, evaluation, retrained, self.log)

    def evaluate(self, label: str, model: LanguageModel) -> Evaluation:
        """The evaluation of a model, done once per run."""
        evaluation = self.folder.read_evaluation(label)
        if evaluation is None:
            evaluation = self._timed(
                f"{label} evaluation",
                lambda: evaluate_model(
                    label, model, self.data, self.experiment, self.bars, self.judge
                ),
            )
            self.folder.write_evaluation(label, evaluation)
        for note in notes(evaluation, self.experiment.evaluation):
            self._note(note)
        return evaluation

    def finish(
        self,
        target: LanguageModel,
        model: LanguageModel,
        evaluations: dict[str, Evaluation],
        histories: dict[str, list[Evaluation]],
    ) -> dict[str, Any]:
        """Summary, report and exported model; the summary comes last, as the sign of the end.

        Args:
          target: the model before unlearning.
          model: the main method's result.
          evaluations: label to evaluation.
          histories: label of each method to the evaluations of the target and after each request.
        """
        sets = suite.limit_sets(self.data.evaluation, self.experiment.evaluation.limit)
        models = {label: self._metrics(one) for label, one in evaluations.items()}
        summary = {
            "name": self.experiment.name,
            "primary": list(evaluations)[-1],
            "models": models,
            "training": self.folder.trainings(),
            "timing": self.folder.timing,
            "config": config_file.dump(self.experiment),
            "environment": self.environment,
            "notes": self.notes,
        }
        if self.requests:
            forget = [row for s in sets.values() if s.role == "forget" for row in s.rows]
            summary["requests"] = {
                label: over_requests.history(self.requests, forget, known)
                for label, known in histories.items()
            }
        if self.releases:
            summary["release"] = self.releases
        if profiles := self.folder.profiles():
            summary["profiles"] = profiles
        self._export(target, model, model_card(summary))
        report.write_report(
            self.folder.path / "report.html",
            summary,
            self.folder.model_curves(),
            samples(sets, evaluations),
            entities.heat_maps(sets, evaluations),
            same_rows.within_run(evaluations, summary["primary"]),
        )
        self.folder.write_json("summary.json", summary)
        return summary

    def _export(self, target: LanguageModel, model: LanguageModel, card: str) -> None:
        path = self.folder.path
        export_model(model, path / "hf", card=card, overwrite=True)
        if model.adapter is None:
            return
        base = self._target_folder(target)
        export_adapter(model, path / "adapter", base=base, overwrite=True)

    def _finetuned(
        self, stage: str, training: TrainingConfig, chosen: Sequence[int]
    ) -> LanguageModel:
        """The base model trained on the chosen ones of all rows."""
        with self.bars.stage(f"{stage} model") as bar, self._profiled(stage):
            return self._timed(
                f"{stage} training",
                lambda: finetune_rows(
                    self.base,
                    # All rows for target and retrained, so that both use one compiled program.
                    self._all_rows(),
                    chosen,
                    self.experiment,
                    training,
                    checkpoints=self.folder.checkpoints(stage),
                    on_steps=self.folder.logger(stage, bar.steps),
                    say=self._note,
                ),
            )

    def _all_rows(self) -> tuple[Row, ...]:
        return (*self.data.forget, *self.data.retain, *self.data.background)

    def _profiled(self, stage: str) -> AbstractContextManager[None]:
        """Traces some steps of a training by a loss, if that was asked for."""
        place = self.folder.path / "traces" / stage
        return profiled(place, self.profile, lambda text: self.bars.say(f"{stage}: {text}"))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.bars.say(text)

    def _timed(self, what: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = work()
        self.folder.add_timing(what, time.perf_counter() - begin)
        return result


def _about(rows: Sequence[Row]) -> str:
    """Whom rows are about, or how many there are."""
    entities = list(dict.fromkeys(row.entity for row in rows if row.entity))
    return ", ".join(entities) or f"{len(rows)} forget rows"
