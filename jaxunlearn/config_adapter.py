"""The adapter section of a config."""

from pydantic.dataclasses import dataclass

from jaxunlearn.validation import STRICT, Count, Positive


@dataclass(frozen=True, config=STRICT)
class AdapterConfig:
    """Low-rank adapters on the linear layers; the scale of the branch is alpha / rank."""

    rank: Count = 8
    alpha: Positive = 16.0
    rslora: bool = False
    """Rank-stabilised: the scale is alpha / sqrt(rank)."""
    targets: str | None = None
    """Regular expression over the kernels' paths, such as attention/(q|v), or layers/5/ for one
    layer; default: every linear layer."""

    @property
    def scale(self) -> float:
        """What the branch is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
