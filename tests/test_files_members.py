"""The same files in any form: the same names, bytes and digests.

Expected values: the original bytes, written by the standard library, and hashlib's digests.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rib_harness import DataError
from rib_harness.cache import read_checked, write_checked
from rib_harness.files.digest import file_digest
from rib_harness.files.members import DEEPEST, Folder, Members, Tar, Zip, carry_index

RANDOM = np.random.default_rng(0)
FILES = {
    "n01440764/a.JPEG": RANDOM.bytes(300_000),
    "n01440764/b.JPEG": RANDOM.bytes(512),
    "n01440764/empty.JPEG": b"",
    "n01443537/a.JPEG": bytes(2000),
    "n01443537/ein Bär, 東京 № 7.JPEG": RANDOM.bytes(513),
    f"{'long-' * 18}/{'name-' * 18}/c.JPEG": RANDOM.bytes(1),
    "labels.txt": b"0 1",
}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
TAR_FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


@pytest.fixture(autouse=True)
def indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the indices are kept; of this test alone."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indices"


def folder_of(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def tar_bytes(files: dict[str, bytes], form: str = "pax", prefix: str = "") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=TAR_FORMATS[form]) as tar:
        for name, data in files.items():
            folder = tarfile.TarInfo(prefix + name.rpartition("/")[0])
            folder.type = tarfile.DIRTYPE
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            if "/" in name:
                tar.addfile(folder)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def tar_of(file: Path, files: dict[str, bytes], form: str = "pax", prefix: str = "") -> Path:
    file.write_bytes(tar_bytes(files, form, prefix))
    return file


def zip_of(file: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.mkdir("n01440764")
        for name, data in files.items():
            archive.writestr(name, data)
    return file


def zip64_of(file: Path, files: dict[str, bytes]) -> Path:
    """With an extra field beside each file that the directory does not have."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as opened:
                opened.write(data)
    return file


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda place: folder_of(place / "set", FILES),
    "tar-ustar": lambda place: tar_of(place / "set.tar", FILES, "ustar"),
    "tar-gnu": lambda place: tar_of(place / "set.tar", FILES, "gnu"),
    "tar-pax": lambda place: tar_of(place / "set.tar", FILES, "pax"),
    "tar-dot": lambda place: tar_of(place / "set.tar", FILES, "gnu", "./"),
    "tar-misnamed": lambda place: tar_of(place / "set.tar.gz", FILES, "gnu"),
    "zip-stored": lambda place: zip_of(place / "set.zip", FILES),
    "zip-deflated": lambda place: zip_of(place / "set.zip", FILES, zipfile.ZIP_DEFLATED),
    "zip-64": lambda place: zip64_of(place / "set.zip", FILES),
    "zip-misnamed": lambda place: zip_of(place / "set.tar", FILES),
}
ARCHIVES = ["tar-gnu", "zip-stored", "zip-deflated"]


def contents(members: Members) -> dict[str, bytes]:
    return {name: members.read(i) for i, name in enumerate(members.names)}


def digests(members: Members) -> dict[str, str]:
    return dict(zip(members.names, members.digests(range(len(members))), strict=True))


def never(*_: object) -> None:
    raise AssertionError("this was to be kept")


def rewritten(file: Path, data: bytes) -> None:
    """Other bytes, with the old time of change put back, as `cp -p` or `touch` may do."""
    before = file.stat()
    file.write_bytes(data)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # a clock of milliseconds
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_files(tmp_path: Path, form: str) -> None:
    members = Members([FORMS[form](tmp_path)])
    assert len(members) == len(FILES)
    assert sorted(members.names) == sorted(FILES)
    assert contents(members) == FILES
    assert digests(members) == DIGESTS
    backwards = range(len(members))[::-1]
    assert members.digests(backwards) == [DIGESTS[name] for name in members.names[::-1]]


@pytest.mark.parametrize("form", ARCHIVES)
def test_an_index_is_read_as_it_was_made(tmp_path: Path, form: str) -> None:
    archive = FORMS[form](tmp_path)
    first = Members([archive])
    again = Members([archive])
    assert again.names == first.names
    assert contents(again) == FILES
    assert digests(again) == DIGESTS


@pytest.mark.parametrize("form", ARCHIVES)
def test_an_archive_is_looked_through_and_read_once(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = FORMS[form](tmp_path)
    assert digests(Members([archive])) == DIGESTS
    for kind in (Tar, Zip):
        monkeypatch.setattr(kind, "scan", never)
        monkeypatch.setattr(kind, "read", never)
    assert digests(Members([archive])) == DIGESTS
    (tmp_path / "link").symlink_to(archive)  # it is the same file
    assert digests(Members([tmp_path / "link"])) == DIGESTS


@pytest.mark.parametrize("form", ["tar-gnu", "zip-stored"])
def test_an_archive_that_changed_is_indexed_anew(tmp_path: Path, form: str) -> None:
    """Same length, other bytes, the old time put back."""
    archive = FORMS[form](tmp_path)
    assert digests(Members([archive])) == DIGESTS
    other = {**FILES, "n01440764/b.JPEG": RANDOM.bytes(512)}
    (tmp_path / "other").mkdir()
    make = tar_of if form == "tar-gnu" else zip_of
    changed = make(tmp_path / "other" / archive.name, other).read_bytes()
    if form == "tar-gnu":
        changed = tar_bytes(other, "gnu")
    assert len(changed) == archive.stat().st_size
    rewritten(archive, changed)
    assert contents(Members([archive])) == other
    digest = hashlib.sha256(other["n01440764/b.JPEG"]).hexdigest()
    assert digests(Members([archive])) == {**DIGESTS, "n01440764/b.JPEG": digest}


def test_an_archive_that_another_took_the_place_of_is_indexed_anew(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "set.tar", {"a": b"1"})
    assert Members([archive]).names == ["a"]
    tar_of(tmp_path / "new.tar", {"b": b"22"}).replace(archive)
    assert contents(Members([archive])) == {"b": b"22"}


def test_an_archive_that_changed_while_it_was_open_is_not_indexed_by_the_old_one(
    tmp_path: Path,
) -> None:
    """Else the new one has the old one's names, until it changes again."""
    archive = tar_of(tmp_path / "set.tar", {"a": b"old"})
    members = Members([archive])
    tar_of(tmp_path / "new.tar", {"b": b"newer", "c": b"1"}).replace(archive)
    with contextlib.suppress(DataError):
        members.digests([0])
    assert contents(Members([archive])) == {"b": b"newer", "c": b"1"}


def table_of(index: Path) -> pa.Table:
    return pq.read_table(pa.BufferReader(read_checked(index)))


def replaced(file: Path, data: bytes) -> None:
    """Another file in its place, of the same time."""
    new = file.with_name("new")
    new.write_bytes(data)
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.replace(file)


@pytest.mark.parametrize("known", [True, False], ids=["digests known", "not known"])
@pytest.mark.parametrize("how", [rewritten, replaced])
@pytest.mark.parametrize("form", ["folder", *ARCHIVES])
def test_a_file_that_is_not_the_one_that_was_indexed_is_named(
    tmp_path: Path, form: str, how: Callable[[Path, bytes], None], known: bool
) -> None:
    """Same size, the old time put back: its label and fingerprint would be the old one's."""
    place = FORMS[form](tmp_path)
    members = Members([place])
    name = "n01440764/b.JPEG"
    at = members.names.index(name)
    if known:
        members.digests(range(len(members)))
    other = {**FILES, name: FILES[name][:-1] + b"?"}
    (tmp_path / "other").mkdir()
    where = place
    if form == "folder":
        where = place / name
        how(where, other[name])
    else:
        make = {"tar-gnu": lambda file: tar_of(file, other, "gnu"),
                "zip-stored": lambda file: zip_of(file, other),
                "zip-deflated": lambda file: zip_of(file, other, zipfile.ZIP_DEFLATED)}  # fmt: skip
        how(place, make[form](tmp_path / "other" / place.name).read_bytes())
    with pytest.raises(DataError, match=r"(?s)b\.JPEG.*has changed since it was indexed") as caught:
        members.read(at)
    assert str(where) in str(caught.value)
    assert "give the same command again" in str(caught.value)
    if not known:
        with pytest.raises(DataError, match="has changed since"):
            members.digests([at])
    assert contents(Members([place])) == other


@pytest.mark.parametrize("form", ["folder", "tar-gnu"])
def test_a_file_of_the_same_content_is_the_same_whatever_its_times(
    tmp_path: Path, form: str
) -> None:
    place = FORMS[form](tmp_path)
    members = Members([place])
    members.digests(range(len(members)))
    for file in [place, *place.glob("*/*")]:
        file.chmod(0o700)
        os.utime(file, (1e9, 1e9))
    assert contents(members) == FILES


def index_of(indices: Path) -> Path:
    (file,) = indices.iterdir()
    return file


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "no parquet": lambda file: file.write_bytes(b"nonsense" * 99),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "start": lambda file: file.write_bytes(bytes(99) + file.read_bytes()[99:]),
    "of an earlier version": lambda file: file.write_bytes(read_checked(file) or b""),
    "of another name": lambda file: (
        write_checked(file.with_name("other"), read_checked(file) or b""),
        file.with_name("other").rename(file),
    ),
    "a folder": lambda file: (file.unlink(), file.mkdir(), (file / "x").write_text("")),
    "a link to nowhere": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", ["folder", "tar-gnu"])
def test_a_damaged_index_is_made_anew(
    tmp_path: Path, indices: Path, form: str, damage: str
) -> None:
    place = FORMS[form](tmp_path)
    assert digests(Members([place])) == DIGESTS
    DAMAGE[damage](index_of(indices))
    members = Members([place])
    assert contents(members) == FILES
    assert digests(members) == DIGESTS
    assert table_of(index_of(indices)).num_rows == len(FILES)


def test_an_index_of_another_version_is_not_believed(tmp_path: Path, indices: Path) -> None:
    archive = tar_of(tmp_path / "set.tar", {"a": b"1"})
    Members([archive]).digests([0])
    file = index_of(indices)
    table = table_of(file)
    at = table.column_names.index("digest")
    wrong = table.set_column(at, "digest", pa.array(["0" * 64]))
    notes = table.schema.metadata
    made = io.BytesIO()
    pq.write_table(wrong.replace_schema_metadata({**notes, b"format": b"1"}), made)
    write_checked(file, made.getvalue())
    assert digests(Members([archive])) == {"a": hashlib.sha256(b"1").hexdigest()}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files in folders that are read."""
    names: list[str] = []
    read = Folder.read

    def noted(self: Folder, member: object) -> bytes:
        names.append(member.name)  # type: ignore[attr-defined]
        return read(self, member)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "read", noted)
    yield names


def test_only_what_changed_in_a_folder_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    place = folder_of(tmp_path / "set", FILES)
    assert digests(Members([place])) == DIGESTS
    assert sorted(reads) == sorted(FILES)
    reads.clear()
    assert digests(Members([place])) == DIGESTS
    assert reads == []
    rewritten(place / "n01440764/b.JPEG", other := RANDOM.bytes(512))
    (place / "new").write_bytes(b"new")
    (place / "labels.txt").unlink()
    expected = DIGESTS | {
        "n01440764/b.JPEG": hashlib.sha256(other).hexdigest(),
        "new": hashlib.sha256(b"new").hexdigest(),
    }
    del expected["labels.txt"]
    assert digests(Members([place])) == expected
    assert sorted(reads) == ["n01440764/b.JPEG", "new"]


def test_digests_of_a_few_are_kept_beside_those_of_others(tmp_path: Path, reads: list[str]) -> None:
    place = folder_of(tmp_path / "set", FILES)
    for i in range(len(FILES)):
        members = Members([place])
        assert members.digests([i]) == [DIGESTS[members.names[i]]]
    assert sorted(reads) == sorted(FILES)


def test_what_was_read_is_kept_when_the_reading_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    """By Ctrl-C among the second thousand files."""
    files = {f"{n:04}": str(n).encode() for n in range(1100)}
    place = folder_of(tmp_path / "set", files)
    noted = Folder.read

    def stopped(self: Folder, member: object) -> bytes:
        if member.name == "1050":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return noted(self, member)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", stopped)
        with pytest.raises(KeyboardInterrupt):
            digests(Members([place]))
    reads.clear()
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert digests(Members([place])) == expected
    assert set(reads) == {f"{n:04}" for n in range(1050, 1100)}


def test_several_parts_are_one_list(tmp_path: Path) -> None:
    """Shards of a WebDataset have the same names in different archives."""
    parts = [
        tar_of(tmp_path / "0.tar", {"a": b"0"}),
        zip_of(tmp_path / "1.zip", {"a": b"1", "b": b"2"}),
        folder_of(tmp_path / "2", {"a": b"3"}),
    ]
    for _ in range(2):
        members = Members(parts)
        assert members.names == ["a", "a", "b", "a"]
        assert [members.part_of(i) for i in range(4)] == [0, 1, 1, 2]
        assert [members.read(i) for i in range(4)] == [b"0", b"1", b"2", b"3"]
        assert members.where(2) == f"{tmp_path}/1.zip/b"
        expected = [hashlib.sha256(data).hexdigest() for data in (b"3", b"1", b"0", b"2")]
        assert members.digests([3, 1, 0, 2]) == expected


def test_names_come_in_their_order_in_a_folder(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "set", {"b/2": b"", "a/9": b"", "b/1": b"", "a/10": b"", "c": b""})
    assert Members([place]).names == ["a/10", "a/9", "b/1", "b/2", "c"]


# --- tars inside a tar -----------------------------------------------------------------------

CLASSES = {
    "n01440764": {"n01440764_10026.JPEG": RANDOM.bytes(3000), "n01440764_1.JPEG": b"1"},
    "n01443537": {"n01440764_1.JPEG": b"2", "n01443537_7.JPEG": RANDOM.bytes(511)},
}
NESTED = {f"{wnid}/{name}": data for wnid, files in CLASSES.items() for name, data in files.items()}


@pytest.mark.parametrize("form", TAR_FORMATS)
def test_tars_inside_a_tar_are_folders(tmp_path: Path, form: str) -> None:
    """As ImageNet's training set is published: a tar of one tar for each class."""
    inside = {f"{wnid}.tar": tar_bytes(files, form) for wnid, files in CLASSES.items()}
    outside = tar_of(tmp_path / "train.tar", {**inside, "z.txt": b"last"}, form)
    for _ in range(2):
        members = Members([outside])
        assert contents(members) == {**NESTED, "z.txt": b"last"}
        digest = {name: hashlib.sha256(data).hexdigest() for name, data in NESTED.items()}
        assert digests(members).items() >= digest.items()


def test_a_tar_deeper_inside_is_a_file(tmp_path: Path) -> None:
    deepest = tar_bytes({"a": b"1"})
    outside = tar_of(tmp_path / "o.tar", {"m.tar": tar_bytes({"i.tar": deepest})})
    assert contents(Members([outside])) == {"m/i.tar": deepest}


@pytest.mark.parametrize("keep", [0, 100, 512, 512 + 3072, 512 + 3072 + 700])
def test_a_truncated_tar_inside_a_tar_is_refused(tmp_path: Path, keep: int) -> None:
    """Also where its end would be taken from the tar around it."""
    inside = {f"{wnid}.tar": tar_bytes(files, "gnu") for wnid, files in CLASSES.items()}
    inside["n01440764.tar"] = tar_bytes(CLASSES["n01440764"], "gnu")[512:][:keep]
    with pytest.raises(DataError, match=r"is (truncated|damaged)"):
        Members([tar_of(tmp_path / "o.tar", inside)])


def test_a_bad_name_or_link_inside_a_tar_inside_a_tar_is_refused(tmp_path: Path) -> None:
    outside = tar_of(tmp_path / "o.tar", {"m.tar": tar_bytes({"../x": b"1"})})
    with pytest.raises(DataError, match=r"'\.\..* refused"):
        Members([outside])
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DataError, match=r"'link', a link or device; refused"):
        Members([tar_of(tmp_path / "o.tar", {"m.tar": link.tobuf() + bytes(1024)})])


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["set.tar.gz", "set.tar"])
def test_a_compressed_tar_is_refused_with_advice(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    archive = tmp_path / name
    archive.write_bytes(compress(tar_bytes({"a": b"1"})))
    advice = "Unpack it: rib-harness data prepare NAME --from FILE"
    with pytest.raises(DataError, match=rf"is compressed.*{re.escape(advice)}"):
        Members([archive])


# --- what is left out ------------------------------------------------------------------------

HIDDEN = {
    ".DS_Store": b"1",
    "n01440764/._a.JPEG": b"2",
    "__MACOSX/n01440764/a.JPEG": b"3",
    ".git/a.JPEG": b"4",
}
SKIPPED = {"train/a.JPEG": b"5", "n01440764/test/a.JPEG": b"6"}


def left(place: Path) -> dict[str, bytes]:
    return contents(Members([place], skip=("train", "test")))


def test_hidden_files_and_skipped_folders_are_left_out(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "set", FILES | HIDDEN | SKIPPED)
    assert left(place) == FILES
    assert contents(Members([place])) == FILES | SKIPPED
    for name in (".git", "__MACOSX", "train"):  # not even looked into
        (place / name / "broken").symlink_to("nowhere")
    assert left(place) == FILES
    same_name = folder_of(tmp_path / "train", {"test": b"a file", "a": b"1"})
    assert left(same_name) == {"test": b"a file", "a": b"1"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("more", [HIDDEN, SKIPPED], ids=["hidden", "skipped"])
def test_what_is_left_out_of_folders_is_left_out_of_archives(
    tmp_path: Path, kind: str, more: dict[str, bytes]
) -> None:
    make = tar_of if kind == "tar" else zip_of
    assert left(make(tmp_path / f"set.{kind}", FILES | more)) == FILES


# --- links -----------------------------------------------------------------------------------


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    """Many keep ImageNet as links to another disk. What the link leads to may change."""
    real = folder_of(tmp_path / "disk", FILES)
    place = tmp_path / "set"
    place.mkdir()
    (place / "n01440764").symlink_to(real / "n01440764")
    (place / "b").symlink_to(real / "labels.txt")
    expected = {n: d for n, d in FILES.items() if n.startswith("n01440764/")}
    expected["b"] = FILES["labels.txt"]
    assert contents(Members([place])) == expected
    Members([place]).digests(range(len(expected)))
    rewritten(real / "labels.txt", b"1 0")
    assert digests(Members([place]))["b"] == hashlib.sha256(b"1 0").hexdigest()


@pytest.mark.parametrize("to", [".", "..", "../set", "../other"])
def test_links_in_a_circle_end_in_a_clear_error(tmp_path: Path, to: str) -> None:
    place = folder_of(tmp_path / "set", {"a": b"1"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(place)
    (place / "loop").symlink_to(to)
    with pytest.raises(DataError, match=f"lies too deep: expected at most {DEEPEST} folders"):
        Members([place])


def test_a_link_to_itself_is_a_clear_error(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "set", {"a": b"1"})
    (place / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop"):
        Members([place])


def test_the_deepest_folder_is_read_and_no_deeper_one(tmp_path: Path) -> None:
    deepest = "/".join("abcdefgh")
    assert len(deepest.split("/")) == DEEPEST
    place = folder_of(tmp_path / "set", {f"{deepest}/x": b"1"})
    assert Members([place]).names == [f"{deepest}/x"]
    (place / deepest / "i").mkdir()
    with pytest.raises(DataError, match="lies too deep"):
        Members([place])


def test_a_broken_link_or_a_pipe_is_a_clear_error(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "set", {"a": b"1"})
    (place / "b").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"set/b' is no file that can be read: a broken link"):
        Members([place])
    (place / "b").unlink()
    os.mkfifo(place / "c")
    with pytest.raises(DataError, match=r"set/c' is no file that can be read"):
        Members([place])


@pytest.mark.parametrize("name", [b"b\xff.jpg", b"b\xff/c.PNG", b"b\xff", b"b\xff/c"])
def test_a_pictures_name_that_is_not_utf8_is_refused_and_another_files_left_out(
    tmp_path: Path, name: bytes
) -> None:
    place = folder_of(tmp_path / "set", {"a": b"1"})
    odd = Path(os.fsdecode(os.fsencode(place) + b"/" + name))
    try:
        odd.parent.mkdir(exist_ok=True)
        odd.write_bytes(b"2")
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    if name.lower().endswith((b"jpg", b"png")):
        with pytest.raises(DataError, match=r"b\\udcff.*not UTF-8; rename it"):
            Members([place])
    else:
        assert Members([place]).names == ["a"]


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\u00a0b.jpg", "a\u202eb.jpg", "a\x1b[2J.jpg"])
def test_any_name_in_utf8_is_read_in_a_folder(tmp_path: Path, name: str) -> None:
    """An archive with a control or a turned direction is refused as a whole; a disk has many."""
    place = folder_of(tmp_path / "set", {name: b"1"})
    for _ in range(2):  # from the disk, then with what was kept
        members = Members([place])
        assert members.names == [name]
        assert digests(members) == {name: hashlib.sha256(b"1").hexdigest()}


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pread", [True, False], ids=["pread", "seek and read"])
@pytest.mark.parametrize("kind", ["tar", "zip", "folder"])
def test_eight_threads_read_the_right_bytes(
    tmp_path: Path, kind: str, pread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no `pread`: there they take turns."""
    if not pread:
        monkeypatch.delattr(os, "pread")
    files = {f"{n % 7}/{n}": RANDOM.bytes(int(RANDOM.integers(0, 20_000))) for n in range(300)}
    makes: dict[str, Callable[[Path, dict[str, bytes]], Path]]
    makes = {"tar": tar_of, "zip": zip_of, "folder": folder_of}
    members = Members([makes[kind](tmp_path / f"set.{kind}", files)])
    start = threading.Barrier(8)

    def read(seed: int) -> bool:
        start.wait()
        order = np.random.default_rng(seed).permutation(len(members)).tolist()
        return all(members.read(i) == files[members.names[i]] for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_file_in_a_zip_is_told_when_it_is_read(tmp_path: Path, compression: int) -> None:
    data = RANDOM.bytes(900)
    archive = zip_of(tmp_path / "set.zip", {"a": b"1", "b": data}, compression)
    whole = archive.read_bytes()
    at = whole.index(data[300:320])
    archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    members = Members([archive])
    assert members.read(0) == b"1"
    with pytest.raises(DataError, match=r"set\.zip: 'b' is damaged"):
        members.read(1)
    with pytest.raises(DataError, match="'b' is damaged"):
        members.digests([0, 1])


def test_a_file_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "set", {"a": b"1"})
    members = Members([place])
    shutil.rmtree(place)
    with pytest.raises(DataError, match=r"set/a: No such file"):
        members.read(0)
    with pytest.raises(DataError, match=r"There is no file or folder .*set"):
        Members([place])


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("use", [lambda m: m.read(0), lambda m: m.digests([0])], ids=["r", "d"])
def test_an_archive_that_is_gone_is_a_clear_error(
    tmp_path: Path, kind: str, use: Callable[[Members], object]
) -> None:
    make = tar_of if kind == "tar" else zip_of
    archive = make(tmp_path / f"set.{kind}", {"a": b"1"})
    Members([archive])
    members = Members([archive])  # its index is kept: the file was not opened
    archive.unlink()
    with pytest.raises(DataError, match=archive.name):
        use(members)


def test_an_archive_that_was_cut_while_it_was_open_is_a_clear_error(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "set.tar", {"a": b"1", "b": RANDOM.bytes(9000)})
    members = Members([archive])
    assert members.read(0) == b"1"
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(DataError, match="is shorter than when it was indexed"):
        members.read(1)


def test_an_archive_stays_open_no_longer_than_it_is_used(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    archive = tar_of(tmp_path / "set.tar", {"a": b"1"})

    def opened() -> int:
        found = 0
        for one in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one by which we look
                found += one.readlink() == archive
        return found

    members = Members([archive])
    members.read(0)
    members.read(0)
    assert opened() == 1
    del members
    assert opened() == 0


def test_a_folder_without_files_is_an_empty_list_and_a_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for _ in range(2):
        members = Members([tmp_path / "set"])
        assert members.names == []
        assert members.digests([]) == []
        with pytest.raises(DataError, match="is empty"):
            Members([tar_of(tmp_path / "set.tar", {})])


def test_two_threads_may_index_the_same_archive(tmp_path: Path) -> None:
    files = {f"{n}": b"1" for n in range(2000)}
    archive = tar_of(tmp_path / "set.tar", files)
    start = threading.Barrier(4)

    def names(_: int) -> list[str]:
        start.wait()
        return Members([archive]).names

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            assert all(made == list(files) for made in pool.map(names, range(4)))
        rewritten(archive, archive.read_bytes())


def test_a_renamed_folder_keeps_its_digests(tmp_path: Path, reads: list[str]) -> None:
    place, there = folder_of(tmp_path / "set", FILES), tmp_path / "there"
    assert digests(Members([place])) == DIGESTS
    carry_index(tmp_path / "never read", tmp_path / "nothing")
    carry_index(place, there)
    place.rename(there)
    reads.clear()
    assert digests(Members([there])) == DIGESTS
    assert reads == []


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("md5", "900150983cd24fb0d6963f7d28e17f72"),  # RFC 1321, A.5
        (
            "sha256",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),  # FIPS 180-2
    ],
)
def test_digests_of_files_are_those_of_the_standards(
    tmp_path: Path, algorithm: str, expected: str
) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc", algorithm) == expected
    large = RANDOM.bytes(3_000_001)
    (tmp_path / "large").write_bytes(large)
    assert file_digest(tmp_path / "large", algorithm) == hashlib.new(algorithm, large).hexdigest()
