"""Rows of Hugging Face datasets: pictures as the bytes that were stored.

Expected values: the bytes that went in, and hashlib's digests of them. No network: datasets are
made here, by `datasets` itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rib_harness import DataError
from rib_harness.cache import read_checked
from rib_harness.files.download import go_offline, is_offline
from rib_harness.files.hub import HubRows, is_saved_dataset

datasets = pytest.importorskip("datasets")

ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4: 6 is a quarter turn


def jpeg(seed: int, orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "JPEG", exif=exif)
    return made.getvalue()


#: Of 12 × 8 pixels; the second says that it lies on its side.
PICTURES = [jpeg(0), jpeg(1, orientation=6), jpeg(2), jpeg(3)]
LABELS = [3, 1, 1, 0]
DIGESTS = [hashlib.sha256(picture).hexdigest() for picture in PICTURES]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are kept; of this test alone."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indices"


def rows(*numbers: int, column: str = "image") -> Any:
    """A dataset of these pictures."""
    made = datasets.Dataset.from_dict(
        {
            column: [{"bytes": PICTURES[n], "path": f"{n}.JPEG"} for n in numbers],
            "label": [LABELS[n] for n in numbers],
        }
    )
    return made.cast_column(column, datasets.Image())


def to_parquet(made: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    made.to_parquet(file)


def saved(folder: Path) -> Path:
    rows(0, 1, 2, 3).save_to_disk(folder)
    return folder


def saved_splits(folder: Path) -> Path:
    made = datasets.DatasetDict(train=rows(0), validation=rows(0, 1, 2, 3), test=rows(2))
    made.save_to_disk(folder)
    return folder


def parquet(folder: Path) -> Path:
    to_parquet(rows(0, 1), folder / "a.parquet")
    to_parquet(rows(2, 3), folder / "b.parquet")
    return folder


def parquet_splits(folder: Path) -> Path:
    """As on the Hub."""
    to_parquet(rows(0), folder / "data" / "train-00000-of-00001.parquet")
    to_parquet(rows(0, 1, 2), folder / "data" / "validation-00000-of-00002-0ab1.parquet")
    to_parquet(rows(3), folder / "data" / "validation-00001-of-00002-7cd2.parquet")
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "saved": saved,
    "saved splits": saved_splits,
    "parquet": parquet,
    "parquet splits": parquet_splits,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_come_as_they_were_stored(tmp_path: Path, kind: str) -> None:
    place = KINDS[kind](tmp_path / "set")
    assert is_saved_dataset(place)
    made = HubRows(place, ("validation", "test"))
    assert len(made) == 4
    assert [made.read(i) for i in range(4)] == PICTURES
    assert made.names == ["0.JPEG", "1.JPEG", "2.JPEG", "3.JPEG"]
    assert made.column("label") == LABELS
    assert list(made.features) == ["image", "label"]
    assert made.digests() == DIGESTS


def test_a_picture_on_its_side_is_not_turned(tmp_path: Path) -> None:
    """`datasets` would; then it has other pixels than the published set."""
    made = HubRows(saved(tmp_path / "set"), ())
    assert rows(1)[0]["image"].size == (8, 12)
    assert Image.open(io.BytesIO(made.read(1))).size == (12, 8)
    assert made.read(1) == PICTURES[1]


def test_rows_keep_the_order_in_which_they_were_saved(tmp_path: Path) -> None:
    rows(0, 1, 2, 3).select([2, 0, 3]).save_to_disk(tmp_path / "set")
    made = HubRows(tmp_path / "set", ())
    assert made.names == ["2.JPEG", "0.JPEG", "3.JPEG"]
    assert [made.read(i) for i in range(3)] == [PICTURES[2], PICTURES[0], PICTURES[3]]
    assert made.column("label") == [1, 3, 0]
    assert made.digests() == [DIGESTS[2], DIGESTS[0], DIGESTS[3]]


def test_the_column_of_images_is_found_by_its_kind(tmp_path: Path) -> None:
    rows(0, 1, column="jpg").save_to_disk(tmp_path / "set")
    made = HubRows(tmp_path / "set", ())
    assert [made.read(i) for i in range(2)] == PICTURES[:2]


def test_names_of_folders_are_left_off_and_may_be_missing(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": PICTURES[0], "path": "n01440764/a.JPEG"},
                {"bytes": PICTURES[1], "path": None},
            ]
        }
    ).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "set")
    assert HubRows(tmp_path / "set", ()).names == ["a.JPEG", ""]


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["saved splits", "parquet splits"])
def test_the_first_split_that_is_there_is_taken(tmp_path: Path, kind: str) -> None:
    place = KINDS[kind](tmp_path / "set")
    assert HubRows(place, ("val", "validation", "train")).digests() == DIGESTS
    assert HubRows(place, ("train", "validation")).digests() == DIGESTS[:1]


@pytest.mark.parametrize("kind", ["saved splits", "parquet splits"])
def test_without_a_wanted_split_those_that_are_there_are_named(tmp_path: Path, kind: str) -> None:
    place = KINDS[kind](tmp_path / "set")
    with pytest.raises(
        DataError, match=r"(?s)splits.* train, .*validation.*expected one of val"
    ) as e:
        HubRows(place, ("valid",))
    assert "Did you mean 'validation'?" in str(e.value)


def test_splits_may_have_any_name(tmp_path: Path) -> None:
    """As the three samples of ImageNet-V2."""
    for n, name in enumerate(("matched", "threshold", "top")):
        to_parquet(rows(n), tmp_path / "set" / f"{name}-00000-of-00001.parquet")
    assert HubRows(tmp_path / "set", ("top",)).digests() == [DIGESTS[2]]


def test_a_single_split_is_taken_whatever_its_name(tmp_path: Path) -> None:
    datasets.DatasetDict(odd=rows(0, 1)).save_to_disk(tmp_path / "saved")
    assert HubRows(tmp_path / "saved", ("test",)).digests() == DIGESTS[:2]
    to_parquet(rows(0, 1), tmp_path / "parquet" / "odd-00000-of-00001.parquet")
    assert HubRows(tmp_path / "parquet", ("test",)).digests() == DIGESTS[:2]


def test_parquet_files_named_by_their_split_are_not_mixed(tmp_path: Path) -> None:
    """https://huggingface.co/docs/hub/datasets-file-names-and-splits."""
    to_parquet(rows(0, 1), tmp_path / "set" / "train.parquet")
    to_parquet(rows(2, 3), tmp_path / "set" / "validation.parquet")
    assert HubRows(tmp_path / "set", ("validation",)).digests() == DIGESTS[2:]


# --- digests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_digests_are_made_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = KINDS[kind](tmp_path / "set")
    assert HubRows(place, ("validation",)).digests() == DIGESTS

    def never(*_: object) -> bytes:
        raise AssertionError("the digests were to be kept")

    monkeypatch.setattr(HubRows, "read", never)
    assert HubRows(place, ("validation",)).digests() == DIGESTS


def test_digests_are_kept_for_other_processes(tmp_path: Path) -> None:
    place = saved(tmp_path / "set")
    to_parquet(rows(0, 1), tmp_path / "parquet" / "a.parquet")
    for one in (place, tmp_path / "parquet"):
        HubRows(one, ()).digests()
    script = (
        "import json, sys; from rib_harness.files.hub import HubRows; HubRows.read = None; "
        "print(json.dumps([HubRows(place, ()).digests() for place in sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", script, str(place), str(tmp_path / "parquet")]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(child.stdout) == [DIGESTS, DIGESTS[:2]]


def test_digests_of_splits_are_not_confused(tmp_path: Path) -> None:
    made = datasets.DatasetDict(train=rows(0, 1), validation=rows(2, 3))
    made.save_to_disk(tmp_path / "set")
    for _ in range(2):
        assert HubRows(tmp_path / "set", ("train",)).digests() == DIGESTS[:2]
        assert HubRows(tmp_path / "set", ("validation",)).digests() == DIGESTS[2:]


def test_digests_of_datasets_of_the_same_size_and_age_are_not_confused(tmp_path: Path) -> None:
    for name, order in (("one", (0, 1)), ("two", (1, 0))):
        rows(*order).save_to_disk(tmp_path / name)
        (file,) = (tmp_path / name).glob("*.arrow")
        os.utime(file, (1e9, 1e9))
    sizes = {file.stat().st_size for file in tmp_path.glob("*/*.arrow")}
    assert len(sizes) == 1
    assert HubRows(tmp_path / "one", ()).digests() == [DIGESTS[0], DIGESTS[1]]
    assert HubRows(tmp_path / "two", ()).digests() == [DIGESTS[1], DIGESTS[0]]


def test_digests_of_slices_are_not_confused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the same files, and as many rows."""
    to_parquet(rows(0, 1, 2, 3), tmp_path / "set" / "a.parquet")
    load = datasets.load_dataset

    def hub(repository: str, split: str) -> Any:
        assert repository == "owner/name"
        file = str(tmp_path / "set" / "a.parquet")
        return load("parquet", data_files=[file], split=split, cache_dir=str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert HubRows("hf:owner/name#train[:2]", ()).digests() == DIGESTS[:2]
    assert HubRows("hf:owner/name#train[2:]", ()).digests() == DIGESTS[2:]


def changed(place: Path) -> Path:
    """A byte of the first picture is another one; the length is the same."""
    (file,) = place.glob("*.arrow")
    data = file.read_bytes()
    at = data.index(PICTURES[0]) + len(PICTURES[0]) - 10
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return file


def test_digests_are_made_anew_when_the_dataset_changed(tmp_path: Path) -> None:
    place = saved(tmp_path / "set")
    assert HubRows(place, ()).digests() == DIGESTS
    changed(place)
    made = HubRows(place, ())
    assert made.digests() == [hashlib.sha256(made.read(i)).hexdigest() for i in range(4)]
    assert made.digests()[0] != DIGESTS[0]
    assert made.digests()[1:] == DIGESTS[1:]


def test_digests_are_made_anew_though_the_old_time_was_put_back(tmp_path: Path) -> None:
    place = saved(tmp_path / "set")
    assert HubRows(place, ()).digests() == DIGESTS
    (file,) = place.glob("*.arrow")
    before = file.stat()
    changed(place)
    while file.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert HubRows(place, ()).digests()[0] != DIGESTS[0]


def test_rows_that_are_not_those_of_the_digests_are_named(tmp_path: Path) -> None:
    place = saved(tmp_path / "set")
    made = HubRows(place, ())
    assert made.digests() == DIGESTS
    changed(place)  # it is mapped: what is read is what lies there now
    with pytest.raises(DataError, match=r"set: row 0: other bytes\. It has changed since"):
        made.read(0)
    assert made.read(1) == PICTURES[1]


@pytest.mark.parametrize("damaged", ["*.arrow", "dataset_info.json"])
@pytest.mark.parametrize("how", ["other bytes", "cut off"])
def test_the_copy_of_parquet_files_verifies_or_is_made_again(
    tmp_path: Path, damaged: str, how: str
) -> None:
    """`datasets` reads Parquet from a copy in the cache: pictures, labels and names are its."""
    place = parquet(tmp_path / "set")
    assert HubRows(place, ()).digests() == DIGESTS
    (file,) = (tmp_path / "cache" / "hub-datasets").rglob(damaged)
    data = file.read_bytes()
    label = data.replace(bytes([*LABELS[:1], 0, 0, 0, 0, 0, 0, 0, 1]), bytes([2] + 7 * [0] + [1]))
    other = label if damaged == "*.arrow" else data.replace(b"label", b"lobel")
    assert other != data
    file.write_bytes(other if how == "other bytes" else data[:-300])
    again = HubRows(place, ())
    assert again.column("label") == LABELS
    assert again.digests() == DIGESTS


def test_parquet_files_with_their_old_time_are_read_again(tmp_path: Path) -> None:
    place = parquet(tmp_path / "set")
    assert HubRows(place, ()).digests() == DIGESTS
    before = (place / "a.parquet").stat()
    to_parquet(rows(1, 0), place / "a.parquet")
    os.utime(place / "a.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))
    made = HubRows(place, ())
    assert made.digests() == [DIGESTS[1], DIGESTS[0], *DIGESTS[2:]]
    assert [made.read(i) for i in range(2)] == [PICTURES[1], PICTURES[0]]


@pytest.mark.parametrize("text", ["", "nonsense", "[]", json.dumps(["0"] * 4)])
def test_damaged_digests_are_made_anew(tmp_path: Path, kept: Path, text: str) -> None:
    place = saved(tmp_path / "set")
    assert HubRows(place, ()).digests() == DIGESTS
    (file,) = kept.iterdir()
    file.write_text(text)
    assert HubRows(place, ()).digests() == DIGESTS
    assert json.loads(read_checked(file) or "") == DIGESTS


def pointing(folder: Path, files: list[str | None]) -> Path:
    """A Parquet file whose pictures are paths only."""
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": None, "path": file} for file in files],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        }
    )
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    folder.mkdir()
    notes = {"huggingface": json.dumps(features)}
    pq.write_table(table.replace_schema_metadata(notes), folder / "a.parquet")
    return folder


def test_pictures_outside_are_read_where_they_are_each_time(tmp_path: Path) -> None:
    picture = tmp_path / "a.JPEG"
    picture.write_bytes(PICTURES[0])
    place = pointing(tmp_path / "set", [str(picture)])
    made = HubRows(place, ())
    assert made.names == ["a.JPEG"]
    assert made.read(0) == PICTURES[0]
    assert made.digests() == DIGESTS[:1]
    picture.write_bytes(PICTURES[1])
    with pytest.raises(DataError, match=r"set: row 0: other bytes\. It has changed since"):
        made.read(0)
    assert HubRows(place, ()).digests() == DIGESTS[1:2]
    picture.unlink()
    with pytest.raises(DataError, match=r"set: .*a\.JPEG: No such file"):
        made.read(0)


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    made = HubRows(pointing(tmp_path / "set", [None]), ())
    assert made.names == [""]
    with pytest.raises(DataError, match="set: row 0 has no picture"):
        made.read(0)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_dataset_without_rows_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    """`datasets` does not read the empty one that it saved itself."""
    empty = rows(0).select([])
    if kind == "saved":
        empty.save_to_disk(tmp_path / "set")
    else:
        to_parquet(empty, tmp_path / "set" / "a.parquet")
    with pytest.raises(DataError, match=r"set (has no rows|cannot be read as a saved dataset)"):
        HubRows(tmp_path / "set", ())


# --- errors ----------------------------------------------------------------------------------


def test_a_dataset_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    rows(0, 1).remove_columns("image").save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"set has no column of images. Its columns: label\."):
        HubRows(tmp_path / "set", ())


def test_a_folder_of_other_things_is_no_saved_dataset(tmp_path: Path) -> None:
    assert not is_saved_dataset(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(PICTURES[0])
    assert not is_saved_dataset(tmp_path / "file")
    (tmp_path / "set" / "n01440764").mkdir(parents=True)
    (tmp_path / "set" / "n01440764" / "a.JPEG").write_bytes(PICTURES[0])
    assert not is_saved_dataset(tmp_path / "set")
    with pytest.raises(DataError, match="set cannot be read as a saved dataset"):
        HubRows(tmp_path / "set", ())


@pytest.mark.parametrize("damage", ["parquet", "arrow", "state"])
def test_a_damaged_dataset_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "set"
    if damage == "parquet":
        parquet(place)
        (place / "b.parquet").write_bytes((place / "b.parquet").read_bytes()[:-100])
    else:
        saved(place)
        if damage == "arrow":
            (file,) = place.glob("*.arrow")
            file.write_bytes(b"nonsense" * 20)
        else:
            (place / "state.json").write_text("{")
    with pytest.raises(DataError, match="set cannot be read as a saved dataset"):
        HubRows(place, ())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1 from the start; and an error if somebody looks up a host all the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a test looked for a host")

    monkeypatch.setattr(socket, "getaddrinfo", never)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("where", ["hf:owner/name", "hf:owner/name#validation"])
def test_without_a_network_it_says_what_can_be_used(where: str) -> None:
    message = rf"{where} cannot be loaded: .*Without a network only what is in the local cache"
    with pytest.raises(DataError, match=message) as caught:
        HubRows(where, ("validation",))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionError("Couldn't reach the Hub"), "Without a network only"),
        (RuntimeError("Dataset scripts are no longer supported, but found name.py"), "a script"),
        (ValueError("401 Client Error"), "log in: hf auth login"),
        (RuntimeError("owner/name is a gated dataset"), "Accept its terms on its page"),
        (ValueError('Unknown split "val". Should be one of\ntrain'), 'Unknown split "val"'),
    ],
)
def test_what_the_hub_says_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        DataError, match=rf"hf:owner/name#val cannot.*: {type(error).__name__}"
    ) as e:
        HubRows("hf:owner/name#val", ())
    assert advice in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "Dataset 'owner/name' is a gated dataset on the Hub. You must be authenticated to "
            "access it.",
            "log in: hf auth login",
        ),
        ("Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed.", "doesn't exist"),
    ],
)
def test_a_dataset_that_is_gated_or_not_there_is_not_taken_for_a_missing_network(
    monkeypatch: pytest.MonkeyPatch, message: str, advice: str
) -> None:
    """The messages are those of datasets 5.2, `load.py`."""

    def fails(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError(message)

    monkeypatch.setattr(datasets, "get_dataset_split_names", fails)
    with pytest.raises(DataError, match=advice) as caught:
        HubRows("hf:owner/name", ("validation",))
    assert "Without a network" not in str(caught.value)


def test_on_the_hub_the_split_is_the_one_that_was_named_or_the_first_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hub(repository: str, split: str) -> Any:
        asked.append((repository, split))
        return rows(0)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _: ["train", "validation"])
    HubRows("hf:owner/name", ("test", "validation"))
    HubRows("hf:owner/name#train", ("test", "validation"))
    assert asked == [("owner/name", "validation"), ("owner/name", "train")]
    with pytest.raises(DataError, match="has the splits train, validation; expected one of test"):
        HubRows("hf:owner/name", ("test",))


def test_go_offline_reaches_libraries_that_are_loaded_and_child_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    names = ("RIB_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    for name in names:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert not is_offline()
    go_offline()
    assert is_offline()
    assert [os.environ[name] for name in names] == ["1"] * 3
    with pytest.raises(DataError, match="Without a network"):
        HubRows("hf:owner/name", ("validation",))
