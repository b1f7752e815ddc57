"""Atomic, locked, versioned."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rib_harness import StoreError
from rib_harness.store import Store, key_of, write_atomically

RECORD = {"format": "rib-harness.run/1", "method": "lwf"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def test_a_key_depends_on_values_and_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": {"c": [1, 2]}}) == key_of({"b": {"c": [1, 2]}, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of({"a": 1}) != key_of({"a": "1"})
    assert key_of({"a": [1, 2]}) != key_of({"a": [2, 1]})


def test_a_step_is_there_only_when_its_block_ended_well(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writing("k", {"a": 1}, {"id": "x"}) as folder:
        (folder / "data").write_text("half")
        raise RuntimeError
    assert store.done("k") is None
    assert list((store.path / "work").iterdir()) == []
    with store.writing("k", {"a": 1}, {"id": "x"}) as folder:
        (folder / "data").write_text("whole")
        assert store.done("k") is None
    assert store.done("k") == {"id": "x"}
    assert (store.folder("k") / "data").read_text() == "whole"
    assert [key for key, _, _ in store.steps()] == ["k"]


def test_half_a_step_is_never_a_result_and_is_replaced(store: Store) -> None:
    store.folder("k").mkdir()
    (store.folder("k") / "data").write_text("half")
    assert store.done("k") is None
    with store.writing("k", {}, {"id": "x"}) as folder:
        (folder / "data").write_text("whole")
    assert (store.folder("k") / "data").read_text() == "whole"


def test_what_a_killed_process_left_is_swept_away(store: Store) -> None:
    left = store.path / "work" / "k-left"
    left.mkdir()
    with store.writing("k", {}, {"id": "x"}):
        assert not left.exists()


def test_a_newer_store_is_refused_and_left_untouched(store: Store) -> None:
    marker = store.path / "store.json"
    marker.write_text('{"format": 99}')
    with pytest.raises(StoreError, match=r"has format 99; this rib-harness reads format 1"):
        Store(store.path)
    assert marker.read_text() == '{"format": 99}'


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"holds files but no store\.json"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "thesis.tex")


def test_a_store_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "store").prepare()


def test_a_damaged_record_names_the_file(store: Store) -> None:
    store.folder("k").mkdir()
    (store.folder("k") / "done.json").write_text('{"id": ')
    with pytest.raises(StoreError, match=r"done.json is damaged .* Delete"):
        store.done("k")


def test_a_second_process_waits_for_the_lock_and_a_dead_one_holds_nothing(store: Store) -> None:
    code = (
        "import sys, time; from rib_harness.store import Store\n"
        "with Store(sys.argv[1]).lock('k'):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    waited, entered = threading.Event(), threading.Event()

    def enter() -> None:
        with store.lock("k", waited.set):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert waited.wait(30)
    assert not entered.is_set()
    child.kill()
    child.communicate()
    assert entered.wait(30)
    thread.join()


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f"
    write_atomically(target, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_same_run_again_is_the_same_record(store: Store) -> None:
    first = store.save_run(RECORD, "method = 'lwf'\n", "2026-01-01")
    again = store.save_run(RECORD, "method = 'lwf'\n", "2026-02-02")
    assert first == again
    assert len(store.runs()) == 1
    assert json.loads((store.path / "store.json").read_text()) == {"format": 1}


def test_others_may_read_a_store_as_the_umask_says(tmp_path: Path) -> None:
    """Source: the modes that plain `mkdir` and `write_text` give."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("")
    store = Store(tmp_path / "store")
    store.prepare()
    with store.writing("0" * 32, {}, {}) as folder:
        (folder / "x").write_text("")
    folder_mode = (tmp_path / "plain").stat().st_mode
    file_mode = (tmp_path / "plain" / "file").stat().st_mode
    assert store.folder("0" * 32).stat().st_mode == folder_mode
    assert (store.path / "store.json").stat().st_mode == file_mode
    assert (store.folder("0" * 32) / "done.json").stat().st_mode == file_mode
