"""stdout is for results: what plugins print goes to stderr."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: Blocks of several threads overlap: the first redirects, the last puts back.
_lock, _depth = threading.Lock(), 0
_before: list[tuple[Any, int]] = []


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """While the block runs, whatever is written to stdout goes to stderr.

    Below Python, too: by a child process, or a library in C.
    """
    _begin()
    try:
        yield
    finally:
        _end()


def results_are_out() -> None:
    """From here on, stdout is stderr: for what runs when the process ends."""
    _flush()
    with suppress(OSError):
        os.dup2(2, 1)


def _begin() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth > 1:
            return
        _flush()
        saved = -1
        if sys.stdout is not None:  # where it is closed, 1 may be any file
            with suppress(OSError):
                saved = os.dup(1)
                os.dup2(2, 1)
        _before.append((sys.stdout, saved))
        sys.stdout = sys.stderr


def _end() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth:
            return
        _flush()
        sys.stdout, saved = _before.pop()
        if saved >= 0:
            with suppress(OSError):
                os.dup2(saved, 1)
            os.close(saved)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(AttributeError, OSError, ValueError):  # replaced, gone, or closed
            stream.flush()  # type: ignore[union-attr]
