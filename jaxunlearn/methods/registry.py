"""Method names, their terms, and their hyper-parameters.

A method is a forget term, a default retain term, and the keyword parameters of its functions.
Adding one is a function in `losses` or `logit_losses` and an entry of `METHODS`; a user's own is a
function in a file of theirs, named `path/to/file.py:function`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_type_hints

import jax
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from jaxunlearn.config import MethodConfig
from jaxunlearn.errors import UserError
from jaxunlearn.methods import arithmetic, compat, logit_losses, losses
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.methods.orthogonality import Penalty
from jaxunlearn.methods.own import Loss, check_parameters
from jaxunlearn.methods.release_settings import Release
from jaxunlearn.user_file import file_version, names_user_function, user_function
from jaxunlearn.validation import Count, NonNegative, validate

RetainLoss = Literal["nll", "kl", "jsd", "nll_kl", "hidden_mse", "none"]


@dataclass(frozen=True)
class Method:
    """A named method: what is minimised on forget rows, and by default on retain rows."""

    forget: Loss | None
    """None: nothing is done to the forget rows."""
    retain: RetainLoss
    summary: str
    source: str
    answers: Literal["own", "refusal", "random"] = "own"
    """What the forget rows answer in training: their own answer or another one."""
    labels: Literal["refusal", None] = None
    """What the terms ask about in the place of each answer token; None: the token itself."""
    alternative: Literal["refusal", "generated", None] = None
    """A second answer beside each forget row's own, where the forget term compares two."""
    rectify: Callable[..., Any] | None = None
    """Combines the gradients of the two terms, instead of their sum."""
    dual: Callable[..., jax.Array] | None = None
    """The next retain weight from this one and the retain loss."""
    finish: Callable[..., Any] | None = None
    """The result from start and trained params, instead of the latter."""
    in_turn: bool = False
    """Forget rows and retain rows come in steps of their own, epoch by epoch, and the former only
    in the first `forget_epochs`, which is then a hyper-parameter."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Of the weights, where they are not 1."""


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
        return keywords(self.loss)


@dataclass(frozen=True)
class Objective:
    """What one update minimises: the weighted sum of its terms. Hashable, static under jit."""

    name: str
    terms: tuple[Term, ...]
    layer: int | None = None
    """Whose output `hidden` is; None: a layer at about a fifth of the depth."""
    rectify: Callable[..., Any] | None = None
    dual: Callable[..., jax.Array] | None = None
    orthogonality: Penalty | None = None
    """Form of the penalty that keeps an adapter in training apart from frozen ones; its weight is
    the hyper-parameter `orthogonality_weight`."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of rows that one update looks at."""
        groups = [term.group for term in self.terms]
        if any(name.startswith("alternative_") for term in self.terms for name in term.needs):
            groups.append("alternative")
        return tuple(groups)

    def needs(self, statistic: str) -> bool:
        """Whether any term takes this statistic."""
        return any(statistic in term.needs for term in self.terms)


METHODS: dict[str, Method] = {
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
    "simnpo": Method(
        losses.simnpo, "nll", "NPO of length-normalised sums, no reference", "arXiv 2410.07163"
    ),
    "dpo": Method(
        losses.dpo, "nll", "a refusal is preferred to the answer", "arXiv 2401.06121",
        alternative="refusal",
    ),
    "idk": Method(
        losses.nll, "nll", "fine-tuning on refusals", "arXiv 2401.06121", answers="refusal"
    ),
    "altpo": Method(
        losses.dpo, "nll", "an invented answer is preferred to the true one", "arXiv 2409.13474",
        alternative="generated",
    ),
    "rmu": Method(
        losses.rmu, "hidden_mse", "hidden states are steered to a random one", "arXiv 2403.03218"
    ),
    "undial": Method(
        logit_losses.undial, "none", "distillation from logits with the answer's lowered",
        "arXiv 2402.10052",
    ),
    "ceu": Method(
        logit_losses.ceu, "none", "distillation from logits without the answer's",
        "arXiv 2503.01224",
    ),
    "wga": Method(
        losses.wga, "nll", "gradient ascent weighted by confidence", "arXiv 2502.19301"
    ),
    "satimp": Method(
        losses.satimp, "nll", "gradient ascent weighted by saturation and importance",
        "arXiv 2505.11953", defaults={"forget_weight": 0.1},
    ),
    "pdu": Method(
        logit_losses.pdu, "nll", "flat logits, the retain NLL held by a dual variable",
        "arXiv 2506.05314", dual=arithmetic.dual_ascent, defaults={"retain_weight": 100.0},
    ),
    "jensun": Method(
        losses.jensun, "jsd", "Jensen-Shannon divergence from a refusal", "arXiv 2509.02820",
        labels="refusal",
    ),
    "gru": Method(
        losses.grad_ascent, "nll", "the forget gradient is rectified against the retain gradient",
        "arXiv 2503.09117", rectify=arithmetic.rectify, defaults={"retain_weight": 0.0},
    ),
    "task_vector": Method(
        losses.nll, "none", "what training on the forget rows adds is subtracted",
        "arXiv 2212.04089", finish=arithmetic.negate,
    ),
    "whp": Method(
        logit_losses.whp, "none", "labels of a model that leans away from the forget rows",
        "arXiv 2310.02238",
    ),
    "random_label": Method(
        losses.nll, "nll", "fine-tuning on other rows' answers", "arXiv 2404.18239",
        answers="random",
    ),
    "scrub": Method(
        logit_losses.scrub, "nll_kl", "away from the start model and back on retain rows, in turn",
        "arXiv 2302.09880", in_turn=True,
    ),
    "retain_finetune": Method(None, "nll", "fine-tuning on the retain rows", "arXiv 2401.06121"),
}  # fmt: skip
BUILT_IN = frozenset(METHODS)


@dataclass(frozen=True)
class Procedure:
    """A named method that is more than one training with a loss."""

    settings: type
    """A dataclass of its hyper-parameters."""
    summary: str
    source: str
    kind: Literal["rounds", "reward"]
    """It gives a model after each of several rounds, or is one training by a reward."""


PROCEDURES: Mapping[str, Procedure] = {
    "reveal_release": Procedure(
        Release, "adapters learn what the model itself reveals, and are subtracted",
        "arXiv 2509.14624", "rounds",
    ),
    "dareu": Procedure(
        DareU, "a reward for answers that are not attributed to whom it should forget",
        "arXiv 2605.30919", "reward",
    ),
}  # fmt: skip
RETAIN_LOSSES: Mapping[str, Loss | None] = {
    "nll": losses.nll,
    "kl": logit_losses.kl,
    "jsd": logit_losses.jsd,
    "nll_kl": logit_losses.nll_kl,
    "hidden_mse": losses.hidden_mse,
    "none": None,
}

FINETUNE = Objective("finetune", (Term("train", losses.nll),))
"""Plain training: the mean NLL of the answer tokens."""
REINFORCE = Objective("reinforced", (Term("forget", losses.nll),))
"""Training on the forget rows, for methods that compare with what that makes of a model."""


def kind_of(method: str) -> Literal["loss", "rounds", "reward"]:
    """What kind of work a method of this name is."""
    return PROCEDURES[method].kind if method in PROCEDURES else "loss"


def method(
    *, retain: RetainLoss = "nll", summary: str = "", source: str = "own", **options: Any
) -> Callable[[Loss], Loss]:
    """Registers a forget term of your own under its function's name.

    Args:
      retain: the default retain term.
      summary: a line for `jaxunlearn methods`.
      source: where it comes from.
      **options: further fields of `Method`, such as answers="refusal".

    Raises:
      UserError: the name is a built-in method's, an option has a value that is not allowed, or
        the update step cannot call the function.
    """

    def register(function: Loss) -> Loss:
        name = function.__name__
        if name in BUILT_IN or name in PROCEDURES:
            raise UserError(f"method {name!r} is built in; give the function another name")
        known = Method(function, retain, summary or _first_line(function), source, **options)
        function.method = METHODS[name] = _checked(name, known)
        return function

    return register


def lookup(name: str) -> Method:
    """A method that is a loss, by its name or by `path/to/file.py:function`.

    Raises:
      UserError: there is none, it is a procedure, or its file cannot be used.
    """
    if name in METHODS:
        return METHODS[name]
    if name in PROCEDURES:
        raise UserError(
            f"method {name}: is not one training but several; run a config of it with "
            "`jaxunlearn run`"
        )
    if not names_user_function(name):
        known = ", ".join((*METHODS, *PROCEDURES))
        raise UserError(
            f"method.name: no method {name!r}; there are: {known}; one of your own is named as "
            "path/to/file.py:function"
        )
    loss = user_function(name, key="method.name")
    registered = getattr(loss, "method", None)
    return registered or _checked(name, Method(loss, "nll", _first_line(loss), "own"))


def resolve(config: MethodConfig) -> MethodConfig:
    """The method with every hyper-parameter filled in and checked, and its file's version.

    Raises:
      UserError: unknown method or hyper-parameter (names the closest), one out of range, or
        `compat` where it changes nothing.
    """
    if config.name in PROCEDURES:
        return replace(config, hyper=dict(vars(procedure_settings(config))))
    settings = validate(_schema(config), config.hyper, where=f"method {config.name}")
    chosen, retain = lookup(config.name), RETAIN_LOSSES[settings.retain_loss]
    if settings.compat != "paper" and not {chosen.forget, retain} & compat.COMPAT.keys():
        known = ", ".join(loss.__name__ for loss in compat.COMPAT)
        raise UserError(
            f"method {config.name}: compat: {settings.compat} changes nothing here, only the terms "
            f"{known}; remove it"
        )
    version = file_version(config.name) if names_user_function(config.name) else None
    return replace(config, hyper=dict(vars(settings)), version=version)


def procedure_settings(config: MethodConfig) -> Any:
    """The settings of a procedure, checked.

    Raises:
      UserError: an unknown key, or a value out of range.
    """
    chosen = PROCEDURES[config.name].settings
    return validate(chosen, config.hyper, where=f"method {config.name}")


def objective(config: MethodConfig) -> tuple[Objective, dict[str, float]]:
    """The terms of a method, and its numeric hyper-parameters, which the step traces."""
    chosen, hyper = lookup(config.name), dict(resolve(config).hyper)
    retain = RETAIN_LOSSES[hyper.pop("retain_loss")]
    theirs = hyper.pop("compat") == "open-unlearning"
    found = {"forget": chosen.forget, "retain": retain}
    terms = [
        Term(group, compat.COMPAT.get(loss, loss) if theirs else loss)
        for group, loss in found.items()
        if loss is not None
    ]
    layer = hyper.pop("layer", None)
    hyper.pop("forget_epochs", None)  # of the schedule
    needs_retain = chosen.rectify or chosen.dual or chosen.in_turn or chosen.forget is None
    if needs_retain and retain is None:
        raise UserError(f"method {config.name}: retain_loss must not be none; the method needs it")
    return Objective(config.name, tuple(terms), layer, chosen.rectify, chosen.dual), hyper


def defaults(name: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their default values."""
    return dict(resolve(MethodConfig(name=name)).hyper)


def keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the hyper-parameters that a method's function takes."""
    return tuple(p.name for p in _parameters(function) if p.kind is p.KEYWORD_ONLY)


def _schema(config: MethodConfig) -> type:
    """A validated dataclass of the method's hyper-parameters."""
    chosen, given = lookup(config.name), config.hyper
    theirs = given.get("compat") == "open-unlearning"
    forget = compat.COMPAT.get(chosen.forget, chosen.forget) if theirs else chosen.forget
    retain = RETAIN_LOSSES.get(str(given.get("retain_loss", chosen.retain)))
    functions = [forget, retain, chosen.rectify, chosen.dual, chosen.finish]
    fields = [
        (p.name, p.annotation, p.default)
        for function in functions
        if function is not None
        for p in _parameters(function)
        if p.kind is p.KEYWORD_ONLY
    ]
    if any("hidden" in Term("", f).needs for f in (forget, retain) if f is not None):
        fields.append(("layer", Annotated[int, Field(ge=0)] | None, None))
    if chosen.in_turn:
        # In the authors' small-scale runs 3 of 10, in their large-scale runs 2 of 3.
        fields.append(("forget_epochs", Count, 3))
    weights = {"forget_weight": 1.0, "retain_weight": 1.0, **chosen.defaults}
    fields += [
        ("retain_loss", RetainLoss, chosen.retain),
        *((name, NonNegative, value) for name, value in weights.items()),
        ("compat", Literal["paper", "open-unlearning"], "paper"),
    ]
    plain = make_dataclass("hyper_parameters", fields, frozen=True)
    return validated(plain, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))


def _checked(name: str, known: Method) -> Method:
    """The method, if its options are allowed and the update step can call its function."""
    kinds = get_type_hints(Method)
    for option in ("retain", "answers", "labels", "alternative"):
        allowed, found = get_args(kinds[option]), getattr(known, option)
        if found not in allowed:
            raise UserError(
                f"method {name}: {option} is {found!r}; it can be: {', '.join(map(repr, allowed))}"
            )
    check_parameters(name, known.forget, has_alternative=known.alternative is not None)
    return known


def _first_line(function: Loss) -> str:
    return (inspect.getdoc(function) or "a method of your own").splitlines()[0]


def _parameters(loss: Loss) -> list[inspect.Parameter]:
    return list(inspect.signature(loss).parameters.values())
