"""What MELU measures: forget efficacy and model utility, overall and per entity.

Each row has three scores in [0, 1]: P, the mean probability of a token of its answer; R, the
ROUGE-L recall of the generation; C, how close in meaning the generation is. A row that has not all
three (its text is too long, or its answer has no words that ROUGE sees) is in no aggregate of them.

Reference: Bushipaka et al., Standard vs. Modular Sampling: Best Practices for Reliable LLM
Unlearning, arXiv 2509.05316. Its code divides ROUGE-L by the words of the generation, as
`evaluation.compat: melu` does, and prints perplexity as a mean alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import embed, metrics, text
from jaxunlearn.evaluation.entries import entry, summarise
from jaxunlearn.evaluation.results import Results, Table

FORGOTTEN = 0.9
"""An entity whose efficacy is above this counts as forgotten."""


def measure(results: Results) -> Table:
    """All metric entries; sets of role "general" are the test sets."""
    scores = {name: row_scores(results, name) for name in results.sets}
    forget, retain, test = (_of_role(results, role) for role in ("forget", "retain", "general"))

    def together(names: Sequence[str]) -> np.ndarray:
        return np.concatenate([np.empty((0, 3)), *(scores[name] for name in names)])

    utilities = {
        "utility_retain": summarise(together(retain), statistic=utility),
        "utility_test": summarise(together(test), statistic=utility),
    }
    parts = {
        f"{name}_{part}": summarise(column)
        for name, rows in scores.items()
        for part, column in zip(("probability", "rouge", "similarity"), rows.T, strict=True)
    }
    return {
        "forget_efficacy": summarise(together(forget), statistic=efficacy),
        "model_utility": utilities["utility_test" if test else "utility_retain"],
        **utilities,
        **_entities(results, together, forget, test),
        **parts,
        **_memorisation(results, forget),
        **_perplexity(results, "forget", forget),
        **_perplexity(results, "test", test),
        **_quality(results, forget),
    }


def row_scores(results: Results, name: str) -> np.ndarray:
    """P, R and C of each row of a set, [n, 3]; nan where a row has none."""
    rows, generations = results.sets[name].rows, results.generations[name]
    log_probs, _, mask = results.scores.rows([(row.question, row.answer) for row in rows])
    truths = [row.answer for row in rows]
    theirs = results.config.compat == "melu"
    rouge = metrics.rouge_l_precision if theirs else metrics.rouge_l_recall
    return np.stack(
        [
            metrics.token_probability(log_probs, mask, final_eos=results.final_eos),
            rouge(generations, truths),
            embed.similarity(results.embedder, generations, truths),
        ],
        axis=1,
    )


def efficacy(scores: np.ndarray) -> float:
    """Forget efficacy of [n, 3] scores: 1 minus the mean of the three means.

    >>> round(efficacy(np.array([[0.5, 0.0, 0.1], [0.1, 0.2, 0.3]])), 3)
    0.8
    """
    return 1 - float(scores.mean())


def utility(scores: np.ndarray) -> float:
    """Model utility of [n, 3] scores: the harmonic mean of the three means, 0 if one is 0.

    >>> round(utility(np.array([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]])), 3)
    0.6
    """
    return float(harmonic_mean(scores.mean(axis=0)))


def harmonic_mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 where a value is 0.

    >>> harmonic_mean(np.array([[1.0, 0.5, 0.25], [1.0, 0.0, 1.0]])).round(3)
    array([0.429, 0.   ])
    """
    with np.errstate(divide="ignore", over="ignore"):
        return values.shape[-1] / (1 / values).sum(axis=-1)


def entity_means(rows: Sequence[Row], values: np.ndarray) -> dict[str, float]:
    """Mean value of each entity's rows; rows without an entity or a value are counted out."""
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if row.entity and not np.isnan(value):
            found.setdefault(row.entity, []).append(float(value))
    return {entity: float(np.mean(values)) for entity, values in found.items()}


def _of_role(results: Results, role: str) -> list[str]:
    return [name for name, chosen in results.sets.items() if chosen.role == role]


def _rows(results: Results, names: Sequence[str]) -> list[Row]:
    return [row for name in names for row in results.sets[name].rows]


def _entities(
    results: Results,
    together: Callable[[Sequence[str]], np.ndarray],
    forget: Sequence[str],
    test: Sequence[str],
) -> Table:
    """Efficacy and utility of each forget entity: their mean, sd (of a population) and minimum."""
    near = np.array([row.kind != "general" for row in _rows(results, test)], bool)
    kept = np.where(near, harmonic_mean(together(test)), np.nan)
    efficacies = entity_means(_rows(results, forget), 1 - together(forget).mean(axis=1))
    utilities = entity_means(_rows(results, test), kept)
    table: Table = {}
    for name, found in (("efficacy", efficacies), ("utility", utilities)):
        values = np.array(list(found.values()))
        table |= {
            f"entity_{name}": summarise(values),
            f"entity_{name}_sd": summarise(values, statistic=np.std),
            f"entity_{name}_min": entry(values.min(initial=np.inf), len(values)),
        }
    forgotten = sum(value > FORGOTTEN for value in efficacies.values())
    known = forgotten if efficacies else np.nan
    return {**table, "entities_forgotten": entry(known, len(efficacies))}


def _memorisation(results: Results, forget: Sequence[str]) -> Table:
    rows = _rows(results, forget)
    _, hits, mask = results.scores.rows([(row.question, row.answer) for row in rows])
    eos = results.final_eos
    return {
        "forget_exact_memorisation": summarise(
            metrics.exact_memorisation(hits, mask, final_eos=eos)
        ),
        "forget_extraction_strength": summarise(
            metrics.extraction_strength(hits, mask, final_eos=eos)
        ),
    }


def _perplexity(results: Results, label: str, names: Sequence[str]) -> Table:
    """Of the true answers: single rows decide the mean, so the median stands beside it."""
    pairs = [(row.question, row.answer) for row in _rows(results, names)]
    found = text.perplexity(-results.scores.mean_log_probs(pairs))
    return {
        f"{label}_perplexity": summarise(found),
        f"{label}_perplexity_median": summarise(found, statistic=np.median),
    }


def _quality(results: Results, forget: Sequence[str]) -> Table:
    """How the generations for the forget rows look."""
    texts = [one for name in forget for one in results.generations[name]]
    known = [row.refusal for row in _rows(results, forget) if row.refusal is not None]
    distinct = text.distinct_n(texts) if texts else np.nan
    return {
        "forget_distinct_2": entry(distinct, len(texts)),
        "forget_refusal_rate": summarise(text.refused(texts, known)),
        "forget_identical_rate": entry(text.identical_rate(texts), len(texts)),
    }
