"""One bit of a file that is no finished step: what comes of it is what was written, or made again.

Expected values: what was there before the flip. The digits' cache is flipped in its plugin's tests.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rib_harness import BackboneSpec, Identity, LabelSpace, Preprocess
from rib_harness.cache import read_checked, write_checked
from rib_harness.engine.data import Pixels, in_order
from rib_harness.engine.fit import DamagedStateError, unpack_tree
from rib_harness.files.hub import HubRows
from rib_harness.files.members import Members
from rib_harness.identify import identity_of
from rib_harness.testing import TINY, catalog_with, tiny_images, tiny_task

#: Flips of a kind: a handful on each run, the campaign when it is asked for.
FLIPS = pytest.mark.parametrize("flips", [10, pytest.param(300, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, of this test alone."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Artefact:
    """A file, and what is read from it."""

    file: Path
    read: Callable[[], Any]


def state(kept: Path) -> Artefact:
    """What a fit needs to go on."""
    work = kept / "work"
    task, calls = tiny_task(work=work, optimizer="adamw"), 0

    def loss(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return task.cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        task.fit(task.pretrained.copy(), loss)
    (file,) = work.iterdir()
    whole = unpack_tree(file)

    def read() -> Any:
        try:
            return unpack_tree(file)
        except DamagedStateError:
            return whole

    return Artefact(file, read)


def pack(kept: Path) -> Artefact:
    images = tiny_images(6)

    def read() -> Any:
        (pixels,) = Pixels(images, TINY, pack=True).batches(in_order(6, 6))
        return pixels

    read()
    (file,) = (kept / "packs").iterdir()
    return Artefact(file, read)


def identity(kept: Path) -> Artefact:
    class Heavy:
        def identity(self) -> Identity:
            return Identity("sha256:0", Preprocess(32, mean=(0.5, 0.5, 0.5)), 10, ("file",), ("x",))

    spec = BackboneSpec(name="heavy", target="", summary="", label_space=LabelSpace("t", 10))
    bound = catalog_with((spec, Heavy)).bind("backbone", "heavy")
    identity_of(bound)
    (file,) = (kept / "identities").iterdir()
    return Artefact(file, lambda: identity_of(bound))


def index(kept: Path) -> Artefact:
    (kept / "set").mkdir(parents=True)
    for name in "abc":
        (kept / "set" / name).write_text(name * 9)
    with tarfile.open(kept / "set.tar", "w") as tar:
        tar.add(kept / "set", "set")

    def read() -> Any:
        members = Members([kept / "set.tar"])
        rows = range(len(members))
        return members.names, members.digests(rows), [members.read(i) for i in rows]

    read()
    (file,) = (kept / "indices").iterdir()
    return Artefact(file, read)


def parquet(kept: Path) -> Path:
    (kept / "set").mkdir(parents=True)
    rows = {
        "image": [{"bytes": bytes([i]) * 20, "path": f"{i}.png"} for i in range(4)],
        "label": [3, 1, 2, 0],
    }
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.to_parquet(kept / "set" / "test.parquet")
    return kept / "set"


def hub_rows(place: Path) -> Any:
    made = HubRows(place, ("test",))
    rows = range(len(made))
    return made.names, made.column("label"), made.digests(), [made.read(i) for i in rows]


def hub_digests(kept: Path) -> Artefact:
    place = parquet(kept)
    hub_rows(place)
    (file,) = (kept / "indices").glob("hub-*")
    return Artefact(file, lambda: hub_rows(place))


def hub_copy(kept: Path) -> Artefact:
    place = parquet(kept)
    hub_rows(place)
    (file,) = (kept / "hub-datasets").rglob("*.arrow")
    return Artefact(file, lambda: hub_rows(place))


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@FLIPS
@pytest.mark.parametrize("make", [state, pack, identity, index, hub_digests, hub_copy])
def test_no_bit_changes_what_is_read(
    make: Callable[[Path], Artefact], flips: int, kept: Path
) -> None:
    artefact, rng = make(kept), np.random.default_rng(flips)
    expected, whole = artefact.read(), artefact.file.read_bytes()
    if make is hub_copy:
        flips = min(flips, 40)  # `datasets` takes its time
    for bit in rng.integers(8 * len(whole), size=flips).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        artefact.file.write_bytes(flipped)
        assert same(artefact.read(), expected), f"bit {bit}"


@pytest.mark.parametrize("make", [pack, identity, index, hub_digests])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: (file.unlink(), file.mkdir(), (file / "x").write_text("")),
        lambda file: (file.unlink(), file.symlink_to("nowhere")),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"{}"),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    ],
    ids=["folder", "link to nowhere", "empty", "{}", "cut off", "longer"],
)
def test_what_is_no_file_of_ours_is_made_again(
    make: Callable[[Path], Artefact], damage: Callable[[Path], Any], kept: Path
) -> None:
    artefact = make(kept)
    expected, whole = artefact.read(), artefact.file.read_bytes()
    damage(artefact.file)
    assert same(artefact.read(), expected)
    assert artefact.file.read_bytes() == whole


def test_a_file_in_anothers_place_is_none(tmp_path: Path) -> None:
    write_checked(tmp_path / "one", b"1")
    assert read_checked(tmp_path / "one") == b"1"
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_checked(tmp_path / "two") is None


def test_what_cannot_be_kept_is_told_and_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    write_checked(tmp_path / "file" / "below", b"1")
    assert f"{tmp_path / 'file' / 'below'} cannot be kept" in caplog.text
