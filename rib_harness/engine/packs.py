"""Decoded pictures in one file of the cache, each with a checksum.

A pack is an .npy file, and after it a checksum of each picture and one of all the rest. Pictures
are mapped, not read: each is verified when it is first taken, and again once the file has changed.
"""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from rib_harness.cache import clear
from rib_harness.errors import DataError

#: Of a checksum.
_KIND = np.dtype("<u8")

Shape = tuple[int, int, int, int]


class DamagedPackError(DataError):
    """A pack that is not what was written."""


class Pack:
    """The pictures of one file.

    Args:
        path: its place.
        shape: (N, 3, S, S).
        at: where it lies, if it is not in its place yet.

    Raises:
        DamagedPackError: it is not whole, of another set, or of an earlier version.
        OSError: it is not there, or cannot be read.
    """

    def __init__(self, path: Path, shape: Shape, at: Path | None = None):
        self.path = path
        head, size = _head(shape), int(np.prod(shape))
        tail_size = (shape[0] + 1) * _KIND.itemsize
        file = (at or path).open("rb")
        # Kept open: another process may put its own into the place.
        weakref.finalize(self, file.close)
        self._handle = file.fileno()
        if os.fstat(self._handle).st_size != len(head) + size + tail_size:
            raise DamagedPackError(f"{path} is not whole, or of an earlier version")
        start = file.read(len(head))
        file.seek(-tail_size, os.SEEK_END)
        sums = np.frombuffer(file.read(), _KIND)
        if start != head or sums[-1] != _seal(path, head, sums[:-1]):
            raise DamagedPackError(f"{path} is damaged: its checksums do not verify")
        self._pictures = np.memmap(file, np.uint8, "r", len(head), shape)
        self._sums = sums[:-1]
        self._seen = np.zeros(len(self._sums), bool)
        self._state = self._state_now()

    def __len__(self) -> int:
        return len(self._sums)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of these pictures, (n, 3, S, S).

        Raises:
            DamagedPackError: one is not what was written.
        """
        state = self._state_now()
        if state != self._state:
            if state[0] != self._state[0]:  # to touch what was cut off would end the process
                raise DamagedPackError(f"{self.path} is not whole any more")
            self._seen[:], self._state = False, state
        taken: NDArray[np.uint8] = np.asarray(self._pictures[rows])
        for at in np.flatnonzero(~self._seen[rows]):
            if xxhash.xxh3_64_intdigest(taken[at].data) != self._sums[rows[at]]:
                raise DamagedPackError(f"{self.path} is damaged: picture {rows[at]} differs")
        self._seen[rows] = True
        return taken

    def _state_now(self) -> tuple[int, int]:
        stat = os.fstat(self._handle)
        return stat.st_size, stat.st_mtime_ns


def write_pack(path: Path, shape: Shape, pictures: Iterable[NDArray[np.uint8]]) -> Pack:
    """Write a pack elsewhere and rename it, so that a killed process leaves no half one.

    Returns:
        this one, whatever another process puts into the place.
    """
    clear(path)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            head, sums = _head(shape), []
            file.write(head)
            for pixels in pictures:
                sums.append(xxhash.xxh3_64_intdigest(pixels.data))
                file.write(pixels.data)
            file.write(np.array(sums, _KIND).tobytes())
            file.write(np.array(_seal(path, head, np.array(sums, _KIND)), _KIND).tobytes())
        pack = Pack(path, shape, Path(scratch))
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return pack


def _head(shape: Shape) -> bytes:
    made = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        made, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return made.getvalue()


def _seal(path: Path, head: bytes, sums: NDArray[np.uint64]) -> int:
    """Of all that is no picture, and of the name: a pack in another's place is none."""
    return xxhash.xxh3_64_intdigest(path.name.encode() + head + sums.tobytes())
