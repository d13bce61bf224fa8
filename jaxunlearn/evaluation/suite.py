"""The evaluation of one model: plan the rows, forward each once, generate once, compute metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import embed, melu, metrics, privacy, tofu
from jaxunlearn.evaluation.answering import answer_texts
from jaxunlearn.evaluation.embed import Embedder
from jaxunlearn.evaluation.entries import Entry, entry
from jaxunlearn.evaluation.forward import score
from jaxunlearn.evaluation.results import Results, Scores, Suite, Table
from jaxunlearn.models.language_model import LanguageModel

OnRows = Callable[[int, int], None]

SUITES: Mapping[str, Suite] = {
    "tofu": Suite(tofu.measure, tofu.answers, tofu.forget_ratios),
    "melu": Suite(melu.measure),
}
"""What `evaluation.suite` can be."""

_LEAK = "privacy_min_k_auc"  # what PrivLeak compares


@dataclass(frozen=True)
class Evaluation:
    """What one model scored; plain data, so that it can be kept as JSON."""

    metrics: Table
    """Name to {"value", "n", "ci"}; value None where it could not be computed."""
    forget_ratios: list[float | None]
    """Truth ratio of each forget row, which forget quality compares between two models; empty for
    suites without it."""
    forget_rows: dict[str, list[float | None]]
    """probability (length-normalised, of the answer) and rouge (ROUGE-L recall) of each forget
    row, whatever the suite measures."""
    generations: dict[str, list[str]]
    """Evaluation set to the generated answer of each of its rows; a holdout has none."""
    left_out: int
    """Row texts longer than the model's limit, which no number covers."""
    no_room: int
    """Questions so long that the model has no room for an answer; they count as empty answers."""

    @property
    def comparable(self) -> bool:
        """Whether `against_retrained` adds anything."""
        return bool(self.forget_ratios) or _LEAK in self.metrics


def evaluate(
    model: LanguageModel,
    sets: Mapping[str, EvalSet],
    config: EvaluationConfig,
    *,
    template: str,
    max_length: int,
    judge: LanguageModel | None = None,
    on_rows: OnRows | None = None,
) -> Evaluation:
    """Scores a model on evaluation sets, as the config's suite does.

    Args:
      model: with a tokenizer.
      sets: name to rows and role; `limit_sets` cuts them down. A holdout is compared to the
        forget rows by the measures of `privacy`, and has no part in any other number.
      config: suite, batch size, generation length and embedder.
      template: prompt for tokenizers without a chat template.
      max_length: tokens a row may have; longer ones are left out and counted.
      judge: embeds texts where the config names no embedder. Models that are to be compared need
        the same one; None: the model itself.
      on_rows: called with (rows done, rows in all) as work goes on.

    Raises:
      UserError: the tokenizer is not the model's own, or the embedder cannot be used.
    """
    chosen_suite = SUITES[config.suite]
    holdout = tuple(row for s in sets.values() if s.role == "holdout" for row in s.rows)
    sets = {name: chosen for name, chosen in sets.items() if chosen.role != "holdout"}
    rows = [row for chosen in sets.values() for row in chosen.rows]
    texts = {(row.question, text) for row in rows for text in chosen_suite.answers(row)}
    pairs = sorted(texts | {row.key for row in holdout})
    encoded = tokens.encode(model.tokenizer, pairs, template=template, max_length=max_length)
    prompts = [(name, row) for name, chosen in sets.items() for row in chosen.rows]
    progress = _Progress(len(encoded.kept) + len(prompts), on_rows)
    stats = score(
        model.config,
        model.params,
        encoded.table,
        lora=model.lora,
        batch_size=config.batch_size,
        moments=bool(holdout),
        on_rows=progress.add,
    )
    place = {pairs[index]: row for row, index in enumerate(encoded.kept)}
    ids = [tokens.prompt_tokens(model.tokenizer, r.question, template=template) for _, r in prompts]
    answers, no_room = answer_texts(model, ids, config, on_rows=progress.add)
    generations: dict[str, list[str]] = {name: [] for name in sets}
    for (name, _), text in zip(prompts, answers, strict=True):
        generations[name].append(text)
    results = Results(
        sets,
        Scores(stats, place),
        generations,
        final_eos=model.tokenizer.eos_token_id is not None,
        embedder=_embedder(judge or model, rows, config),
        config=config,
        holdout=holdout,
    )
    return Evaluation(
        {**chosen_suite.measure(results), **privacy.measure(results)},
        chosen_suite.forget_ratios(results),
        _forget_rows(results),
        generations,
        len(encoded.left_out),
        no_room,
    )


def limit_sets(sets: Mapping[str, EvalSet], limit: int | None) -> dict[str, EvalSet]:
    """At most `limit` rows of each set, spread evenly over it."""
    if limit is None:
        return dict(sets)
    cut = {}
    for name, chosen in sets.items():
        count = min(limit, len(chosen.rows))
        places = [i * len(chosen.rows) // count for i in range(count)]
        cut[name] = EvalSet(chosen.role, tuple(chosen.rows[place] for place in places))
    return cut


def against_retrained(evaluation: Evaluation, retrained: Evaluation) -> Table:
    """What comparing a model to the retrained one adds: forget quality if the suite has it, and
    PrivLeak if there is a holdout."""
    found: Table = {}
    if evaluation.forget_ratios:
        found["forget_quality"] = forget_quality(evaluation, retrained)
    if _LEAK in evaluation.metrics:
        ours, theirs = evaluation.metrics[_LEAK], retrained.metrics[_LEAK]
        known = None not in (ours["value"], theirs["value"])
        leak = privacy.priv_leak(ours["value"], theirs["value"]) if known else np.nan
        found["priv_leak"] = entry(leak, ours["n"])
    return found


def forget_quality(evaluation: Evaluation, retrained: Evaluation) -> Entry:
    """TOFU's forget quality of a model against the retrained one, as a metric entry."""
    ours, theirs = (
        np.array([np.nan if r is None else r for r in e.forget_ratios], np.float64)
        for e in (evaluation, retrained)
    )
    return entry(metrics.forget_quality(ours, theirs), int(np.isfinite(ours).sum()))


def _forget_rows(results: Results) -> dict[str, list[float | None]]:
    names = [name for name, chosen in results.sets.items() if chosen.role == "forget"]
    rows = [row for name in names for row in results.sets[name].rows]
    texts = [text for name in names for text in results.generations[name]]
    found = {
        "probability": np.exp(results.scores.mean_log_probs([row.key for row in rows])),
        "rouge": metrics.rouge_l_recall(texts, [row.answer for row in rows]),
    }
    return {
        name: [float(value) if np.isfinite(value) else None for value in values]
        for name, values in found.items()
    }


class _Progress:
    """Adds up finished rows for a progress bar."""

    def __init__(self, total: int, report: OnRows | None):
        self.done, self.total, self.report = 0, total, report

    def add(self, rows: int) -> None:
        self.done += rows
        if self.report is not None:
            self.report(self.done, self.total)


def _embedder(judge: LanguageModel, rows: Sequence[Row], config: EvaluationConfig) -> Embedder:
    if config.embedder is not None:
        return embed.load(config.embedder)
    return embed.from_model(judge, [row.answer for row in rows], batch_size=config.batch_size)
