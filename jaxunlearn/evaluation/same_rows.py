"""Models and runs compared on the same rows, for reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from jaxunlearn.evaluation import paired
from jaxunlearn.evaluation.paired import Rows
from jaxunlearn.evaluation.suite import Evaluation

MOST_RUNS = 6
"""More runs are not compared two by two."""
_NO_MATTER = ("batch_size",)  # settings of an evaluation that change none of its numbers


@dataclass(frozen=True)
class Comparisons:
    """Paired comparisons of a page."""

    lines: list[dict[str, Any]]
    """Of `paired.table`."""
    why_not: str = ""
    """Why there are no more of them."""


def within_run(evaluations: Mapping[str, Evaluation], main: str) -> Comparisons:
    """The main method against every other model, for each statistic of forget and retain rows."""
    models = {label: numbers_of_rows(one) for label, one in evaluations.items()}
    return Comparisons(paired.table(models, main))


def between_runs(
    summaries: Mapping[str, Mapping[str, Any]], evaluations: Mapping[str, Evaluation | None]
) -> Comparisons:
    """The main methods of every two runs that measured the same rows in the same way.

    Args:
      summaries: run to its summary.
      evaluations: run to the evaluation of its main method; None where there is none.
    """
    if len(summaries) > MOST_RUNS:
        return Comparisons([], f"only up to {MOST_RUNS} runs are compared two by two")
    models = {run: numbers_of_rows(one) for run, one in evaluations.items() if one is not None}
    known = [run for run in summaries if models.get(run)]
    reasons = [f"{run}: no numbers of its rows are kept" for run in summaries if run not in known]
    lines = []
    for one, other in combinations(known, 2):
        reason = _apart(*((summaries[run], models[run]) for run in (one, other)))
        if reason:
            reasons.append(f"{one} and {other}: {reason}")
        else:
            lines += paired.table({one: models[one], other: models[other]})
    # The family is the page's table, not one pair's.
    corrected = paired.adjusted([line["p"] for line in lines])
    lines = [{**line, "p_adjusted": p} for line, p in zip(lines, corrected, strict=True)]
    return Comparisons(lines, "; ".join(reasons))


def numbers_of_rows(evaluation: Evaluation) -> Rows:
    """The statistics of forget and retain rows."""
    names = [name for name, role in evaluation.roles.items() if role in ("forget", "retain")]
    return {
        key: values
        for key, values in evaluation.rows.items()
        if any(key.startswith(f"{name}_") for name in names)
    }


def _apart(first: tuple[Mapping[str, Any], Rows], second: tuple[Mapping[str, Any], Rows]) -> str:
    """Why the rows of two runs cannot be paired; empty where they can."""
    (one, ours), (other, theirs) = first, second
    data = [run.get("environment", {}).get("evaluated") for run in (one, other)]
    if None in data:
        return "no fingerprints of the evaluated rows are kept"
    if data[0] != data[1]:
        return "not the same rows"
    settings = [
        {k: v for k, v in run["config"]["evaluation"].items() if k not in _NO_MATTER}
        for run in (one, other)
    ]
    differ = [key for key in settings[0] if settings[0][key] != settings[1].get(key)]
    if differ:
        return f"evaluation.{differ[0]} differs"
    if any(len(ours[key]) != len(theirs[key]) for key in ours if key in theirs):
        return "not the same number of rows"
    return ""
