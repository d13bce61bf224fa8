"""A forget term of a user's own: what its function may take, and a trial before any training."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.errors import UserError

Loss = Callable[..., jax.Array]

_PER_SEQUENCE = ("B", jnp.float32)
_PER_TOKEN = ("BT", jnp.float32)
_HIDDEN = ("BTD", jnp.float32)
_LOGITS = ("BTV", jnp.float32)
_KINDS = {
    "log_probs": _PER_TOKEN,
    "logits": _LOGITS,
    "reference_logits": _LOGITS,
    "reinforced_logits": _LOGITS,
    "targets": ("BT", jnp.int32),
    "mask": ("BT", jnp.bool_),
    "seq_log_prob": _PER_SEQUENCE,
    "reference_seq_log_prob": _PER_SEQUENCE,
    "alternative_seq_log_prob": _PER_SEQUENCE,
    "alternative_reference_seq_log_prob": _PER_SEQUENCE,
    "answer_length": _PER_SEQUENCE,
    "hidden": _HIDDEN,
    "reference_hidden": _HIDDEN,
}
STATISTICS = frozenset(_KINDS)
"""What a loss function can take by position; `losses` says what each is."""
RESERVED = frozenset({
    "name", "training", "sampling", "label", "version", "layer", "compat", "retain_loss",
    "forget_weight", "retain_weight", "nll_weight", "kl_weight", "forget_epochs", "learning_rate",
    "weight_decay", "clip_norm", "warmup_steps", "total_steps", "run_seed", "optimizer",
})  # fmt: skip
"""Keys of a method's section, and numbers of the update step, that are no hyper-parameters."""
TRACED = (
    "statistics and hyper-parameters are traced numbers: they cannot be sizes or be compared "
    "with `if`"
)


def check_parameters(name: str, loss: Loss, *, has_alternative: bool) -> None:
    """Whether the update step can call a method's forget term.

    Raises:
      UserError: a positional parameter names no statistic, or one of a second answer that there is
        not; a hyper-parameter has a reserved name, no type, or a default that is no number.
    """
    for p in inspect.signature(loss).parameters.values():
        if p.kind is not p.KEYWORD_ONLY:
            if p.name not in STATISTICS:
                raise UserError(
                    f"method {name}: there is no statistic {p.name!r}; its positional parameters "
                    f"can be: {', '.join(sorted(STATISTICS))}"
                )
            if p.name.startswith("alternative_") and not has_alternative:
                raise UserError(
                    f"method {name}: {p.name} is of a second answer; say which one with "
                    'alternative="refusal" or "generated" in the decorator'
                )
        elif p.name in RESERVED:
            raise UserError(
                f"method {name}: hyper-parameter {p.name!r} has the name of something else; give "
                "it another one"
            )
        elif p.default is p.empty or p.annotation is p.empty:
            raise UserError(
                f"method {name}: hyper-parameter {p.name!r} needs a type and a default, as in "
                f"{p.name}: float = 1.0"
            )
        elif isinstance(p.default, bool) or not isinstance(p.default, Real):
            raise UserError(
                f"method {name}: the default of hyper-parameter {p.name!r} must be a number, "
                f"found {p.default!r}"
            )


def try_out(name: str, loss: Loss, *, vocab_size: int, hidden_size: int) -> None:
    """Runs a forget term and its gradient on shapes alone, as the update step will call it.

    Args:
      name: of the method, for messages.
      loss: its parameters are in order.
      vocab_size: V of the model to be trained.
      hidden_size: D of the model to be trained.

    Raises:
      UserError: it fails, or what comes out is not one float per token or per sequence.
    """
    sizes = {"B": 3, "T": 17, "V": vocab_size, "D": hidden_size}
    known, hyper = [], {}
    for p in inspect.signature(loss).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            hyper[p.name] = jax.ShapeDtypeStruct((), jnp.float32)
        else:
            axes, dtype = _KINDS[p.name]
            known.append(jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes), dtype))

    def called(known: list[Any], hyper: dict[str, Any]) -> Any:
        return loss(*known, **hyper)

    def summed(known: list[Any], hyper: dict[str, Any]) -> jax.Array:
        return jnp.sum(called(known, hyper))

    expected = "expected one float per token, [B, T], or per sequence, [B]"
    try:
        found = jax.eval_shape(called, known, hyper)
        # What is no array has no gradient; it is refused below.
        if isinstance(found, jax.ShapeDtypeStruct) and jnp.issubdtype(found.dtype, jnp.floating):
            jax.eval_shape(jax.grad(summed, allow_int=True), known, hyper)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = f"; {TRACED}" if "trace" in str(error).lower() else ""
        raise UserError(f"method {name}: its function fails: {fault}; {expected}{hint}") from error
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise UserError(f"method {name}: its function gives a {type(found).__name__}; {expected}")
    shapes = [tuple(sizes[axis] for axis in axes) for axes in ("BT", "B")]
    if found.shape not in shapes or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"method {name}: its function gives {found.dtype}{list(found.shape)} for "
            f"B = {sizes['B']}, T = {sizes['T']}; {expected}"
        )
