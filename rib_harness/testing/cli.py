"""The command line in a test."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass


@dataclass(frozen=True)
class CliResult:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def run_cli(*arguments: str) -> CliResult:
    """`rib-harness ARGUMENTS` in this process.

    Example:
        >>> run_cli("--version").out.startswith("rib-harness")
        True
    """
    from rib_harness.cli import _code

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _code(list(arguments))
    return CliResult(code, out.getvalue(), err.getvalue())
