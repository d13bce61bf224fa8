"""What a run found, in words."""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.evaluation.columns import Summary
from jaxunlearn.evaluation.plots import measured


def statement(summary: Summary) -> str:
    """One paragraph of plain words: what was forgotten, what was kept, compared with what."""
    models, primary = summary["models"], summary.get("primary")
    ours, target = models.get(primary), models.get("target", {})
    if ours is None or primary == "target":
        return "Measured: " + ", ".join(models) + "."
    parts = [_change(target, ours, models.get("retrained"))]
    before, after = measured(target, "model_utility"), measured(ours, "model_utility")
    # A share of next to nothing says nothing.
    if before and before > 0.01 and after is not None:
        parts.append(f"model utility kept {after / before:.0%} of the target's")
    told = "; ".join(part for part in parts if part)
    text = f"{primary}: {told}." if told else f"{primary} was measured."
    quality = measured(ours, "forget_quality")
    if quality is not None:
        verb = "cannot" if quality > 0.05 else "can"
        text += (
            f" A Kolmogorov-Smirnov test on the truth ratios of the forget rows {verb} tell it"
            f" from a model that never saw them (p = {quality:.2g})."
        )
    elif "retrained" not in models and "forget_efficacy" not in ours:
        text += " There is no retrained model to compare with, hence no forget quality."
    rows = {(ours.get(key) or {}).get("n") for key in ("forget_rouge", "forget_probability")}
    counted = ", ".join(f"n = {n}" for n in sorted(rows - {None, 0}))
    return f"{text} Forget rows: {counted}; {seeds(summary)}." if counted else text


def seeds(summary: Summary) -> str:
    """How many seeds the numbers are of, and which: `3 seeds (0, 1, 2)`."""
    config: Mapping[str, Any] = summary.get("config", {})
    known = summary.get("seeds") or [config[key] for key in ("seed",) if key in config]
    told = f" ({', '.join(map(str, known))})" if known else ""
    return f"{len(known)} seeds{told}" if len(known) > 1 else f"1 seed{told}"


def _change(before: Summary, after: Summary, retrained: Summary | None) -> str:
    old, new = measured(before, "forget_rouge"), measured(after, "forget_rouge")
    if new is None:
        return ""
    goal = measured(retrained or {}, "forget_rouge")
    beside = "" if goal is None else f" (retrained: {goal:.2f})"
    if old is None:
        return f"forget ROUGE-L is {new:.2f}{beside}"
    if abs(new - old) < 0.005:
        return f"forget ROUGE-L stayed at {new:.2f}{beside}"
    verb = "fell" if new < old else "rose"
    return f"forget ROUGE-L {verb} from {old:.2f} to {new:.2f}{beside}"
