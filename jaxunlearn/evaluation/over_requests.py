"""What sequential unlearning did to each request: before it, after it, and as others followed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn.data.requests import Request
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation.entries import entry
from jaxunlearn.evaluation.suite import Evaluation

MEASURES = ("probability", "rouge")
"""Statistics of forget rows that are followed."""


def history(
    requests: Sequence[Request], rows: Sequence[Row], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """The numbers of one method, from the target to the model after the last request.

    Args:
      requests: R of them.
      rows: the evaluated forget rows.
      evaluations: R + 1; the first is the target's.

    Returns:
      Plain data: requests (R names), evaluated_rows (of each request), model_utility [R + 1], and
      of each of MEASURES that the suite has a list [R + 1] of lists [R]: its mean over the
      rows of each request; None where no row was measured.
    """
    place = {
        (row.key, row.entity): number for number, part in enumerate(requests) for row in part.forget
    }
    of_row = np.array([place.get((row.key, row.entity), -1) for row in rows])
    found: dict[str, Any] = {
        "requests": [part.name for part in requests],
        "evaluated_rows": [int((of_row == number).sum()) for number in range(len(requests))],
        "model_utility": [one.metrics.get("model_utility", {}).get("value") for one in evaluations],
    }
    for measure in MEASURES:
        values = [one.of_role("forget", measure) for one in evaluations]
        if all(of_model is not None for of_model in values):
            found[measure] = [_means(of_model, of_row, len(requests)) for of_model in values]
    return found


def lines(histories: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For plots, a dict per method and number of requests done: the model utility, and of each
    measure the mean over the requests done and over those to come."""
    found = []
    for model, known in histories.items():
        for done, utility in enumerate(known["model_utility"]):
            line = {"model": model, "step": done, "model_utility": utility}
            for measure in (measure for measure in MEASURES if measure in known):
                values = np.array(known[measure][done], np.float64)
                for name, part in (("done", values[:done]), ("to come", values[done:])):
                    if np.isfinite(part).any():
                        line[f"{measure} of requests {name}"] = float(np.nanmean(part))
            found.append(line)
    return found


def _means(values: np.ndarray, of_row: np.ndarray, count: int) -> list[float | None]:
    parts = [values[(of_row == number) & np.isfinite(values)] for number in range(count)]
    return [entry(part.mean() if len(part) else np.nan, len(part))["value"] for part in parts]
