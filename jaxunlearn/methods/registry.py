"""Method names, their terms, and their hyper-parameters.

A method is a forget term, a default retain term, and the keyword parameters of the forget term.
Adding one is a function in `losses` and a line in `METHODS`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any, Literal

import jax
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from jaxunlearn.config import MethodConfig, NonNegative, validate
from jaxunlearn.errors import UserError
from jaxunlearn.methods import losses

Loss = Callable[..., jax.Array]
RetainLoss = Literal["nll", "kl", "none"]


@dataclass(frozen=True)
class Method:
    """A named method: what is minimised on forget rows, and by default on retain rows."""

    forget: Loss
    retain: RetainLoss
    summary: str
    source: str


@dataclass(frozen=True)
class Term:
    """One loss term over one group of rows; its weight is the hyper-parameter `{group}_weight`."""

    group: str
    loss: Loss

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the statistics the loss takes."""
        return tuple(p.name for p in _parameters(self.loss) if p.kind is not p.KEYWORD_ONLY)

    @property
    def hyper(self) -> tuple[str, ...]:
        """Names of the hyper-parameters the loss takes."""
        return tuple(p.name for p in _parameters(self.loss) if p.kind is p.KEYWORD_ONLY)


@dataclass(frozen=True)
class Objective:
    """What one update minimises: the weighted sum of its terms. Hashable, static under jit."""

    name: str
    terms: tuple[Term, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of rows that one update looks at."""
        return tuple(term.group for term in self.terms)

    def needs(self, statistic: str) -> bool:
        """Whether any term takes this statistic."""
        return any(statistic in term.needs for term in self.terms)


METHODS: Mapping[str, Method] = {
    "grad_ascent": Method(
        losses.grad_ascent, "none", "gradient ascent on the forget rows", "arXiv 2210.01504"
    ),
    "grad_diff": Method(
        losses.grad_ascent, "nll", "gradient ascent, with NLL on retain rows", "arXiv 2203.12817"
    ),
    "kl": Method(
        losses.grad_ascent, "kl", "gradient ascent, with KL on retain rows", "arXiv 2401.06121"
    ),
    "npo": Method(losses.npo, "nll", "negative preference optimisation", "arXiv 2404.05868"),
}
RETAIN_LOSSES: Mapping[str, Loss | None] = {"nll": losses.nll, "kl": losses.kl, "none": None}

FINETUNE = Objective("finetune", (Term("train", losses.nll),))
"""Plain training: the mean NLL of the answer tokens."""


def resolve(config: MethodConfig) -> MethodConfig:
    """The method with every hyper-parameter filled in and checked.

    Raises:
      UserError: unknown method or hyper-parameter (names the closest), or one out of range.
    """
    if config.name not in METHODS:
        raise UserError(f"method.name: no method {config.name!r}; there are: {', '.join(METHODS)}")
    settings = validate(_schema(config.name), config.hyper, where=f"method {config.name}")
    return MethodConfig(name=config.name, hyper=dict(vars(settings)))


def objective(config: MethodConfig) -> tuple[Objective, dict[str, float]]:
    """The terms of a method, and its numeric hyper-parameters, which the step traces."""
    hyper = dict(resolve(config).hyper)
    retain = RETAIN_LOSSES[hyper.pop("retain_loss")]
    terms = [Term("forget", METHODS[config.name].forget)]
    if retain is not None:
        terms.append(Term("retain", retain))
    return Objective(config.name, tuple(terms)), hyper


def defaults(name: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their default values."""
    return dict(resolve(MethodConfig(name=name)).hyper)


def _schema(name: str) -> type:
    """A validated dataclass of the method's hyper-parameters."""
    own = [(p.name, p.annotation, p.default) for p in _parameters(METHODS[name].forget)]
    own = [field for field in own if field[2] is not inspect.Parameter.empty]
    shared = [
        ("retain_loss", RetainLoss, METHODS[name].retain),
        ("forget_weight", NonNegative, 1.0),
        ("retain_weight", NonNegative, 1.0),
    ]
    plain = make_dataclass(name, own + shared, frozen=True)
    return validated(plain, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))


def _parameters(loss: Loss) -> list[inspect.Parameter]:
    return list(inspect.signature(loss).parameters.values())
