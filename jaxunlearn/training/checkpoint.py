"""Checkpoints of a training state, by Orbax: atomic, resumable, refused when foreign or damaged."""

from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from jaxunlearn.errors import UserError
from jaxunlearn.training.step import TrainState


class Checkpoints:
    """The checkpoints of one training stage, in one folder; a context manager.

    Args:
      folder: made when missing.
      fingerprint: identifies data, schedule and settings; a checkpoint with another is refused.
    """

    def __init__(self, folder: Path, fingerprint: str):
        import orbax.checkpoint as ocp

        self.folder = folder
        self.fingerprint = fingerprint
        self._kept = _Kept()
        policies = [ocp.checkpoint_managers.LatestN(2), self._kept]
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                create=True,
            ),
            item_names=("state", "meta"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(
        self, state: TrainState, looks: Sequence[Sequence[float]] = (), keep: Collection[int] = ()
    ) -> None:
        """Writes the state in the background; it is there completely or not at all.

        Args:
          state: to be saved under its step.
          looks: numbers that `restore` gives back with it.
          keep: steps whose states stay beside the last two.
        """
        import orbax.checkpoint as ocp

        self._kept.steps = frozenset(keep)
        meta = {"fingerprint": self.fingerprint, "looks": [list(look) for look in looks]}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(int(state.step), args=items)

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, list[list[float]]]:
        """The state saved at a step, and the looks saved with it.

        Args:
          like: of the same structure; it is given back, without looks, when nothing was saved.
          step: None: the latest.

        Raises:
          UserError: the checkpoint belongs to another run, or cannot be read.
        """
        import orbax.checkpoint as ocp

        self._manager.wait_until_finished()
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return like, []
        place = self.folder / str(step)
        remedy = "this folder to go on from the one before it"
        if step != self._manager.latest_step():
            remedy = f"{self.folder} to train anew"
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        except Exception as error:
            raise _damaged(place, error, remedy) from error
        if meta.meta.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{place}: this checkpoint belongs to a run with other data or settings; "
                "use another run name or remove the folder"
            )
        target: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        try:
            return self._manager.restore(step, args=items).state, meta.meta.get("looks", [])
        except Exception as error:
            raise _damaged(place, error, remedy) from error


class _Kept:
    """Orbax asks it which checkpoints stay."""

    steps: frozenset[int] = frozenset()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


def _damaged(place: Path, error: Exception, remedy: str) -> UserError:
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return UserError(f"{place}: the checkpoint is damaged ({first}); remove {remedy}")
