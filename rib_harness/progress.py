"""How the engine says what it is doing: shown by the command line, silent in scripts."""

from __future__ import annotations

from typing import Protocol


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, n: int, **numbers: float) -> None:
        """`n` more units are done; `numbers` are shown beside the bar (loss, accuracy …)."""
        ...

    def close(self) -> None:
        """The work has ended."""
        ...


class Progress(Protocol):
    """Makes bars and prints lines."""

    def bar(self, label: str, total: int, done: int = 0, unit: str = "images") -> Bar:
        """A bar for `total` units, of which `done` are done already."""
        ...

    def say(self, line: str) -> None:
        """A line for the log."""
        ...


class Silence:
    """Shows nothing."""

    def bar(self, label: str, total: int, done: int = 0, unit: str = "images") -> Bar:
        """A bar that nobody sees."""
        return self

    def say(self, line: str) -> None:
        """Said to nobody."""

    def advance(self, n: int, **numbers: float) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to close."""
