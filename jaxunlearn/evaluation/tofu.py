"""What TOFU measures: probability, ROUGE-L, truth ratio (arXiv 2401.06121, section 2.2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import metrics
from jaxunlearn.evaluation.entries import Entry, entry, summarise
from jaxunlearn.evaluation.results import Results, Scores, Table


def answers(row: Row) -> tuple[str, ...]:
    """Every answer of a row whose likelihood a metric needs."""
    found = (row.answer, row.paraphrased_answer, *row.perturbed_answers)
    return tuple(answer for answer in found if answer is not None)


def measure(results: Results) -> Table:
    """TOFU's three measures on every set, its model utility, and memorisation of the forget set."""
    values: dict[str, np.ndarray] = {}
    scores, final_eos = results.scores, results.final_eos
    for name, chosen in results.sets.items():
        rows = chosen.rows
        log_probs, hits, mask = scores.rows([(row.question, row.answer) for row in rows])
        probability = metrics.answer_probability(log_probs, mask)
        if chosen.role == "general":
            wrong = np.exp(_perturbed(rows, scores))
            probability = metrics.option_probability(probability, wrong)
        values[f"{name}_probability"] = probability
        truth = [row.answer for row in rows]
        values[f"{name}_rouge"] = metrics.rouge_l_recall(results.generations[name], truth)
        ratios = _truth_ratios(rows, scores)
        if chosen.role == "forget":
            values[f"{name}_truth_ratio"] = metrics.forget_truth_ratio(ratios)
            values[f"{name}_exact_memorisation"] = metrics.exact_memorisation(
                hits, mask, final_eos=final_eos
            )
            values[f"{name}_extraction_strength"] = metrics.extraction_strength(
                hits, mask, final_eos=final_eos
            )
        else:
            values[f"{name}_truth_ratio"] = metrics.retain_truth_ratio(ratios)
    table = {name: summarise(value) for name, value in values.items()}
    return {"model_utility": _utility(results.sets, table), **table}


def forget_ratios(results: Results) -> list[float | None]:
    """Truth ratio of each forget row; None where it has none."""
    rows = [row for s in results.sets.values() if s.role == "forget" for row in s.rows]
    return [float(r) if np.isfinite(r) else None for r in _truth_ratios(rows, results.scores)]


def _perturbed(rows: Sequence[Row], scores: Scores) -> np.ndarray:
    """Mean log-probabilities of the wrong answers, [n, k]; nan where a row has fewer than k."""
    k = max((len(row.perturbed_answers) for row in rows), default=0)
    pairs = [
        (row.question, row.perturbed_answers[j]) if j < len(row.perturbed_answers) else None
        for row in rows
        for j in range(k)
    ]
    return scores.mean_log_probs(pairs).reshape(len(rows), k)


def _truth_ratios(rows: Sequence[Row], scores: Scores) -> np.ndarray:
    right = [(row.question, row.paraphrased_answer or row.answer) for row in rows]
    return metrics.truth_ratio(scores.mean_log_probs(right), _perturbed(rows, scores))


def _utility(sets: Mapping[str, EvalSet], table: Table) -> Entry:
    """Harmonic mean of probability, ROUGE-L and truth ratio on all sets but the forget set."""
    kept = [name for name, chosen in sets.items() if chosen.role != "forget"]
    parts = [
        f"{name}_{metric}" for name in kept for metric in ("probability", "rouge", "truth_ratio")
    ]
    known = {name: table[name]["value"] for name in parts if table[name]["value"] is not None}
    return entry(metrics.model_utility(known) if known else np.nan, len(known))
