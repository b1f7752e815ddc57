"""Processes exclude each other, on a file system without locks too."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from rib_harness import locks
from rib_harness.store import Store

HOLDER = """
import fcntl, sys, time
from rib_harness import locks
from rib_harness.store import Store

def none(*_): raise OSError({code}, "No locks available")

fcntl.flock, locks.LEASE = none, {lease}
with Store(sys.argv[1]).lock("c"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_told", set())


def without_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def holder(store: Store, code: int, lease: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(code=code, lease=lease), str(store.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n", child.communicate()[1]
    return child


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_two_processes_exclude_each_other_and_a_dead_one_holds_nothing(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    without_locks(monkeypatch, code)
    child = holder(store, code, locks.LEASE)
    waited = []
    path = store.path / "locks" / "c.lock"
    with caplog.at_level(logging.WARNING):
        with pytest.raises(Timeout), locks.locked(path, timeout=0):
            pass
        with pytest.raises(Timeout), locks.locked(path, lambda: waited.append(1), timeout=0.2):
            pass
        assert waited == [1]
        child.kill()
        child.communicate()
        for _ in range(2):
            with store.lock("c", lambda: waited.append(2)):
                pass
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1  # once, however many steps there are
    assert f"The file system of {path.parent} has no file locks" in told[0]
    assert list(path.parent.glob("*.lease")) == []


def test_a_lease_without_a_sign_of_life_expires(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process on another host, of which nobody here can say whether it lives."""
    without_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(locks, "LEASE", 0.6)
    child = holder(store, errno.ENOLCK, 0.6)
    path = store.path / "locks" / "c.lock"
    os.kill(child.pid, signal.SIGSTOP)
    with locks.locked(path, timeout=30):
        pass
    child.kill()
    child.communicate()


def test_another_error_is_no_lack_of_locks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), store.lock("c"):
        pass
