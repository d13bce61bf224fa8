"""The parallel section of a config."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from jaxunlearn.validation import STRICT, Count, one_of


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Devices as a mesh; their number is the product of the three."""

    data: Count | None = None
    """Copies of the model, each with its share of the rows; default: as the devices allow."""
    fsdp: Count = 1
    """Parts that parameters and optimiser state are cut into; each has a share of the rows too."""
    tensor: Count = 1
    """Parts that the matrices of a layer are cut into, to work on the same rows together."""


ParallelConfig = Annotated[
    Literal["auto", "jit", "pmap"] | MeshConfig,
    one_of("auto, jit, pmap, or a mesh such as {fsdp: 8} or {data: 2, fsdp: 2, tensor: 2}"),
]
"""auto: data parallelism over all devices; jit: one device; pmap: as auto, by `jax.pmap`."""
