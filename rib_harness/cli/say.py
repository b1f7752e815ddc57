"""What the verbs write as text, and what is logged: only what is printable."""

from __future__ import annotations

import logging
import sys

import click

from rib_harness.escaping import printable


def echo(text: str, *, err: bool = False) -> None:
    """A line, on stdout or stderr. It may hold what a plugin, a store or a file says."""
    click.echo(printable(text), err=err)


def write(document: str | bytes) -> None:
    """A document on stdout, as it is where that is no terminal."""
    if isinstance(document, str) and sys.stdout.isatty():
        document = printable(document)
    click.echo(document, nl=False)


class Printable(logging.Formatter):
    """The message of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging's, with its traceback if it has one."""
        return printable(super().format(record))
