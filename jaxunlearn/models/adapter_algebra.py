"""Arithmetic on adapters as what they add to the weights, and many adapters in one batch.

An adapter adds delta = scale * a @ b to each kernel that it targets, [L, in, out]. All arithmetic
here is on deltas, in float32 (float64 stays float64); where a result has low rank it is an adapter
again, so that it can be applied, combined and exported like a trained one. The sign or weight of an
adapter stands on `b` alone: with both factors negated the delta is the one it was.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models import lora
from jaxunlearn.models.lora import Adapter, Tree, product, wide

Path = tuple[str, ...]
Factors = tuple[jax.Array, jax.Array]
"""a [L, in, r] and b [L, r, out]."""


def factor_pairs(adapter: Adapter) -> dict[Path, Factors]:
    """Path of each target, such as (layers, attention, q), to its factors with the scale in b."""
    flat = flatten_dict(adapter.factors)
    return {
        path[:-1]: (wide(leaf), wide(flat[(*path[:-1], "b")]) * adapter.scale)
        for path, leaf in flat.items()
        if path[-1] == "a"
    }


def delta(adapter: Adapter) -> Tree:
    """What the adapter adds: a tree of kernels [L, in, out], laid out as in the params."""
    pairs = factor_pairs(adapter)
    return unflatten_dict({(*path, "kernel"): product(*pair) for path, pair in pairs.items()})


def add(params: Tree, adapter: Adapter, weight: float | jax.Array = 1.0) -> Tree:
    """W + weight * delta for every target, rounded once to the dtype of W.

    Raises:
      UserError: the params have no such kernel.
    """
    flat, pairs = flatten_dict(params), factor_pairs(adapter)
    for path, pair in pairs.items():
        kernel, shape = flat.get((*path, "kernel")), _shape(pair)
        if kernel is None or kernel.shape != shape:
            there = "no such kernel" if kernel is None else list(kernel.shape)
            raise UserError(
                f"{'/'.join(path)}: the adapter is for a kernel {list(shape)}, the params have "
                f"{there}; it belongs to another model"
            )
    return lora.merge(params, lora.scale(_adapter(pairs).factors, weight))


def subtract(params: Tree, adapter: Adapter, weight: float | jax.Array = 1.0) -> Tree:
    """W - weight * delta for every target; see `add`."""
    return add(params, adapter, -weight)


def unmerge(
    params: Tree,
    adapter: Adapter,
    weight: float | jax.Array = 1.0,
    *,
    base: Tree | None = None,
) -> Tree:
    """The params from before `add(params, adapter, weight)`.

    Args:
      params: with the adapter merged.
      adapter: the one to split off.
      weight: with which it was merged.
      base: the params that it was added to; its kernels come back bit for bit. None: the delta is
        subtracted, which gives W to two roundings, that of the merged weight and that of the
        result: |error| <= eps / 2 * (|merged| + |result|) with the eps of W's dtype.
    """
    if base is None:
        return subtract(params, adapter, weight)
    flat, kept = dict(flatten_dict(params)), flatten_dict(base)
    for path in factor_pairs(adapter):
        flat[(*path, "kernel")] = kept[(*path, "kernel")]
    return unflatten_dict(flat)


def concatenate(adapters: Sequence[Adapter], weights: Sequence[float | jax.Array]) -> Adapter:
    """One adapter whose delta is the weighted sum; at each target the ranks add up.

    Args:
      adapters: of one model; their ranks, scales and targets may differ.
      weights: one for each, of any sign.

    Returns:
      An adapter of scale 1.

    Raises:
      UserError: the adapters are of different models, there are none, or as many weights.
    """
    if not adapters or len(adapters) != len(weights):
        raise UserError(f"{len(adapters)} adapters and {len(weights)} weights; give one for each")
    _check_one_model(adapters)
    found: dict[Path, list[Factors]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, (a, b) in factor_pairs(adapter).items():
            found.setdefault(path, []).append((a, weight * b))
    joined = {}
    for path, pairs in found.items():
        a_s, b_s = zip(*pairs, strict=True)
        joined[path] = (jnp.concatenate(a_s, axis=-1), jnp.concatenate(b_s, axis=-2))
    return _adapter(joined)


def ext_sub(expert: Adapter, anti_expert: Adapter, weight: float | jax.Array = 1.0) -> Adapter:
    """Extraction before subtraction: expert - weight * (anti-expert without what both share).

    Reference: Hu et al., Separate the wheat from the chaff, arXiv 2308.08090. See `without_common`.
    """
    own = without_common(anti_expert, expert)
    return concatenate([expert, own], [1.0, -weight])


def without_common(adapter: Adapter, other: Adapter) -> Adapter:
    """The adapter without the direction that it shares with another, output by output.

    With x and y what the two add to the weights of one output (a row of a PyTorch weight), the
    common direction is u = unit(unit(x) + unit(y)), and the result is x - <x, u> u. Where one is 0,
    u is along the other; where they are opposite, nothing is common.

    Returns:
      An adapter of scale 1, whose rank is the sum of both.

    Raises:
      UserError: the two have different targets, or are of different models.

    Reference: Hu et al., arXiv 2308.08090, as in the authors' code.
    """
    _check_one_model([adapter, other])
    ours, theirs = factor_pairs(adapter), factor_pairs(other)
    if set(ours) != set(theirs):
        one_sided = ", ".join(sorted("/".join(path) for path in set(ours) ^ set(theirs)))
        raise UserError(f"only one of the two adapters has {one_sided}; give both the same targets")
    return _adapter({path: _without_common(ours[path], theirs[path]) for path in ours})


def factor_negate(start: Adapter, trained: Adapter, weight: float = 1.0) -> Adapter:
    """start - weight * (trained - start) on a and b one by one: a trap, kept for comparison.

    A product of sums is not the sum of products: its delta is not that of
    `concatenate([start, trained], [1 + weight, -weight])`. From a start of zeros it is
    weight^2 times the trained one, whatever the sign.

    Reference: Zhang et al., Composing parameter-efficient modules, arXiv 2306.14870, whose
    detoxification of an instruction-tuned model negates so.
    """

    def leaf(before: jax.Array, after: jax.Array) -> jax.Array:
        return wide(before) - weight * (wide(after) - wide(before))

    return Adapter(jax.tree.map(leaf, start.scaled, trained.scaled), 1.0)


def negate_ia3(scaling: Tree, weight: float = 1.0) -> Tree:
    """(1 + weight) - weight * l: rescaling vectors that undo instead of do.

    (IA)^3 (arXiv 2205.05638) multiplies activations by l and does nothing at l = 1, so that what it
    adds is l - 1; of that the result has -weight times.

    Args:
      scaling: vectors l at any paths.
      weight: 1 mirrors: 2 - l.

    Reference: Zhang et al., Composing parameter-efficient modules, arXiv 2306.14870.

    >>> negate_ia3({"k": jnp.array([1.0, 1.25])}, 2.0)["k"].tolist()
    [1.0, 0.5]
    """
    return jax.tree.map(lambda leaf: (1 + weight) - weight * leaf, scaling)


def random_like(adapter: Adapter, *, key: jax.Array) -> Adapter:
    """A random adapter of the same rank, with the same Frobenius norm of every delta: a control."""
    norms, pairs = _norms(adapter), factor_pairs(adapter)
    keys = jax.random.split(key, (len(pairs), 2))
    drawn = {}
    for path, (key_a, key_b) in zip(sorted(pairs), keys, strict=True):
        a, b = pairs[path]
        normal_a = jax.random.normal(key_a, a.shape, a.dtype)
        drawn[path] = (normal_a, jax.random.normal(key_b, b.shape, b.dtype))
    own = _norms(_adapter(drawn))
    return _adapter({p: (a, b * (norms[p] / own[p])[:, None, None]) for p, (a, b) in drawn.items()})


def inner_products(first: Adapter, second: Adapter) -> dict[Path, jax.Array]:
    """Frobenius inner products [L] of two adapters' deltas at the targets that both have.

    <a1 b1, a2 b2> = sum((a1^T a2) * (b1 b2^T)): nothing of the kernel's size is made.
    """
    ones, twos = factor_pairs(first), factor_pairs(second)
    found = {}
    for path in ones.keys() & twos.keys():
        (a, b), (other_a, other_b) = ones[path], twos[path]
        across = product(a.mT, other_a) * product(b, other_b.mT)
        found[path] = across.sum((-2, -1))
    return found


def stack(adapters: Sequence[Adapter]) -> Tree:
    """Adapters side by side, for `choose`: a [L, N + 1, in, r] and b [L, N + 1, r, out].

    The first entry is no adapter. Ranks are padded to the largest of each target, and an adapter
    has zeros at targets that only others have.

    Raises:
      UserError: the adapters are of different models, or there are none.
    """
    if not adapters:
        raise UserError("there are no adapters to stack; give one or more")
    _check_one_model(adapters)
    pairs = [factor_pairs(adapter) for adapter in adapters]
    stacked = {}
    for path in sorted({path for known in pairs for path in known}):
        layers, rows, columns = next(_shape(known[path]) for known in pairs if path in known)
        none = (jnp.zeros((layers, rows, 0)), jnp.zeros((layers, 0, columns)))
        there = [none, *(known.get(path, none) for known in pairs)]
        rank = max(a.shape[-1] for a, _ in there)
        stacked[path] = (
            jnp.stack([_padded(a, -1, rank) for a, _ in there], axis=1),
            jnp.stack([_padded(b, -2, rank) for _, b in there], axis=1),
        )
    return _adapter(stacked).factors


def choose(stacked: Tree, choice: jax.Array) -> Tree:
    """The tree that gives every row of a batch an adapter of its own in the decoder.

    Args:
      stacked: from `stack`.
      choice: int32 [B], the adapter of each row; -1 for none. Compiled code cannot raise: an index
        outside makes the row's logits NaN.
    """
    flat = flatten_dict(stacked)
    for path in [path[:-1] for path in flat if path[-1] == "a"]:
        layers, entries = flat[(*path, "a")].shape[:2]
        entry_B = jnp.where(choice < -1, entries, choice + 1)
        flat[(*path, "choice")] = jnp.broadcast_to(entry_B, (layers, *entry_B.shape))
    return unflatten_dict(flat)


def stacked_count(stacked: Tree) -> int:
    """How many adapters `stack` was given."""
    return jax.tree.leaves(stacked)[0].shape[1] - 1


def _adapter(pairs: dict[Path, Factors]) -> Adapter:
    flat = {}
    for path, (a, b) in pairs.items():
        flat |= {(*path, "a"): a, (*path, "b"): b}
    return Adapter(unflatten_dict(flat), 1.0)


def _shape(pair: Factors) -> tuple[int, int, int]:
    """[L, in, out] of the delta."""
    a, b = pair
    return (*a.shape[:2], b.shape[-1])


def _padded(factor: jax.Array, axis: int, rank: int) -> jax.Array:
    """The factor with zeros up to a larger rank."""
    widths = [(0, 0)] * factor.ndim
    widths[axis] = (0, rank - factor.shape[axis])
    return jnp.pad(factor, widths)


def _norms(adapter: Adapter) -> dict[Path, jax.Array]:
    """Frobenius norm [L] of every delta."""
    squares = inner_products(adapter, adapter)
    return {path: jnp.sqrt(jnp.maximum(square, 0.0)) for path, square in squares.items()}


def _check_one_model(adapters: Sequence[Adapter]) -> None:
    known: dict[Path, tuple[int, int, int]] = {}
    for number, adapter in enumerate(adapters):
        for path, pair in factor_pairs(adapter).items():
            shape = _shape(pair)
            if known.setdefault(path, shape) != shape:
                raise UserError(
                    f"adapter {number}: its {'/'.join(path)} is for a kernel {list(shape)}, that "
                    f"of an adapter before it for {list(known[path])}; they are of different models"
                )


def _without_common(ours: Factors, theirs: Factors) -> Factors:
    """`without_common` for one target."""
    (a, b), (other_a, other_b) = ours, theirs
    both_a = jnp.concatenate([a, other_a], axis=-1)
    # Coordinates in an orthonormal basis of both: columns of the deltas, short.
    basis = jnp.linalg.qr(both_a, mode="r")
    x = product(basis[..., : a.shape[-1]], b)
    y = product(basis[..., a.shape[-1] :], other_b)
    over_x, over_y = _inverse_norm(x), _inverse_norm(y)
    # Units that cancel leave rounding errors, which are no direction.
    over_sum = _inverse_norm(x * over_x + y * over_y, least=64 * jnp.finfo(x.dtype).eps)
    along = jnp.sum(x * (x * over_x + y * over_y), axis=-2, keepdims=True) * over_sum**2
    own_b = jnp.concatenate([b * (1 - along * over_x), -other_b * (along * over_y)], axis=-2)
    return both_a, own_b


def _inverse_norm(x: jax.Array, least: float = 0.0) -> jax.Array:
    """1 / |column|, [..., 1, out]; 0 where the norm is not above the least."""
    norm = jnp.linalg.norm(x, axis=-2, keepdims=True)
    there = norm > least
    return jnp.where(there, 1 / jnp.where(there, norm, 1.0), 0.0)
