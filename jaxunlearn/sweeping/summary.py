"""What the runs of a sweep found, together."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.config import Experiment
from jaxunlearn.evaluation import pareto
from jaxunlearn.evaluation.entries import over_runs
from jaxunlearn.evaluation.report import NOT_DOMINATED
from jaxunlearn.sweeping import shared
from jaxunlearn.sweeping.settings import Settings, name_of

Done = tuple[Settings, Experiment, Mapping[str, Any]]
"""What was set, the run, and its summary."""


def over_seeds(name: str, done: Sequence[Done]) -> dict[str, Any]:
    """One summary of several: of each model the mean over the runs that differ in `seed` alone.

    Args:
      name: of the summary.
      done: the runs that came to their end, at least one.

    Returns:
      As `summary.json`, with the "seeds". Of a number, "n" counts the rows of a run (the fewest
      where runs differ), "seeds" the runs that have a value, "ci" holds the least and the greatest
      value, and the standard deviation (of a sample) is "sd". Other settings that were varied are
      in the model's name, those of before unlearning alone in the names of target and retrained
      model, of which each counts once. "pareto" says which models no other one beats; see
      `pareto.forgetting_against_utility`.
    """
    values: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    trained: dict[str, list[Mapping[str, Any]]] = {}
    seen, competing = set(), {}
    for settings, one, summary in done:
        for model, metrics in summary["models"].items():
            before = model in shared.MODELS
            stage = (model, shared.fingerprint(one))
            if before and stage in seen:
                continue
            seen.add(stage)
            kept = settings
            if before:
                kept = {key: of for key, of in settings.items() if shared.decides(key, one)}
            called = label(model, kept)
            if not before:
                competing[called] = None
            known = values.setdefault(called, {})
            for metric, entry in metrics.items():
                if entry["value"] is not None:
                    known.setdefault(metric, []).append(entry)
            if model in summary.get("training", {}):
                trained.setdefault(called, []).append(summary["training"][model])
    seeds = sorted({str(settings["seed"]) for settings, _, _ in done if "seed" in settings})
    over = f"seeds {', '.join(seeds)}" if seeds else "one run each"
    last = done[-1][2]
    models = {
        model: {metric: over_runs(found) for metric, found in known.items()}
        for model, known in values.items()
    }
    notes = [f"runs: {len(done)}; means over {over}, with the least and the greatest in the report"]
    best = pareto.forgetting_against_utility(models, competing)
    if best is not None:
        metrics = f"{best['forget']} and {best['utility']}".replace("_", " ")
        notes.append(f"{NOT_DOMINATED}: no other one is better in {metrics}")
    return {
        "name": name,
        "seeds": seeds or [str(done[-1][1].seed)],
        "primary": list(competing)[-1],
        "models": models,
        "pareto": best,
        "training": {model: _of_all(found[0]) for model, found in trained.items()},
        "config": last["config"],
        "notes": notes,
    }


def label(model: str, settings: Settings) -> str:
    """What a model of a run with these settings is called here."""
    return f"{model} {apart(settings)}".strip()


def apart(settings: Settings) -> str:
    """What sets a run apart from others, besides the seed."""
    return name_of({key: value for key, value in settings.items() if key != "seed"})


def _of_all(training: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the seed."""
    return {key: value for key, value in training.items() if not key.startswith("selected_step")}
