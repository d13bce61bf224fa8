"""Evaluations of a run: of whole models, and of one in training, to choose its result by."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig, EvaluationConfig, Experiment, SelectConfig
from jaxunlearn.data.rows import EvalSet, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import benchmark, suite
from jaxunlearn.evaluation.open_unlearning_logs import Log, check_split, read_log
from jaxunlearn.evaluation.results import Table
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.progress import Bars
from jaxunlearn.tables import max_length, need_tokenizer
from jaxunlearn.training.watching import Selection

UTILITY = "model_utility"


def check_evaluation(experiment: Experiment, data: UnlearningData) -> Log | None:
    """The log that stands for a retrained model, if there is one.

    Raises:
      UserError: the suite has nothing to measure, or the log cannot be read or is of other rows.
    """
    settings, sets = experiment.evaluation, data.evaluation
    suite.check(settings, sets)
    _need_wrong_answers(experiment.data, settings, sets)
    if settings.retain_log is None:
        return None
    log = read_log(settings.retain_log)
    if "forget" not in sets:
        raise UserError("evaluation.retain_log: there is no evaluation set forget; leave it out")
    check_split(log, sets["forget"].rows)
    return log


def _need_wrong_answers(
    data: DataConfig, settings: EvaluationConfig, sets: Mapping[str, EvalSet]
) -> None:
    """TOFU's suite on TOFU needs its perturbed files; suite custom takes what is there."""
    if data.format != "tofu" or "tofu" not in settings.suite.split("+"):
        return
    plan = benchmark.load(settings.suite).plan(sets)
    for name, one in sets.items():
        if "truth_ratio" in plan[name] and not any(row.perturbed_answers for row in one.rows):
            stem = {"forget": Path(data.forget).stem}.get(name, name)
            raise UserError(
                f"data.path: {stem}_perturbed.json is missing in {data.path}, and the truth ratio"
                f" of suite {settings.suite} needs its wrong answers; add the file, or use suite"
                " custom"
            )


def notes(evaluation: Evaluation, settings: EvaluationConfig) -> list[str]:
    """What the numbers of an evaluation do not cover, in words."""
    found = []
    if evaluation.no_room:
        found.append(
            f"evaluation: {evaluation.no_room} questions leave no room for"
            f" {settings.max_new_tokens} new tokens and count as not answered"
        )
    if evaluation.left_out:
        found.append(
            f"evaluation: {evaluation.left_out} texts are longer than the model's limit and have no"
            " likelihood"
        )
    return found


def evaluate_model(
    label: str,
    model: LanguageModel,
    data: UnlearningData,
    experiment: Experiment,
    bars: Bars,
    judge: LanguageModel | None,
    *,
    passing: bool = False,
) -> Evaluation:
    """The evaluation of a model on all sets, with a progress bar, which goes away in the end if it
    is `passing`; see `suite.evaluate`."""
    need_tokenizer(model)
    with bars.stage(f"evaluate {label}", passing=passing) as stage:
        return suite.evaluate(
            model,
            suite.limit_sets(data.evaluation, experiment.evaluation.limit),
            experiment.evaluation,
            template=experiment.data.template,
            max_length=max_length(model, experiment),
            judge=judge,
            on_rows=lambda done, total: stage.update(done, total, "texts"),
        )


def with_comparison(
    experiment: Experiment,
    evaluation: Evaluation,
    retrained: Evaluation | None,
    log: Log | None,
) -> Table:
    """A model's metrics, and before them what comparing with the retrained model adds.

    Args:
      experiment: its evaluation section counts.
      evaluation: of the model.
      retrained: of the retrained model, if there is one.
      log: what stands for it otherwise, if there is one.
    """
    compared: Table = {}
    if retrained is not None:
        compared = suite.against_retrained(experiment.evaluation, evaluation, retrained)
    elif log is not None:
        compared = suite.against_log(experiment.evaluation, evaluation, log)
    return {**compared, **evaluation.metrics}


def metric_names(experiment: Experiment, sets: Mapping[str, EvalSet]) -> list[str]:
    """The metrics that a run's models will have on its evaluation sets."""
    settings = experiment.evaluation
    retrained = experiment.model.retrained is not None or settings.retain_log is not None
    compared = retrained or (experiment.finetune is not None and experiment.retrain)
    return benchmark.load(settings.suite).names(sets, compared=compared)


def check_select(experiment: Experiment, sets: Mapping[str, EvalSet]) -> None:
    """Refuses a `select` section that names what the suite does not measure.

    Raises:
      UserError: the metric, or model utility, is not there; names what is.
    """
    asked, settings = experiment.select, experiment.evaluation
    if asked is None:
        return
    there = metric_names(experiment, sets)
    if asked.metric not in there:
        if asked.metric in benchmark.load(settings.suite).names(sets, compared=True):
            raise UserError(
                f"select.metric: {asked.metric} compares with a retrained model, and there is none;"
                " give model.retrained, or choose another metric"
            )
        raise UserError(
            f"select.metric: suite {settings.suite} has no {asked.metric!r} on this data; there are"
            f" {', '.join(there)}"
        )
    if asked.keep_utility is not None and UTILITY not in there:
        raise UserError(
            f"select.keep_utility: suite {settings.suite} has no {UTILITY} on this data; leave it"
            " out"
        )


def selection(
    asked: SelectConfig,
    target: Table,
    look: Callable[[LanguageModel], Table],
    log: Callable[[Mapping[str, Any]], None],
    say: Callable[[str], None],
) -> Selection:
    """What the config's `select` asks for.

    Args:
      asked: the section.
      target: metrics of the model before unlearning.
      look: metrics of a model in training.
      log: called with the step and the numbers of each look.
      say: called with which state was chosen, and why.

    Raises:
      UserError: the target has no number for what is to be compared.
    """
    if asked.metric not in target:
        raise UserError(
            f"select.metric: {asked.metric} could not be measured of the target; choose one of"
            f" {', '.join(target)}"
        )
    least = None
    if asked.keep_utility is not None:
        before = target[UTILITY]["value"]
        if before is None:
            raise UserError(
                "select.keep_utility: the target's model utility could not be measured; leave it"
                " out"
            )
        least = asked.keep_utility * before

    def measure(step: int, model: LanguageModel) -> tuple[float, float]:
        metrics = look(model)
        found = {name: one["value"] for name, one in metrics.items()}
        log({**{name: value for name, value in found.items() if value is not None}, "step": step})
        return value_of(metrics, asked.metric), value_of(metrics, UTILITY)

    return Selection(asked.every, measure, asked.metric, asked.goal, least, asked.patience, say)


def value_of(metrics: Table, name: str) -> float:
    """The value of a metric; nan where it was not measured."""
    value = metrics[name]["value"] if name in metrics else None
    return float("nan") if value is None else value
