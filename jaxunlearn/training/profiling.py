"""A look at some steps of a training: a trace of them, and where their time goes.

A training runs inside `profiled` or not; its loop asks `current` either way.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.training.statistics import combine
from jaxunlearn.writing import write_text

PEAK = {
    # Dense bfloat16 FLOP/s of one JAX device, by the makers' data sheets.
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


@dataclasses.dataclass
class Profile:
    """The next `left` steps are traced, but for those whose program was never run before."""

    folder: Path
    left: int
    say: Callable[[str], None]
    known: set[int] = dataclasses.field(default_factory=set)
    """Widths of batches whose program is compiled."""
    steps: int = 0
    tokens: int = 0
    host: float = 0.0
    device: float = 0.0
    flops: float = 0.0
    running: bool = False

    def within(self, count: int, width: int) -> int:
        """How many of the next steps, at most, to dispatch at once; begins the trace."""
        if self.left and width in self.known:
            if not self.running:
                self.running = True
                jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            return min(count, self.left)
        return 1 if self.left else count

    def ran(
        self, count: int, width: int, tokens: int, flops: float, begin: float, handed: float
    ) -> None:
        """Takes note of a dispatch that has just ended.

        Args:
          count: its steps.
          width: columns of its batches.
          tokens: real ones in all its steps.
          flops: of a step's real tokens; see `flops_per_token`.
          begin: when the host began with it.
          handed: when the devices had it.
        """
        if self.left and width in self.known:
            self.left -= count
            self.steps += count
            self.tokens += tokens
            self.flops += flops
            self.host += handed - begin
            self.device += time.perf_counter() - handed
            if not self.left:
                self.close()
        self.known.add(width)

    def close(self) -> None:
        """Ends the trace, if there is one, and tells what it shows."""
        if not self.running:
            return
        self.running, self.left = False, 0
        jax.profiler.stop_trace()
        if self.steps:
            found = self.summary()
            write_text(self.folder / "steps.json", json.dumps(found, indent=2) + "\n")
            self.say(_told(self.folder, found))

    def summary(self) -> dict[str, Any]:
        """The traced steps: seconds a step on host and devices, tokens per second, and on devices
        of known speed the share of it that the model's own FLOPs are."""
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        seconds = self.host + self.device
        found = {
            "steps": self.steps,
            "host_seconds": self.host / self.steps,
            "device_seconds": self.device / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "model_flops_per_second": self.flops / seconds,
            "devices": f"{count} x {kind}",
        }
        if kind in PEAK:
            found["utilisation"] = self.flops / seconds / (PEAK[kind] * count)
        return found


_current: ContextVar[Profile | None] = ContextVar("profile", default=None)


def current() -> Profile | None:
    """The profile that the training is to fill, if any."""
    return _current.get()


@contextlib.contextmanager
def profiled(folder: Path, steps: int, say: Callable[[str], None]) -> Iterator[None]:
    """Traces some steps of the training inside.

    Args:
      folder: for the trace, which TensorBoard and Perfetto read, and `steps.json`.
      steps: how many; 0 traces nothing.
      say: called with what the steps took.
    """
    profile = Profile(folder.absolute(), steps, say) if steps else None
    token = _current.set(profile)
    try:
        yield
    finally:
        _current.reset(token)
        if profile is not None:
            profile.close()


def flops_per_token(config: DecoderConfig, trainable: Any, frozen: Any, width: int) -> float:
    """FLOPs of one training step for each token, as the model needs them and nothing computed anew
    (PaLM, arXiv 2204.02311, appendix B): 6 for each weight of a matrix, 4 if it does not train, and
    12 L N H T of attention. Models that do not train at all are not counted.

    Args:
      config: the model's shape.
      trainable: see `statistics.combine`.
      frozen: the same.
      width: T.
    """
    head = ("embed", "embedding") if config.tie_embeddings else ("lm_head", "kernel")

    def matrices(tree: Any) -> int:
        flat = flatten_dict(dict(tree))
        return sum(leaf.size for path, leaf in flat.items() if path[-1] == "kernel" or path == head)

    params, factors = jax.eval_shape(combine, trainable, frozen)
    weights, trained = matrices(params), matrices(trainable.get("params", {}))
    added = sum(leaf.size for leaf in jax.tree.leaves(factors))
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * width
    return 4 * weights + 2 * trained + 6 * added + attention


def _told(folder: Path, found: dict[str, Any]) -> str:
    share = ""
    if "utilisation" in found:
        share = f", {found['utilisation']:.1%} of the peak of {found['devices']}"
    return (
        f"{found['steps']} steps traced in {folder}: a step is {found['host_seconds']:.4f} s of the"
        f" host and {found['device_seconds']:.4f} s of the devices,"
        f" {found['model_flops_per_second'] / 1e12:.3g} model TFLOP/s{share}"
    )
