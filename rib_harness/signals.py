"""Ctrl-C, SIGTERM and SIGHUP at a safe point: a handler only sets a flag, the loop looks at it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from rib_harness.errors import InterruptedRun

#: What asks a process to end, beside Ctrl-C: `kill`, and the terminal that it runs in when it is
#: closed or its connection is lost.
ENDINGS: tuple[int, ...] = (signal.SIGTERM,)
if sys.platform != "win32":
    ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class _Handling:
    """While the block runs, these signals are handled; one that is ignored (nohup) stays so."""

    numbers: ClassVar[tuple[int, ...]]

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                if signal.getsignal(number) != signal.SIG_IGN:
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
        if number not in (signal.SIGINT, signal.SIGTERM):
            _leave_terminal()
        self.asked(number)

    def asked(self, number: int) -> None:
        """What such a signal does."""
        raise InterruptedRun


def _leave_terminal() -> None:
    """What a closed terminal cannot show is discarded: an error there would hide the stop."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


class StopFlag(_Handling):
    """While the block runs, SIGINT, SIGTERM and SIGHUP set `hit`; a second one stops at once."""

    numbers = (signal.SIGINT, *ENDINGS)

    def __init__(self) -> None:
        self.hit = False

    def asked(self, number: int) -> None:
        """The flag, or an end at once."""
        # Nobody is in a hurry who closes a terminal: the kernel and the shell both tell of it.
        if self.hit and number in (signal.SIGINT, signal.SIGTERM):
            raise InterruptedRun
        self.hit = True


class TerminateAsInterrupt(_Handling):
    """While the block runs, SIGTERM and SIGHUP are an `InterruptedRun`.

    As Ctrl-C is a KeyboardInterrupt.
    """

    numbers = ENDINGS
