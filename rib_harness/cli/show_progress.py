"""Progress on stderr: bars on a terminal, a line for each finished piece of work elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rib_harness.cli.tables import Screen
from rib_harness.escaping import printable
from rib_harness.progress import Bar


class RichProgress:
    """Bars with loss, accuracy, images/s and time left.

    Use it as a context manager: the terminal is given back at the end.
    """

    def __init__(self) -> None:
        self.console = Screen(stderr=True)
        self._rich: Progress | None = None
        if self.console.is_terminal:
            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> RichProgress:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def bar(self, label: str, total: int, done: int = 0, unit: str = "images") -> Bar:
        """A bar for `total` units."""
        return _Bar(self, label, total, done, unit)

    def say(self, line: str) -> None:
        """A line on stderr."""
        self.console.print(line, style="dim", soft_wrap=True)


class _Bar:
    """One bar, or one line at the end of the work."""

    def __init__(self, shown: RichProgress, label: str, total: int, done: int, unit: str):
        self.shown, self.label, self.total, self.unit = shown, printable(label), total, unit
        self.units, self.begun = 0, time.monotonic()
        self.around = sys.exc_info()[1]  # an error that is being handled: none of this work
        self.numbers: dict[str, float] = {}
        self.task: TaskID | None = None
        if shown._rich is not None:
            self.task = shown._rich.add_task(self.label, total=total, completed=done, numbers="")

    def advance(self, n: int, **numbers: float) -> None:
        """`n` more units."""
        self.units += n
        self.numbers = numbers
        if self.shown._rich is not None and self.task is not None:
            self.shown._rich.update(self.task, advance=n, numbers=self.text())

    def text(self) -> str:
        """`loss 0.412 · acc 87.5 % · 950 images/s`."""
        parts = []
        if "loss" in self.numbers:
            parts.append(f"loss {self.numbers['loss']:.3f}")
        if "accuracy" in self.numbers:
            parts.append(f"acc {self.numbers['accuracy']:.1f} %")
        speed = self.units / max(time.monotonic() - self.begun, 1e-9)
        return " · ".join([*parts, f"{speed:,.0f} {self.unit}/s"])

    def close(self) -> None:
        """Leave a line behind, if anything was done; called while an error goes up, it says so."""
        if self.shown._rich is not None and self.task is not None:
            self.shown._rich.remove_task(self.task)
        if self.units:
            stopped = "stopped; " if sys.exc_info()[1] is not self.around else ""
            self.shown.say(f"{self.label}: {stopped}{self.text()}")
