"""Rotary positions: frequencies of every published scaling, tables of angles, and the rotation.

Reference: Su et al., "RoFormer", arXiv:2104.09864. Each scaling is a dataclass whose fields are
named as in config.json, and a function of the frequencies.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Linear:
    """All positions divided by a factor (Chen et al., arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """A base that grows with the text once it is longer than pretraining's (dynamic NTK)."""

    factor: float
    max_position_embeddings: int


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: low frequencies slowed, high ones left alone, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Yarn:
    """Slowed by how often a frequency turns in pretraining (Peng et al., arXiv:2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class LongRope:
    """A divisor for each frequency, of short and of long texts (Ding et al., arXiv:2402.13753)."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None


Scaling = Linear | Dynamic | Llama3 | Yarn | LongRope
SCALINGS: dict[str, type] = {
    "linear": Linear,
    "dynamic": Dynamic,
    "llama3": Llama3,
    "yarn": Yarn,
    "longrope": LongRope,
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a layer."""

    theta: float = 10000.0
    dims: int | None = None  # how many of a head's first dimensions turn; None: all
    scaling: Scaling | None = None


class Rotary(NamedTuple):
    """Cosines and sines of positions, each [B or 1, T, dims / 2] in float32."""

    cos: jax.Array
    sin: jax.Array


def rotary_table(
    rope: Rope | None, dims: int, positions_BT: jax.Array, lengths_B: jax.Array | int
) -> Rotary:
    """Cosines and sines of positions [B or 1, T].

    Args:
      rope: which frequencies; None gives the table that turns nothing.
      dims: dimensions of a head that turn.
      positions_BT: whole numbers.
      lengths_B: tokens of each text so far, [B] or one number for all; some scalings depend on it.
    """
    if rope is None:
        shape = (*positions_BT.shape, dims // 2)
        return Rotary(jnp.ones(shape), jnp.zeros(shape))
    frequencies, magnitude = inverse_frequencies(rope, dims, lengths_B)
    if frequencies.ndim == 2:
        frequencies = frequencies[:, None]
    else:
        frequencies = frequencies[None, None]
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return Rotary(jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude)


def rotate(x_BNTH: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns the pairs (i, i + dims / 2) of the first dims, the layout of Hugging Face files."""
    cos, sin = rotary.cos[:, None].astype(x_BNTH.dtype), rotary.sin[:, None].astype(x_BNTH.dtype)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x_BNTH, [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1)


def inverse_frequencies(
    rope: Rope, dims: int, lengths_B: jax.Array | int
) -> tuple[np.ndarray | jax.Array, float]:
    """Angle per position of each turned pair, and what cosines and sines are multiplied by.

    Returns:
      (float32 [dims / 2], or [B, dims / 2] where it depends on the lengths [B]; number).
    """
    steps = np.arange(0, dims, 2) / dims
    plain = rope.theta**-steps
    match rope.scaling:
        case Linear(factor):
            plain = plain / factor
        case Dynamic(factor, limit):
            longer = jnp.maximum(jnp.asarray(lengths_B, jnp.float32), limit) / limit
            growth = (factor * longer - (factor - 1)) ** (dims / (dims - 2))
            return plain * growth[..., None] ** -jnp.asarray(steps, jnp.float32), 1.0
        case Llama3():
            plain = _llama3(plain, rope.scaling)
        case Yarn():
            return _yarn(plain, rope, dims), _yarn_magnitude(rope.scaling)
        case LongRope():
            long = jnp.asarray(lengths_B) > rope.scaling.original_max_position_embeddings
            factors = [rope.scaling.short_factor, rope.scaling.long_factor]
            short_and_long = jnp.asarray([plain / np.array(f) for f in factors], jnp.float32)
            return short_and_long[long.astype(jnp.int32)], _longrope_magnitude(rope.scaling)
    return plain.astype(np.float32), 1.0


def _llama3(plain: np.ndarray, scaling: Llama3) -> np.ndarray:
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn(plain: np.ndarray, rope: Rope, dims: int) -> np.ndarray:
    scaling = rope.scaling

    def dimension(turns: float) -> float:
        """The dimension that turns this often within the length of pretraining."""
        length = scaling.original_max_position_embeddings
        return dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    slowed = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return (plain * (1 - slowed) + plain / scaling.factor * slowed).astype(np.float32)


def _yarn_magnitude(scaling: Yarn) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _longrope_magnitude(scaling: LongRope) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    length = scaling.original_max_position_embeddings
    return math.sqrt(1 + math.log(scaling.factor) / math.log(length))
