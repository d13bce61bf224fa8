"""The Python interface: load, unlearn, evaluate, export."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from jaxunlearn import config as configs
from jaxunlearn.config import DataConfig, Experiment
from jaxunlearn.data import formats
from jaxunlearn.data.rows import EvalSet, Kind, Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import suite
from jaxunlearn.methods import registry
from jaxunlearn.models import checkpoint_hf, peft_adapter
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model as load
from jaxunlearn.tables import need_tokenizer
from jaxunlearn.unlearning import unlearn_rows

__all__ = ["Result", "evaluate", "load", "unlearn"]

Rows = str | Path | Iterable[Row | Mapping[str, Any] | tuple[str, str]]


@dataclass(frozen=True)
class Result:
    """What unlearning gave."""

    model: LanguageModel
    history: list[dict[str, float]]
    """One dict per step: loss, the terms' losses, grad_norm, learning_rate, tokens_per_second."""

    def export(self, folder: str | Path) -> Path:
        """Writes the model as an ordinary Hugging Face folder; an adapter is merged.

        Raises:
          UserError: the folder is already there.
        """
        return checkpoint_hf.export_model(self.model, folder)

    def export_adapter(self, folder: str | Path, base: str | Path) -> Path:
        """Writes the adapter for PEFT, on top of the model at `base`.

        Raises:
          UserError: the run trained no adapter, or the folder is already there.
        """
        return peft_adapter.export_adapter(self.model, folder, base=base)


def unlearn(
    model: LanguageModel,
    forget: Rows,
    retain: Rows = (),
    *,
    method: str = "npo",
    training: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    sampling: str | Mapping[str, Any] = "random",
    template: str = DataConfig().template,
    seed: int = 0,
    parallel: str | Mapping[str, int] = "auto",
    **hyper: float | str,
) -> Result:
    """Makes a model forget rows.

    Args:
      model: from `load`; it is left as it is.
      forget: a .jsonl, .csv or .parquet file with the columns question and answer, or rows: `Row`,
        dicts with these keys, or (question, answer) pairs.
      retain: the same; needed by every method with a retain term.
      method: a name that `jaxunlearn methods` lists.
      training: keys of the config's training section, such as {"epochs": 5}.
      adapter: {"rank": 8, "alpha": 16} trains a LoRA adapter; None trains all parameters.
      sampling: which forget row meets which retain rows: a name that `jaxunlearn samplers` lists,
        or keys of the config's sampling section.
      template: prompt for tokenizers without a chat template.
      seed: of the sampling, and of a fresh adapter.
      parallel: how devices are used: "auto" (all, data parallel), "jit" (one), "pmap", or a mesh
        such as {"fsdp": 4, "tensor": 2}.
      **hyper: the method's hyper-parameters, such as beta=0.1.

    Raises:
      UserError: bad rows, an unknown name, or a value out of range.
    """
    settings = configs.validate(
        Experiment,
        {
            "seed": seed,
            "data": {"template": template},
            "method": {"name": method, "hyper": hyper},
            "training": dict(training or {}),
            "adapter": None if adapter is None else dict(adapter),
            "parallel": parallel if isinstance(parallel, str) else dict(parallel),
            "sampling": {"name": sampling} if isinstance(sampling, str) else dict(sampling),
        },
        where="unlearn",
    )
    chosen = registry.resolve(settings.method)
    forget_rows, retain_rows = read_rows(forget, "forget"), read_rows(retain, "retain")
    objective, _ = registry.objective(chosen)
    if "retain" in objective.groups and not retain_rows:
        raise UserError(f"retain: no rows, and {method} needs some; give retain= some rows")
    history: list[dict[str, float]] = []
    result = unlearn_rows(
        model,
        forget_rows,
        retain_rows,
        settings,
        chosen,
        on_steps=lambda done, total, log: history.extend(log),
    )
    return Result(result, history)


def evaluate(
    model: LanguageModel,
    forget: Rows,
    retain: Rows = (),
    *,
    holdout: Rows = (),
    retrained: LanguageModel | None = None,
    template: str = DataConfig().template,
    **settings: Any,
) -> dict[str, float | None]:
    """Scores a model: metric name to value.

    Args:
      model: with a tokenizer.
      forget: rows it should not know; see `unlearn`.
      retain: rows it should know.
      holdout: rows like the forget rows that no model has seen; gives the `privacy_` numbers.
      retrained: a model that never saw the forget rows; gives `forget_quality` in TOFU's suite,
        and with a holdout `priv_leak`.
      template: prompt for tokenizers without a chat template.
      **settings: keys of the config's evaluation section, such as max_new_tokens=50.
    """
    sets = {"forget": EvalSet("forget", read_rows(forget, "forget"))}
    if kept := read_rows(retain, "retain"):
        sets["retain"] = EvalSet("retain", kept)
    if unseen := read_rows(holdout, "holdout"):
        formats.refuse_seen(unseen, sets["forget"].rows, kept)
        sets["holdout"] = EvalSet("holdout", unseen)
    options = configs.validate(configs.EvaluationConfig, settings, where="evaluate")

    def score(one: LanguageModel) -> suite.Evaluation:
        need_tokenizer(one)
        return suite.evaluate(
            one, sets, options, template=template, max_length=one.config.max_positions
        )

    suite.check(options, sets)
    evaluation = score(model)
    if retrained is not None and suite.comparable(options, evaluation):
        compared = suite.against_retrained(options, evaluation, score(retrained))
        evaluation.metrics.update(compared)
    return {name: entry["value"] for name, entry in evaluation.metrics.items()}


def read_rows(rows: Rows, name: str) -> tuple[Row, ...]:
    """Rows from a file or from Python data.

    Raises:
      UserError: a file that cannot be read, or a row without question and answer; names the row.
    """
    if isinstance(rows, str | Path):
        return formats.read_file(Path(rows))
    found = []
    for number, row in enumerate(rows):
        try:
            if isinstance(row, Mapping):
                row = Row(**row)
            elif not isinstance(row, Row):
                row = Row(*row)
        except TypeError as error:
            raise UserError(
                f"{name}: row {number} is not a row ({error}); give (question, answer)"
            ) from None
        if row.kind not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise UserError(f"{name}: row {number} is of kind {row.kind!r}; there are {kinds}")
        if not isinstance(row.answer, str) or not row.answer.strip():
            raise UserError(f"{name}: row {number} has no answer; give (question, answer)")
        found.append(replace(row, source=row.source or f"{name}: row {number}"))
    return tuple(found)
