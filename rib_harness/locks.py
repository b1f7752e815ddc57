"""Locks between processes, on file systems without locks too: there a lease takes their place."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

log = logging.getLogger("rib_harness")

#: Seconds without a sign of life after which another process takes a lease. All processes have to
#: agree on it, those of other versions too. Of a process that died on the same host it is not
#: waited for.
LEASE = 120.0

#: What `flock` says where a file system, or how it is mounted, has none.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)

_told: set[Path] = set()


@contextmanager
def locked(
    path: Path, waiting: Callable[[], object] | None = None, *, timeout: float = -1
) -> Iterator[None]:
    """Hold a lock: another process that wants it waits. A dead process holds nothing.

    Args:
        path: of the lock's file, in a folder that is there.
        waiting: called once, if the lock is not free.
        timeout: seconds to wait; −1 is for ever.

    Raises:
        filelock.Timeout: it is not free.
    """
    try:
        lock = _acquire(path, 0)
    except Timeout:
        if timeout == 0:
            raise
        if waiting is not None:
            waiting()
        lock = _acquire(path, timeout)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, timeout: float) -> BaseFileLock:
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if path.parent not in _told:
            _told.add(path.parent)
            log.warning(
                "The file system of %s has no file locks (%s): leases take their place. A process "
                "that stands still for more than %.0f seconds loses its lease, and another may do "
                "the same work beside it.",
                path.parent, error.strerror, LEASE,
            )  # fmt: skip
        # Under another name: the lock's file has been made, and as a lease it would be held.
        lock = SoftFileLease(path.with_suffix(".lease"), lease_duration=LEASE)
        lock.acquire(timeout=timeout)
    return lock
