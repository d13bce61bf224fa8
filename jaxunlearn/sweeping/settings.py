"""The settings of a sweep: all combinations of given values, drawn points, or both."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from jaxunlearn import config_file, experiment
from jaxunlearn.config import Experiment
from jaxunlearn.errors import UserError

Settings = dict[str, Any]
Sampler = Literal["random", "sobol"]
SAMPLERS: tuple[Sampler, ...] = ("random", "sobol")
_DIGITS = 4  # of a drawn number: it is what its run is called


@dataclass(frozen=True)
class Span:
    """Where a number of a search may lie; both ends can be drawn."""

    low: float
    high: float
    log: bool = False
    """Its logarithm is drawn evenly, in the place of itself."""

    @property
    def whole(self) -> bool:
        """Whether both ends are integers; only integers are drawn then."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number below which this share of the draws lies."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        if self.log:
            low, high = math.log(low), math.log(high)
        value = low + share * (high - low)
        if self.log:
            value = math.exp(value)
        return min(math.floor(value), self.high) if self.whole else float(f"{value:.{_DIGITS}g}")


def span(text: str, key: str) -> Span:
    """A span from its words `low:high` or `low:high:log`.

    Raises:
      UserError: it is something else, or empty.
    """
    fault = UserError(
        f"--search {key}: {text!r} is no range; write {key}=LOW:HIGH or {key}=LOW:HIGH:log"
    )
    low, _, rest = text.partition(":")
    high, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise fault
    try:
        ends = [int(word) if re.fullmatch(r"-?\d+", word) else float(word) for word in (low, high)]
    except ValueError:
        raise fault from None
    if not all(map(math.isfinite, ends)):
        raise UserError(f"--search {key}: both ends of {text!r} must be finite numbers")
    if not ends[0] < ends[1]:
        raise UserError(f"--search {key}: {low} is not below {high}; write the lower end first")
    if colon and ends[0] <= 0:
        raise UserError(f"--search {key}: a logarithmic range starts above 0, not at {low}")
    return Span(*ends, bool(colon))


def split(text: str) -> list[str]:
    """The values of a grid's key: what stands between commas, but for those in brackets, braces
    and quotes, as YAML has them.

    >>> split("{fsdp: 2, tensor: 1},jit")
    ['{fsdp: 2, tensor: 1}', 'jit']

    Raises:
      UserError: a value is empty.
    """
    parts = text.split(",")
    if not re.search(r"""[\[{'"]""", text):
        if not all(map(str.strip, parts)):
            raise UserError(f"--grid: {text!r} has an empty value; write null if that is meant")
        return parts
    try:
        tree = yaml.compose(f"[{text}]", yaml.SafeLoader)
    except yaml.YAMLError:
        return parts
    # Each value is read by itself later.
    return [text[one.start_mark.index - 1 : one.end_mark.index - 1] for one in tree.value]


def draw(
    spans: Mapping[str, Span], samples: int, sampler: Sampler = "sobol", seed: int = 0
) -> list[Settings]:
    """Points of a search space, which depend on the seed alone: of more samples they are the first.

    Args:
      spans: dotted key to where its values lie.
      samples: how many points; where they are alike, fewer come out.
      sampler: "random": evenly and independently; "sobol": the scrambled low-discrepancy sequence,
        which leaves no part of the space out.
      seed: of the draws.

    Raises:
      UserError: no such sampler, or fewer than one sample.
    """
    from scipy.stats import qmc

    if sampler not in SAMPLERS:
        raise UserError(f"--sampler: there is no {sampler!r}; there are {', '.join(SAMPLERS)}")
    if samples < 1:
        raise UserError(f"--samples: is {samples}; use 1 or more")
    if sampler == "random":
        points = np.random.default_rng(seed).random((samples, len(spans)))
    else:
        # The sequence is balanced at powers of two, and scipy warns of other lengths.
        power = (samples - 1).bit_length()
        points = qmc.Sobol(len(spans), rng=np.random.default_rng(seed)).random_base2(power)
    found: dict[str, Settings] = {}
    for point in points[:samples]:
        one = {key: of.at(float(x)) for (key, of), x in zip(spans.items(), point, strict=True)}
        found.setdefault(name_of(one), one)
    return list(found.values())


def expand(
    path: str | Path | None,
    grid: Mapping[str, Sequence[Any]],
    overrides: Mapping[str, Any],
    drawn: Sequence[Settings] = ({},),
) -> list[tuple[Settings, Experiment]]:
    """The settings of every combination of the grid's values, in its order, beside each drawn
    point, and their experiments.

    Args:
      path: YAML file; None: the built-in quickstart.
      grid: dotted key to its values.
      overrides: dotted key to value, for all runs.
      drawn: points of a search, as `draw` gives them.

    Returns:
      Each run has a folder of its own under `output/NAME`.

    Raises:
      UserError: nothing to vary, a key with no or repeated values, or that is also drawn, a config
        that is not valid, or a folder that holds a run.
    """
    if not grid and not any(drawn):
        raise UserError("sweep: nothing to vary; give --grid KEY=VALUE,VALUE")
    for key, values in grid.items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise UserError(f"--grid {key}: give values that differ, as in --grid {key}=1,2")
        if any(key in point for point in drawn):
            raise UserError(f"--search {key}: is in the grid too; leave it out of one of them")
    for key in {*grid, *drawn[0]} & {"name", "output"}:
        raise UserError(f"sweep: {key} is not for varying; each run gets a folder of its own")
    base = config_file.load(path, overrides)
    folder = str(Path(base.output) / str(base.name))
    if (Path(folder) / "config.yaml").exists():
        raise UserError(f"{folder}: holds a run; give the sweep another --name")
    found = []
    for point, values in itertools.product(drawn, itertools.product(*grid.values())):
        settings = {**point, **dict(zip(grid, values, strict=True))}
        own = {**overrides, **settings, "output": folder, "name": name_of(settings)}
        found.append((settings, experiment.resolve(config_file.load(path, own))))
    for name, count in Counter(one.name for _, one in found).items():
        if count > 1:
            raise UserError(f"--grid: {count} settings have the folder name {name}; leave out one")
    return found


def name_of(settings: Mapping[str, Any]) -> str:
    """A folder name that says what was set: `seed-0`, `beta-0.1-seed-0`."""
    words = [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join(words))
