"""A whole experiment: prepare, unlearn, evaluate, report, export."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import attributing
from jaxunlearn.attribution.functions import GRADIENTS
from jaxunlearn.attribution.of_run import FUNCTIONS
from jaxunlearn.config import Experiment, MethodConfig, sampling_of, training_of
from jaxunlearn.config_attribution import AttributionConfig
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import EvalSet
from jaxunlearn.errors import UserError
from jaxunlearn.evaluating import check_evaluation, evaluate_model
from jaxunlearn.evaluation import benchmark, suite
from jaxunlearn.evaluation.open_unlearning_logs import refuse_existing, write_logs
from jaxunlearn.evaluation.suite import Evaluation
from jaxunlearn.methods import registry
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.starting import computed, loaded
from jaxunlearn.progress import Bars
from jaxunlearn.reveal.theme import load_data, read_lines
from jaxunlearn.runs import RunFolder
from jaxunlearn.stages import Stages
from jaxunlearn.training import hosts
from jaxunlearn.user_file import file_version, names_user_function, user_function

RESERVED_LABELS = ("target", "retrained", "reinforced")  # other models' names and folders


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with every method's hyper-parameters filled in.

    Raises:
      UserError: an unknown method or hyper-parameter, a label that cannot be, or settings that
        exclude each other.
    """
    labels(experiment)
    if experiment.model.path is None and experiment.finetune is None:
        raise UserError("model.path: is missing; give a model folder, or a finetune section")
    if experiment.adapter is not None and experiment.training.train_only is not None:
        raise UserError("training.train_only: cannot be combined with adapter; remove one")
    for method in (*experiment.baselines, experiment.method):
        sampling_of(experiment, method)
        training_of(experiment, method)
    embedder = experiment.evaluation.embedder
    if embedder is not None:
        user_function(embedder, key="evaluation.embedder")
    suite.check(experiment.evaluation)
    made = experiment.finetune is not None and experiment.retrain
    if experiment.evaluation.retain_log is not None and (made or experiment.model.retrained):
        raise UserError(
            "evaluation.retain_log: there is a retrained model too; remove the log, or"
            " model.retrained (retrain: false with a finetune section)"
        )
    needed = experiment.stop is not None and experiment.stop.metric == "utility"
    if needed and not benchmark.has(experiment.evaluation.suite, "model_utility"):
        raise UserError(
            f"stop.metric: suite {experiment.evaluation.suite} has no model_utility to stop at; use"
            " retain_nll"
        )
    kinds = {registry.kind_of(one.name) for one in (*experiment.baselines, experiment.method)}
    if experiment.model.quantize is not None and (why := why_not_int8(experiment)) is not None:
        raise UserError(f"model.quantize: {why}")
    if experiment.reveal is not None and "rounds" not in kinds:
        raise UserError(
            "reveal: no method of this run makes its forget rows itself, as reveal_release does;"
            " remove it"
        )
    attribution = experiment.attribution
    if attribution is None and "reward" in kinds:
        attribution = AttributionConfig()
    version = None if embedder is None else file_version(embedder)
    evaluation = dataclasses.replace(
        experiment.evaluation,
        embedder_version=version,
        suite_version=benchmark.version(experiment.evaluation.suite),
    )
    return dataclasses.replace(
        experiment,
        method=registry.resolve(experiment.method),
        baselines=tuple(registry.resolve(method) for method in experiment.baselines),
        reveal=_resolved_reveal(experiment.reveal or RevealConfig()) if "rounds" in kinds else None,
        attribution=attribution,
        evaluation=evaluation,
    )


def why_not_int8(experiment: Experiment) -> str | None:
    """Why a base in int8, which must stay as it is from the start of a run to its end, cannot be
    had; None: it can."""
    if experiment.finetune is not None:
        return (
            "finetune trains weights, and those in int8 cannot be trained; fine-tune without it"
            " (jaxunlearn finetune), and give what that exports as model.path and model.retrained"
        )
    if experiment.adapter is None:
        return (
            "weights in int8 cannot be trained; add an adapter section, or leave model.quantize out"
        )
    methods = (*experiment.baselines, experiment.method)
    rounds = [one.name for one in methods if registry.kind_of(one.name) == "rounds"]
    for what in rounds if experiment.requests is None else ["requests"]:
        return (
            f"weights in int8 stay as they are, and {what} would merge one adapter after another"
            " into them; leave model.quantize out"
        )
    for name in FUNCTIONS if experiment.attribution is not None else ():
        kind = getattr(experiment.attribution, name).kind
        if kind in GRADIENTS:
            return (
                f"weights in int8 have no gradients, and attribution.{name}: {kind} is made of"
                " those of all weights; take another kind, or leave model.quantize out"
            )
    return None


def _resolved_reveal(reveal: RevealConfig) -> RevealConfig:
    """With versions of the files that it names."""
    scorer, files = None, None
    if reveal.scorer is not None and names_user_function(reveal.scorer):
        user_function(reveal.scorer, key="reveal.scorer")
        scorer = file_version(reveal.scorer)
    named = {"prompts": reveal.prompts, "instructions": reveal.instructions}
    lines = {k: read_lines(path, f"reveal.{k}") for k, path in named.items() if path is not None}
    if lines:
        files = hashlib.sha256(repr(lines).encode()).hexdigest()[:16]
    return dataclasses.replace(reveal, scorer_version=scorer, files_version=files)


def run(experiment: Experiment, *, profile: int = 0) -> dict[str, Any]:
    """Runs an experiment in its run folder, going on where an earlier start of it was cut off.

    Args:
      experiment: what to run.
      profile: steps to trace of each training by a loss.

    Returns:
      The summary, as in summary.json.

    Raises:
      UserError: any fault in config, data, model or run folder, before the expensive part.
    """
    experiment = resolve(experiment)
    folder = RunFolder(experiment)
    if folder.summary is not None and (folder.path / "hf" / "config.json").is_file():
        return folder.summary
    with Bars(quiet=not hosts.is_first()) as bars:
        work = Stages(experiment, folder, bars, profile)
        target, evaluations = _before(work)
        histories = {}
        for label, method in labels(experiment).items():
            model, after = work.unlearn(label, target, method)
            evaluations[label] = after[-1]
            histories[label] = [evaluations["target"], *after]
        return work.finish(target, model, evaluations, histories)


def prepare(experiment: Experiment) -> None:
    """The part of a run that comes before unlearning; `run` goes on from its folder.

    Raises:
      UserError: as `run`.
    """
    experiment = resolve(experiment)
    with Bars(quiet=not hosts.is_first()) as bars:
        _before(Stages(experiment, RunFolder(experiment), bars))


def _before(work: Stages) -> tuple[LanguageModel, dict[str, Evaluation]]:
    """The target, and the evaluations of it and of the retrained model."""
    target = work.judge = work.target()
    work.attribute(target)
    evaluations = {"target": work.evaluate("target", target)}
    retrained = work.retrained()
    if retrained is not None:
        evaluations["retrained"] = work.evaluate("retrained", retrained)
    return target, evaluations


def finetune(experiment: Experiment) -> list[Path]:
    """Trains the target model and the retrained reference, and exports both.

    Returns:
      The exported Hugging Face folders, `target` and `retrained` of the run folder.

    Raises:
      UserError: as `run`; also when the config has no finetune section.
    """
    experiment = resolve(experiment)
    if experiment.finetune is None:
        raise UserError("finetune: is missing from the config; add a finetune section")
    folder = RunFolder(experiment)
    with Bars() as bars:
        work = Stages(experiment, folder, bars)
        models = {"target": work.target(), "retrained": work.retrained()}
        card = "Made by jaxunlearn's finetune command."
        return [
            export_model(model, folder.path / name, card=card, overwrite=True)
            for name, model in models.items()
            if model is not None
        ]


def evaluate(
    model: LanguageModel,
    experiment: Experiment,
    retrained: LanguageModel | None = None,
    logs: Path | None = None,
    run: Path | None = None,
) -> Evaluation:
    """Evaluates a model on the config's data; with a retrained model, or a log of one, also against
    that.

    Args:
      model: with a tokenizer.
      experiment: its data and evaluation sections count.
      retrained: a model that never saw the forget rows.
      logs: folder for `TOFU_EVAL.json` and `TOFU_SUMMARY.json` in open-unlearning's layout.
      run: folder of the run whose attribution functions measure too, if it has any.
    """
    asked = experiment.evaluation
    data = load_data(experiment)
    log = check_evaluation(experiment, data)
    if logs is not None:
        refuse_existing(logs)
    model = computed(model, experiment.model)
    retrained = retrained and computed(retrained, experiment.model)
    judge = _judge(experiment)
    with Bars() as bars:
        if suite.needs_judge(asked) and experiment.finetune is not None:
            bars.say(
                "perplexity of generations and similarity are judged by "
                f"{'the start model' if judge is not None else 'the model itself'}, not by the "
                "fine-tuned target as in a run: it and what is made of it differ a little"
            )
        if experiment.attribution is not None and run is None:
            bars.say(
                "attribution is left out: its functions belong to a run; give the run's folder"
            )
        elif experiment.attribution is not None:
            data = attributing.attached(data, experiment, run, bars.say)
        evaluation = evaluate_model("model", model, data, experiment, bars, judge)
        if retrained is not None and suite.comparable(asked, evaluation):
            reference = evaluate_model("retrained", retrained, data, experiment, bars, judge)
            evaluation.metrics.update(suite.against_retrained(asked, evaluation, reference))
        elif log is not None:
            evaluation.metrics.update(suite.against_log(asked, evaluation, log))
    if logs is not None:
        _write_logs(logs, evaluation, suite.limit_sets(data.evaluation, asked.limit))
    return evaluation


def labels(experiment: Experiment) -> dict[str, MethodConfig]:
    """A distinct name for every method of the run; the main one comes last.

    Raises:
      UserError: a label is given twice, or a name is reserved.
    """
    methods = (*experiment.baselines, experiment.method)
    given = [method.label for method in methods if method.label is not None]
    found: dict[str, MethodConfig] = {}
    for method in methods:
        # A user's own method is called by its function: labels are folder names.
        name = method.label or method.name.rpartition(":")[2]
        if name in RESERVED_LABELS:
            raise UserError(
                f"method {method.name}: label {name!r} is reserved; set another method.label"
            )
        if given.count(method.label) > 1:
            raise UserError(
                f"method {method.name}: label {name!r} is given twice; each needs one of its own"
            )
        if method.label is None:
            plain, number = name, 1
            while name in found or name in given:
                number += 1
                name = f"{plain}_{number}"
        found[name] = method
    return found


def _write_logs(folder: Path, evaluation: Evaluation, sets: Mapping[str, EvalSet]) -> None:
    # There the probability of general rows is the one among the options.
    options = {
        key.replace("_option_", "_"): values
        for key, values in evaluation.rows.items()
        if key.endswith("_option_probability")
    }
    texts = {name: [row.key[:2] for row in chosen.rows] for name, chosen in sets.items()}
    rows = evaluation.rows | options
    write_logs(folder, evaluation.metrics, rows, evaluation.generations, texts)


def _judge(experiment: Experiment) -> LanguageModel | None:
    """The config's start model, if one is needed; None: each model judges itself."""
    path = experiment.model.path
    needed = path is not None and suite.needs_judge(experiment.evaluation)
    return loaded(path, experiment.model) if needed else None
