"""A guard: inside it nothing reaches the network. Standard library only."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from rib_harness.testing.outcome import CheckError

#: Ways to reach an address, of a socket; the address comes last.
_REACHING = ("connect", "connect_ex", "sendto")
#: Ways to look up a host, which comes first.
_LOOKING_UP = ("getaddrinfo", "gethostbyname", "gethostbyname_ex")


@contextmanager
def no_network() -> Iterator[list[str]]:
    """While the block runs, looking up a host or reaching for one raises `CheckError`.

    It sees what Python's sockets do in this process. A program that is started, and a library
    that makes sockets of its own in C, are not seen.

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
        name = host.decode(errors="replace") if isinstance(host, bytes) else host
        if name is not None and not _is_local(str(name)):
            reached.append(str(name))
            raise CheckError(f"it reached for {name} on the network")

    def reaching(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, *given: Any) -> Any:
            if given and isinstance(given[-1], tuple):  # else a socket of this machine, by its file
                refuse_unless_local(given[-1][0])
            return original(self, *given)

        return guarded

    def looking_up(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(host: Any, *rest: Any, **named: Any) -> Any:
            refuse_unless_local(host)
            return original(host, *rest, **named)

        return guarded

    with ExitStack() as patches:
        for name in _REACHING:
            guarded = reaching(getattr(socket.socket, name))
            patches.enter_context(mock.patch.object(socket.socket, name, guarded))
        for name in _LOOKING_UP:
            guarded = looking_up(getattr(socket, name))
            patches.enter_context(mock.patch.object(socket, name, guarded))
        yield reached


def _is_local(host: str) -> bool:
    """Whether a name or an address is this machine's: exactly, not by how it begins."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() in ("", "localhost")
    return address.is_loopback or address.is_unspecified
