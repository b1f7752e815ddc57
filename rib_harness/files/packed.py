"""What is inside tars and zips that somebody else made: each entry checked, or all refused.

Python's own `extractall(filter="data")` has known bypasses on older versions, and its `tarfile`
takes a damaged header for the end. Here names, kinds, sizes and the end are checked, and only an
entry's bytes are taken from the archive.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rib_harness.errors import DataError

#: What Python's readers raise on archives that make no sense; `OSError` too, but for a full disk.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    IndexError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    ValueError,
    struct.error,
)

#: Longest piece that is read at once; headers are shorter.
PIECE = 1 << 20

#: Zeros that may follow a tar's end: programs fill up their last record.
_PADDING = 64 * 2**20


#: Controls, halves of surrogate pairs, ends of lines and paragraphs.
_NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})

#: What turns the direction of the text around: a name is shown as another.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Limits:
    """What an archive may expand to: photographs are compressed already.

    Args:
        ratio: unpacked bytes to packed ones.
        slack: bytes that are free on top of that.
        files: how many.
    """

    ratio: float = 20.0
    slack: int = 64 * 2**20
    files: int = 10_000_000

    def bytes_of(self, archive: Path) -> int:
        """How many bytes an archive may expand to."""
        return int(archive.stat().st_size * self.ratio) + self.slack


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Whatever Python raises on a damaged archive is a `DataError` that names it."""
    try:
        yield
    except (*DAMAGE, OSError) as error:  # OSError: e.g. a place before the beginning
        raise DataError(f"{archive} is damaged: {type(error).__name__}: {error}.") from None


def too_much(archive: Path, what: str = "") -> DataError:
    """What to say of an archive that expands without end."""
    return DataError(f"{archive} expands to more than it may{what}; refused.")


def is_compressed(path: Path) -> bool:
    """Whether it is a gzip, bzip2 or xz file, by its content: names mislead (`.tar.gz` of V2)."""
    return _magic(path).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def is_zip(path: Path) -> bool:
    """Whether it is a zip, by its beginning: a tar may end in one."""
    return _magic(path).startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _is_text(character: str) -> bool:
    """Whether it may stand in a name; spaces without width or break may."""
    return unicodedata.category(character) not in _NO_TEXT and character not in _TURNING


def as_path(name: str) -> str:
    """A name whose folders are told apart by backslashes, as some programs for Windows write it.

    One with a slash may have backslashes in its words, on Unix: Info-ZIP's rule.
    """
    return name if "/" in name else name.replace("\\", "/")


def is_litter(name: str) -> bool:
    """Whether it is what macOS leaves where a folder has an icon, under a name that is no text."""
    return re.split(r"[/\\]", name)[-1] == "Icon\r"


def check_name(name: str, archive: Path) -> None:
    """Refuse a name that would lead outside, or that no file system keeps as it is.

    Raises:
        DataError: names the file and the archive.
    """
    parts = name.replace("\\", "/").split("/")
    bad = (
        not name.strip("/")
        or name.startswith(("/", "\\"))
        or ".." in parts
        or ":" in parts[0]
        or not (name.isprintable() or all(map(_is_text, name)))
        or max(len(part.encode("utf-8", "surrogateescape")) for part in parts) > 255
    )
    if bad:
        raise DataError(
            f"{archive} holds the file name {name!r}, which leads outside or is none; refused."
        )


@dataclass(frozen=True)
class Entry:
    """One file of a tar: its bytes begin at `offset` (of the unpacked stream)."""

    name: str
    size: int
    offset: int


class TarStream:
    """A tar, plain or compressed, as `tarfile` wants to read it: never back, never much at once.

    Args:
        raw: the file, or what decompresses it; read from `start`.
        archive: for messages.
        end: where the tar ends; None for the end of a stream, in which nothing can be skipped.
    """

    def __init__(self, raw: Any, archive: Path, start: int = 0, end: int | None = None):
        self._raw, self.archive, self.end = raw, archive, end
        if end is not None:
            raw.seek(start)
        self._position = start
        self.limit: int | None = None  # of the stream's length
        self._kept = b""  # what was read last, since `tarfile` goes back by a byte

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, _whence: int = 0) -> int:
        """Go on to `offset`; in a stream, back only within what was read last."""
        if self.end is not None:
            self._raw.seek(offset)
            self._position = offset
            return offset
        back = self._position - offset
        if back > len(self._kept):
            raise ValueError(f"goes back to {offset}")
        if back > 0:
            self._kept, again = self._kept[:-back], self._kept[-back:]
            self._raw = _Again(again, self._raw)
            self._position = offset
        while self._position < offset:
            if not self.read(min(PIECE, offset - self._position)):
                self._position = offset
        return offset

    def read(self, size: int) -> bytes:
        """At most a mebibyte: no header is longer."""
        if size < 0:
            raise ValueError("a negative size")
        if size > PIECE:
            raise too_much(self.archive, f" (a header of {size:,} bytes)")
        if self.end is not None:
            size = min(size, max(self.end - self._position, 0))
        data: bytes = self._raw.read(size) if size else b""
        self._position += len(data)
        if self.limit is not None and self._position > self.limit:
            raise too_much(self.archive)
        self._kept = (self._kept + data)[-1024:]
        return data

    def entries(self) -> Iterator[Entry]:
        """All files, each checked; their bytes may be read before going on.

        Raises:
            DataError: damaged, truncated, empty; a name that leads outside; a link or device.
        """
        archive, last, files = self.archive, self._position, 0
        with reading(archive), tarfile.open(fileobj=cast(Any, self), mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # a list of millions otherwise
                litter = is_litter(info.name)
                if not litter:
                    check_name(info.name, archive)
                if info.size < 0 or info.offset < last:
                    raise ValueError(f"the size of {info.name!r}")
                if info.isdir():
                    last = info.offset_data
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"{archive} holds {info.name!r}, a link or device; refused.")
                last = info.offset_data + -(-info.size // 512) * 512
                if self.end is not None and info.offset_data + info.size > self.end:
                    raise DataError(f"{archive} is truncated inside {info.name!r}.")
                if not litter:
                    files += 1
                    yield Entry(as_path(info.name), info.size, info.offset_data)
            self._check_end(last)
        if not files:
            raise DataError(f"{archive} is empty.")

    def _check_end(self, last: int) -> None:
        """A tar ends in zeros, and nothing else follows; `tarfile` looks at neither."""
        self.seek(last)
        zeros = 0
        while block := self.read(PIECE):
            if any(block):
                raise DataError(f"{self.archive} is damaged at byte {last + zeros:,}.")
            zeros += len(block)
            if zeros > _PADDING:
                raise too_much(self.archive)
        if zeros < 512:
            raise DataError(f"{self.archive} is truncated: its end is missing.")


class _Again:
    """Bytes that were read already, then the rest of the stream."""

    def __init__(self, again: bytes, raw: Any):
        self._again, self._raw = again, raw

    def read(self, size: int) -> bytes:
        if self._again:
            data, self._again = self._again[:size], self._again[size:]
            return data
        rest: bytes = self._raw.read(size)
        return rest


@contextmanager
def tar_stream(archive: Path, advance: Callable[[int], None] | None = None) -> Iterator[TarStream]:
    """A tar's stream, decompressed where it is compressed."""
    with archive.open("rb") as file:
        raw: Any = _Counted(file, advance)
        if not is_compressed(archive):
            yield TarStream(raw, archive, end=os.fstat(file.fileno()).st_size)
            return
        magic = _magic(archive)[:2]
        if magic == b"\x1f\x8b":
            raw = gzip.GzipFile(fileobj=raw, mode="rb")
        else:
            opener: Any = bz2.BZ2File if magic == b"BZ" else lzma.LZMAFile
            raw = opener(raw, "rb")
        yield TarStream(raw, archive)


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, raw: Any, advance: Callable[[int], None] | None):
        self._raw, self._advance, self._told = raw, advance, 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._raw.read(size)
        self._tell()
        return data

    def seek(self, offset: int) -> None:
        self._raw.seek(offset)
        self._tell()

    def _tell(self) -> None:
        further = self._raw.tell() - self._told
        if further > 0 and self._advance is not None:
            self._advance(further)
            self._told += further

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return bool(self._raw.closed)


def zip_entries(opened: zipfile.ZipFile, archive: Path, limits: Limits) -> list[zipfile.ZipInfo]:
    """All files of a zip, each checked.

    Raises:
        DataError: empty or damaged; a name that leads outside, a link or device; more than the
            limits allow.
    """
    infos = opened.infolist()
    # zipfile stops where the directory's bytes end, whatever the number of files is said to be.
    said = _said_files(archive)
    if said is not None and said != len(infos) % 65_536:  # some writers let it overflow
        raise DataError(f"{archive} is damaged: it says {said} files and lists {len(infos)}.")
    files = []
    for info in infos:
        if is_litter(info.filename):
            continue
        check_name(info.filename, archive)
        info.filename = as_path(info.filename)
        kind = (info.external_attr >> 16) & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise DataError(f"{archive} holds {info.filename!r}, a link or device; refused.")
        if not info.is_dir():
            files.append(info)
    if not files:
        raise DataError(f"{archive} is empty.")
    if sum(info.file_size for info in files) > limits.bytes_of(archive):
        raise too_much(archive)
    return files


def _said_files(archive: Path) -> int | None:
    """How many entries a zip's end says that there are; None where that is elsewhere (zip64)."""
    with archive.open("rb") as file:
        file.seek(max(archive.stat().st_size - 22 - 65_535, 0))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 12:
        return None
    (said,) = struct.unpack("<H", tail[place + 10 : place + 12])
    return None if said == 0xFFFF else int(said)
