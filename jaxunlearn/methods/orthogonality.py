"""Adapters that keep out of each other's way: the O-LoRA penalty, and how much two overlap.

Trees are LoRA factors, a [L, in, r] and b [L, r, out] at each target. The literature's A, [r, in],
is a^T, and its B, [out, r], is b^T.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxunlearn.models.adapter_algebra import Path, factor_pairs, inner_products
from jaxunlearn.models.lora import Adapter, product, wide

Tree = Mapping[str, Any]
Penalty = Literal["abs_sum", "sq_sum", "abs_mean"]


def orthogonality_penalty(frozen: Tree, trained: Tree, *, form: Penalty = "abs_sum") -> jax.Array:
    """O-LoRA: how far the rows of a trained adapter's A are from orthogonal to a frozen one's.

    sum over targets m, layers and j, k of rho((A_frozen,m A_trained,m^T)_jk)

    The gradient reaches the trained A only; nothing holds B. The scales of the adapters do not
    enter, as in the authors' code.

    Args:
      frozen: factors of the adapter that stays.
      trained: factors of the one in training; targets that only one has do not count.
      form: rho. `abs_sum` |.|, as the authors' code has it; `sq_sum` (.)^2, as their paper has it;
        `abs_mean` the mean of |.| over all entries, whose weight need not change with the rank, the
        number of targets or the depth.

    Returns:
      float32 [].

    Reference: Wang et al., Orthogonal subspace learning, arXiv 2310.14152.

    >>> old, new = ({"q": {"a": jnp.array([[[x], [2.0]]])}} for x in (1.0, -5.0))
    >>> [float(orthogonality_penalty(old, new, form=form)) for form in ("abs_sum", "sq_sum")]
    [1.0, 1.0]
    """
    olds, news = flatten_dict(frozen), flatten_dict(trained)
    shared = sorted(path for path in olds.keys() & news.keys() if path[-1] == "a")
    total, count = jnp.zeros(()), 0
    for path in shared:
        across = product(jax.lax.stop_gradient(olds[path]).mT, news[path])
        total += (jnp.square(across) if form == "sq_sum" else _abs(across)).sum()
        count += across.size
    return total / max(count, 1) if form == "abs_mean" else total


def overlaps(first: Adapter, second: Adapter) -> dict[str, dict[Path, jax.Array]]:
    """Four measures of how much two adapters overlap, for each shared target and layer.

    Returns:
      Measure to target to [L]:
        `a_subspace`, `b_subspace`: `subspace_overlap` of the rows of A (what the adapters read) and
        of the columns of B (what they write);
        `a_product`: `relative_product` of the rows of A, the penalty against its bound;
        `delta_cosine`: <delta_1, delta_2> / (|delta_1| |delta_2|) in Frobenius norms, in [-1, 1];
        0 where either is 0.
    """
    ones, twos = factor_pairs(first), factor_pairs(second)
    shared = sorted(ones.keys() & twos.keys())
    return {
        "a_subspace": {p: subspace_overlap(ones[p][0], twos[p][0]) for p in shared},
        "b_subspace": {p: subspace_overlap(ones[p][1].mT, twos[p][1].mT) for p in shared},
        "a_product": {p: relative_product(ones[p][0], twos[p][0]) for p in shared},
        "delta_cosine": delta_cosine(first, second),
    }


def delta_cosine(first: Adapter, second: Adapter) -> dict[Path, jax.Array]:
    """The last of the `overlaps` by itself; it takes no decomposition."""
    across = inner_products(first, second)
    own, other = inner_products(first, first), inner_products(second, second)
    return {p: _ratio(across[p], jnp.sqrt(own[p] * other[p])) for p in sorted(across)}


def subspace_overlap(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cos^2 of the principal angles between the spaces that two matrices' columns span.

    |Q_x^T Q_y|_F^2 / min(rank x, rank y) with orthonormal bases Q: 1 if one space holds the other,
    0 if they are orthogonal or one matrix is 0; max(r, s) / n for random ones.

    Args:
      x: [..., n, r].
      y: [..., n, s].

    Returns:
      [...], in [0, 1].
    """
    (basis_x, rank_x), (basis_y, rank_y) = _basis(x), _basis(y)
    squares = jnp.square(product(basis_x.mT, basis_y)).sum((-2, -1))
    return _ratio(squares, jnp.minimum(rank_x, rank_y))


def relative_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """sum_jk |<x_j, y_k>| / sum_jk |x_j| |y_k| over columns: 0 if all are orthogonal, at most 1.

    Args:
      x: [..., n, r].
      y: [..., n, s].

    Returns:
      [...]; 0 where either is 0.
    """
    lengths_x, lengths_y = (jnp.linalg.norm(wide(z), axis=-2).sum(-1) for z in (x, y))
    return _ratio(jnp.abs(product(x.mT, y)).sum((-2, -1)), lengths_x * lengths_y)


def _abs(x: jax.Array) -> jax.Array:
    """|x| with slope 0 at 0, where that of `jnp.abs` is 1: what is orthogonal stays so."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def _basis(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal columns [..., n, r], 0 beyond the rank, and the rank [...]."""
    left, values, _ = jnp.linalg.svd(wide(x), full_matrices=False)
    least = values[..., :1] * max(x.shape[-2:]) * jnp.finfo(values.dtype).eps
    there = values > least
    return left * there[..., None, :], there.sum(-1).astype(values.dtype)


def _ratio(value: jax.Array, of: jax.Array) -> jax.Array:
    return jnp.where(of > 0, value / jnp.where(of > 0, of, 1.0), 0.0)
