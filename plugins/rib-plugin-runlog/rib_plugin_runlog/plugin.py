"""Appends a line to a run log whenever a run starts, a step ends, a run ends.

Off until asked, since an installed plugin is loaded by every run: the variable `RIB_RUNLOG` is
`1` for `STORE/events.jsonl`, or names a file, into which several stores may go together.

    $ RIB_RUNLOG=1 rib-harness run --method lwf
    $ tail -f rib-store/events.jsonl
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from rib_harness import Event, hookimpl

RIB_PLUGIN_API = 1

log = logging.getLogger(__name__)

#: Places that could not be written: each is told once, not at every event.
_TOLD: set[Path] = set()


@hookimpl
def run_started(event: Event) -> None:
    """A line without a step."""
    record(event)


@hookimpl
def step_finished(event: Event) -> None:
    """A line with step, key, seconds and, where it failed, the error."""
    record(event)


@hookimpl
def run_finished(event: Event) -> None:
    """A line with the errors of all steps."""
    record(event)


def record(event: Event) -> None:
    """Append the event's line, if `RIB_RUNLOG` asks for it; a place that fails is told once."""
    path = place(event.store, os.environ.get("RIB_RUNLOG", ""))
    if path is None:
        return
    try:
        append(path.expanduser(), line(event, datetime.now(UTC)))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~nobody
        if path not in _TOLD:
            _TOLD.add(path)
            log.warning("The run log %r lacks lines, it cannot be written: %s", str(path), error)


def place(store: str, asked: str) -> Path | None:
    """The file of the log, or None where none is wanted.

    Args:
        store: path of the store.
        asked: what `RIB_RUNLOG` says.
    """
    asked = asked.strip()
    if asked in ("", "0"):
        return None
    return Path(store) / "events.jsonl" if asked == "1" else Path(asked)


def line(event: Event, now: datetime) -> str:
    """The event as one line of JSON.

    Args:
        event: what happened.
        now: when, in UTC.
    """
    return json.dumps(
        {
            "time": now.isoformat(timespec="milliseconds"),
            "event": event.name,
            "store": event.store,
            "step": event.step,
            "key": event.key,
            "seconds": round(event.seconds, 3),
            "error": event.error,
            "pid": os.getpid(),
        }
    )


def append(path: Path, text: str) -> None:
    """Add a line in one write at the end of the file, so that those of several processes never mix.

    That holds on a local disk; a network file system may promise less.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)  # less the umask
    try:
        data = (text + "\n").encode()
        if os.write(handle, data) != len(data):
            raise OSError(f"{path}: the disk took a part of a line")
    finally:
        os.close(handle)
