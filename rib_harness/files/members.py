"""The files inside folders, tars and zips as one list: names, sizes, digests, how to read one.

An archive is read in place: its index says where each file's bytes begin. Indices and digests are
kept in the cache, and made anew for what changed.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rib_harness.cache import cache_dir, read_checked, write_checked
from rib_harness.errors import DataError
from rib_harness.files.packed import (
    Limits,
    TarStream,
    is_compressed,
    is_zip,
    reading,
    zip_entries,
)
from rib_harness.pictures import is_picture
from rib_harness.readers import Readers

log = logging.getLogger("rib_harness.files")

#: Deepest folder that is looked into: no published layout needs more, and links may go in circles.
DEEPEST = 8

#: What macOS puts into archives.
_LITTER = "__MACOSX"

#: What to say where a file is not the one whose label and digest are known.
CHANGED = "It has changed since it was indexed: give the same command again, which indexes it anew."

#: Version of the index files.
_FORMAT = "3"


class Member(NamedTuple):
    """One file.

    Args:
        name: below its folder or archive, with forward slashes.
        size: in bytes, when unpacked.
        stamp: of a file in a folder its last change of any kind; `touch` cannot turn it back.
        offset: in an archive, where its bytes begin.
        packed: bytes that it takes there, if it is deflated; else −1.
        crc: of a zip's file, to tell damage; else −1.
        inode: of a file in a folder.
    """

    name: str
    size: int
    stamp: int = 0
    offset: int = 0
    packed: int = -1
    crc: int = -1
    inode: int = 0


class Part(Protocol):
    """A folder or an archive."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    def state(self) -> str:
        """Changes when an archive does; empty for a folder, whose files are looked at each."""
        ...

    def scan(self) -> Iterator[Member]:
        """All files, without their contents."""
        ...

    def read(self, member: Member) -> bytes:
        """One file's bytes; from several threads at once."""
        ...

    def holds(self, member: Member, state: str) -> bool:
        """Whether the file is still the one that was indexed, in a part of this state."""
        ...


class Members:
    """The files of one or several folders and archives.

    Args:
        paths: folders, .tar and .zip files.
        skip: names of folders that are not looked into.

    Raises:
        DataError: a path that is neither, an archive that cannot be read in place, or one that
            holds links or devices.
    """

    def __init__(self, paths: Sequence[Path], skip: Collection[str] = ()):
        self.parts = [_open_part(path, frozenset(skip)) for path in paths]
        self._kept = [_read_index(part) for part in self.parts]
        self._rows: list[tuple[int, Member]] = []
        for number, part in enumerate(self.parts):
            index = self._kept[number]
            if not index.whole:
                state = part.state()  # before the scan: what changes later is seen next time
                index = _Index({m: index.digests.get(m, "") for m in part.scan()}, state, True)
                self._kept[number] = index
                if state:
                    _write_index(part, index)
            self._rows += [
                (number, member) for member in index.digests if not _left_out(member.name, skip)
            ]

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def names(self) -> list[str]:
        """Of each file, below its folder or archive."""
        return [member.name for _, member in self._rows]

    def part_of(self, index: int) -> int:
        """In which of the folders or archives it is."""
        return self._rows[index][0]

    def where(self, index: int) -> str:
        """The file, for messages: `DIR/n01440764/a.JPEG` or `imagenet-a.tar/n0144…`."""
        number, member = self._rows[index]
        return f"{self.parts[number].path}/{member.name}"

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            DataError: damaged or gone, or another than was indexed: labels and fingerprint are of
                that one.
        """
        number, member = self._rows[index]
        part, kept = self.parts[number], self._kept[number]
        try:
            data = part.read(member)
            # Asked after it was read, so that no change comes between.
            if part.holds(member, kept.state):
                return data
            data = copy.copy(part).read(member)  # opened anew: another may be in its place
        except DataError as error:
            if part.holds(member, kept.state):
                raise
            raise DataError(f"{error} {CHANGED}") from None
        # Where only times or the inode are others, the content decides.
        if hashlib.sha256(data).hexdigest() != kept.digests[member]:
            raise DataError(f"{self.where(index)}: other bytes. {CHANGED}")
        return data

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 of each of these files; read again only where something changed.

        What was read is kept also when the reading is interrupted.
        """
        rows = [self._rows[i] for i in indices]
        new = [i for i, (n, m) in zip(indices, rows, strict=True) if not self._kept[n].digests[m]]
        if len(new) > 5000:
            root = self.parts[0].path
            log.warning("%s: reading %s files once, to know their content", root, f"{len(new):,}")

        def digest(index: int) -> str:
            return hashlib.sha256(self.read(index)).hexdigest()

        def keep() -> None:
            for number in {self._rows[i][0] for i in new}:
                _write_index(self.parts[number], self._kept[number])

        try:
            with Readers() as pool:
                for start in range(0, len(new), 1000):
                    chunk = new[start : start + 1000]
                    for i, value in zip(chunk, pool.map(digest, chunk), strict=True):
                        number, member = self._rows[i]
                        self._kept[number].digests[member] = value
                    if start % 200_000 == 199_000:  # hours of reading outlive a power cut
                        keep()
        finally:
            keep()
        return [self._kept[n].digests[m] for n, m in rows]


def _left_out(name: str, skip: Collection[str]) -> bool:
    """Whether it is hidden, litter, or in a folder to skip: the same in every form."""
    if "/." in name or name.startswith("."):
        return True
    folders = name.split("/")[:-1]
    return _LITTER in folders or (bool(skip) and not set(skip).isdisjoint(folders))


def carry_index(old: Path, new: Path) -> None:
    """Keep a folder's index when the folder is renamed, which leaves its files as they are."""
    file = _index_file(Folder(old))
    if (index := read_checked(file)) is not None:
        write_checked(_index_file(Folder(new)), index)
        file.unlink()


@dataclass(frozen=True)
class Folder:
    """The files below a folder; hidden ones are left out, and folders whose name is in `skip`."""

    path: Path
    skip: frozenset[str] = frozenset()

    def state(self) -> str:
        """Nothing: its files are looked at each time."""
        return ""

    def scan(self) -> Iterator[Member]:
        """Walk it, in the order of names."""
        yield from self._below(self.path, "", 0)

    def _below(self, folder: Path, prefix: str, depth: int) -> Iterator[Member]:
        if depth > DEEPEST:
            raise DataError(f"{folder} lies too deep: expected at most {DEEPEST} folders.")
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
        for entry in entries:
            if entry.name.startswith(".") or entry.name == _LITTER:
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if not (is_folder or is_file):
                raise DataError(f"{entry.path!r} is no file that can be read: a broken link?")
            if is_file:
                name = prefix + entry.name
                if not _is_utf8(name):  # no index can hold it
                    if is_picture(name):
                        raise DataError(f"{entry.path!r}: this name is not UTF-8; rename it.")
                    continue
                stat = entry.stat()
                yield _member(name, stat)
            elif entry.name not in self.skip:
                yield from self._below(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)

    def read(self, member: Member) -> bytes:
        """One file."""
        try:
            return (self.path / member.name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / member.name}: {error.strerror}.") from None

    def holds(self, member: Member, state: str) -> bool:
        """By size, time of change and inode."""
        try:
            return _member(member.name, (self.path / member.name).stat()) == member
        except OSError:
            return False


def _member(name: str, stat: os.stat_result) -> Member:
    inode = stat.st_ino % 2**63  # the index has signed numbers
    return Member(name, stat.st_size, stat.st_ctime_ns, inode=inode)


class _File:
    """An archive's file, read at any place by several threads at once."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[type[_File], tuple[Path]]:
        # In another process it is opened anew.
        return type(self), (self.path,)

    def state(self) -> str:
        """Size, times and inode."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}.") from None
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"

    def holds(self, member: Member, state: str) -> bool:
        """By the archive's state."""
        try:
            return self.state() == state
        except DataError:
            return False

    def bytes_at(self, offset: int, size: int) -> bytes:
        with self._lock:
            if self._descriptor is None:
                try:
                    self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                except OSError as error:
                    raise DataError(f"{self.path}: {error.strerror}.") from None
                weakref.finalize(self, os.close, self._descriptor)
            if not hasattr(os, "pread"):  # Windows
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                return os.read(self._descriptor, size)
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a read gives at most 2 GiB
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise DataError(f"{self.path} is shorter than when it was indexed.")
            data += more
        return data


class Tar(_File):
    """The files of an uncompressed tar, and of tars inside it (as ImageNet's training set)."""

    def scan(self) -> Iterator[Member]:
        """Read all headers.

        Raises:
            DataError: compressed, truncated, or with links or devices.
        """
        if is_compressed(self.path):
            raise DataError(
                f"{self.path} is compressed, so its files cannot be read in place. "
                "Unpack it: rib-harness data prepare NAME --from FILE"
            )
        seen: set[str] = set()
        with self.path.open("rb") as file:
            for member in self._walk(file, 0, self.path.stat().st_size, ""):
                if member.name in seen:
                    raise DataError(f"{self.path} holds {member.name!r} twice.")
                seen.add(member.name)
                yield member

    def _walk(self, file: IO[bytes], start: int, end: int, prefix: str) -> Iterator[Member]:
        for entry in TarStream(file, self.path, start, end).entries():
            name = prefix + entry.name.removeprefix("./")
            if name.endswith(".tar") and not prefix:
                inside, folder = entry.offset, name.removesuffix(".tar") + "/"
                yield from self._walk(file, inside, inside + entry.size, folder)
            else:
                yield Member(name, entry.size, offset=entry.offset)

    def read(self, member: Member) -> bytes:
        """One file."""
        return self.bytes_at(member.offset, member.size)


class Zip(_File):
    """The files of a zip that is stored or deflated."""

    def scan(self) -> Iterator[Member]:
        """Read the directory.

        Raises:
            DataError: damaged, encrypted, or with links.
        """
        size = self.path.stat().st_size
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            infos = zip_entries(archive, self.path, Limits())
        seen: set[str] = set()
        for info in infos:
            if info.flag_bits & 1:
                raise DataError(
                    f"{self.path} is encrypted, so its files cannot be read in place. Unpack it: "
                    "rib-harness data prepare NAME --from FILE --password PASSWORD"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{self.path}: {info.filename!r} is packed in an unknown way.")
            if info.filename in seen:
                raise DataError(f"{self.path} holds {info.filename!r} twice.")
            seen.add(info.filename)
            there = 0 <= info.header_offset < size - 30
            header = self.bytes_at(info.header_offset, 30) if there else b""
            if header[:4] != b"PK\x03\x04":
                raise DataError(f"{self.path} is damaged at {info.filename!r}.")
            offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            stored = info.compress_type == zipfile.ZIP_STORED
            if offset + max(info.compress_size, info.file_size * stored) > size:
                raise DataError(f"{self.path} is truncated at {info.filename!r}.")
            packed = -1 if stored else info.compress_size
            yield Member(info.filename, info.file_size, 0, offset, packed, info.CRC)

    def read(self, member: Member) -> bytes:
        """One file, checked against the directory's size and CRC."""
        if member.packed < 0:
            data = self.bytes_at(member.offset, member.size)
        else:
            packed = self.bytes_at(member.offset, member.packed)
            try:
                # One byte more than it says it has: what expands beyond that is refused.
                data = zlib.decompressobj(-15).decompress(packed, member.size + 1)
            except zlib.error as error:
                raise DataError(f"{self.path}: {member.name!r} is damaged: {error}.") from None
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise DataError(f"{self.path}: {member.name!r} is damaged: its checksum differs.")
        return data


def _is_utf8(name: str) -> bool:
    """Whether a name is text: what is none has half of a surrogate pair for each byte."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_part(path: Path, skip: frozenset[str]) -> Part:
    if path.is_dir():
        return Folder(path, skip)
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    return Zip(path) if is_zip(path) else Tar(path)


@dataclass
class _Index:
    """Files with their digests (empty where not read yet).

    Args:
        state: of the archive when it was scanned.
        whole: whether no scan is needed.
    """

    digests: dict[Member, str]
    state: str = ""
    whole: bool = False


def _index_file(part: Part) -> Path:
    name = hashlib.sha256(str(part.path.resolve()).encode()).hexdigest()[:32]
    return cache_dir("indices") / f"{name}.parquet"


def _read_index(part: Part) -> _Index:
    kept = read_checked(_index_file(part))
    if kept is None:
        return _Index({})
    table = pq.read_table(pa.BufferReader(kept))
    said = table.schema.metadata or {}
    if said.get(b"format", b"").decode() != _FORMAT:
        return _Index({})
    columns = [table.column(name).to_pylist() for name in (*Member._fields, "digest")]
    digests = {Member(*row[:-1]): row[-1] for row in zip(*columns, strict=True)}
    if state := part.state():
        same = said.get(b"state", b"").decode() == state
        return _Index(digests, state, True) if same else _Index({})
    return _Index(digests)


def _write_index(part: Part, index: _Index) -> None:
    columns = dict(zip(Member._fields, zip(*index.digests, strict=True), strict=False))
    arrays = {name: list(columns.get(name, ())) for name in Member._fields}
    types = {"name": pa.string()}
    table = pa.table(
        {
            **{n: pa.array(v, types.get(n, pa.int64())) for n, v in arrays.items()},
            "digest": pa.array(index.digests.values(), pa.string()),
        }
    ).replace_schema_metadata({"format": _FORMAT, "state": index.state})
    made = io.BytesIO()
    pq.write_table(table, made)
    write_checked(_index_file(part), made.getvalue())
