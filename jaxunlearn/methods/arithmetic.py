"""Arithmetic on gradients, weights and whole models: what some methods do beside a loss."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.validation import NonNegative, Positive

Tree = Any


def rectify(forget_grad: Tree, retain_grad: Tree) -> Tree:
    """Gradient rectified unlearning: the forget gradient without what would harm retention.

    If <g_f, g_r> < 0, a step along -g_f raises the retain loss to first order, and the component of
    g_f along g_r is removed; otherwise g_f is returned as it is, also where g_r is 0. Inner
    products are over the whole tree, in float32. Afterwards <g, g_r> >= -1e-6 |g| |g_r|.

    Args:
      forget_grad: tree of gradients of the forget term, g_f.
      retain_grad: tree of gradients of the retain term, g_r.

    Returns:
      The rectified g_f, with its dtypes.

    Reference: Wang et al., GRU, arXiv 2503.09117; without the moving average of g_r, which the
    authors' settings leave out too, or take with a factor of 0.8 to 0.95.

    >>> rectify({"w": jnp.array([1.0, -1.0])}, {"w": jnp.array([0.0, 2.0])})["w"].tolist()
    [1.0, 0.0]
    """
    retain = jax.tree.map(lambda x: x.astype(jnp.float32), retain_grad)
    square = _inner(retain, retain)
    rectified = jax.tree.map(lambda x: x.astype(jnp.float32), forget_grad)
    # The second time takes away what rounding leaves when the two are almost opposite.
    for _ in range(2):
        along = jnp.minimum(_inner(rectified, retain), 0.0)
        share = jnp.where(square > 0, along / jnp.where(square > 0, square, 1.0), 0.0)
        rectified = jax.tree.map(lambda f, r, share=share: f - share * r, rectified, retain)
    return jax.tree.map(lambda x, f: x.astype(f.dtype), rectified, forget_grad)


def dual_ascent(
    weight: jax.Array, loss: jax.Array, *, tolerance: NonNegative = 0.3, dual_rate: Positive = 5.0
) -> jax.Array:
    """The next weight of a loss that must not exceed a tolerance: max(0, w + rate (loss - tol)).

    Args:
      weight: [], the dual variable.
      loss: [], the retain loss of this step.
      tolerance: the value up to which the retain loss may rise.
      dual_rate: step size of the dual variable.

    Returns:
      [], >= 0: it grows while the constraint is violated, and falls to 0 while it holds.

    Reference: Entesari et al., Constrained entropic unlearning, arXiv 2506.05314; the defaults are
    those of its TOFU runs.

    >>> print(dual_ascent(jnp.array(100.0), jnp.array(0.5)).round(4))
    101.0
    """
    return jnp.maximum(weight + dual_rate * (loss - tolerance), 0.0)


def negate(start: Tree, trained: Tree, *, alpha: NonNegative = 1.0) -> Tree:
    """Task-vector negation: start - alpha (trained - start), leaf by leaf.

    Args:
      start: parameters before training on the forget rows.
      trained: parameters after it.
      alpha: how much of what training added is subtracted; 0 gives `start`.

    Returns:
      Parameters with the dtypes of `start`; computed in float32.

    Reference: Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089, section 3.

    >>> negate({"w": jnp.array([1.0])}, {"w": jnp.array([1.5])}, alpha=2.0)["w"].tolist()
    [0.0]
    """

    def leaf(before: jax.Array, after: jax.Array) -> jax.Array:
        wide = before.astype(jnp.float32)
        return (wide - alpha * (after.astype(jnp.float32) - wide)).astype(before.dtype)

    return jax.tree.map(leaf, start, trained)


def _inner(a: Tree, b: Tree) -> jax.Array:
    """Inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)), jnp.zeros(()))
