"""Successive halving: all settings are trained a little, the better ones anew and longer, and so on
(Jamieson and Talwalkar, arXiv 1502.07943)."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxunlearn.config import Experiment, MethodConfig, sampling_of, training_of
from jaxunlearn.errors import UserError
from jaxunlearn.evaluating import UTILITY, metric_names
from jaxunlearn.evaluation import pareto
from jaxunlearn.evaluation.columns import arrow, format_value
from jaxunlearn.evaluation.plots import forget_metric, measured
from jaxunlearn.evaluation.suite import limit_sets
from jaxunlearn.methods import registry
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.sweeping.settings import Settings
from jaxunlearn.sweeping.summary import Done, apart, label, over_seeds

Runs = Sequence[tuple[Settings, Experiment]]
_FOLDER = "rungs"  # no run has this name: theirs have a value in them


@dataclass(frozen=True)
class Halving:
    """How many settings go on, and by what."""

    factor: int
    """One in so many goes on (rounded up), to so many times as many epochs."""
    by: str | None = None
    """A metric of the main method whose better direction is known; None: forgetting and model
    utility, see `pareto.ranked`."""


@dataclass(frozen=True)
class Rung:
    """One round of trainings, all from the start."""

    part: int
    """Their epochs are the config's, divided by this and rounded down."""
    count: int
    """Settings in it, at most."""


def plan(runs: Runs, halving: Halving) -> list[Rung]:
    """The rungs that so many settings allow, as scikit-learn's HalvingGridSearchCV has them: as
    long as there are `factor` settings or more, one in `factor` goes on. They are fewer where the
    first would have no epoch.

    Args:
      runs: resolved; those that differ in `seed` alone are one setting.
      halving: how many go on, and by what.

    Raises:
      UserError: there is nothing to halve, a training is not as long as its epochs say, or what
        ranks is not measured or has no better direction.
    """
    factor, option = halving.factor, f"--halving {halving.factor}"
    if factor < 2:
        raise UserError(f"{option}: use 2 or more")
    for _, one in runs:
        for method in (*one.baselines, one.method):
            _check_length(one, method, option)
    _check_metric(runs[0][1], halving.by)
    count, epochs = len(_by_setting(runs)), min(min(_epochs(one)) for _, one in runs)
    if count < factor:
        raise UserError(
            f"{option}: needs {factor} settings or more, and there are {count} (seeds are not"
            " counted); vary more, or leave it out"
        )
    if epochs < factor:
        raise UserError(
            f"{option}: needs {factor} epochs or more, and a training has {epochs}; raise"
            " training.epochs, or lower the factor"
        )
    powers = [factor**i for i in range(1 + min(_power(count, factor), _power(epochs, factor)))]
    return [
        Rung(part, -(-count // power)) for part, power in zip(powers[::-1], powers, strict=True)
    ]


def shortened(one: Experiment, part: int) -> Experiment:
    """A run with its epochs divided, in a folder apart from that of the whole one.

    The folder is called by the part, so that with more settings or another factor what is there is
    found again.
    """

    def own(method: MethodConfig) -> MethodConfig:
        if "epochs" not in method.training:
            return method
        epochs = training_of(one, method).epochs // part
        return replace(method, training={**method.training, "epochs": epochs})

    return replace(
        one,
        output=str(Path(one.output) / _FOLDER / f"1-of-{part}"),
        # Where every method has epochs of its own, these are nobody's.
        training=replace(one.training, epochs=max(1, one.training.epochs // part)),
        method=own(one.method),
        baselines=tuple(map(own, one.baselines)),
    )


def climb(
    runs: Runs,
    planned: Sequence[Rung],
    halving: Halving,
    finish: Callable[[Runs], tuple[list[Done], dict[str, str]]],
    say: Callable[[str], None] = print,
) -> tuple[Runs, dict[str, Any], dict[str, str]]:
    """Does all rungs but the last one.

    Who goes on depends on the summaries of the runs alone, so that all processes agree on it. A
    setting drops out if one of its seeds fails, or if what ranks could not be measured of it.

    Args:
      runs: of all settings.
      planned: from `plan`.
      halving: how many go on, and by what.
      finish: does runs, or waits for those who do; gives those that are done, and why others are
        not, by their folder.
      say: called with what the user should know.

    Returns:
      The runs of the last rung; what happened, as plain data; and why runs failed.

    Raises:
      UserError: no setting is left.
    """
    told, failed, by = [], {}, []
    left_out = 1 + _power(planned[0].count, halving.factor) - len(planned)
    for note in _fewer(left_out):
        say(note)
    for number, rung in enumerate(planned, 1):
        seeds = _by_setting(runs)
        settings: dict[str, dict[str, Any]] = {name: {} for name in seeds}
        epochs = _epochs_told(runs, rung.part)
        told.append({"epochs": epochs, "runs": len(runs), "settings": settings})
        say(f"rung {number} of {len(planned)}: {_settings(len(settings))}, {epochs}")
        if number == len(planned):
            break
        done, faults = finish([(of, shortened(one, rung.part)) for of, one in runs])
        failed |= faults
        ended = _by_setting(done)
        whole = [name for name in seeds if ended.get(name) == seeds[name]]
        if not whole:
            raise UserError(f"sweep: every setting failed; {': '.join(next(iter(faults.items())))}")
        by, values, ranking = ranked([one for one in done if apart(one[0]) in whole], halving)
        if not ranking:
            raise UserError(
                f"--halving: rung {number} has no setting with numbers for {' and '.join(by)}; name"
                " another metric with --halving-by"
            )
        going = ranking[: planned[number].count]
        for name, entry in settings.items():
            if name in ranking:
                entry |= {"rank": ranking.index(name) + 1, "goes_on": name in going}
                entry |= {"values": values[name]}
            elif name not in whole:
                entry["failed"] = True
        runs = [(of, one) for of, one in runs if apart(of) in going]
    ladder = {"factor": halving.factor, "by": by, "rungs": told, "rungs_left_out": left_out}
    return runs, ladder, failed


def ranked(
    done: Sequence[Done], halving: Halving
) -> tuple[list[str], dict[str, dict[str, float]], list[str]]:
    """The settings from best to worst, by the means over seeds of their main method's metrics.

    Returns:
      Those metrics; the settings' values of them; and the settings of which all are known. Of
      equally good ones the first comes first.
    """
    models = over_seeds("", done)["models"]
    names = {label(summary["primary"], of): apart(of) for of, _, summary in done}
    if halving.by is None:
        metric, places, worst = pareto.plane(models, names)
        by, order = [metric, UTILITY], pareto.ranked(places, worst)
    else:
        by, sign = [halving.by], -1 if arrow(halving.by) == "↑" else 1
        known = {name: measured(models[name], halving.by) for name in names}
        order = [name for name in names if known[name] is not None]
        order.sort(key=lambda name: sign * known[name])
    values = {names[name]: {key: measured(models[name], key) for key in by} for name in order}
    return by, values, list(values)


def notes(ladder: Mapping[str, Any]) -> list[str]:
    """What `climb` tells, in words."""
    rounds = [f"{_settings(len(one['settings']))} for {one['epochs']}" for one in ladder["rungs"]]
    told = f"successive halving by {_by(ladder)}: {', then '.join(rounds)}, of which this is"
    return [told, *_fewer(ladder["rungs_left_out"])]


def _fewer(left_out: int) -> list[str]:
    if not left_out:
        return []
    several = "s" * (left_out > 1)
    return [
        f"successive halving: {left_out} more rung{several} would begin with less than an epoch"
    ]


def trainings(ladder: Mapping[str, Any]) -> int:
    """How many runs there were on all rungs."""
    return sum(rung["runs"] for rung in ladder["rungs"])


def table(ladder: Mapping[str, Any]) -> dict[str, Any]:
    """What `climb` tells, as a table of a report: settings x rungs, the last ones there first."""
    *early, last = ladder["rungs"]
    rows: dict[str, list[str]] = dict.fromkeys(last["settings"])
    for rung in reversed(early):
        order = sorted(rung["settings"].items(), key=lambda item: item[1].get("rank", math.inf))
        rows |= {name: None for name, _ in order if name not in rows}
    return {
        "corner": f"setting, ranked by {_by(ladder)}",
        "columns": [*(rung["epochs"] for rung in early), f"{last['epochs']}, this report"],
        "rows": {
            name: [*(_cell(rung["settings"], name) for rung in early),
                   "trained" if name in last["settings"] else ""]
            for name in rows
        },
    }  # fmt: skip


def _cell(settings: Mapping[str, Mapping[str, Any]], name: str) -> str:
    if name not in settings:
        return ""
    entry = settings[name]
    if "rank" not in entry:
        return "failed" if entry.get("failed") else "not measured"
    numbers = ", ".join(
        f"{key.replace('_', ' ')} {format_value(key, value)}"
        for key, value in entry["values"].items()
    )
    return f"{entry['rank']}{', goes on' if entry['goes_on'] else ''} ({numbers})"


def _settings(count: int) -> str:
    return f"{count} setting{'s' * (count > 1)}"


def _by(ladder: Mapping[str, Any]) -> str:
    return " and ".join(ladder["by"]).replace("_", " ")


def _by_setting(runs: Sequence[tuple[Any, ...]]) -> dict[str, int]:
    """Setting to how many runs it has, one for each seed."""
    return dict(Counter(apart(of) for of, *_ in runs))


def _power(number: int, factor: int) -> int:
    """How often a number can be divided until less than one is left."""
    return 0 if number < factor else 1 + _power(number // factor, factor)


def _epochs(one: Experiment) -> list[int]:
    """Of each method, the main one first."""
    return [training_of(one, method).epochs for method in (one.method, *one.baselines)]


def _epochs_told(runs: Runs, part: int) -> str:
    """Of the main methods: `3 epochs`."""
    known = [_epochs(one)[0] // part for _, one in runs]
    low, high = min(known), max(known)
    if low < high:
        return f"{low} to {high} epochs"
    return f"{low} epoch{'s' * (low > 1)}"


def _check_length(one: Experiment, method: MethodConfig, option: str) -> None:
    """Refuses a training that does not get shorter with its epochs."""
    if registry.kind_of(method.name) == "rounds":
        raise UserError(
            f"{option}: method {method.name} goes on for as many iterations with fewer epochs;"
            " leave it out"
        )
    steps = sampling_of(one, method).match_steps
    if isinstance(steps, int):
        raise UserError(
            f"{option}: sampling.match_steps is {steps}, whatever the epochs; leave it out, or name"
            " a sampler there"
        )


def _check_metric(one: Experiment, by: str | None) -> None:
    """Refuses what cannot rank."""
    if by is not None and one.attribution is not None:
        there = [by]  # what its functions will measure is not known yet
    else:
        sets = limit_sets(load_data(one).evaluation, one.evaluation.limit)
        there = metric_names(one, sets)
    needed = [by]
    if by is None:
        needed = [forget_metric([{name: {"value": 0.0} for name in there}]), UTILITY]
    missing = [name for name in needed if name not in there]
    ranking = ", ".join(name for name in there if arrow(name)) or "another suite's"
    if missing:
        raise UserError(
            f"--halving{'' if by is None else '-by'}: suite {one.evaluation.suite} has no"
            f" {' and no '.join(missing)} on this data; give --halving-by one of {ranking}"
        )
    if by is not None and not arrow(by):
        raise UserError(f"--halving-by: {by} has no better direction; use one of {ranking}")
