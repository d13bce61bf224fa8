"""Live progress bars: step, loss, tokens per second, time left."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Bars:
    """One bar per stage of a run, on standard error; a context manager.

    Args:
      console: default: standard error.
      quiet: say nothing, as another process says the same.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        # 79 columns in all: rich cuts off what does not fit.
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]:<27}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console or Console(stderr=True, quiet=quiet),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, *, passing: bool = False) -> Iterator["Stage"]:
        """A bar for one stage of work. One that is passing goes away at its end, and so does one
        that never moved, because its work was done before."""
        task = self._bars.add_task(name, total=None, status="preparing")
        stage = Stage(self._bars, task)
        try:
            yield stage
        finally:
            self._bars.stop_task(task)
            if passing or not stage.moved:
                self._bars.remove_task(task)


class Stage:
    """The bar of one stage."""

    def __init__(self, bars: Progress, task: int):
        self._bars, self._task = bars, task
        self.moved = False

    def update(self, done: int, total: int, status: str = "") -> None:
        """Moves the bar."""
        self.moved = True
        self._bars.update(self._task, completed=done, total=total, status=status)

    def steps(self, done: int, total: int, log: list[Mapping[str, float]]) -> None:
        """Moves the bar by training steps, with the newest loss and speed."""
        last = log[-1]
        status = f"loss {last['loss']:.3g} {last['tokens_per_second']:,.0f} tokens/s"
        self.update(done, total, status)
