"""The evaluation of one model: plan the rows, forward each once, generate once, compute metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import metrics
from jaxunlearn.evaluation.forward import TokenStats, score
from jaxunlearn.models.generate import generate
from jaxunlearn.models.language_model import LanguageModel

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What one model scored; plain data, so that it can be kept as JSON."""

    metrics: dict[str, dict[str, Any]]
    """Name to {"value", "n", "ci"}; value None where it could not be computed."""
    forget_ratios: list[float | None]
    """Truth ratio of each forget row; what forget quality compares between two models."""
    generations: dict[str, list[str]]
    """Evaluation set to the generated answer of each of its rows."""
    left_out: int
    """Row texts longer than the model's limit, which no number covers."""
    no_room: int
    """Questions so long that the model has no room for an answer; they count as empty answers."""


def evaluate(
    model: LanguageModel,
    sets: Mapping[str, EvalSet],
    config: EvaluationConfig,
    *,
    template: str,
    max_length: int,
    on_rows: OnRows | None = None,
) -> Evaluation:
    """Scores a model on evaluation sets, as TOFU does (arXiv 2401.06121, section 2.2).

    Args:
      model: with a tokenizer.
      sets: name to rows and role; `limit_sets` cuts them down.
      config: batch size and generation length.
      template: prompt for tokenizers without a chat template.
      max_length: tokens a row may have; longer ones are left out and counted.
      on_rows: called with (rows done, rows in all) as work goes on.
    """
    pairs = sorted({pair for chosen in sets.values() for pair in _pairs(chosen.rows)})
    encoded = tokens.encode(model.tokenizer, pairs, template=template, max_length=max_length)
    prompts = [(name, row) for name, chosen in sets.items() for row in chosen.rows]
    progress = _Progress(len(encoded.kept) + len(prompts), on_rows)
    stats = score(
        model.config,
        model.params,
        encoded.table,
        lora=model.lora,
        batch_size=config.batch_size,
        on_rows=progress.add,
    )
    place = {pairs[index]: row for row, index in enumerate(encoded.kept)}
    texts, no_room = _generate(model, prompts, config, template, progress)
    generations: dict[str, list[str]] = {name: [] for name in sets}
    for (name, _), text in zip(prompts, texts, strict=True):
        generations[name].append(text)
    measured, ratios = _measure(
        sets, _Scores(stats, place), generations, model.tokenizer.eos_token_id is not None
    )
    return Evaluation(measured, ratios, generations, len(encoded.left_out), no_room)


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


def forget_quality(evaluation: Evaluation, retrained: Evaluation) -> dict[str, Any]:
    """TOFU's forget quality of a model against the retrained one, as a metric entry."""
    ours, theirs = (
        np.array([np.nan if r is None else r for r in e.forget_ratios], np.float64)
        for e in (evaluation, retrained)
    )
    value = metrics.forget_quality(ours, theirs)
    known = int(np.isfinite(ours).sum())
    return {"value": None if np.isnan(value) else float(value), "n": known, "ci": None}


class _Progress:
    """Adds up finished rows for a progress bar."""

    def __init__(self, total: int, report: OnRows | None):
        self.done, self.total, self.report = 0, total, report

    def add(self, rows: int) -> None:
        self.done += rows
        if self.report is not None:
            self.report(self.done, self.total)


@dataclass(frozen=True)
class _Scores:
    """Statistics of a table, looked up by (question, answer)."""

    stats: TokenStats
    place: Mapping[tuple[str, str], int]

    def rows(self, pairs: Sequence[tuple[str, str] | None]) -> tuple[np.ndarray, ...]:
        """log_probs, hits and mask of pairs; a pair that was left out has an empty mask."""
        width = self.stats.mask.shape[1]
        log_probs = np.zeros((len(pairs), width), np.float32)
        hits, mask = np.zeros((len(pairs), width), bool), np.zeros((len(pairs), width), bool)
        for row, pair in enumerate(pairs):
            at = None if pair is None else self.place.get(pair)
            if at is not None:
                log_probs[row], hits[row] = self.stats.log_probs[at], self.stats.hits[at]
                mask[row] = self.stats.mask[at]
        return log_probs, hits, mask

    def mean_log_probs(self, pairs: Sequence[tuple[str, str] | None]) -> np.ndarray:
        """[len(pairs)]; nan for a pair that was left out."""
        log_probs, _, mask = self.rows(pairs)
        return metrics.mean_log_prob(log_probs, mask)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every text of the rows that a metric needs the likelihood of."""
    found = []
    for row in rows:
        answers = [row.answer, row.paraphrased_answer, *row.perturbed_answers]
        found += [(row.question, answer) for answer in answers if answer is not None]
    return found


def _generate(
    model: LanguageModel,
    prompts: Sequence[tuple[str, Row]],
    config: EvaluationConfig,
    template: str,
    progress: _Progress,
) -> tuple[list[str], int]:
    """A greedy answer to each question, and how many prompts left no room for one."""
    ids = [tokens.prompt_tokens(model.tokenizer, r.question, template=template) for _, r in prompts]
    room = model.config.max_positions - config.max_new_tokens
    fits = [i for i, prompt in enumerate(ids) if len(prompt) <= room]
    texts = [""] * len(ids)
    # In slices, so that progress is shown.
    slice_size = config.batch_size * 4
    fits.sort(key=lambda i: len(ids[i]))
    for start in range(0, len(fits), slice_size):
        part = fits[start : start + slice_size]
        answers = generate(
            model.config,
            model.params,
            [ids[i] for i in part],
            lora=model.lora,
            max_new_tokens=config.max_new_tokens,
            stop_tokens=model.stop_tokens,
            batch_size=config.batch_size,
        )
        for i, answer in zip(part, answers, strict=True):
            texts[i] = model.tokenizer.decode(answer, skip_special_tokens=True).strip()
        progress.add(len(part))
    return texts, len(ids) - len(fits)


def _measure(
    sets: Mapping[str, EvalSet],
    scores: _Scores,
    generations: Mapping[str, Sequence[str]],
    final_eos: bool,
) -> tuple[dict[str, dict[str, Any]], list[float | None]]:
    """All metric entries, and the truth ratio of each forget row."""
    values: dict[str, np.ndarray] = {}
    forget_ratios = np.array([])
    for name, chosen in sets.items():
        rows = chosen.rows
        log_probs, hits, mask = scores.rows([(row.question, row.answer) for row in rows])
        probability = metrics.answer_probability(log_probs, mask)
        if chosen.role == "general":
            wrong = np.exp(_perturbed(rows, scores))
            probability = metrics.option_probability(probability, wrong)
        values[f"{name}_probability"] = probability
        truth = [row.answer for row in rows]
        values[f"{name}_rouge"] = metrics.rouge_l_recall(generations[name], truth)
        ratios = _truth_ratios(rows, scores)
        if chosen.role == "forget":
            forget_ratios = ratios
            values[f"{name}_truth_ratio"] = metrics.forget_truth_ratio(ratios)
            values[f"{name}_exact_memorisation"] = metrics.exact_memorisation(
                hits, mask, final_eos=final_eos
            )
            values[f"{name}_extraction_strength"] = metrics.extraction_strength(
                hits, mask, final_eos=final_eos
            )
        else:
            values[f"{name}_truth_ratio"] = metrics.retain_truth_ratio(ratios)
    table = {name: metrics.summarise(value) for name, value in values.items()}
    finite = [float(r) if np.isfinite(r) else None for r in forget_ratios]
    table = {"model_utility": _utility(sets, table), **table}
    return table, finite


def _perturbed(rows: Sequence[Row], scores: _Scores) -> np.ndarray:
    """Mean log-probabilities of the wrong answers, [n, k]; nan where a row has fewer than k."""
    k = max((len(row.perturbed_answers) for row in rows), default=0)
    pairs = [
        (row.question, row.perturbed_answers[j]) if j < len(row.perturbed_answers) else None
        for row in rows
        for j in range(k)
    ]
    return scores.mean_log_probs(pairs).reshape(len(rows), k)


def _truth_ratios(rows: Sequence[Row], scores: _Scores) -> np.ndarray:
    right = [(row.question, row.paraphrased_answer or row.answer) for row in rows]
    return metrics.truth_ratio(scores.mean_log_probs(right), _perturbed(rows, scores))


def _utility(sets: Mapping[str, EvalSet], table: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Harmonic mean of probability, ROUGE-L and truth ratio on all sets but the forget set."""
    kept = [name for name, chosen in sets.items() if chosen.role != "forget"]
    parts = [
        f"{name}_{metric}" for name in kept for metric in ("probability", "rouge", "truth_ratio")
    ]
    known = {name: table[name]["value"] for name in parts if table[name]["value"] is not None}
    value = metrics.model_utility(known) if known else None
    return {"value": value, "n": len(known), "ci": None}
