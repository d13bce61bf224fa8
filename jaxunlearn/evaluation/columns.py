"""How the numbers of a report are called, ordered and printed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import benchmark
from jaxunlearn.evaluation.plots import measured

Summary = Mapping[str, Any]

MISSING = "—"
_MOST = 7  # columns of a suite without headlines
_TOOK = {
    "training_steps": "steps",
    "training_exposures": "expo-\nsures",
    "training_tokens_per_second": "tokens/s",
}
_LABELS = {
    "probability": "probability",
    "truth_probability": "truth probability",
    "paraphrased_probability": "probability of the paraphrase",
    "rouge": "ROUGE\u2011L",
    "rouge_f1": "ROUGE\u2011L F1",
    "exact_match": "exact match",
    "entity_f1": "entity F1",
    "score": "score",
    "above_0.8": "scores above 0.8",
    "similarity": "similarity",
    "accuracy": "accuracy",
    "letter_accuracy": "accuracy by letter",
    "letter_probability": "probability of the letter",
    "option_accuracy": "accuracy by text",
    "option_accuracy_normalised": "accuracy by text, length-normalised",
    "truth_ratio": "truth ratio",
    "exact_memorisation": "exact memorisation",
    "extraction_strength": "extraction strength",
    "generation_perplexity": "median perplexity of what is said",
    "perplexity_median": "median perplexity",
    "perplexity": "perplexity",
    "distinct_2": "distinct\u20112",
    "refusal_rate": "refusals",
    "identical_rate": "same output",
    "broken_rate": "broken",
    "attribution": "attribution",
    "attribution_held_out": "attribution, held out",
    "repetition": "repetition",
    "length_ratio": "length, of the true answer's",
}
_ATTACKS = {
    "loss": "loss",
    "zlib": "zlib",
    "min_k": "Min\u2011K%",
    "min_40": "Min\u201140%",
    "min_k_plus_plus": "Min\u2011K%++",
    "reference": "reference",
    "gradient_norm": "gradient norm",
}
_TOLD = {
    "auc": "AUC of {}",
    "tpr_at_1": "TPR of {} at 1\u202f% FPR",
    "tpr_at_0.1": "TPR of {} at 0.1\u202f% FPR",
    "similarity": "AUC of {}: like the retrained",
}
_PRIVACY = {
    "priv_leak": "PrivLeak",
    **{
        f"privacy_{attack}_{told}": text.format(name)
        for attack, name in _ATTACKS.items()
        for told, text in _TOLD.items()
    },
}
_TOW = {"tow": "ToW", "tow_star": "ToW*"}
_OVERALL = (
    "forget_quality", "forget_efficacy", "model_utility", "utility_retain", "utility_test",
    "overall_score", "memorisation_score", "privacy_score", "utility_score", "task_aggregate",
    "membership_score", "final_score", *_TOW,
)  # fmt: skip
_UP = (
    *_OVERALL, "forget_truth_ratio", "forget_distinct_2", "entities_forgotten",
    "entity_efficacy", "entity_efficacy_min", "entity_utility", "entity_utility_min",
)  # fmt: skip
_DOWN = (
    "test_perplexity", "test_perplexity_median", "clean_perplexity", "clean_perplexity_median",
)  # fmt: skip
_FAULTS = ("identical_rate", "broken_rate", "repetition")
_NEITHER = ("refusal_rate", "length_ratio", "perplexity", "perplexity_median")
_FORGOTTEN = ("forget_", "verbatim_", "knowledge_", "challenging_", "toxic_", "person_")
_KEPT = (
    "retain_", "test_", "knowledge_retain_", "mmlu_", "real_authors_", "world_facts_", "landmarks_",
    "creatures_", "clean_", "location_", "organisation_", "misc_",
)  # fmt: skip
_WHOLE = ("training_steps", "training_tokens_per_second", "entities_forgotten")


def headline(suite: str) -> dict[str, str]:
    """The columns of a suite's table in the terminal, metric to heading; of a suite that is not
    there any more, those of TOFU's."""
    try:
        own = benchmark.load(suite)
    except UserError:
        own = benchmark.load("tofu")
    plain = {one.metric: one.metric.replace("_", "\n") for one in own.metrics[:_MOST]}
    return {**(own.headline or plain), **_TOOK}


def format_value(metric: str, value: float | None) -> str:
    """`0.713`; small p-values as `1.2e-05`; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return MISSING
    if metric in _WHOLE:
        return f"{value:.0f}"
    if metric == "training_exposures":
        return f"{value:.1f}"
    if metric == "forget_quality" and 0 < value < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}"


def with_training(summary: Summary) -> dict[str, dict[str, Any]]:
    """The models' metrics, with what their training took as further ones."""
    training = summary.get("training", {})
    return {
        model: {**values, **_taken(training.get(model, {}))}
        for model, values in summary["models"].items()
    }


def _taken(training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of one training: an exposure is how often a forget row was shown, from the least
    to the most."""
    plain = ("steps", "tokens_per_second", "same_entity_rate")
    found = {f"training_{key}": {"value": training[key]} for key in plain if key in training}
    if shown := training.get("forget_exposures"):
        interval = [shown["min"], shown["max"]]
        found["training_exposures"] = {"value": shown["mean"], "ci": interval}
    return found


def arrow(key: str) -> str:
    """The sign of the better direction; empty where neither is, or where the name does not say
    whether these rows are to be forgotten."""
    if key in _UP or (key in _PRIVACY and key.endswith("_similarity")):
        return "↑"
    if key in _DOWN or key.endswith(_FAULTS):
        return "↓"
    if key.endswith(_NEITHER) or not key.endswith(tuple(_LABELS)):
        return ""
    if key.startswith(_KEPT):
        return "↑"
    return "↓" if key.startswith(_FORGOTTEN) else ""


def column(key: str, models: Sequence[Summary]) -> dict[str, Any]:
    """Heading of a metric, and what is behind its values where it is the same for all models."""
    group, label = "other", key.replace("_", " ")
    if key in _OVERALL:
        group, label = "overall", _TOW.get(key, label)
    elif key in _PRIVACY:
        group, label = "privacy", _PRIVACY[key]
    elif key.startswith(("entity_", "entities_")):
        group, label = "per entity", label.removeprefix("entity ")
    elif key.startswith("training_"):
        group, label = "training", label.removeprefix("training ")
    else:
        endings = [ending for ending in _LABELS if key.endswith(f"_{ending}")]
        if endings:
            ending = max(endings, key=len)
            group, label = key.removesuffix(f"_{ending}").replace("_", " "), _LABELS[ending]
    found = {behind(values[key]) for values in models if measured(values, key) is not None}
    shared = found.pop() if len(found) == 1 else None
    return {"key": key, "group": group, "label": label, "arrow": arrow(key), "behind": shared}


def behind(entry: Mapping[str, Any]) -> str:
    """The rows a number is of, and the seeds if it is over several runs: `n = 40, 3 seeds`."""
    rows = f"n = {entry['n']}" if entry.get("n") else ""
    count = entry.get("seeds")
    seeds = "" if count is None else f"{count} seed{'s' if count > 1 else ''}"
    return ", ".join(part for part in (rows, seeds) if part)


def interval(entry: Mapping[str, Any]) -> str:
    """`0.180–0.240`; empty where there is none."""
    if entry.get("ci") is None or entry.get("value") is None:
        return ""
    low, high = entry["ci"]
    return f"{low:.3f}{'–' if low >= 0 else ' to '}{high:.3f}"
