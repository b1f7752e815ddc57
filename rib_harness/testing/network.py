"""A guard: inside it nothing reaches the network. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from rib_harness.testing.outcome import CheckError

_LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


@contextmanager
def no_network() -> Iterator[list[str]]:
    """While the block runs, looking up a host or connecting to one raises `CheckError`.

    Yields:
        what was reached for, so that an attempt whose error was swallowed is seen too. Addresses
        of this machine are free.

    Example:
        >>> with no_network() as reached:
        ...     try:
        ...         socket.create_connection(("example.org", 80))
        ...     except CheckError:
        ...         pass
        >>> reached
        ['example.org']
    """
    reached: list[str] = []

    def refuse_unless_local(host: Any) -> None:
        if host is not None and not str(host).startswith(_LOCAL):
            reached.append(str(host))
            raise CheckError(f"it reached for {host} on the network")

    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):  # else a socket of this machine, by its file
            refuse_unless_local(address[0])
        connect(self, address)

    def guarded_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        refuse_unless_local(host)
        return look_up(host, *rest, **named)

    with (
        mock.patch.object(socket.socket, "connect", guarded_connect),
        mock.patch.object(socket, "getaddrinfo", guarded_look_up),
    ):
        yield reached
