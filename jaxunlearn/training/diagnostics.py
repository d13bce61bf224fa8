"""How the gradients of a schedule's batches differ, and whether forgetting and keeping agree."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.step import StepSpec, gather, term_gradients

Tree = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spread:
    """Of gradients g_1 ... g_n with mean m."""

    variance: jax.Array
    """mean_i |g_i - m|^2, summed over all parameters; float32 scalar."""
    relative_variance: jax.Array
    """variance / |m|^2; float32 scalar, not finite where m is zero. m is itself an average of n:
    near n it says only that the mean cannot be told from zero."""
    norms: jax.Array
    """|g_i|, float32 [n]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientStatistics:
    """Of the batches' gradients: the weighted forget and retain terms, and their sum."""

    whole: Spread
    forget: Spread
    retain: Spread
    cosine: jax.Array
    """mean_i <f_i, r_i> / (|f_i| |r_i|) of the forget gradients f_i and the retain gradients r_i;
    float32 scalar. A gradient of zero has cosine 0."""


@partial(jax.jit, static_argnames="spec")
def gradient_statistics(
    spec: StepSpec,
    trainable: Tree,
    frozen: Tree,
    tables: Mapping[str, Rows],
    schedule: Mapping[str, jax.Array],
    hyper: Mapping[str, Any],
) -> GradientStatistics:
    """The spread of the batch gradients at one point, before clipping and the optimiser.

    The whole gradient is the sum g_i = f_i + r_i, also for methods that rectify it. Means and
    variances are updated batch by batch (Welford 1962): with d = g_n - m_(n-1), m_n = m_(n-1) +
    d / n and S_n = S_(n-1) + |d|^2 (n - 1) / n, whose terms are all positive; the variance is
    S_n / n. A few float32 trees of the trainable parameters' size exist at a time, whatever the
    number of batches.

    Args:
      spec: static choices; the objective has a forget and a retain term.
      trainable: the parameters whose gradient is taken, all of a model or an adapter.
      frozen: parameters that do not train; see `combine`.
      tables: group name to all its rows.
      schedule: group name to row indices [n, B], -1 for an empty slot; all n batches are used.
      hyper: traced numbers; see `update`.
    """

    def add(carry: tuple[jax.Array, Tree, dict[str, jax.Array]], index: Mapping[str, jax.Array]):
        count, mean, squares = carry
        batch = {group: gather(tables[group], index[group]) for group in tables}
        found = term_gradients(spec, trainable, frozen, batch, hyper)
        grads = {
            name: jax.tree.map(lambda g, w=hyper[f"{name}_weight"]: w * g, grad)
            for name, (_, grad) in found.items()
        }
        change = jax.tree.map(jnp.subtract, grads, mean)
        count += 1
        mean = jax.tree.map(lambda m, d: m + d / count, mean, change)
        weight = (count - 1) / count
        squares = {
            name: squares[name] + weight * optax.tree.vdot(d, d)
            for name, d in _with_sum(change).items()
        }
        norms = {name: optax.tree.norm(g) for name, g in _with_sum(grads).items()}
        scale = jnp.maximum(norms["forget"] * norms["retain"], jnp.finfo(jnp.float32).tiny)
        cosine = optax.tree.vdot(grads["forget"], grads["retain"]) / scale
        return (count, mean, squares), (norms, cosine)

    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    mean = {"forget": zeros, "retain": zeros}
    squares = dict.fromkeys(("whole", *mean), jnp.float32(0))
    start = (jnp.float32(0), mean, squares)
    (count, mean, squares), (norms, cosines) = jax.lax.scan(add, start, dict(schedule))
    spreads = {}
    for name, m in _with_sum(mean).items():
        variance = squares[name] / count
        spreads[name] = Spread(variance, variance / optax.tree.vdot(m, m), norms[name])
    return GradientStatistics(**spreads, cosine=cosines.mean())


def _with_sum(parts: Mapping[str, Tree]) -> dict[str, Tree]:
    return {**parts, "whole": optax.tree.add(parts["forget"], parts["retain"])}
