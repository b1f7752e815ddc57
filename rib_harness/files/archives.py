"""Unpacking what somebody else packed: nothing outside the folder, no links, no endless files."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rib_harness.errors import DataError
from rib_harness.files.packed import (
    DAMAGE,
    PIECE,
    Limits,
    is_zip,
    tar_stream,
    too_much,
    zip_entries,
)
from rib_harness.store import is_full

#: Left free on the disk, so that other programs live.
RESERVE = 256 * 2**20

#: A file: its name, its size, and its bytes in pieces.
_Unpacked = tuple[str, int, Iterator[bytes]]


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
    allowed = limits.bytes_of(archive)
    written = 0
    try:
        if is_zip(archive):
            opened = _from_zip(archive, password, limits, advance)
        else:
            opened = _from_tar(archive, limits, advance)
        for number, (name, size, pieces) in enumerate(opened, start=1):
            if number > limits.files:
                raise DataError(f"{archive} holds more than {limits.files:,} files; refused.")
            if written + size > allowed:
                raise too_much(archive, f" ({name})")
            check_space(folder, size, archive.name)
            _write(folder / name, size, pieces, archive)
            written += size
    except DAMAGE as error:
        raise DataError(f"{archive} is damaged: {type(error).__name__}: {error}.") from None
    except OSError as error:
        if is_full(error):
            raise DataError(
                f"The disk of {folder} is full: {archive.name} could not be unpacked."
            ) from None
        raise DataError(f"{archive} cannot be unpacked: {error}.") from error


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot end.

    Raises:
        DataError: the disk has too little room; names how much is needed.
    """
    usage = shutil.disk_usage(folder)
    # On a small disk the reserve is small too.
    reserve = min(RESERVE, usage.total // 50)
    if needed + reserve > usage.free:
        raise DataError(
            f"{what} needs {needed / 2**30:.2f} GiB on the disk of {folder}, which has "
            f"{usage.free / 2**30:.2f} GiB free. Make room, or choose another --data-root."
        )


def _write(target: Path, size: int, pieces: Iterator[bytes], archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with target.open("xb") as file:
            for piece in pieces:
                written += len(piece)
                if written > size:
                    raise too_much(archive, f" ({target.name})")
                file.write(piece)
    except FileExistsError:
        raise DataError(f"{archive} holds {target.name!r} twice.") from None
    if written != size:
        raise DataError(f"{archive} is damaged: {target.name!r} has {written} of {size} bytes.")


def _from_tar(
    archive: Path, limits: Limits, advance: Callable[[int], None] | None
) -> Iterator[_Unpacked]:
    with tar_stream(archive, advance) as stream:
        if stream.end is None:  # headers expand, too; small files have as much of them as bytes
            stream.limit = 2 * limits.bytes_of(archive)
        for entry in stream.entries():

            def pieces(left: int = entry.size, offset: int = entry.offset) -> Iterator[bytes]:
                stream.seek(offset)
                while left and (data := stream.read(min(left, PIECE))):
                    left -= len(data)
                    yield data

            yield entry.name, entry.size, pieces()


def _from_zip(
    archive: Path,
    password: str | None,
    limits: Limits,
    advance: Callable[[int], None] | None,
) -> Iterator[_Unpacked]:
    with zipfile.ZipFile(archive) as opened:
        for info in zip_entries(opened, archive, limits):

            def pieces(info: zipfile.ZipInfo = info) -> Iterator[bytes]:
                with (
                    _password_needed(archive, info),
                    opened.open(info, pwd=password.encode() if password else None) as stream,
                ):
                    while data := stream.read(PIECE):
                        yield data

            yield info.filename, info.file_size, pieces()
            if advance is not None:
                advance(info.compress_size)


@contextmanager
def _password_needed(archive: Path, info: zipfile.ZipInfo) -> Iterator[None]:
    """zipfile tells a wrong password by a RuntimeError; one in 256 passes for damaged data."""
    encrypted = info.flag_bits & 1
    try:
        yield
    except (RuntimeError, *DAMAGE) as error:
        if not encrypted or isinstance(error, NotImplementedError):
            raise
        raise DataError(
            f"{archive}: {info.filename!r}: {error}: no password or a wrong one, or a damaged "
            "file. Give --password PASSWORD."
        ) from None
