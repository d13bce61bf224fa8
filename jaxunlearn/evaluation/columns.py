"""How the numbers of a report are called, ordered and printed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.evaluation.plots import measured

Summary = Mapping[str, Any]

MISSING = "—"
_TOOK = {
    "training_steps": "steps",
    "training_exposures": "expo-\nsures",
    "training_tokens_per_second": "tokens/s",
}
HEADLINES: Mapping[str, Mapping[str, str]] = {
    "tofu": {
        "forget_quality": "forget\nquality",
        "model_utility": "model\nutility",
        "forget_probability": "forget\nprob.",
        "forget_rouge": "forget\nROUGE",
        "forget_extraction_strength": "extr.\nstr.",
        "retain_probability": "retain\nprob.",
        **_TOOK,
    },
    "melu": {
        "forget_efficacy": "forget\neffic.",
        "entity_efficacy_sd": "entity\nsd",
        "model_utility": "model\nutility",
        "forget_probability": "forget\nprob.",
        "forget_rouge": "forget\nROUGE",
        "forget_refusal_rate": "refu-\nsals",
        "forget_identical_rate": "same\noutput",
        **_TOOK,
    },
}
"""Suite to the columns of its table in the terminal."""
_LABELS = {
    "probability": "probability",
    "rouge": "ROUGE\u2011L",
    "similarity": "similarity",
    "truth_ratio": "truth ratio",
    "exact_memorisation": "exact memorisation",
    "extraction_strength": "extraction strength",
    "perplexity_median": "median perplexity",
    "perplexity": "perplexity",
    "distinct_2": "distinct\u20112",
    "refusal_rate": "refusals",
    "identical_rate": "same output",
}
_PRIVACY = {
    "priv_leak": "PrivLeak",
    "privacy_loss_auc": "AUC of loss",
    "privacy_loss_tpr_at_1": "TPR of loss at 1\u202f% FPR",
    "privacy_zlib_auc": "AUC of zlib",
    "privacy_min_k_auc": "AUC of Min\u2011K%",
    "privacy_min_k_plus_plus_auc": "AUC of Min\u2011K%++",
}
_OVERALL = ("forget_quality", "forget_efficacy", "model_utility", "utility_retain", "utility_test")
_UP = (
    *_OVERALL, "forget_truth_ratio", "forget_distinct_2", "entities_forgotten",
    "entity_efficacy", "entity_efficacy_min", "entity_utility", "entity_utility_min",
)  # fmt: skip
_DOWN = ("forget_identical_rate", "test_perplexity", "test_perplexity_median")
_NEITHER = ("forget_refusal_rate", "forget_perplexity", "forget_perplexity_median")
_WHOLE = ("training_steps", "training_tokens_per_second", "entities_forgotten")


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
    """The sign of the better direction; empty where neither is."""
    if key in _UP:
        return "↑"
    if key in _DOWN:
        return "↓"
    if key in _NEITHER or not key.endswith(tuple(_LABELS)):
        return ""
    return "↓" if key.startswith("forget_") else "↑"


def column(key: str, models: Sequence[Summary]) -> dict[str, Any]:
    """Heading of a metric, and n where it is the same for all models."""
    group, label = "other", key.replace("_", " ")
    if key in _OVERALL:
        group = "overall"
    elif key in _PRIVACY:
        group, label = "privacy", _PRIVACY[key]
    elif key.startswith(("entity_", "entities_")):
        group, label = "per entity", label.removeprefix("entity ")
    elif key.startswith("training_"):
        group, label = "training", label.removeprefix("training ")
    else:
        for ending, name in _LABELS.items():
            if key.endswith(f"_{ending}"):
                group, label = key.removesuffix(f"_{ending}").replace("_", " "), name
    counts = {
        (values.get(key) or {}).get("n") for values in models if measured(values, key) is not None
    }
    shared = counts.pop() if len(counts) == 1 else None
    return {"key": key, "group": group, "label": label, "arrow": arrow(key), "n": shared}
