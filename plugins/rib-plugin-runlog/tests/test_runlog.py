"""The run log: what a line says, where it goes, and that processes do not mix."""

from __future__ import annotations

import json
import multiprocessing
import os
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from rib_plugin_runlog import plugin

from rib_harness import Event, load_catalog

STEP = Event("step_finished", "store", step="evaluate/x", key="5e1f", seconds=1.23456, error="no")


def test_a_line_is_one_json_object_with_what_the_event_says() -> None:
    text = plugin.line(STEP, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    assert json.loads(text) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "event": "step_finished",
        "store": "store",
        "step": "evaluate/x",
        "key": "5e1f",
        "seconds": 1.235,
        "error": "no",
        "pid": os.getpid(),
    }
    broken = plugin.line(Event("run_finished", "s", error="two\nlines ✗"), datetime.now(UTC))
    assert "\n" not in broken
    assert json.loads(broken)["error"] == "two\nlines ✗"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", None),
        ("0", None),
        ("1", "store/events.jsonl"),
        ("logs/all.jsonl", "logs/all.jsonl"),
        (" 0\n", None),
        (" 1 ", "store/events.jsonl"),
        ("  ", None),
    ],
)
def test_it_writes_only_where_it_is_asked_to(asked: str, expected: str | None) -> None:
    found = plugin.place("store", asked)
    assert found == (None if expected is None else Path(expected))


def test_nothing_is_written_unasked() -> None:
    plugin.record(STEP)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "asked", ["file/log.jsonl", "~no-such-user-here/log.jsonl", "file/a\nb", "x" * 300]
)
def test_a_place_that_cannot_be_written_is_told_once_in_one_line(
    asked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("file").touch()
    monkeypatch.setattr(plugin, "_TOLD", set())
    monkeypatch.setenv("RIB_RUNLOG", asked)
    for _ in range(3):
        plugin.record(STEP)
    (told,) = caplog.records
    text = told.getMessage()
    assert text.startswith(f"The run log {asked!r} lacks lines, it cannot be written: ")
    assert "\n" not in text and told.exc_info is None


def test_hooks_are_called_by_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the entry point's value, as an installed plugin is."""
    import logging

    point = EntryPoint("runlog", "rib_plugin_runlog.plugin", "rib_harness")
    catalog = load_catalog(entry_points=[point], environ={})
    assert [(p.status, p.components) for p in catalog.plugins] == [("ok", {})]
    monkeypatch.setenv("RIB_RUNLOG", "1")
    names = ("run_started", "step_finished", "run_finished")
    for name in names:
        catalog.notify(Event(name, "deep/store"), logging.getLogger("test"))
    lines = Path("deep/store/events.jsonl").read_text().splitlines()
    assert [json.loads(one)["event"] for one in lines] == list(names)


def write_many(path: Path, mark: str) -> None:
    for _ in range(200):
        plugin.append(path, mark * 5000)


@pytest.mark.slow
def test_lines_of_several_processes_do_not_mix() -> None:
    """Lines longer than a page, from three processes at once, come out whole."""
    context = multiprocessing.get_context("spawn")
    path = Path("log.jsonl").absolute()
    writers = [context.Process(target=write_many, args=(path, mark)) for mark in "abc"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(mark * 5000 for mark in "abc" for _ in range(200))
