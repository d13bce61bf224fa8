"""Which of several models are worth looking at: those that no other one beats in everything, and
in which order the others come after them."""

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


def ranked(places: Mapping[str, tuple[float, float]], worst: tuple[float, float]) -> list[str]:
    """Names from the best place to the worst one, by non-dominated sorting: those that are not
    dominated come first, then those that only these dominate, and so on (Deb et al., NSGA-II, IEEE
    Transactions on Evolutionary Computation 6(2), 2002).

    Within such a front one after another comes that adds most to the area that the front's names
    before it dominate down to `worst`, which is their hypervolume (Zitzler and Thiele, PPSN V,
    1998), and of equal ones the first. NSGA-II's own tie-break, the crowding distance, puts the two
    ends of a front first: here the model that has forgotten least, and the one that is worth least.

    >>> ranked({"end": (1.0, 0.1), "middle": (0.6, 0.6), "beaten": (0.5, 0.5)}, (0.0, 0.0))
    ['middle', 'end', 'beaten']
    """
    left, order = dict(places), []
    while left:
        rest, before = front(left), []
        for name in rest:
            del left[name]
        while rest:
            areas = [_area([places[one] for one in (*before, name)], worst) for name in rest]
            before.append(rest.pop(areas.index(max(areas))))
        order += before
    return order


def _area(places: Iterable[tuple[float, float]], worst: tuple[float, float]) -> float:
    """Of what is dominated by one of the places and not below the worst one."""
    area, top = 0.0, worst[1]
    for x, y in sorted(places, reverse=True):
        if y > top:
            area += max(x - worst[0], 0.0) * (y - top)
            top = y
    return area


def plane(
    models: Mapping[str, Mapping], names: Iterable[str]
) -> tuple[str, dict[str, tuple[float, float]], tuple[float, float]]:
    """Where models are in the forget-utility plane, greater numbers being better ones.

    Args:
      models: name to metrics, as in `summary.json`.
      names: of those that compete; the plane may have others.

    Returns:
      The metric of forgetting; name to (utility, forgetting), the latter negated where less of
      the metric is better, of those that have both numbers; and the place of a model that is worth
      nothing and has forgotten nothing.
    """
    metric = forget_metric(models.values())
    down = arrow(metric) == "↓"
    places = {}
    for name in names:
        forgetting, utility = (measured(models[name], key) for key in (metric, UTILITY))
        if forgetting is not None and utility is not None:
            places[name] = (utility, -forgetting if down else forgetting)
    return metric, places, (0.0, -1.0 if down else 0.0)


def forgetting_against_utility(
    models: Mapping[str, Mapping], names: Iterable[str]
) -> dict[str, object] | None:
    """The models that are not dominated in forgetting and model utility, and by which metric of
    forgetting: that of the forget-utility plane. Arguments are those of `plane`.

    Returns:
      `{"forget", "utility", "models"}`, or None if none has both numbers.
    """
    metric, places, _ = plane(models, names)
    if not places:
        return None
    return {"forget": metric, "utility": UTILITY, "models": front(places)}
