"""Threads that read pictures: one that hangs keeps no run from being stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rib_harness.errors import InterruptedRun
from rib_harness.signals import StopFlag

#: Seconds that a picture may still take once a stop was asked for.
PATIENCE = 3.0

Item = TypeVar("Item")
Result = TypeVar("Result")

_heeded: list[StopFlag] = []


class Readers:
    """A pool of threads; where its block ends with an error or a stop, nobody waits for them.

    Args:
        workers: how many; None is what the standard library takes.
    """

    def __init__(self, workers: int | None = None):
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in order; all items are begun on at once."""
        return map(_result, [self._pool.submit(function, item) for item in items])


def _result(future: Future[Result]) -> Result:
    while True:
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.done():  # it is the function's own
                return future.result()
            if any(stop.hit for stop in _heeded):
                raise InterruptedRun from None


@contextmanager
def heeded(stop: StopFlag) -> Iterator[None]:
    """While the block runs, who waits for a picture gives up where a stop was asked for.

    The loop that looks at the flag is the one that waits.
    """
    _heeded.append(stop)
    try:
        yield
    finally:
        _heeded.remove(stop)
