"""Ctrl-C and SIGTERM at a safe point: a handler only sets a flag, the loop looks at it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from rib_harness.errors import InterruptedRun


class StopFlag:
    """While the block runs, SIGINT and SIGTERM set `hit`; a second one stops at once."""

    def __init__(self) -> None:
        self.hit = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.hit:
            raise InterruptedRun
        self.hit = True


class TerminateAsInterrupt:
    """While the block runs, SIGTERM is an `InterruptedRun`, as Ctrl-C is a KeyboardInterrupt."""

    def __enter__(self) -> None:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise InterruptedRun
