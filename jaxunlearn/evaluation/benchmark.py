"""A benchmark is one file of declarative rows: which data, which statistic, which aggregation.

    name: mine
    about: what it measures
    include: [privacy]
    metrics:
      - {metric: "{set}_rouge", data: [forget, retain], statistic: rouge, source: "W04-1013"}
      - {metric: model_utility, of: [retain_rouge, 1 - forget_rouge], aggregation: harmonic_mean}

`data` names roles (forget, retain, general, holdout) or evaluation sets. A metric with {set} in its
name is measured of each of them, another one of all their rows together; one whose data is not
there is left out. `versus` names the rows that those of `data` are compared to, and `against:
retrained` compares with the retrained model. `of` names other metrics, or `1 - ` one of them.
"""

import dataclasses
import graphlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from jaxunlearn.data.rows import EvalSet
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.aggregation import ALL, CHANGES, COMPARISONS, NUMBERS, ROWS, SAMPLES
from jaxunlearn.evaluation.statistics import STATISTICS
from jaxunlearn.validation import kind_of, validate

_FOLDER = Path(__file__).parent / "benchmarks"
_STRICT = ConfigDict(extra="forbid")
SET = "{set}"
_COMPLEMENT = "1 - "
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


@dataclass(frozen=True, config=_STRICT)
class Metric:
    """One row of a benchmark."""

    metric: str
    """Its name in tables."""
    data: Names = ()
    statistic: str | None = None
    """A name of `STATISTICS`."""
    aggregation: str = "mean"
    versus: Names = ()
    against: Literal["retrained"] | None = None
    of: Names = ()
    source: str = ""
    """Where it is defined: paper and section."""

    def __post_init__(self):
        """Refuse rows that make no sense."""
        if re.search(r"[{}]", self.metric.replace(SET, "")):
            raise ValueError(f"{self.metric}: the only thing in braces is {SET}")
        if bool(self.of) == (self.statistic is not None):
            raise ValueError(f"{self.metric}: give either data and statistic, or of")
        if self.statistic is not None:
            _known(f"{self.metric}: statistic", self.statistic, STATISTICS)
            if not self.data:
                raise ValueError(f"{self.metric}: data is missing; name roles or evaluation sets")
        kinds = [SAMPLES] if self.versus or self.against else [ROWS]
        if self.of:
            kinds = [NUMBERS, *([CHANGES, COMPARISONS] if self.against else [])]
        _known(f"{self.metric}: aggregation", self.aggregation, [key for k in kinds for key in k])
        if self.aggregation in (*CHANGES, "from_chance") and len(self.of) != 1:
            raise ValueError(f"{self.metric}: {self.aggregation} is of one metric")

    @property
    def each_set(self) -> bool:
        """Measured of each set by itself."""
        return SET in self.metric

    @property
    def plain_of(self) -> list[str]:
        """The names that it is `of`."""
        return [one.removeprefix(_COMPLEMENT) for one in self.of]

    @property
    def needs_all(self) -> bool:
        """Whether it is left out where one of those that it is `of` is."""
        return self.aggregation in (ALL, *COMPARISONS)

    def stands_for(self, name: str) -> bool:
        """Whether this may be the metric of this name; {set} stands for any set."""
        pattern = re.escape(self.metric).replace(re.escape(SET), ".+")
        return bool(re.fullmatch(pattern, name))

    def applies(self, roles: Mapping[str, str]) -> bool:
        """Whether there are rows that it is about."""
        both = (self.data, *([self.versus] if self.versus else []))
        return all(matched(names, roles) for names in both)

    def parts(self, roles: Mapping[str, str]) -> list[tuple[str, bool]]:
        """The metrics that it is `of`, and whether each is to be taken from 1."""
        names = self.plain_of
        sets = matched(self.data, roles) or [""]
        return [
            (name.replace(SET, of_set), one != name)
            for of_set in sets
            for one, name in zip(self.of, names, strict=True)
        ]


@dataclass(frozen=True, config=_STRICT)
class Benchmark:
    """What is measured."""

    name: str
    about: str
    metrics: tuple[Metric, ...] = ()
    include: Names = ()
    """Benchmarks, built in or files beside this one, whose metrics come after these."""
    headline: Mapping[str, str] = Field(default_factory=dict)
    """Metrics of the table in the terminal, with their short headings."""

    @property
    def composites(self) -> list[Metric]:
        """The metrics of others, each after those that it is of.

        Raises:
          graphlib.CycleError: two are of each other.
        """
        of = {one.metric: one for one in self.metrics if one.of}
        after = {name: [other for other in one.plain_of if other in of] for name, one in of.items()}
        return [of[name] for name in graphlib.TopologicalSorter(after).static_order()]

    def plan(self, sets: Mapping[str, EvalSet]) -> dict[str, set[str]]:
        """Set to the names of the statistics that have to be known of its rows.

        Args:
          sets: name to rows and role.
        """
        roles = {name: one.role for name, one in sets.items()}
        found: dict[str, set[str]] = {name: set() for name in roles}
        for metric in self.metrics:
            if metric.statistic is not None and metric.applies(roles):
                for name in matched((*metric.data, *metric.versus), roles):
                    if STATISTICS[metric.statistic].about(sets[name]):
                        found[name].add(metric.statistic)
        return found

    def names(self, sets: Mapping[str, EvalSet], *, compared: bool) -> list[str]:
        """The metrics that a model has on these sets.

        Args:
          sets: name to rows and role.
          compared: whether there is a retrained model to compare with.
        """
        roles = {name: one.role for name, one in sets.items()}
        found: dict[str, None] = {}
        rows = [one for one in self.metrics if one.statistic and one.applies(roles)]
        for metric in rows:
            about = STATISTICS[metric.statistic].about
            names, others = (
                [name for name in matched(data, roles) if about(sets[name])]
                for data in (metric.data, metric.versus)
            )
            if names and (others or not metric.versus) and (compared or not metric.against):
                names = names if metric.each_set else names[:1]
                found |= dict.fromkeys(metric.metric.replace(SET, name) for name in names)
        for metric in self.composites:
            if metric.against and not compared:
                continue
            there = [name in found for name, _ in metric.parts(roles)]
            if all(there) if metric.needs_all else any(there):
                found[metric.metric] = None
        return list(found)


def matched(names: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    """Those of the sets (name to role) that are named, by themselves or by their role."""
    return [name for name, role in roles.items() if name in names or role in names]


def built_in() -> list[str]:
    """Names of the benchmarks that come with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(name: str) -> Benchmark:
    """A benchmark by name, or several as one.

    Args:
      name: of a built-in one, or path/to/file.yaml; or some of these with + between them, such as
        tofu+wmdp.

    Raises:
      UserError: there is none of this name, or its file is not one.
    """
    parts = [_load(part) for part in _names(name)]
    distinct: dict[tuple[str, Names], Metric] = {}
    for part in parts:
        for metric in part.metrics:
            distinct.setdefault((metric.metric, metric.data), metric)
    return dataclasses.replace(parts[0], name=name, metrics=tuple(distinct.values()))


def has(name: str, metric: str) -> bool:
    """Whether a suite has a metric of this name."""
    return any(one.metric == metric for one in load(name).metrics)


def version(name: str) -> str | None:
    """A hash of what a suite says that is not all built in; None of one that is."""
    if set(_names(name)) <= set(built_in()):
        return None
    return hashlib.sha256(repr(load(name).metrics).encode()).hexdigest()[:16]


def _names(name: str) -> list[str]:
    return [part.strip() for part in name.split("+")]


def _load(name: str, including: tuple[Path, ...] = ()) -> Benchmark:
    """One suite; `including` are the files that it is included by, one by the other."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _read((including[-1].parent / path) if including else path, including)
    if name not in built_in():
        where = including[-1] if including else "evaluation.suite"
        raise UserError(
            f"{where}: no suite {name!r}; there are {', '.join(built_in())}, or give the path of a"
            " .yaml file"
        )
    return _built_in(name)


@cache
def _built_in(name: str) -> Benchmark:
    return _read(_FOLDER / f"{name}.yaml", ())


def _read(path: Path, including: tuple[Path, ...]) -> Benchmark:
    if path.resolve() in [one.resolve() for one in including]:
        way = " -> ".join(map(str, (*including, path)))
        raise UserError(f"{path}: includes itself ({way}); remove one of the includes")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        by = f"; {including[-1]} includes it" if including else ""
        raise UserError(
            f"evaluation.suite: {path} cannot be read ({error.strerror}){by}; give the path of a"
            " suite's file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a suite is a mapping of keys to values, found {kind_of(tree)}")
    own = validate(Benchmark, tree, where=str(path))
    parts = [_load(name, (*including, path)) for name in own.include]
    metrics = [*own.metrics, *(one for part in parts for one in part.metrics)]
    if not metrics:
        raise UserError(f"{path}: no metrics; add some, or include a built-in suite")
    whole = dataclasses.replace(own, metrics=tuple(metrics), include=())
    _refuse_unclear(path, whole)
    return whole


def _refuse_unclear(path: Path, suite: Benchmark) -> None:
    """Names that stand for two metrics, and metrics of what there is not."""
    first: set[str] = set()
    for metric in suite.metrics:
        if metric.metric in first and not metric.each_set:
            raise UserError(
                f"{path}: metric {metric.metric!r} is there twice; give each its own name, or put"
                f" {SET} in it to measure each set by itself"
            )
        first.add(metric.metric)
    for metric in suite.metrics:
        for name in metric.plain_of:
            if not any(one.stands_for(name) for one in suite.metrics):
                raise UserError(
                    f"{path}: {metric.metric}: of: no metric {name!r}; there are"
                    f" {', '.join(one.metric for one in suite.metrics)}; write a name, or"
                    f" {_COMPLEMENT!r} and a name"
                )
    try:
        _ = suite.composites
    except graphlib.CycleError as error:
        raise UserError(f"{path}: metrics of each other: {' -> '.join(error.args[1])}") from None


def _known(what: str, name: str, allowed: Any) -> None:
    if name not in allowed:
        raise ValueError(f"{what} {name!r} is unknown; use one of {', '.join(allowed)}")
