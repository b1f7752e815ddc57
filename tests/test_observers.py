"""Observers hear of a run and change nothing in it; the run log is one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rib_harness import Event
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.config import RunConfig
from rib_harness.runner import PartialFailureError, execute, open_session

HOOKS = ("run_started", "step_finished", "run_finished")
Make = Callable[[str, str], EntryPoint]
LOG = logging.getLogger("test")

HEAD = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1
"""


def observer(body: str) -> str:
    """A plugin each of whose observer hooks does this."""
    return HEAD + "".join(f"\n@hookimpl\ndef {name}(event):\n    {body}\n" for name in HOOKS)


@pytest.fixture
def make_point(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an entry point of a plugin of this source."""

    def make(name: str, source: str) -> EntryPoint:
        module = ModuleType(f"fake_observer_{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, module.__name__, "rib_harness")

    return make


def catalog_of(*points: EntryPoint, with_installed: bool = False) -> Catalog:
    installed = metadata.entry_points(group="rib_harness") if with_installed else ()
    return load_catalog(entry_points=[*installed, *points], environ={})


BAD = [
    ("raise OSError('disk full')", "OSError: disk full"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("event.seconds = 1.0", "FrozenInstanceError"),
    ("raise __import__('rib_harness').RibError('mine')", "RibError: mine"),
]


@pytest.mark.parametrize(("body", "said"), BAD, ids=[said for _, said in BAD])
@pytest.mark.parametrize("name", HOOKS)
def test_what_goes_wrong_in_one_is_logged_and_the_next_is_called(
    name: str, body: str, said: str, make_point: Make, caplog: pytest.LogCaptureFixture
) -> None:
    good = make_point("good", HEAD + "SEEN = []\n" + observer("SEEN.append(event)"))
    event = Event(name, "store", seconds=0.5)
    catalog_of(make_point("bad", observer(body)), good).notify(event, LOG)
    assert [event] == sys.modules[good.value].SEEN
    assert event.seconds == 0.5
    (record,) = caplog.records
    assert record.getMessage() == f"the observer bad.{name} failed"
    assert said in caplog.text


def test_ctrl_c_is_for_the_run_and_not_for_the_observer(make_point: Make) -> None:
    catalog = catalog_of(make_point("stopped", observer("raise KeyboardInterrupt")))
    with pytest.raises(KeyboardInterrupt):
        catalog.notify(Event("run_started", "store"), LOG)


def test_what_one_prints_is_no_result(make_point: Make, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = catalog_of(make_point("loud", observer("print(event.name)")))
    catalog.notify(Event("run_started", "store"), LOG)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "run_started\n")


def config(store: str, **settings: Any) -> RunConfig:
    return RunConfig(
        backbone=("digits-conv",), dataset=("digits-a", "digits-r"), limit=1, device="cpu",
        store=Path(store), recipe={"epochs": 1}, **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("body", [body for body, _ in BAD[:2]])
def test_no_number_changes(body: str, make_point: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The same run with and without an observer that fails at every event."""

    def numbers(store: str, *points: EntryPoint) -> list[dict[str, Any]]:
        catalog = catalog_of(*points, with_installed=True)
        return execute(open_session(config(store, method=("ft",)), catalog=catalog)).rows()

    alone = numbers("alone")
    assert not caplog.records
    assert numbers("watched", make_point("bad", observer(body))) == alone
    failed = {f"the observer bad.{name} failed" for name in HOOKS}
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == failed
    # Each with its traceback once.
    assert sorted(r.getMessage() for r in caplog.records if r.exc_info) == sorted(failed)


RUNLOG = EntryPoint("runlog", "rib_plugin_runlog.plugin", "rib_harness")


def events(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.slow
def test_the_run_log_tells_a_run(make_point: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the store once, and what failed; nothing unless asked."""
    pytest.importorskip("rib_plugin_runlog")
    method = HEAD + (
        "\n@hookimpl\ndef register_methods():\n"
        "    return [MethodSpec(name='fails', target='fake_observer_mine:Fails', summary='s')]\n"
        "\nclass Fails:\n"
        "    def finetune(self, task):\n        raise ValueError('by design')\n"
    )
    points = [p for p in metadata.entry_points(group="rib_harness") if p.name != "runlog"]
    catalog = load_catalog(entry_points=[*points, RUNLOG, make_point("mine", method)], environ={})

    execute(open_session(config("quiet", method=()), catalog=catalog))
    assert not Path("quiet/events.jsonl").exists()

    monkeypatch.setenv("RIB_RUNLOG", "1")
    execute(open_session(config("told", method=("ft",)), catalog=catalog))
    log = events("told/events.jsonl")
    assert [log[0]["event"], log[-1]["event"]] == ["run_started", "run_finished"]
    steps = log[1:-1]
    assert {one["event"] for one in steps} == {"step_finished"}
    assert sorted(one["key"] for one in steps) == sorted(
        p.name for p in Path("told/steps").iterdir()
    )
    assert all(one["error"] == "" and one["seconds"] > 0 for one in steps)

    # Into one file of one's own, appended to; a failed step says why.
    monkeypatch.setenv("RIB_RUNLOG", "logs/all.jsonl")
    execute(open_session(config("told", method=("ft",)), catalog=catalog))
    with pytest.raises(PartialFailureError):
        execute(open_session(config("told", method=("fails",)), catalog=catalog))
    log = events("logs/all.jsonl")
    assert [one["event"] for one in log[:2]] == ["run_started", "run_finished"]
    failed = [one for one in log if one["event"] == "step_finished" and one["error"]]
    assert len(failed) == 2
    assert all("by design" in one["error"] for one in (*failed, log[-1]))
