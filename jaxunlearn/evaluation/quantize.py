"""What weight quantisation does to a model, simulated: weights become ones that the format has.

Only the kernels of the linear projections inside the layers are touched. Norms, biases, embeddings
and the output head stay as they are, as bitsandbytes leaves them in transformers. The block scales
are kept in full precision: NF4's "double quantisation" of them is not simulated.

References: Dettmers et al., LLM.int8(), arXiv 2208.07339; Dettmers et al., QLoRA, arXiv 2305.14314.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.models.int8 import is_layer_kernel
from jaxunlearn.models.language_model import LanguageModel

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA, appendix E."""


@dataclass(frozen=True)
class Format:
    """Which values a weight can have, as shares of the largest one of its block."""

    levels: tuple[float, ...]
    """Ascending, from -1 to 1, with 0 among them."""
    block: int | None
    """Weights that share a scale, counted along the inputs of one output and on into the next, as
    they lie in a PyTorch kernel; None: all inputs of one output."""


def integers(bits: int, block: int | None = None) -> Format:
    """Symmetric integers: -m/m, ..., -1/m, 0, 1/m, ..., m/m with m = 2^(bits - 1) - 1.

    >>> integers(2).levels
    (-1.0, 0.0, 1.0)
    """
    most = 2 ** (bits - 1) - 1
    return Format(tuple(value / most for value in range(-most, most + 1)), block)


FORMATS: Mapping[str, Format] = {
    "int8": integers(8),
    "int4": integers(4),
    "nf4": Format(NF4_LEVELS, 64),
}
"""What `quantised` is given by name elsewhere."""


def quantised(model: LanguageModel, chosen: Format) -> LanguageModel:
    """The model as it would compute with quantised weights; an adapter is merged before."""
    model = model.plain()
    return dataclasses.replace(model, params=quantise_params(model.params, chosen))


def quantise_params(params: Mapping[str, Any], chosen: Format) -> dict[str, Any]:
    """A params tree with the linear kernels of its layers quantised and dequantised; dtypes stay.

    Args:
      params: as the decoder takes them; kernels under `layers` are `[L, in, out]`.
      chosen: the format.
    """
    flat = flatten_dict(dict(params))
    for path, leaf in flat.items():
        if is_layer_kernel(path):
            flat[path] = quantise(leaf, chosen)
    return unflatten_dict(flat)


def quantise(kernel: jax.Array, chosen: Format) -> jax.Array:
    """Each weight becomes the nearest level of its block: level * max |w| over the block.

    A weight in the middle between two levels takes the lower one.

    Args:
      kernel: `[..., in, out]`; each `[in, out]` is quantised by itself.
      chosen: the format.

    Returns:
      The same shape and dtype.

    >>> quantise(jnp.array([[1.0, 0.2], [-0.3, 4.0]]), integers(2))
    Array([[1., 0.],
           [0., 4.]], dtype=float32)
    """
    rows_OI = jnp.swapaxes(kernel, -1, -2).astype(jnp.float32)
    flat = rows_OI.reshape(*kernel.shape[:-2], -1)
    block = chosen.block or kernel.shape[-2]
    # Zeros after the end change no maximum.
    extra = -flat.shape[-1] % block
    padded = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, extra)])
    blocks = padded.reshape(*padded.shape[:-1], -1, block)
    largest = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    shares = blocks / jnp.where(largest == 0, 1.0, largest)
    levels = np.asarray(chosen.levels)
    borders = jnp.asarray((levels[1:] + levels[:-1]) / 2, jnp.float32)
    nearest = jnp.asarray(levels, jnp.float32)[jnp.searchsorted(borders, shares)]
    flat = (nearest * largest).reshape(padded.shape)[..., : flat.shape[-1]]
    return jnp.swapaxes(flat.reshape(rows_OI.shape), -1, -2).astype(kernel.dtype)
