"""Atomic, locked, versioned."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from rib_harness import StoreError
from rib_harness.scores import SCORES as COLUMNS
from rib_harness.scores import Scores
from rib_harness.store import SCORES, WEIGHTS, Store, artefact_digest, key_of, write_atomically

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
    a = key_of({"a": 1})
    with pytest.raises(RuntimeError), store.writing(a, {"a": 1}, {"id": "x"}) as folder:
        (folder / "data").write_text("half")
        raise RuntimeError
    assert store.done(a) is None
    assert list((store.path / "work").iterdir()) == []
    with store.writing(a, {"a": 1}, {"id": "x"}) as folder:
        (folder / "data").write_text("whole")
        assert store.done(a) is None
    done = store.done(a)
    assert done is not None
    assert (done["id"], done["key"]) == ("x", a)
    assert (store.folder(a) / "data").read_text() == "whole"
    assert [key for key, _, _ in store.steps()] == [a]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_harms_no_finished_step(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def write(text: str) -> None:
        with store.writing(KEY, INPUTS, {"id": "x"}) as folder:
            (folder / SCORES).write_text(text)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    write("old")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StoreError, match=r"is full.* Finished steps are whole: free some"):
            write("new")
        with pytest.raises(StoreError, match="is full"):
            store.save_run(RECORD, "", "2026-01-01")
    assert store.whole(KEY)
    assert store.file(KEY, SCORES).read_text() == "old"
    assert store.runs() == []
    assert list((store.path / "work").iterdir()) == []
    write("new")
    assert store.file(KEY, SCORES).read_text() == "new"


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Inodes as they are synced, and names as they are given."""
    events: list[Any] = []
    sync = os.fsync

    def fsync(handle: int) -> None:
        sync(handle)
        events.append(os.fstat(handle).st_ino)

    def naming(name: str) -> None:
        real = getattr(os, name)

        def rename(old: Any, new: Any, **more: Any) -> None:
            real(old, new, **more)
            events.append(Path(new).name)

        monkeypatch.setattr(os, name, rename)

    monkeypatch.setattr(os, "fsync", fsync)
    naming("rename")
    naming("replace")
    return events


def test_the_disk_holds_every_file_of_a_step_before_the_step_has_its_name(
    store: Store, order: list[Any]
) -> None:
    """Else a power cut leaves a step that says it is done, and whose files are empty."""
    with store.writing("ab", {"a": 1}, {"id": "one"}) as folder:
        (folder / SCORES).write_bytes(b"scores")
    step = store.folder("ab")
    named = order.index("ab")
    before = {path.name: path.stat().st_ino for path in step.iterdir()}
    assert set(before) == {SCORES, "step.json", "done.json"}
    for name, inode in {**before, "the folder": step.stat().st_ino}.items():
        assert inode in order[:named], name
    assert step.parent.stat().st_ino in order[named:], "the name itself"


def test_the_disk_holds_a_file_before_it_replaces_another(tmp_path: Path, order: list[Any]) -> None:
    (tmp_path / "file").write_text("old")
    write_atomically(tmp_path / "file", "new")
    named = order.index("file")
    assert (tmp_path / "file").stat().st_ino in order[:named]
    assert tmp_path.stat().st_ino in order[named:]


def test_half_a_step_is_never_a_result_and_is_replaced(store: Store) -> None:
    store.folder("c").mkdir()
    (store.folder("c") / "data").write_text("half")
    assert store.done("c") is None
    with store.writing("c", {}, {"id": "x"}) as folder:
        (folder / "data").write_text("whole")
    assert (store.folder("c") / "data").read_text() == "whole"


def test_what_a_killed_process_left_is_swept_away(store: Store) -> None:
    left = store.path / "work" / "c-left"
    left.mkdir()
    with store.writing("c", {}, {"id": "x"}):
        assert not left.exists()


def test_a_newer_store_is_refused_and_left_untouched(store: Store) -> None:
    marker = store.path / "store.json"
    marker.write_text('{"format": 99}')
    with pytest.raises(StoreError, match=r"has format 99; this rib-harness reads format 2"):
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


INPUTS = {"kind": "evaluate", "engine": 1}
KEY = key_of(INPUTS)
SCORED_INPUTS = {"kind": "evaluate", "checkpoint": KEY}
SCORED = key_of(SCORED_INPUTS)


@pytest.fixture
def step(store: Store) -> Path:
    """The folder of a finished step that scored something."""
    done = {"id": "evaluate/x", "summary": {"top1": 50.0}}
    with store.writing(KEY, INPUTS, done) as folder:
        (folder / SCORES).write_bytes(bytes(range(256)))
    return store.folder(KEY)


def test_a_step_holds_its_key_and_the_digest_of_every_file(store: Store, step: Path) -> None:
    """Expected digests: hashlib's, of the files as they lie."""
    done = store.done(KEY)
    assert done is not None
    assert done["key"] == KEY
    assert {name: said["sha256"] for name, said in done["files"].items()} == {
        name: hashlib.sha256((step / name).read_bytes()).hexdigest()
        for name in (SCORES, "step.json")
    }


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def damage_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": damage_bit,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "{}": lambda path: path.write_text("{}"),
    "[]": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{"),
    "a folder": damage_folder,
}


@pytest.mark.parametrize("name", [SCORES, "step.json", "done.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_does_not_verify_is_no_result_and_is_named(
    store: Store, step: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(step / name)
    opened = Store(store.path)
    assert opened.done(KEY) is None
    (told,) = opened.damaged.values()
    assert str(step / name) in told
    assert "command that made it again" in told
    with pytest.raises(StoreError, match="is damaged"):
        opened.file(KEY, name)
    with opened.writing(KEY, INPUTS, {"id": "evaluate/x"}) as folder:
        (folder / SCORES).write_bytes(b"again")
    assert opened.done(KEY) is not None
    assert not opened.damaged


def test_a_missing_file_or_a_link_to_nowhere_is_no_result(store: Store, step: Path) -> None:
    damage_link(step / SCORES)
    assert Store(store.path).done(KEY) is None
    (step / SCORES).unlink()
    assert Store(store.path).done(KEY) is None
    shutil.rmtree(step)
    step.symlink_to("nowhere")
    opened = Store(store.path)
    assert opened.done(KEY) is None
    with opened.writing(KEY, INPUTS, {}):
        pass
    assert opened.done(KEY) is not None


def test_files_that_were_swapped_are_no_result(store: Store, step: Path) -> None:
    """Each is whole by itself, and of the other step."""
    other = key_of({**INPUTS, "engine": 2})
    with store.writing(other, {**INPUTS, "engine": 2}, {"id": "evaluate/y"}) as folder:
        (folder / SCORES).write_bytes(b"other")
    for names in ([SCORES], ["done.json"], [SCORES, "step.json", "done.json"]):
        for name in names:
            swap(step / name, store.folder(other) / name)
        opened = Store(store.path)
        assert (opened.done(KEY), opened.done(other)) == (None, None), names
        for name in names:
            swap(step / name, store.folder(other) / name)
    assert store.done(KEY) is not None


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_weights_are_hashed_when_they_are_loaded(store: Store) -> None:
    with store.writing(KEY, INPUTS, {"id": "finetune/x"}) as folder:
        (folder / WEIGHTS).write_bytes(bytes(1000))
    damage_bit(store.folder(KEY) / WEIGHTS)
    opened = Store(store.path)
    assert opened.done(KEY) is not None
    assert not opened.whole(KEY)
    with pytest.raises(StoreError, match=r"model.safetensors is damaged \(its sha256"):
        opened.file(KEY, WEIGHTS)
    assert opened.done(KEY) is None, "once it is known"
    (store.folder(KEY) / WEIGHTS).write_bytes(b"short")
    assert Store(store.path).done(KEY) is None, "a size costs nothing"


def test_what_was_scored_of_a_checkpoint_that_was_made_anew_is_no_result(store: Store) -> None:
    def make(weights: bytes) -> None:
        with store.writing(KEY, INPUTS, {"id": "finetune/x"}) as folder:
            (folder / WEIGHTS).write_bytes(weights)

    make(b"one")
    scored = key_of({"checkpoint": KEY})
    made = store.done(KEY)
    assert made is not None
    done = {"id": "evaluate/x", "made_from": {KEY: artefact_digest(made)}}
    with store.writing(scored, {"checkpoint": KEY}, done) as folder:
        (folder / SCORES).write_bytes(b"scores")
    make(b"one")
    assert store.done(scored) is not None
    make(b"two")
    assert store.done(scored) is None
    assert "finetune/x, which was made anew" in store.damaged[store.folder(scored)]


def unseal(step: Path) -> dict[str, Any]:
    """As format 1 had it: no digests."""
    done: dict[str, Any] = json.loads((step / "done.json").read_text())
    done = {k: v for k, v in done.items() if k not in ("files", "sha256", "made_from")}
    (step / "done.json").write_text(json.dumps(done))
    return done


@pytest.fixture
def old(store: Store) -> Store:
    """A store of format 1: a checkpoint, and what it was scored."""
    rows: dict[str, Any] = {
        "label": [0, 1],
        "prediction": [0, 0],
        "group": ["", ""],
        "source": ["a", "b"],
    }
    rows["top5"] = [True, True]
    scores = Scores(pa.table({name: rows.get(name, [0, 0]) for name in COLUMNS.names}, COLUMNS))
    with store.writing(KEY, INPUTS, {"id": "finetune/x", "kind": "finetune"}) as folder:
        save_file({"w": np.zeros(9)}, folder / WEIGHTS)
    done = {"id": "evaluate/x", "kind": "evaluate", "summary": scores.summary()}
    with store.writing(SCORED, SCORED_INPUTS, done) as folder:
        scores.write(folder / SCORES)
    for key in (KEY, SCORED):
        unseal(store.folder(key))
    (store.path / "store.json").write_text('{"format": 1}')
    return Store(store.path)


def test_what_was_scored_in_format_1_is_of_the_checkpoint_of_then(old: Store) -> None:
    old.prepare()
    assert old.done(SCORED) is not None
    with old.writing(KEY, INPUTS, {"id": "finetune/x", "kind": "finetune"}) as folder:
        save_file({"w": np.ones(9)}, folder / WEIGHTS)
    assert old.done(SCORED) is None


def test_no_step_of_format_1_is_lost_with_its_marker(old: Store) -> None:
    """The advice for a damaged marker is to delete it."""
    (old.path / "store.json").unlink()
    opened = Store(old.path)
    opened.prepare()
    assert all(Store(old.path).whole(key) for key in (KEY, SCORED))


@pytest.mark.parametrize("key, name, damage", [
    (KEY, WEIGHTS, Path.unlink),
    (KEY, WEIGHTS, lambda path: os.truncate(path, 90)),
    (SCORED, SCORES, Path.unlink),
    (SCORED, SCORES, lambda path: os.truncate(path, 300)),
    (SCORED, "step.json", lambda path: path.write_text("{}")),
    (SCORED, "done.json", lambda path: path.write_text(
        path.read_text().replace('"correct": 1', '"correct": 2'))),
])  # fmt: skip
def test_damage_of_format_1_is_not_sealed(
    old: Store, key: str, name: str, damage: Callable[[Path], object]
) -> None:
    damage(old.folder(key) / name)
    assert old.done(key) is None
    old.prepare()
    assert Store(old.path).done(key) is None


def test_a_store_of_format_1_opens_and_is_sealed_when_it_is_next_written(
    store: Store, step: Path
) -> None:
    """As the version before wrote it: no digests."""
    done = unseal(step)
    store.save_run(RECORD, "", "2026-01-01")
    (run,) = (store.path / "runs").iterdir()
    record = json.loads(run.read_text())
    del record["sha256"], record["config_sha256"]
    run.write_text(json.dumps(record))
    (store.path / "store.json").write_text('{"format": 1}')
    old = Store(store.path)
    assert old.done(KEY) == done
    assert old.runs() == [record]
    old.prepare()
    sealed = Store(store.path)
    assert (sealed.done(KEY) or {})["files"][SCORES]["bytes"] == 256
    assert len(sealed.runs()) == 1
    (step / "done.json").write_text(json.dumps(done))
    assert Store(store.path).done(KEY) is None, "a step without digests is of no store of format 2"


def test_a_damaged_record_of_a_run_hides_no_other(store: Store) -> None:
    store.save_run(RECORD, "", "2026-01-01")
    store.save_run({**RECORD, "method": "ft"}, "", "2026-01-02")
    (path,) = [p for p in (store.path / "runs").iterdir() if '"ft"' in p.read_text()]
    path.write_text(path.read_text().replace("2026-01-02", "2026-01-03"))
    opened = Store(store.path)
    (store.path / "runs" / "._x.json").write_bytes(b"\x00\x05\x16\x07")  # of a file manager
    assert [run["method"] for run in opened.runs()] == ["lwf"]
    assert "not as it was written" in opened.damaged[path]
    opened.save_run({**RECORD, "method": "ft"}, "", "2026-01-02")
    assert len(opened.runs()) == 2
    other = path.with_name("0123456789abcdef.json")
    path.rename(other)
    assert len(opened.runs()) == 1
    assert f"it is the record of {path.stem}" in opened.damaged.pop(other)
    shutil.copy(other, path)  # beside it, a copy says nothing of its own
    assert len(opened.runs()) == 2
    assert not opened.damaged


def test_a_damaged_marker_is_the_only_file_to_delete(store: Store, step: Path) -> None:
    marker = store.path / "store.json"
    for damage in ("", "{}", "[1]", "{"):
        marker.write_text(damage)
        with pytest.raises(StoreError, match=r"store\.json is damaged .* Delete this one file"):
            Store(store.path)
    marker.unlink()
    opened = Store(store.path)
    opened.prepare()
    assert opened.done(KEY) is not None


def test_a_bit_of_a_configuration_is_seen(store: Store) -> None:
    record = store.save_run(RECORD, "seed = [0]\n", "2026-01-01")
    assert store.config(record) == "seed = [0]\n"
    (store.path / "configs" / f"{record['id']}.toml").write_text("seed = [1]\n")
    with pytest.raises(StoreError, match="is not as it was written"):
        store.config(record)


@pytest.mark.parametrize("key", ["../../x", "/x", "..", "", "c\n", "C*", 7, None])
def test_what_is_no_key_never_becomes_a_path(key: Any, store: Store) -> None:
    """Not one that leads out of the store to a whole step."""
    outside = store.path.parent / "x"
    outside.mkdir(exist_ok=True)
    (outside / "done.json").write_text('{"summary": {}}')
    for use in (store.folder, store.work, store.done, store.inputs, store.discard_work):
        with pytest.raises(StoreError, match="Expected the key of a step or the id of a run"):
            use(key)
    with pytest.raises(StoreError, match="hexadecimal"), store.lock(key):
        pass
    with pytest.raises(StoreError, match="hexadecimal"), store.writing(key, {}, {}):
        pass
    for part in ({"finetune": {"x": key}}, {"cells": {"pre": {"x": key}, "post": {}}},
                 {"features": {"pre": {}, "post": {"y": {"x": key}}}}):  # fmt: skip
        record = store.save_run({**RECORD, **part}, "", "2026-01-01")
        assert store.runs() == []
        (said,) = store.damaged.values()
        assert "names a step by what is no key" in said
        (store.path / "runs" / f"{record['id']}.json").unlink()
        store.damaged.clear()
    assert (outside / "done.json").exists()


def test_a_second_process_waits_for_the_lock_and_a_dead_one_holds_nothing(store: Store) -> None:
    code = (
        "import sys, time; from rib_harness.store import Store\n"
        "with Store(sys.argv[1]).lock('c'):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    waited, entered = threading.Event(), threading.Event()

    def enter() -> None:
        with store.lock("c", waited.set):
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
    assert json.loads((store.path / "store.json").read_text()) == {"format": 2}


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
