"""Optimisers of the update step: from gradients, state and parameters to the next ones.

Which one is static; its numbers are traced values, so that changing one compiles nothing. The
learning rate comes from the step's schedule. Weight decay is decoupled, as AdamW has it:
p <- p - rate * (direction + weight_decay * p), and spares norm scales and biases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from jaxunlearn.errors import UserError
from jaxunlearn.validation import Count, Positive, validate

Tree = Mapping[str, Any]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

# Its betas are constants: 1 - beta of a traced beta would be rounded twice.
ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


@dataclass(frozen=True)
class Optimizer:
    """An optimiser as pure functions; its state is a tree of arrays."""

    init: Callable[[Tree], Any]
    """Params to state."""
    update: Callable[..., tuple[Tree, Any]]
    """(grads, state, params, rate=, hyper=, hessian=) to the next (params, state). `hyper` holds
    the options and `weight_decay`; `hessian` is `estimate` with its arguments bound, or None."""
    options: Mapping[str, tuple[Any, float]]
    """Name to type and default."""
    final: Callable[[Any, Tree], Tree] = lambda state, params: params
    """(state, params) to what is evaluated and exported."""
    estimate: Callable[..., Tree] | None = None
    """(params, key, loss=, sampled_loss=) to the Hessian's diagonal: `loss(params)` is the step's
    loss, `sampled_loss(params, key)` the mean NLL of sampled labels and their number."""
    sharpness_aware: bool = False
    """Whether `update` wants the gradient at `perturbed` params."""


def resolve_options(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """The options of an optimiser, checked, with defaults filled in.

    Raises:
      UserError: unknown optimiser or option, or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer: there is no {name!r}; there are: {', '.join(OPTIMIZERS)}")
    known = OPTIMIZERS[name].options
    if options and not known:
        raise UserError(f"optimizer {name}: unknown key {next(iter(options))}; it has no options")
    plain = make_dataclass("options", [(key, *rest) for key, rest in known.items()], frozen=True)
    schema = validated(plain, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    return dict(vars(validate(schema, options, where=f"optimizer {name}")))


def perturbed(params: Tree, grads: Tree, radius: jax.Array) -> Tree:
    """params + radius * g / |g|: uphill, where SAM takes its gradient (arXiv 2010.01412, eq. 2)."""
    scale = radius / jnp.maximum(optax.tree.norm(grads), 1e-12)
    return jax.tree.map(lambda p, g: p + scale * g, params, grads)


def gauss_newton_bartlett(params: Tree, key: jax.Array, **closures: Any) -> Tree:
    """B * g * g, g the gradient of the mean NLL of B labels drawn from the model's own softmax.

    Its expectation is the diagonal of the Gauss-Newton matrix (arXiv 2305.14342, algorithm 2).
    """
    grads, count = jax.grad(closures["sampled_loss"], has_aux=True)(params, key)
    return jax.tree.map(lambda g: count * g * g, grads)


def hutchinson(params: Tree, key: jax.Array, **closures: Any) -> Tree:
    """u * (H u) for random signs u (arXiv 2305.14342, algorithm 1; there u is normal)."""
    estimator = optax.contrib.hutchinson_estimator_diag_hessian(key)
    return estimator.update(params, estimator.init(params), params, obj_fn=closures["loss"])[0]


def decays(params: Tree) -> Tree:
    """Which leaves weight decay touches: not norm scales and biases."""
    flat = flatten_dict(dict(params))
    return unflatten_dict({path: path[-1] not in ("scale", "bias") for path in flat})


def _descend(params: Tree, direction: Tree, rate: jax.Array, weight_decay: jax.Array) -> Tree:
    def move(p: jax.Array, d: jax.Array, decayed: bool) -> jax.Array:
        return p - rate * (d + decayed * weight_decay * p)

    return jax.tree.map(move, params, direction, decays(params))


def _along(transform: Callable[..., Any], **options: tuple[Any, float]) -> Optimizer:
    """An optimiser whose direction is the optax transformation `transform(**options)`."""

    def update(grads, state, params, *, rate, hyper, hessian=None):
        chosen = transform(**{name: hyper[name] for name in options})
        direction, state = chosen.update(grads, state, params)
        return _descend(params, direction, rate, hyper["weight_decay"]), state

    return Optimizer(lambda params: transform().init(params), update, options)


def _muon(beta: Any = 0.95, rms: Any = 0.2) -> optax.GradientTransformation:
    """Orthogonalised momentum for the layers' matrices and adapter factors, NAdam for all else.

    A matrix's direction has root mean square `rms`, about that of Adam's, so that one learning
    rate fits both (arXiv 2502.16982).
    """

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        matrix = leaf.ndim > 2 and path[-1].key in ("kernel", "a", "b")  # [L, in, out]
        return optax.contrib.MuonDimensionNumbers(-2, -1) if matrix else None

    return optax.contrib.muon(
        -1.0,  # optax turns the direction downhill, `_descend` does so here
        beta=beta,
        consistent_rms=rms,
        muon_weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(axes, tree),
    )


class SophiaState(NamedTuple):
    """Steps done, and running means of the gradient and of the Hessian's diagonal."""

    count: jax.Array
    m: Tree
    h: Tree


def _sophia_init(params: Tree) -> SophiaState:
    return SophiaState(jnp.zeros((), jnp.int32), *map(optax.tree.zeros_like, (params, params)))


def _sophia_update(grads, state, params, *, rate, hyper, hessian):
    """Direction clip(m / max(gamma * h, eps), rho) (arXiv 2305.14342, algorithm 3).

    optax's departs from the paper in two ways that show in a short run: it corrects m for its
    start at zero, and a step uses the h of before its own estimate, in step 0 none.
    """
    m = optax.tree.update_moment(grads, state.m, hyper["b1"], 1)
    h = jax.lax.cond(
        state.count % jnp.asarray(hyper["every"], jnp.int32) == 0,
        lambda h: optax.tree.update_moment(hessian(), h, hyper["b2"], 1),
        lambda h: h,
        state.h,
    )
    gamma, rho = hyper["gamma"], hyper["rho"]
    newton = jax.tree.map(lambda m, h: m / jnp.maximum(gamma * h, 1e-12), m, h)
    direction = optax.tree.clip(newton, -rho, rho)
    params = _descend(params, direction, rate, hyper["weight_decay"])
    return params, SophiaState(state.count + 1, m, h)


def _sophia(estimate: Callable[..., Tree], gamma: float) -> Optimizer:
    """The paper's defaults; SOUL (arXiv 2404.18239) runs b1=0.9, b2=0.95, gamma=0.04."""
    numbers = {"gamma": (Positive, gamma), "rho": (Positive, 1.0), "every": (Count, 10)}
    options = {"b1": (Beta, 0.96), "b2": (Beta, 0.99), **numbers}
    return Optimizer(_sophia_init, _sophia_update, options, estimate=estimate)


def _schedule_free(rate: Any, b1: Any, b2: Any, weight_decay: Any) -> optax.GradientTransformation:
    """`optax.contrib.schedule_free_adamw` (arXiv 2405.15682): params are b1 * x + (1 - b1) * z."""
    adam = optax.scale_by_rms(b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)
    decay = optax.add_decayed_weights(weight_decay, decays)
    base = optax.chain(adam, decay, optax.scale_by_learning_rate(rate))
    return optax.contrib.schedule_free(base, rate, b1)


def _schedule_free_update(grads, state, params, *, rate, hyper, hessian=None):
    whole = _schedule_free(rate, hyper["b1"], hyper["b2"], hyper["weight_decay"])
    updates, state = whole.update(grads, state, params)
    # `final` works the average x out from the state's b1, which init could not know.
    state = state._replace(b1=jnp.asarray(hyper["b1"], state.b1.dtype))
    return optax.apply_updates(params, updates), state


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": _along(lambda: ADAM),  # arXiv 1711.05101
    "lion": _along(optax.scale_by_lion, b1=(Beta, 0.9), b2=(Beta, 0.99)),  # arXiv 2302.06675
    "muon": _along(_muon, beta=(Beta, 0.95), rms=(Positive, 0.2)),
    "sophia": _sophia(gauss_newton_bartlett, gamma=0.05),
    "sophia_h": _sophia(hutchinson, gamma=0.01),
    "schedule_free": Optimizer(
        lambda params: _schedule_free(0.0, 1.0, 0.999, 0.0).init(params),
        _schedule_free_update,
        {"b1": (Share, 0.9), "b2": (Beta, 0.999)},
        final=optax.contrib.schedule_free_eval_params,
    ),
    # The radius of arXiv 2502.05374, which takes only the forget term's gradient uphill.
    "sam": replace(_along(lambda **_: ADAM, radius=(Positive, 0.01)), sharpness_aware=True),
}
