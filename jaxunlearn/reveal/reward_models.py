"""What predicts an arm's reward: a network, a line, or nothing.

The fits see a buffer of fixed size with a mask, so that one program serves every number of pulls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxunlearn.config_reveal import Bandit

Params = Any
"""A tree of float32 arrays."""


class Model(NamedTuple):
    """A model of the reward, as pure functions."""

    init: Callable[[Bandit, jax.Array, int], Params]
    """Settings, a key and the contexts' size D to weights."""
    predict: Callable[[Params, jax.Array], jax.Array]
    """Weights and one standardised context [D] to a number."""
    fit: Callable[[Bandit, Params, jax.Array, jax.Array, jax.Array], Params]
    """Settings, initial weights, contexts [C, D], rewards [C] and which of them count, bool [C], to
    weights."""


def _init_network(settings: Bandit, key: jax.Array, dim: int) -> Params:
    width = settings.width
    shapes = {"w1": (dim, width), "b1": (width,), "w2": (width,), "b2": ()}
    out = 1 / width if settings.init == "mean_field" else (2 / width) ** 0.5
    scales = {"w1": (2 / dim) ** 0.5, "b1": 0.0, "w2": out, "b2": 0.0}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) * (1.0 if settings.init == "normal" else scales[name])
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _predict_network(params: Params, x_D: jax.Array) -> jax.Array:
    return jax.nn.relu(x_D @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def _fit_network(
    settings: Bandit, params: Params, x_CD: jax.Array, rewards: jax.Array, mask: jax.Array
) -> Params:
    adam, count = optax.adam(settings.rate), mask.sum()

    def loss(params: Params) -> jax.Array:
        error = jnp.where(mask, _predict_network(params, x_CD) - rewards, 0.0)
        weights = optax.tree.norm(params, squared=True)
        return ((error**2).sum() + settings.lam / 2 * weights) / count

    def step(_: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        params, moments = carry
        updates, moments = adam.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    return jax.lax.fori_loop(0, settings.steps, step, (params, adam.init(params)))[0]


def _fit_linear(
    settings: Bandit, params: Params, x_CD: jax.Array, rewards: jax.Array, mask: jax.Array
) -> Params:
    start, unravel = ravel_pytree(params)
    x_CP = jnp.where(
        mask[:, None], jax.vmap(lambda x: ravel_pytree({"b": 1.0, "w": x})[0])(x_CD), 0
    )
    a_PP = settings.lam * jnp.eye(start.size) + x_CP.T @ x_CP
    return unravel(jnp.linalg.solve(a_PP, x_CP.T @ rewards))


NETWORK = Model(_init_network, _predict_network, _fit_network)
LINEAR = Model(
    lambda settings, key, dim: {"b": jnp.zeros(()), "w": jnp.zeros(dim)},
    lambda params, x_D: x_D @ params["w"] + params["b"],
    _fit_linear,
)
NOTHING = Model(
    lambda settings, key, dim: {},
    lambda params, x_D: jnp.zeros(()),
    lambda settings, params, x_CD, rewards, mask: params,
)
