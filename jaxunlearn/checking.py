"""Faults of a run that would otherwise show only after its first training."""

from collections.abc import Callable, Sequence

from jaxunlearn import config as configs
from jaxunlearn.attribution import of_run
from jaxunlearn.config import Experiment
from jaxunlearn.dareu import preparing as rewarding
from jaxunlearn.data.requests import Request
from jaxunlearn.data.rows import UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluating import check_evaluation, check_select
from jaxunlearn.evaluation import embed, suite
from jaxunlearn.evaluation.open_unlearning_logs import Log
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.starting import loaded
from jaxunlearn.release import preparing
from jaxunlearn.tables import encode_rows
from jaxunlearn.training import hosts, optimizers
from jaxunlearn.training.loop import check_layout
from jaxunlearn.training.parallel import layout_of
from jaxunlearn.training.trainable import split_params
from jaxunlearn.unlearning_job import check_method, check_rows


def check_early(
    experiment: Experiment,
    data: UnlearningData,
    base: LanguageModel,
    limit: int,
    requests: Sequence[Request],
    note: Callable[[str], None],
) -> Log | None:
    """The log that stands for a retrained model, if there is one; everything else is in order.

    Args:
      experiment: all settings.
      data: all rows.
      base: the start model.
      limit: tokens a row may have.
      requests: parts that are forgotten one after another, if there are some.
      note: called with what the user should know.

    Raises:
      UserError: room, evaluation, rows, a method or its training cannot be as they are.
    """
    room, positions = experiment.evaluation.max_new_tokens, base.config.max_positions
    if room >= positions:
        raise UserError(
            f"evaluation.max_new_tokens: {room} leaves no room for a question in the model's "
            f"{positions} positions; lower it"
        )
    if experiment.evaluation.embedder is not None:
        texts = [row.answer for row in data.forget[:2]]
        embed.load(experiment.evaluation.embedder)(texts)
    log = check_evaluation(experiment, data)
    check_select(experiment, suite.limit_sets(data.evaluation, experiment.evaluation.limit))
    if experiment.attribution is not None:
        of_run.check(base, data, experiment, note)
    usable, kinds = set(), set()
    for name, rows in (("forget", data.forget), ("retain", data.retain)):
        found = encode_rows(base, rows, experiment, limit, name, note)
        usable |= {rows[i] for i in found.kept}
    for method in (*experiment.baselines, experiment.method):
        training = configs.training_of(experiment, method)
        split_params(base, training.train_only, experiment.adapter, experiment.seed)
        optimizers.resolve_options(training.optimizer, training.optimizer_options)
        check_layout(training, layout_of(experiment.parallel))
        kind = registry.kind_of(method.name)
        kinds.add(kind)
        if kind != "loss":
            check = {"rounds": preparing.check, "reward": rewarding.check}[kind]
            check(base, data, experiment, method)
            continue
        check_method(base, method)
        for part in requests or [data]:
            parts = ([row for row in rows if row in usable] for rows in (part.forget, part.retain))
            check_rows(method, *parts, experiment)
    if hosts.several() and (experiment.attribution is not None or kinds != {"loss"}):
        raise UserError(
            "--distributed: methods that reward or make their rows themselves run in one process;"
            " leave it out, or choose methods with a loss"
        )
    if experiment.finetune is not None:
        split_params(base, experiment.finetune.train_only, None, experiment.seed)
        check_layout(experiment.finetune, layout_of(experiment.parallel))
    if experiment.model.retrained is not None:
        loaded(experiment.model.retrained, experiment.model)
    return log
