"""How much each model still says of each entity: the heat maps of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation.suite import Evaluation

SHOWN = 40
"""Entities of one map; the others are counted."""
_MEASURES = {"rouge": "ROUGE-L", "probability": "probability"}


def heat_maps(
    sets: Mapping[str, EvalSet], evaluations: Mapping[str, Evaluation]
) -> list[dict[str, Any]]:
    """A map of the forget entities and one of what is to be kept, where rows name entities.

    Args:
      sets: evaluation set to its rows.
      evaluations: model to its evaluation on these sets.

    Returns:
      Plain data of each map: {"title", "measure", "models", "rows", "others"}. A row is {"entity",
      "n", "values"}: the means, in the order of models, over the n rows of the entity that every
      model has a number of. `others` counts the entities after the first SHOWN.
    """
    kept = [name for name, one in sets.items() if one.role not in ("forget", "holdout")]
    parts = {
        "Forgotten": [name for name, one in sets.items() if one.role == "forget"],
        "To be kept": kept,
    }
    maps = [_heat_map(title, names, sets, evaluations) for title, names in parts.items()]
    return [one for one in maps if one is not None]


def _heat_map(
    title: str,
    names: Sequence[str],
    sets: Mapping[str, EvalSet],
    evaluations: Mapping[str, Evaluation],
) -> dict[str, Any] | None:
    for statistic, measure in _MEASURES.items():
        found: dict[str, list[list[float]]] = {}
        for name in names:
            columns = [one.rows.get(f"{name}_{statistic}") for one in evaluations.values()]
            if None in columns:
                continue
            for row, values in zip(sets[name].rows, zip(*columns, strict=True), strict=True):
                entity = _named(row, sets[name].role)
                if entity and None not in values:
                    found.setdefault(entity, []).append(list(values))
        if found:
            rows = [
                {"entity": entity, "n": len(values), "values": np.mean(values, axis=0).tolist()}
                for entity, values in list(found.items())[:SHOWN]
            ]
            return {
                "title": title,
                "measure": measure,
                "models": list(evaluations),
                "rows": rows,
                "others": max(len(found) - SHOWN, 0),
            }
    return None


def _named(row: Row, role: str) -> str:
    """Whom a row is about; the entity of a neighbour is the one whose neighbour it is."""
    if not row.entity or role == "forget":
        return row.entity
    if row.kind in ("direct", "indirect"):
        return f"{row.entity}: {row.kind} neighbours"
    return row.entity if role == "retain" else ""
