"""Which of several models are worth looking at: those that no other one beats in everything."""

from collections.abc import Iterable, Mapping

from jaxunlearn.evaluation.columns import arrow
from jaxunlearn.evaluation.plots import forget_metric, measured

UTILITY = "model_utility"


def front(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the places that are not dominated: no other one is at least as great in both numbers
    and greater in one.

    >>> front({"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.0, 0.5)})
    ['a', 'b']
    """

    def beaten(name: str) -> bool:
        x, y = places[name]
        return any(u >= x and v >= y and (u > x or v > y) for u, v in places.values())

    return [name for name in places if not beaten(name)]


def forgetting_against_utility(
    models: Mapping[str, Mapping], names: Iterable[str]
) -> dict[str, object] | None:
    """The models that are not dominated in forgetting and model utility, and by which metric of
    forgetting: that of the forget-utility plane.

    Args:
      models: name to metrics, as in `summary.json`.
      names: of those that compete; the plane may have others.

    Returns:
      `{"forget", "utility", "models"}`, or None if none has both numbers.
    """
    metric = forget_metric(models.values())
    sign = -1.0 if arrow(metric) == "↓" else 1.0
    places = {}
    for name in names:
        forgetting, utility = (measured(models[name], key) for key in (metric, UTILITY))
        if forgetting is not None and utility is not None:
            places[name] = (utility, sign * forgetting)
    if not places:
        return None
    return {"forget": metric, "utility": UTILITY, "models": front(places)}
