"""Unpacking what somebody else packed: nothing outside the folder, no links, no endless files.

Python's own `extractall(filter="data")` has known bypasses on older versions; here every file is
opened by us, under a name that was checked, and only its bytes come from the archive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rib_harness.errors import DataError
from rib_harness.files.members import check_name, check_zip_member, is_compressed
from rib_harness.store import is_full

_CHUNK = 1 << 20

#: Left free on the disk, so that other programs live.
RESERVE = 256 * 2**20


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


def unpack(
    archive: Path,
    folder: Path,
    *,
    password: str | None = None,
    limits: Limits | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write an archive's files below `folder`, which must be new or empty.

    Args:
        archive: tar (plain or compressed) or zip, told by content.
        password: of an encrypted zip.
        advance: told how many more bytes of the archive were read.

    Raises:
        DataError: damaged; a name that leads outside; a link or device; more than the limits
            allow; a disk that is full. What was written stays below `folder`, for the caller to
            remove.
    """
    limits = limits or Limits()
    folder.mkdir(parents=True, exist_ok=True)
    allowed = int(archive.stat().st_size * limits.ratio) + limits.slack
    written = files = 0
    try:
        for name, size, stream in _files(archive, password, advance):
            files += 1
            if files > limits.files:
                raise DataError(f"{archive} holds more than {limits.files:,} files; refused.")
            check_space(folder, size, archive.name)
            written += _write(folder / name, size, stream, allowed - written, archive)
    except OSError as error:
        if is_full(error):
            raise DataError(
                f"The disk of {folder} is full: {archive.name} could not be unpacked."
            ) from None
        raise DataError(f"{archive} cannot be unpacked: {error}.") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}.") from None
    except RuntimeError as error:  # how zipfile tells a wrong password
        raise DataError(f"{archive}: {error}. Give --password PASSWORD.") from None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot end.

    Raises:
        DataError: the disk has too little room; names how much is needed.
    """
    free = shutil.disk_usage(folder).free
    # On a small disk the reserve is small too.
    reserve = min(RESERVE, shutil.disk_usage(folder).total // 50)
    if needed + reserve > free:
        raise DataError(
            f"{what} needs {needed / 2**30:.2f} GiB on the disk of {folder}, which has "
            f"{free / 2**30:.2f} GiB free. Make room, or choose another --data-root."
        )


def _write(target: Path, size: int, stream: IO[bytes], allowed: int, archive: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with target.open("xb") as file:
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                if written > min(size, allowed):
                    raise DataError(
                        f"{archive} expands to more than it may ({target.name}); refused."
                    )
                file.write(chunk)
    except FileExistsError:
        raise DataError(f"{archive} holds {target.name!r} twice.") from None
    if written != size:
        raise DataError(f"{archive} is damaged: {target.name!r} has {written} of {size} bytes.")
    return written


def _files(
    archive: Path, password: str | None, advance: Callable[[int], None] | None
) -> Iterator[tuple[str, int, IO[bytes]]]:
    if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
        yield from _zip_files(archive, password, advance)
    else:
        yield from _tar_files(archive, advance)


def _tar_files(
    archive: Path, advance: Callable[[int], None] | None
) -> Iterator[tuple[str, int, IO[bytes]]]:
    last = None
    with archive.open("rb") as raw:
        stream = _Tail(_decompressed(_Counted(raw, advance), archive))
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for last in tar:
                tar.members = []  # type: ignore[attr-defined]  # a list of millions otherwise
                check_name(last.name, archive)
                if last.isdir():
                    continue
                if not last.isreg() or last.issparse():
                    raise DataError(f"{archive} holds {last.name!r}, a link or device; refused.")
                file = tar.extractfile(last)
                if file is None:
                    raise DataError(f"{archive} is damaged at {last.name!r}.")
                yield last.name, last.size, file
    if last is None:
        raise DataError(f"{archive} is empty, or no tar or zip archive.")
    # A tar ends in a block of zeros; tarfile takes one that stops between two files for whole.
    if len(stream.tail) < 512 or any(stream.tail):
        raise DataError(f"{archive} is truncated: its end is missing.")


def _decompressed(raw: _Counted, archive: Path) -> Any:
    with archive.open("rb") as file:
        magic = file.read(2)
    if not is_compressed(archive):
        return raw
    if magic == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    return bz2.BZ2File(raw, "rb") if magic == b"BZ" else lzma.LZMAFile(raw, "rb")  # type: ignore[arg-type]


def _zip_files(
    archive: Path, password: str | None, advance: Callable[[int], None] | None
) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            check_zip_member(info, archive)
            if info.is_dir():
                continue
            with opened.open(info, pwd=password.encode() if password else None) as stream:
                yield info.filename, info.file_size, stream
            if advance is not None:
                advance(info.compress_size)


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, raw: IO[bytes], advance: Callable[[int], None] | None):
        self._raw, self._advance = raw, advance

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        if self._advance is not None:
            self._advance(len(data))
        return data


class _Tail(io.RawIOBase):
    """A stream that remembers its last 512 bytes."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if data:
            self.tail = (self.tail + data)[-512:]
        return data
