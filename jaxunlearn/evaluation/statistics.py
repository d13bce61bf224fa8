"""What a benchmark can measure of a row, by name, and what has to be known for it.

Every function takes the results of a model and the name of an evaluation set, and gives one value
per row, `[n]` or `[n, k]`; nan where a row has none. `evaluation.compat: open-unlearning` puts that
code's formulas in the place of ours where they differ (see `open_unlearning`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np

from jaxunlearn.data import ner
from jaxunlearn.data.rows import EvalSet, Row, Text
from jaxunlearn.evaluation import (
    choices,
    embed,
    metrics,
    named_entities,
    open_unlearning,
    privacy,
    text,
)
from jaxunlearn.evaluation import rouge as rouge_l
from jaxunlearn.evaluation.results import Results

Values = Callable[[Results, str], np.ndarray]


@dataclass(frozen=True)
class Statistic:
    """One value per row of an evaluation set."""

    values: Values
    texts: Callable[[Row], tuple[Text, ...]] = lambda row: ()
    """Of a row: the texts whose likelihood it needs."""
    of: Callable[[Row], bool] = lambda row: True
    """Which rows it is about; a set without any has no metric of it."""
    scorer: Literal["scorer", "attribution", "attribution_held_out"] | None = None
    """The one of the set's scorers that it needs; a set without it has no metric of it."""
    generates: bool = False
    """It needs the generated answers."""
    moments: bool = False
    """It needs the mean and the deviation of log p over the vocabulary."""
    embeds: bool = False
    """It compares meanings."""
    judged: bool = False
    """It needs the likelihood of the generated answers under the judge."""
    gradients: bool = False
    """It needs the gradient norms."""

    def about(self, chosen: EvalSet) -> bool:
        """Whether a set has something that it measures."""
        there = self.scorer is None or getattr(chosen, self.scorer) is not None
        return there and any(map(self.of, chosen.rows))


def _scored(scorer: Literal["scorer", "attribution", "attribution_held_out"]) -> Statistic:
    """What one of the set's scorers gives the generated answer."""

    def values(results: Results, name: str) -> np.ndarray:
        pairs = zip(_rows(results, name), results.generations[name], strict=True)
        return getattr(results.sets[name], scorer)([row.text(said) for row, said in pairs])

    return Statistic(values, generates=True, scorer=scorer)


def _answer(row: Row) -> tuple[Text, ...]:
    return (row.key,)


def _right(row: Row) -> Text:
    """The answer that the wrong ones are compared to."""
    return row.text(row.paraphrased_answer or row.answer)


def _wrong(row: Row) -> tuple[Text, ...]:
    return tuple(row.text(answer) for answer in row.perturbed_answers)


def _theirs(results: Results) -> bool:
    return results.config.compat == "open-unlearning"


def _formulas(results: Results) -> ModuleType:
    """Where the formulas that both have are to be taken from."""
    return open_unlearning if _theirs(results) else metrics


def _rows(results: Results, name: str) -> tuple[Row, ...]:
    return results.sets[name].rows


def _keys(results: Results, name: str) -> list[Text]:
    return [row.key for row in _rows(results, name)]


def log_prob(results: Results, name: str) -> np.ndarray:
    """Mean log-probability of the answer's tokens."""
    return results.scores.mean_log_probs(_keys(results, name))


def probability(results: Results, name: str) -> np.ndarray:
    """Length-normalised probability of the answer."""
    return np.exp(log_prob(results, name))


def paraphrased_probability(results: Results, name: str) -> np.ndarray:
    """The same of the paraphrased answer; of the answer itself where there is none."""
    return np.exp(results.scores.mean_log_probs([_right(row) for row in _rows(results, name)]))


def token_probability(results: Results, name: str) -> np.ndarray:
    """Mean probability of a token of the answer."""
    log_probs, _, mask = results.scores.rows(_keys(results, name))
    return metrics.token_probability(log_probs, mask, final_eos=results.final_eos)


def option_probability(results: Results, name: str) -> np.ndarray:
    """Probability of the answer among itself and the wrong ones."""
    wrong = np.exp(_perturbed(results, name))
    return _formulas(results).option_probability(probability(results, name), wrong)


def truth_ratio(results: Results, name: str) -> np.ndarray:
    """How likely the wrong answers are beside the right one."""
    right = results.scores.mean_log_probs([_right(row) for row in _rows(results, name)])
    return _formulas(results).truth_ratio(right, _perturbed(results, name))


def exact_memorisation(results: Results, name: str) -> np.ndarray:
    """Share of the answer's tokens that are the most likely ones."""
    _, hits, mask = results.scores.rows(_keys(results, name))
    last = results.final_eos or _theirs(results)
    return metrics.exact_memorisation(hits, mask, final_eos=last)


def extraction_strength(results: Results, name: str) -> np.ndarray:
    """Share of the answer's tokens that follow by themselves from those before."""
    _, hits, mask = results.scores.rows(_keys(results, name))
    if _theirs(results):
        return open_unlearning.extraction_strength(hits, mask)
    return metrics.extraction_strength(hits, mask, final_eos=results.final_eos)


def perplexity(results: Results, name: str) -> np.ndarray:
    """Of the true answer."""
    return text.perplexity(-log_prob(results, name))


def rouge(results: Results, name: str) -> np.ndarray:
    """ROUGE-L recall of the generated answer."""
    if results.config.compat == "melu":
        return rouge_l.rouge_l_precision(results.generations[name], results.truths[name])
    formulas = open_unlearning if _theirs(results) else rouge_l
    return formulas.rouge_l_recall(results.generations[name], results.truths[name])


def rouge_f1(results: Results, name: str) -> np.ndarray:
    """ROUGE-L F1 of the generated answer."""
    formulas = open_unlearning if _theirs(results) else rouge_l
    return formulas.rouge_l_f1(results.generations[name], results.truths[name])


def exact_match(results: Results, name: str) -> np.ndarray:
    """Whether the generated answer is the true one, but for case and outer blanks."""
    pairs = zip(results.generations[name], results.truths[name], strict=True)
    return np.array([float(text.same_words(said, truth)) for said, truth in pairs])


def similarity(results: Results, name: str) -> np.ndarray:
    """Closeness in meaning of the generated and the true answer."""
    generations = results.generations[name]
    return embed.similarity(results.embedder, generations, results.truths[name])


def melu(results: Results, name: str) -> np.ndarray:
    """MELU's three scores, [n, 3]: token probability, ROUGE-L, similarity."""
    parts = (token_probability, rouge, similarity)
    return np.stack([part(results, name) for part in parts], axis=1)


def efficacy(results: Results, name: str) -> np.ndarray:
    """1 minus the mean of MELU's three scores."""
    return 1 - melu(results, name).mean(axis=1)


def neighbour_utility(results: Results, name: str) -> np.ndarray:
    """The harmonic mean of MELU's three scores, of rows that are a neighbour's."""
    near = np.array([row.kind != "general" for row in _rows(results, name)], bool)
    return np.where(near, metrics.harmonic_mean(melu(results, name)), np.nan)


def generation(results: Results, name: str) -> np.ndarray:
    """The generated answers themselves."""
    return np.array(results.generations[name], object)


def repetition(results: Results, name: str) -> np.ndarray:
    """Share of the generated answer's word 4-grams that are repeats."""
    return text.repetition(results.generations[name])


def entities(results: Results, name: str) -> np.ndarray:
    """Entities that the generated answer names rightly, names, and should name, [n, 3]."""
    return named_entities.counts(_rows(results, name), results.generations[name])


def refusal(results: Results, name: str) -> np.ndarray:
    """Whether the generated answer is a refusal."""
    known = [row.refusal for row in _rows(results, name) if row.refusal is not None]
    return text.refused(results.generations[name], known)


def broken(results: Results, name: str) -> np.ndarray:
    """Whether the generated answer is no text at all."""
    return text.broken(results.generations[name])


def length_ratio(results: Results, name: str) -> np.ndarray:
    """Words of the generated answer for each word of the true one; nan where that has none."""
    pairs = zip(results.generations[name], results.truths[name], strict=True)
    counts = np.array([(len(said.split()), len(truth.split())) for said, truth in pairs], float)
    said, true = counts.reshape(-1, 2).T
    return np.where(true > 0, said / np.maximum(true, 1), np.nan)


def generation_perplexity(results: Results, name: str) -> np.ndarray:
    """Of the generated answer, under the judge; nan of an empty one."""
    pairs = zip(_rows(results, name), results.generations[name], strict=True)
    asked = [row.text(said) for row, said in pairs]
    return text.perplexity(-np.array([results.judged.get(one, np.nan) for one in asked]))


def zlib(results: Results, name: str) -> np.ndarray:
    """Score of the zlib attack."""
    log_probs, _, mask = results.scores.rows(_keys(results, name))
    return privacy.zlib_score(log_probs, mask, [row.answer for row in _rows(results, name)])


def min_k(results: Results, name: str) -> np.ndarray:
    """Score of Min-K%."""
    log_probs, _, mask = results.scores.rows(_keys(results, name))
    return (open_unlearning if _theirs(results) else privacy).min_k(log_probs, mask)


def min_40(results: Results, name: str) -> np.ndarray:
    """Score of Min-K% with k = 40, which MUSE takes."""
    log_probs, _, mask = results.scores.rows(_keys(results, name))
    return privacy.min_k(log_probs, mask, fraction=0.4)


def min_k_plus_plus(results: Results, name: str) -> np.ndarray:
    """Score of Min-K%++."""
    keys = _keys(results, name)
    log_probs, _, mask = results.scores.rows(keys)
    formulas = open_unlearning if _theirs(results) else privacy
    return formulas.min_k_plus_plus(log_probs, *results.scores.moments(keys), mask)


def gradient_norm(results: Results, name: str) -> np.ndarray:
    """Score of the gradient norm attack."""
    return np.array([results.gradient_norms.get(key, np.nan) for key in _keys(results, name)])


def _perturbed(results: Results, name: str) -> np.ndarray:
    """Mean log-probabilities of the wrong answers, [n, k]; nan where a row has fewer than k."""
    wrong = [_wrong(row) for row in _rows(results, name)]
    k = max(map(len, wrong), default=0)
    padded: Sequence[Text | None] = [
        texts[j] if j < len(texts) else None for texts in wrong for j in range(k)
    ]
    return results.scores.mean_log_probs(padded).reshape(len(wrong), k)


STATISTICS: Mapping[str, Statistic] = {
    **{
        function.__name__: Statistic(function, _answer)
        for function in (
            log_prob, probability, token_probability, exact_memorisation, extraction_strength,
            perplexity, zlib, min_k, min_40,
        )
    },
    "paraphrased_probability": Statistic(paraphrased_probability, lambda row: (_right(row),)),
    "option_probability": Statistic(option_probability, lambda row: (row.key, *_wrong(row))),
    "truth_ratio": Statistic(truth_ratio, lambda row: (_right(row), *_wrong(row))),
    "min_k_plus_plus": Statistic(min_k_plus_plus, _answer, moments=True),
    "gradient_norm": Statistic(gradient_norm, gradients=True),
    **{
        function.__name__: Statistic(function, generates=True)
        for function in (
            rouge, rouge_f1, exact_match, generation, repetition, refusal, broken, length_ratio,
        )
    },
    "score": _scored("scorer"),
    "attribution": _scored("attribution"),
    "attribution_held_out": _scored("attribution_held_out"),
    "entities": Statistic(
        entities, of=lambda row: ner.text_of(row.question) is not None, generates=True
    ),
    "similarity": Statistic(similarity, generates=True, embeds=True),
    "generation_perplexity": Statistic(generation_perplexity, generates=True, judged=True),
    **{
        function.__name__: Statistic(function, _answer, generates=True, embeds=True)
        for function in (melu, efficacy, neighbour_utility)
    },
    **{
        function.__name__: Statistic(function, texts, choices.has_options)
        for function, texts in (
            (choices.letter_accuracy, choices.letter_texts),
            (choices.letter_probability, choices.letter_texts),
            (choices.option_accuracy, choices.option_texts),
            (choices.option_accuracy_normalised, choices.option_texts),
        )
    },
}  # fmt: skip
"""Name to statistic."""
