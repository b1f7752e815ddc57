"""stdout is for results: what plugins print goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """While the block runs, whatever is written to stdout goes to stderr.

    Below Python, too: by a child process, or a library in C.
    """
    saved = None
    with suppress(OSError, ValueError):  # closed, or replaced by something without a file
        _flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def results_are_out() -> None:
    """From here on, stdout is stderr: for what runs when the process ends."""
    with suppress(OSError, ValueError):
        _flush()
        os.dup2(2, 1)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
