"""Archives by which somebody means harm, or that are half there: refused, and nothing outside.

Each is unpacked, and read in place where that is another way to the same bytes. Good archives are
written by the standard library; bad ones byte by byte, after POSIX.1-1988 (ustar), POSIX.1-2001
(pax), GNU tar's manual and PKWARE's APPNOTE.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from rib_harness import DataError
from rib_harness.files.archives import check_space, unpack
from rib_harness.files.members import Members
from rib_harness.files.packed import Limits

RANDOM = np.random.default_rng(0)
FILES = {
    "n01440764/a.JPEG": RANDOM.bytes(5000),
    "n01440764/b.JPEG": b"",
    "n01443537/ein Bär.JPEG": RANDOM.bytes(512),
    "readme": RANDOM.bytes(1_200_000),
}
TAR_FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
#: Ends a tar.
END = bytes(1024)

SLOW = pytest.mark.slow
both = pytest.mark.parametrize("how", ["unpacked", "in place"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where to unpack. Whatever a test does, nothing else may be written, and no link."""
    inside = tmp_path / "up" / "folder"
    yield inside
    there = set(tmp_path.rglob("*"))
    own = {inside.parent, tmp_path / "disk", *tmp_path.glob("made.*")}
    assert {path for path in there - own if not path.is_relative_to(inside)} == set()
    assert not any(path.is_symlink() for path in there)
    if not (tmp_path / "disk").exists():
        assert all(path.is_dir() or path.is_file() for path in there)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB and 20 files; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=20", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        place.rmdir()
        pytest.skip("a small file system cannot be mounted here: needs root and `mount`")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def contents(how: str, archive: Path) -> dict[str, bytes]:
    """All files of an archive, one way or the other."""
    if how == "unpacked":
        folder = archive.parent / "up" / "folder"
        unpack(archive, folder)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
    members = Members([archive])
    return {name: members.read(i) for i, name in enumerate(members.names)}


def refused(how: str, archive: Path, match: str = "made") -> None:
    with pytest.raises(DataError) as caught:
        contents(how, archive)
    assert archive.name in str(caught.value)
    # The folder's name is that of the test, which may have these words too.
    assert re.search(match, str(caught.value).replace(str(archive.parent), "")), caught.value


def entry(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    *,
    size: int | None = None,
    linkname: str = "",
    form: Literal[0, 1, 2] = tarfile.GNU_FORMAT,
) -> bytes:
    """One file of a tar: its header and its bytes; `size` may lie."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if size is None else size, kind, linkname
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def pax(**records: str | bytes) -> bytes:
    """A header that changes what the next one says; `__` stands for a dot."""
    lines = []
    for key, value in records.items():
        text = value.encode() if isinstance(value, str) else value
        rest = b" " + key.replace("__", ".").encode() + b"=" + text + b"\n"
        size = len(rest) + 1
        while size != len(str(size)) + len(rest):
            size = len(str(size)) + len(rest)
        lines.append(str(size).encode() + rest)
    return entry("pax", b"".join(lines), tarfile.XHDTYPE)


def tarred(folder: Path, *entries: bytes, name: str = "made.tar") -> Path:
    file = folder / name
    file.write_bytes(b"".join(entries) + END)
    return file


def good_tar(form: str = "gnu") -> bytes:
    """As the standard library writes it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=TAR_FORMATS[form]) as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def good_zip(compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.mkdir("n01440764")
        for name, data in FILES.items():
            archive.writestr(name, data)
    return made.getvalue()


def zipped(
    folder: Path,
    *entries: tuple[str, bytes],
    compression: int = zipfile.ZIP_STORED,
    mode: int = stat.S_IFREG,
) -> Path:
    file = folder / "made.zip"
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            info.compress_type = compression
            archive.writestr(info, data)
    return file


def patched(file: Path, old: bytes, new: bytes) -> Path:
    """The file with other bytes wherever these are."""
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))
    return file


def resized(file: Path, says: int, *, stored: bool) -> Path:
    """A zip of one file that says another size, in its directory and beside the file."""
    data = bytearray(file.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    packed = [18, directory + 20] if stored else []
    for place in (22, directory + 24, *packed):
        data[place : place + 4] = says.to_bytes(4, "little")
    file.write_bytes(data)
    return file


GOOD: dict[str, Callable[[], bytes]] = {
    "tar-ustar": lambda: good_tar("ustar"),
    "tar-gnu": lambda: good_tar("gnu"),
    "tar-pax": lambda: good_tar("pax"),
    "tar-gz": lambda: gzip.compress(good_tar()),
    "tar-bz2": lambda: bz2.compress(good_tar()),
    "tar-xz": lambda: lzma.compress(good_tar(), preset=0),
    "zip-stored": good_zip,
    "zip-deflated": lambda: good_zip(zipfile.ZIP_DEFLATED),
    "zip-bzip2": lambda: good_zip(zipfile.ZIP_BZIP2),
    "zip-lzma": lambda: good_zip(zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("name", ["made.tar", "made.zip", "made.tar.gz"])
@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_is_unpacked_whole_whatever_its_name(
    tmp_path: Path, kind: str, name: str
) -> None:
    (tmp_path / name).write_bytes(GOOD[kind]())
    assert contents("unpacked", tmp_path / name) == FILES


@pytest.mark.parametrize("kind", ["tar-gnu", "tar-gz", "zip-deflated"])
def test_it_is_told_how_much_of_the_archive_was_read(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    file = tmp_path / "made.archive"
    file.write_bytes(GOOD[kind]())
    told: list[int] = []
    unpack(file, folder, advance=told.append)
    whole = file.stat().st_size
    assert all(n >= 0 for n in told)
    assert 0.98 * whole <= sum(told) <= whole


# --- names -----------------------------------------------------------------------------------

BAD_NAMES = {
    "parent": "../x",
    "parents": "../../../../x",
    "parent in the middle": "a/../../x",
    "parent at the end": "a/..",
    "parent after a dot": "./../x",
    "absolute": "{root}/x",
    "absolute twice": "//{root}/x",
    "drive": "C:\\x",
    "drive with slash": "C:/x",
    "drive alone": "C:x",
    "backslashes": "..\\x",
    "backslashes in the middle": "a\\..\\..\\x",
    "root by backslash": "\\x",
    "share": "\\\\host\\share\\x",
    "long": "x" * 256,
    "long folder": "x" * 256 + "/x",
    "long in UTF-8": "ä" * 128,
    "line": "a\nb",
    "escape": "a\x1b[2Jb",
    "delete": "a\x7fb",
    "from right to left": "a\u202egpj.exe",
}


@both
@pytest.mark.parametrize(
    ("case", "form"),
    [
        # Every name in one form, and one name in every form, on each run.
        pytest.param(case, form, marks=() if form == "pax" or case == "parent" else SLOW)
        for case, name in BAD_NAMES.items()
        for form in TAR_FORMATS
        if form != "ustar" or len(name.encode()) < 100  # all that fits into its header
    ],
)
def test_a_name_that_leads_astray_is_refused_in_a_tar(
    tmp_path: Path, how: str, case: str, form: str
) -> None:
    name = BAD_NAMES[case].replace("{root}", str(tmp_path))
    bad = entry(name, b"bad", form=TAR_FORMATS[form])
    refused(how, tarred(tmp_path, entry("a/good", b"good"), bad), "the file name .* refused")


@both
@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_name_that_leads_astray_is_refused_in_a_zip(tmp_path: Path, how: str, case: str) -> None:
    name = BAD_NAMES[case].replace("{root}", str(tmp_path))
    file = zipped(tmp_path, ("a/good", b"good"), (name, b"bad"))
    refused(how, file, "the file name .* refused")


@both
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_unusual_text_in_a_name_is_kept(tmp_path: Path, how: str, kind: str) -> None:
    """A space that does not break, one without width, joiners, a mark of order, a private sign."""
    names = ["a\u00a0b", "n/a\u200bb", "n/a\u200db", "\ufeffa", "e\u0301", "\ue000"]
    files = {name: name.encode() for name in names}
    if kind == "tar":
        archive = tarred(tmp_path, *(entry(*file) for file in files.items()))
    else:
        archive = zipped(tmp_path, *files.items())
    assert contents(how, archive) == files


@both
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_backslashes_stand_between_folders_where_there_is_no_slash(
    tmp_path: Path, how: str, kind: str
) -> None:
    """Info-ZIP's rule, as programs for Windows write zips; else it is a letter, as on Unix."""
    files = {"val\\n1\\a": b"1", "val\\n2\\b": b"2", "val/n2/c\\d": b"3"}
    if kind == "tar":
        archive = tarred(tmp_path, *(entry(*file) for file in files.items()))
    else:
        archive = zipped(tmp_path, ("val\\", b""), ("val\\n1\\", b""), *files.items())
    expected = {"val/n1/a": b"1", "val/n2/b": b"2", "val/n2/c\\d": b"3"}
    assert contents(how, archive) == expected


@both
def test_one_file_with_slashes_and_with_backslashes_is_there_twice(
    tmp_path: Path, how: str
) -> None:
    refused(how, tarred(tmp_path, entry("a\\b", b"1"), entry("a/b", b"2")), "twice")
    refused(how, zipped(tmp_path, ("a\\b", b"1"), ("a/b", b"2")), "twice")


@both
@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("folder_", ["", "n1/", "../", "/x/", "n1\\"])
def test_the_icon_of_a_folder_that_macos_packs_is_left_out(
    tmp_path: Path, how: str, kind: str, folder_: str
) -> None:
    icon = (f"{folder_}Icon\r", b"icon" * 300)
    if kind == "tar":
        archive = tarred(tmp_path, entry("a", b"1"), entry(*icon), entry("b", b"2"))
    else:
        archive = zipped(tmp_path, ("a", b"1"), icon, ("b", b"2"))
    assert contents(how, archive) == {"a": b"1", "b": b"2"}


@both
def test_a_folder_that_leads_astray_is_refused(tmp_path: Path, how: str) -> None:
    refused(how, tarred(tmp_path, entry("../x", kind=tarfile.DIRTYPE)), "refused")
    refused(how, zipped(tmp_path, ("../x/", b"")), "refused")


@both
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_name_that_is_not_utf8_is_refused_in_a_tar(tmp_path: Path, how: str, form: str) -> None:
    header = b"" if form == "gnu" else pax(path=b"b\xff")
    file = tarred(tmp_path, header, entry("b\udcff", b"bad"))
    refused(how, file, r"the file name 'b\\udcff'.* refused")


@both
def test_a_name_that_is_not_utf8_but_says_so_is_refused_in_a_zip(tmp_path: Path, how: str) -> None:
    file = patched(zipped(tmp_path, ("bä", b"bad")), "bä".encode(), b"b\xff\xff")
    refused(how, file)


@both
def test_what_pax_says_of_a_name_is_checked(tmp_path: Path, how: str) -> None:
    for path in ("../x", f"{tmp_path}/x", "a\0b"):
        refused(how, tarred(tmp_path, pax(path=path), entry("good", b"bad")), "the file name")


@both
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_file_without_a_name_is_refused(tmp_path: Path, how: str, kind: str) -> None:
    if kind == "tar":
        refused(how, tarred(tmp_path, entry("", b"bad")))
    else:
        file = zipped(tmp_path, ("a", b"bad"))
        refused(how, patched(file, b"a", b"\0"))


# --- what is no file -------------------------------------------------------------------------

NO_FILES = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "sparse file": tarfile.GNUTYPE_SPARSE,
    "unknown": b"Z",
}


@both
@pytest.mark.parametrize("to", ["/etc/passwd", "../../outside", "good"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_links_and_devices_are_refused_in_a_tar(
    tmp_path: Path, how: str, kind: str, to: str
) -> None:
    file = tarred(tmp_path, entry("good", b"good"), entry("a", kind=NO_FILES[kind], linkname=to))
    refused(how, file, "holds 'a', a link or device; refused")


@both
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_no_file_is_written_through_a_link(tmp_path: Path, how: str, kind: bytes) -> None:
    link = entry("a", kind=kind, linkname=str(tmp_path))
    refused(how, tarred(tmp_path, link, entry("a/outside", b"bad")), "a link or device; refused")
    refused(how, tarred(tmp_path, link, entry("a", b"bad")), "a link or device; refused")


@both
@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_links_and_devices_are_refused_in_a_zip(tmp_path: Path, how: str, mode: int) -> None:
    file = zipped(tmp_path, ("a", str(tmp_path).encode()), ("a/outside", b"bad"), mode=mode)
    refused(how, file, "holds 'a', a link or device; refused")


@both
def test_a_sparse_file_is_refused(tmp_path: Path, how: str) -> None:
    """A kilobyte of an archive that says it is a terabyte: GNU tar's manual, Sparse Formats."""
    size = str(2**40)
    new = pax(
        GNU__sparse__major="1",
        GNU__sparse__minor="0",
        GNU__sparse__name="big",
        GNU__sparse__realsize=size,
    )
    refused(how, tarred(tmp_path, new, entry("a", b"1\n0\n1\n" + bytes(506))), "'big'.* refused")
    old = pax(GNU__sparse__map="0,1", GNU__sparse__size=size, GNU__sparse__name="big")
    refused(how, tarred(tmp_path, old, entry("a", b"1")), "'big'.* refused")


@both
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, how: str, kind: str) -> None:
    if kind == "tar":
        file = tarred(tmp_path, entry("a/b", b"1"), entry("c", b"2"), entry("a/b", b"3"))
    else:
        file = zipped(tmp_path, ("a/b", b"1"), ("c", b"2"), ("a/b", b"3"))
    refused(how, file, "holds '(a/)?b' twice")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/b/c"), ("a/b", "a")])
def test_a_file_that_is_used_as_a_folder_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    refused("unpacked", tarred(tmp_path, *(entry(name, b"1") for name in names)))
    refused("unpacked", zipped(tmp_path, *((name, b"1") for name in names)))


# --- without end -----------------------------------------------------------------------------


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_zip_bomb_is_refused_before_it_has_burst(tmp_path: Path, folder: Path) -> None:
    """70 MB of zeros in 70 kB: 20 times the archive, and 64 MiB, are allowed."""
    zeros = bytes(70_000_000)
    file = zipped(tmp_path, ("zeros", zeros), compression=zipfile.ZIP_DEFLATED)
    refused("unpacked", file, "expands to more than it may")
    assert written(folder) <= 64 * 2**20 + 20 * file.stat().st_size


def test_a_zip_bomb_is_refused_in_place(tmp_path: Path) -> None:
    file = zipped(tmp_path, ("zeros", bytes(70_000_000)), compression=zipfile.ZIP_DEFLATED)
    refused("in place", file, "expands to more than it may")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_bomb_is_refused_before_it_has_burst(
    tmp_path: Path, folder: Path, compress: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "made.tar"
    file.write_bytes(compress(entry("zeros", bytes(8 * 2**20)) + END))
    with pytest.raises(DataError, match="expands to more than it may"):
        unpack(file, folder, limits=Limits(slack=2**20))
    assert written(folder) <= 2**20 + 20 * file.stat().st_size


def test_many_files_together_are_limited_too(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "made.tar"
    file.write_bytes(gzip.compress(b"".join(entry(str(n), bytes(10_000)) for n in range(99)) + END))
    with pytest.raises(DataError, match="expands to more than it may"):
        unpack(file, folder, limits=Limits(ratio=1, slack=500_000))
    assert 400_000 < written(folder) <= 500_000 + file.stat().st_size
    shutil.rmtree(folder)
    unpack(file, folder, limits=Limits(ratio=1, slack=990_000))
    assert written(folder) == 990_000


def test_a_bomb_of_headers_is_refused(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "made.tar"
    file.write_bytes(gzip.compress(pax(comment=bytes(8 * 2**20)) + entry("a", b"1") + END))
    with pytest.raises(DataError, match="expands to more than it may"):
        unpack(file, folder, limits=Limits(slack=2**20))


def test_a_bomb_of_many_small_headers_is_refused(tmp_path: Path, folder: Path) -> None:
    """Each is short enough; together they are time, or memory, without end."""
    file = tmp_path / "made.tar"
    headers = [pax(**{f"key{n}": bytes(900_000)}) + entry(f"{n}", b"1") for n in range(20)]
    file.write_bytes(gzip.compress(b"".join(headers) + END))
    with pytest.raises(DataError, match="expands to more than it may"):
        unpack(file, folder, limits=Limits(slack=2**20))


def test_a_tar_that_is_followed_by_zeros_without_end_is_refused(
    tmp_path: Path, folder: Path
) -> None:
    """Some fill up the last record; nobody by 64 MiB."""
    file = tmp_path / "made.tar"
    file.write_bytes(gzip.compress(entry("a", b"1") + bytes(2**20)))
    unpack(file, folder)
    shutil.rmtree(folder)
    file.write_bytes(gzip.compress(entry("a", b"1") + bytes(65 * 2**20)))
    with pytest.raises(DataError, match="expands to more than it may"):
        unpack(file, folder)


@both
def test_a_zip_bomb_that_says_it_is_small_does_not_burst_in_memory(
    tmp_path: Path, how: str
) -> None:
    file = zipped(tmp_path, ("a", bytes(70_000_000)), compression=zipfile.ZIP_DEFLATED)
    resized(file, 1000, stored=False)
    tracemalloc.start()
    try:
        refused(how, file)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_files_are_refused(tmp_path: Path, folder: Path, kind: str) -> None:
    names = ["a", "b/c", "d"]
    if kind == "tar":
        file = tarred(tmp_path, *(entry(name, b"1") for name in names))
    else:
        file = zipped(tmp_path, *((name, b"1") for name in names))
    with pytest.raises(DataError, match="holds more than 2 files; refused"):
        unpack(file, folder, limits=Limits(files=2))
    shutil.rmtree(folder)
    unpack(file, folder, limits=Limits(files=3))
    assert written(folder) == 3


@both
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("says", [0, 10, 999, 1001, 4000, 2**32 - 2])
def test_a_zip_that_lies_about_a_size_is_refused(
    tmp_path: Path, how: str, says: int, stored: bool
) -> None:
    compression = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    file = zipped(tmp_path, ("a", b"x" * 1000), compression=compression)
    refused(how, resized(file, says, stored=stored))


@both
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("says", [2**45, 2**63 - 1, 2**64 - 1])
def test_a_zip_that_lies_about_a_huge_size_is_refused(
    tmp_path: Path, how: str, says: int, stored: bool
) -> None:
    """APPNOTE 4.5.3: sizes of 64 bits are in an extra field, where the others are all ones."""
    packed = b"x" * 1000
    if not stored:
        deflate = zlib.compressobj(wbits=-15)
        packed = deflate.compress(packed) + deflate.flush()
    sizes = struct.pack("<HHQQ", 1, 16, says, says if stored else len(packed))
    data = raw_zip("a", packed, zlib.crc32(b"x" * 1000), 2**32 - 1, not stored, extra=sizes)
    (tmp_path / "made.zip").write_bytes(data)
    refused(how, tmp_path / "made.zip")


# --- half there ------------------------------------------------------------------------------

SMALL = [entry("a", b"1" * 700), entry("b", b"2" * 512), entry("c", b"3")]


@both
@pytest.mark.parametrize("size", range(0, 8 * 512, 256))
def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path: Path, how: str, size: int) -> None:
    """Inside a header or a file, exactly between two, and before the block of zeros at its end."""
    whole = b"".join(SMALL) + END
    assert len(whole) == 9 * 512
    file = tmp_path / "made.tar"
    file.write_bytes(whole[:size])
    refused(how, file, "is (damaged|truncated)|empty")
    file.write_bytes(whole)
    shutil.rmtree(tmp_path / "up", ignore_errors=True)
    assert sorted(contents(how, file)) == ["a", "b", "c"]


@both
def test_a_tar_truncated_after_a_file_that_ends_in_zeros_is_refused(
    tmp_path: Path, how: str
) -> None:
    """A file's zeros are not the tar's end."""
    file = tmp_path / "made.tar"
    file.write_bytes(entry("zeros", bytes(1024)))
    refused(how, file, "is truncated")


@both
def test_a_damaged_header_is_no_end(tmp_path: Path, how: str) -> None:
    """`tarfile` stops there without a word."""
    damaged = b"\xff" + SMALL[1][1:]
    refused(how, tarred(tmp_path, SMALL[0], damaged, SMALL[2]), "is (damaged|truncated)")


@both
def test_zeros_in_the_middle_are_no_end(tmp_path: Path, how: str) -> None:
    """As of a lost block of the disk."""
    lost = bytes(512) + SMALL[1][512:]
    refused(how, tarred(tmp_path, SMALL[0], lost, SMALL[2]), "is (damaged|truncated)")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("part", [0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_compressed_tar_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes], part: float
) -> None:
    entries = [entry(str(n), RANDOM.bytes(3000)) for n in range(20)]
    packed = compress(b"".join(entries) + END)
    file = tmp_path / "made.tar.gz"
    file.write_bytes(packed[: int(part * len(packed))])
    refused("unpacked", file)


def test_a_compressed_tar_that_was_cut_before_it_was_compressed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "made.tar.gz"
    for cut in (SMALL[:1], SMALL[:2], [SMALL[0], SMALL[1][:700]]):
        file.write_bytes(gzip.compress(b"".join(cut)))
        refused("unpacked", file, "is (damaged|truncated)")
        shutil.rmtree(tmp_path / "up")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_damaged_compressed_tar_is_refused(tmp_path: Path, kind: str) -> None:
    """The checksum of gzip comes after the tar's end."""
    tar = entry("a", RANDOM.bytes(20_000)) + bytes(10_240)
    packed = {
        "gz": lambda: gzip.compress(tar, 0),
        "bz2": lambda: bz2.compress(tar),
        "xz": lambda: lzma.compress(tar),
    }[kind]()
    file = tmp_path / "made.tar"
    file.write_bytes(packed[:10_000] + bytes([packed[10_000] ^ 1]) + packed[10_001:])
    refused("unpacked", file)


@both
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_with_a_damaged_file_is_refused(tmp_path: Path, how: str, compression: int) -> None:
    file = zipped(tmp_path, ("a", FILES["n01440764/a.JPEG"]), compression=compression)
    data = file.read_bytes()
    file.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    refused(how, file, "damaged|CRC")


@both
def test_a_zip_with_a_file_that_cannot_be_inflated_is_refused(tmp_path: Path, how: str) -> None:
    """RFC 1951, 3.2.3: a block's kind of 11 is reserved."""
    file = zipped(tmp_path, ("a", b"abc" * 999), compression=zipfile.ZIP_DEFLATED)
    data = file.read_bytes()
    file.write_bytes(data[:31] + b"\x07" + data[32:])
    refused(how, file, "damaged")


@both
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_zip_is_refused(tmp_path: Path, how: str, part: float) -> None:
    file = tmp_path / "made.zip"
    whole = good_zip()
    file.write_bytes(whole[: int(part * len(whole))])
    refused(how, file)


@both
@pytest.mark.parametrize("data", [b"", b"\n", b"<html>Please log in</html>" * 99, b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["made.tar", "made.zip", "made.tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path: Path, how: str, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    refused(how, tmp_path / name, "is (damaged|empty|truncated)")


def test_a_tar_without_files_is_not_taken_for_a_whole_set(tmp_path: Path) -> None:
    refused("unpacked", tarred(tmp_path), "is empty")


@both
@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([entry("a", size=-512)], id="negative size"),
        pytest.param([SMALL[0], entry("b", size=-2048)], id="negative size, later"),
        pytest.param([entry("a", size=-512, kind=b"x")], id="negative pax header"),
        pytest.param([entry("a", size=-512, kind=b"L")], id="negative long name"),
        pytest.param([pax(size="-1024")], id="pax: negative size"),
        pytest.param([pax(size="many")], id="pax: size is no number"),
        pytest.param([pax(size="9" * 30)], id="pax: huge size"),
        pytest.param([pax(hdrcharset=b"\xff")], id="pax: not UTF-8"),
        pytest.param([entry("pax", b"0 path=x\n", b"x")], id="pax: a record of no length"),
        pytest.param([pax(GNU__sparse__size="x")], id="sparse: size is no number"),
        pytest.param(
            [pax(GNU__sparse__map="0,x", GNU__sparse__size="1")], id="sparse: map is no number"
        ),
        pytest.param([entry("l", b"x\0", b"L")] * 900, id="long names without end"),
        pytest.param([pax(path="x")] * 900, id="pax headers without end"),
        pytest.param([entry("a", b"x" * 512, tarfile.DIRTYPE)], id="a folder with bytes"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    tmp_path: Path, how: str, entries: list[bytes]
) -> None:
    file = tarred(tmp_path, *entries, entry("z", b"good"))
    refused(how, file, "is (damaged|truncated)|refused|GiB free")


@both
@pytest.mark.parametrize(
    ("mark", "at", "new"),
    [
        pytest.param(b"PK\x01\x02", 6, b"\xff\x00", id="version"),
        pytest.param(b"PK\x01\x02", 42, b"\xff\xff\xff\x00", id="offset"),
        pytest.param(b"PK\x01\x02", 28, b"\xff\x7f", id="name's length"),
        pytest.param(b"PK\x01\x02", 30, b"\xff\x7f", id="extra's length"),
        pytest.param(b"PK\x05\x06", 16, b"\xff\x00", id="directory further on"),
        pytest.param(b"PK\x05\x06", 12, b"\x00\x00", id="directory of no bytes"),
        pytest.param(b"PK\x05\x06", 12, b"\x2f\x00", id="directory of one file"),
        pytest.param(b"PK\x03\x04", 0, b"PK\x07\x08", id="no header"),
        pytest.param(b"PK\x03\x04", 26, b"\xff\x7f", id="name's length in the header"),
    ],
)
def test_a_zip_that_makes_no_sense_is_refused_or_whole(
    tmp_path: Path, how: str, mark: bytes, at: int, new: bytes
) -> None:
    """Offsets are APPNOTE's, 4.3.7 (file), 4.3.12 (directory) and 4.3.16 (end)."""
    files = {"a": b"abc", "b": b"def"}
    file = zipped(tmp_path, *files.items())
    data = file.read_bytes()
    place = data.index(mark) + at
    file.write_bytes(data[:place] + new + data[place + len(new) :])
    try:
        assert contents(how, file) == files
    except DataError as error:
        assert "password" not in str(error)


@both
def test_a_zip_whose_directory_lost_a_file_is_refused(tmp_path: Path, how: str) -> None:
    """`zipfile` does not compare the number of files with that at the end (APPNOTE 4.3.16)."""
    file = zipped(tmp_path, ("a", b"abc"), ("b", b"def"))
    data = file.read_bytes()
    second, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    sizes = struct.pack("<I", second - data.index(b"PK\x01\x02"))
    file.write_bytes(data[:second] + data[end : end + 12] + sizes + data[end + 16 :])
    with zipfile.ZipFile(file) as opened:
        assert opened.namelist() == ["a"]
    refused(how, file, "damaged")


def test_a_zip_without_files_is_not_taken_for_a_whole_set(tmp_path: Path) -> None:
    refused("unpacked", zipped(tmp_path), "is empty")


def test_a_zip_that_is_packed_in_an_unknown_way_says_so(tmp_path: Path) -> None:
    """In place bzip2 is unknown too, and unpacking it is what to do."""
    file = zipped(tmp_path, ("a", b"abc"), compression=zipfile.ZIP_BZIP2)
    refused("in place", file, "'a' is packed in an unknown way")
    assert contents("unpacked", file) == {"a": b"abc"}


def test_an_unknown_packing_is_not_taken_for_a_missing_password(tmp_path: Path) -> None:
    """Method 99 is AES; zipfile has none."""
    file = tmp_path / "made.zip"
    file.write_bytes(raw_zip("a", b"abc", zlib.crc32(b"abc"), 3, method=97))
    with pytest.raises(DataError) as caught:
        contents("unpacked", file)
    assert "password" not in str(caught.value)


@both
def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path, how: str) -> None:
    inside = zipped(tmp_path, ("hidden", b"other")).read_bytes()
    file = tarred(tmp_path, entry("a", b"1"), entry("b.zip", inside))
    assert contents(how, file) == {"a": b"1", "b.zip": inside}


@both
def test_a_damaged_byte_anywhere_in_a_tar_never_escapes_nor_crashes(
    tmp_path: Path, how: str
) -> None:
    """Every byte of headers and directory, one at a time: a DataError, or what is readable."""
    good = {"a/b": b"12", "c": b"3"}
    tar = b"".join(entry(name, data) for name, data in good.items()) + END
    for place in [*range(0, 512, 5), *range(1024, 1536, 5)]:
        file = tmp_path / "made.tar"
        file.write_bytes(tar[:place] + bytes([tar[place] ^ 0x55]) + tar[place + 1 :])
        shutil.rmtree(tmp_path / "up", ignore_errors=True)
        try:
            came = contents(how, file)
        except DataError:
            continue
        assert came == good, f"byte {place}"


@both
def test_a_damaged_byte_anywhere_in_a_zip_never_escapes_nor_crashes(
    tmp_path: Path, how: str
) -> None:
    good = {"a/b": b"12", "cä": b"3" * 99}
    data = zipped(tmp_path, *good.items(), compression=zipfile.ZIP_DEFLATED).read_bytes()
    file = tmp_path / "made.zip"
    crashes = []
    for place in range(len(data)):
        for flip in (0x01, 0xFF):
            file.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            shutil.rmtree(tmp_path / "up", ignore_errors=True)
            try:
                came = contents(how, file)
            except DataError:
                continue
            except Exception as error:
                crashes.append(f"byte {place} ^ {flip}: {error!r}")
                continue
            assert set(came.values()) <= set(good.values())  # names have no checksum
    assert crashes == []


# --- encrypted -------------------------------------------------------------------------------


def raw_zip(
    name: str,
    packed: bytes,
    crc: int,
    size: int,
    deflated: bool = False,
    *,
    encrypted: bool = False,
    method: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A zip of one file, from bytes that are packed already: APPNOTE 4.3."""
    encoded = name.encode()
    kind = (8 if deflated else 0) if method is None else method
    length = 2**32 - 1 if extra else len(packed)
    common = struct.pack(
        "<HHHHHIIIHH", 45, encrypted, kind, 0, 33, crc, length, size, len(encoded), len(extra)
    )
    local = b"PK\x03\x04" + common + encoded + extra + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 45) + common + bytes(14) + encoded + extra
    return (
        local
        + entry
        + b"PK\x05\x06"
        + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    )


def encrypted(data: bytes, password: bytes, crc: int) -> bytes:
    """ZipCrypto: APPNOTE 6.1. The checksum's highest byte lets a wrong password be known."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc32(key: int, byte: int) -> int:
        return zlib.crc32(bytes([byte]), key ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte: int) -> None:
        keys[0] = crc32(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc32(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    out = bytearray()
    for byte in bytes(range(11)) + bytes([crc >> 24]) + data:
        key = (keys[2] | 2) & 0xFFFF
        out.append(byte ^ ((key * (key ^ 1) >> 8) & 0xFF))
        update(byte)
    return bytes(out)


def encrypted_zip(folder: Path, deflated: bool) -> Path:
    data = FILES["n01440764/a.JPEG"]
    packed = data
    if deflated:
        deflate = zlib.compressobj(wbits=-15)
        packed = deflate.compress(data) + deflate.flush()
    crc = zlib.crc32(data)
    secret = encrypted(packed, b"objectnet", crc)
    file = folder / "made.zip"
    file.write_bytes(raw_zip("a.png", secret, crc, len(data), deflated, encrypted=True))
    return file


@pytest.mark.parametrize("deflated", [True, False])
def test_an_encrypted_zip_is_unpacked_with_its_password(
    tmp_path: Path, folder: Path, deflated: bool
) -> None:
    unpack(encrypted_zip(tmp_path, deflated), folder, password="objectnet")
    assert (folder / "a.png").read_bytes() == FILES["n01440764/a.JPEG"]


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_without_its_password_an_encrypted_zip_says_what_to_do(
    tmp_path: Path, folder: Path, password: str | None
) -> None:
    with pytest.raises(DataError, match=r"password.* Give --password PASSWORD"):
        unpack(encrypted_zip(tmp_path, True), folder, password=password)
    assert written(folder) == 0


def test_a_wrong_password_that_passes_the_first_check_is_told_too(
    tmp_path: Path, folder: Path
) -> None:
    """As one in 256 does."""
    file = encrypted_zip(tmp_path, False)
    with zipfile.ZipFile(file) as archive:

        def passes(password: str) -> bool:
            try:
                archive.open("a.png", pwd=password.encode()).close()
            except RuntimeError:
                return False
            return True

        lucky = next(word for n in range(10_000) if passes(word := f"wrong {n}"))
    with pytest.raises(DataError, match="Give --password PASSWORD"):
        unpack(file, folder, password=lucky)


def test_a_password_that_is_not_needed_is_no_matter(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "made.zip").write_bytes(good_zip())
    unpack(tmp_path / "made.zip", folder, password="objectnet")
    assert written(folder) == sum(map(len, FILES.values()))


def test_an_encrypted_zip_in_place_says_to_unpack_it(tmp_path: Path) -> None:
    advice = re.escape("rib-harness data prepare NAME --from FILE --password PASSWORD")
    refused("in place", encrypted_zip(tmp_path, True), f"is encrypted.* {advice}")


# --- the disk --------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_begun(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tarred(tmp_path, entry("a", bytes(3000)))
    usage = shutil.disk_usage("/")
    for free, fits in ((3099, False), (3100, True)):  # a fiftieth of the disk stays free
        disk = usage._replace(total=5000, used=0, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, disk=disk: disk)
        if fits:
            unpack(file, folder)
        else:
            with pytest.raises(DataError, match=r"made\.tar needs .* Make room"):
                unpack(file, folder)
            assert written(folder) == 0


def test_on_a_large_disk_a_quarter_of_a_gibibyte_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    disk = shutil.disk_usage("/")._replace(total=1000 * gib, used=0, free=10 * gib)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    check_space(tmp_path, 10 * gib - gib // 4, "it")
    with pytest.raises(DataError, match=r"it needs 9\.75 GiB .* has 10\.00 GiB free"):
        check_space(tmp_path, 10 * gib - gib // 4 + 1, "it")


def test_a_small_disk_is_not_filled_by_what_does_not_fit(tmp_path: Path, small_disk: Path) -> None:
    file = tarred(tmp_path, entry("a", bytes(1_000_000)), entry("b", bytes(1_500_000)))
    with pytest.raises(DataError, match=r"made\.tar needs .* Make room"):
        unpack(file, small_disk / "set")
    assert written(small_disk) == 1_000_000


def test_a_disk_that_fills_meanwhile_ends_in_a_clear_error(
    tmp_path: Path, small_disk: Path
) -> None:
    file = tarred(tmp_path, entry("a", RANDOM.bytes(1_500_000)))
    read = 0

    def fill(n: int) -> None:
        nonlocal read
        read += n
        if read > 200_000 and not (small_disk / "ballast").exists():
            (small_disk / "ballast").write_bytes(bytes(1_000_000))

    with pytest.raises(DataError, match=r"The disk of .*/set is full: made\.tar could not be"):
        unpack(file, small_disk / "set", advance=fill)


def test_a_disk_that_holds_no_more_files_ends_in_a_clear_error(
    tmp_path: Path, small_disk: Path
) -> None:
    file = tarred(tmp_path, *(entry(f"{n}", b"1") for n in range(30)))
    with pytest.raises(DataError, match=r"The disk of .*/set is full: made\.tar could not be"):
        unpack(file, small_disk / "set")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_where_none_can_be_mounted(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(type(Path())):  # type: ignore[misc]
        """A file on a full disk."""

        def open(self, mode: str = "r", *args: object, **options: object) -> io.IOBase:
            if mode == "xb":
                return open("/dev/full", "wb", buffering=0)  # noqa: PTH123
            return super().open(mode, *args, **options)

    file = tarred(tmp_path, entry("a", b"1"))
    with pytest.raises(DataError, match=r"is full: made\.tar could not be unpacked"):
        unpack(file, Full(folder))


def test_what_is_unpacked_has_the_digests_of_the_originals(tmp_path: Path) -> None:
    (tmp_path / "made.tar").write_bytes(good_tar())
    came = {
        n: hashlib.sha256(d).hexdigest()
        for n, d in contents("unpacked", tmp_path / "made.tar").items()
    }
    assert came == {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}
