"""ImageNet-C made from the validation set on this machine.

The corruptions are those of the `imagecorruptions` package (arXiv:1907.07484), after the authors'
own code (arXiv:1903.12261); pictures are resized, cropped and saved as theirs were. The numbers
differ from those on the published JPEGs, so what is made here is a dataset of its own name.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from PIL import Image

from rib_harness import DataError, ImageSet, Preprocess
from rib_harness.files.archives import check_space
from rib_harness.locks import locked
from rib_harness.progress import Progress
from rib_harness.store import write_atomically

#: What the authors did to a photograph before corrupting it, and to the result.
_CROP = Preprocess(size=224, resize=256, interpolation="bilinear")
_QUALITY = 85

#: About the size of a 224-pixel JPEG, for the estimate of space.
_BYTES = 16_000


def make(
    val: ImageSet, folder: Path, groups: tuple[str, ...], progress: Progress, workers: int | None
) -> None:
    """Write `CORRUPTION/SEVERITY/WNID/FILE` for each photograph of `val`.

    Everything is written beside `folder` and renamed at the end; pictures that an earlier, stopped
    try made are kept. Each is a function of its photograph, corruption and severity only.

    Raises:
        DataError: the package is missing, the disk is too small, or `folder` is there.
    """
    try:
        version = metadata.version("imagecorruptions-imaug")
    except metadata.PackageNotFoundError:
        raise DataError(
            "making ImageNet-C needs a package for the corruptions: "
            "pip install 'rib-plugin-imagenet-ood[make-c]'"
        ) from None
    try:
        with locked(folder.parent / f".{folder.name}.lock", timeout=0):
            _make(val, folder, groups, progress, workers, version)
    except Timeout:
        raise DataError(f"{folder} is being made by another process.") from None


def _make(
    val: ImageSet,
    folder: Path,
    groups: tuple[str, ...],
    progress: Progress,
    workers: int | None,
    version: str,
) -> None:
    if folder.exists():
        raise DataError(f"{folder} is there already; move it away to make it anew.")
    scratch = folder.parent / f".{folder.name}.making"
    made_by = {"imagecorruptions-imaug": version, "val": val.fingerprint, "groups": groups}
    text = json.dumps(made_by, indent=1)
    record = scratch / "made.json"
    if scratch.exists() and (not record.is_file() or record.read_text() != text):
        shutil.rmtree(scratch)  # of other photographs, or another version
    write_atomically(record, text)
    there = sum(path.suffix == ".JPEG" for path in scratch.rglob("*"))
    check_space(folder.parent, (len(val) * len(groups) - there) * _BYTES, folder.name)
    bar = progress.bar(f"make {folder.name}", len(val) * len(groups), unit="pictures")
    workers = workers or os.cpu_count() or 1
    try:
        for done in _all(_Work(scratch, groups), val, workers):
            bar.advance(done)
    finally:
        bar.close()
    for part in scratch.rglob("*.part"):  # of processes that were killed
        part.unlink()
    scratch.rename(folder)


def _all(work: _Work, val: ImageSet, workers: int) -> Iterator[int]:
    tasks = ((f"{_folder(val, i)}/{_file(val, i)}", _png(val, i)) for i in range(len(val)))
    if workers == 1:
        yield from map(work, tasks)
        return
    # Spawned, since a fork of a process with threads may stand still.
    # Ctrl-C reaches them too; it is this process that ends them.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=signal.signal, initargs=ignore
    ) as pool:
        try:
            yield from _in_portions(pool, work, tasks, 8 * workers)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_portions(pool: Executor, work: _Work, tasks: Any, size: int) -> Iterator[int]:
    """As `pool.map`, but it does not take all tasks at once: they hold pictures."""
    portion = []
    for task in tasks:
        portion.append(task)
        if len(portion) == size:
            yield from pool.map(work, portion)
            portion = []
    yield from pool.map(work, portion)


def _folder(val: ImageSet, index: int) -> str:
    return val.classes[val.labels[index]].split(" ")[0]


def _file(val: ImageSet, index: int) -> str:
    return f"{str(val.source[index]).rpartition('/')[2]}.JPEG"


def _png(val: ImageSet, index: int) -> bytes:
    """The photograph, cropped as the authors did; lossless."""
    pixels = _CROP.pixels(val.image(index)).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Work:
    """Makes all versions of one photograph."""

    folder: Path
    groups: tuple[str, ...]

    def __call__(self, task: tuple[str, bytes]) -> int:
        name, png = task
        pixels: Any = None
        for group in self.groups:
            target = self.folder / group / name
            if target.exists():
                continue
            if pixels is None:
                pixels = np.asarray(Image.open(io.BytesIO(png)))
            corruption, severity = group.split("/")
            buffer = io.BytesIO()
            Image.fromarray(corrupted(pixels, corruption, int(severity), name)).save(
                buffer, "JPEG", quality=_QUALITY, optimize=True
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            # No sync: a picture that a power cut damages is found when it is decoded.
            scratch = target.with_suffix(f".{os.getpid()}.part")
            scratch.write_bytes(buffer.getvalue())
            scratch.replace(target)
        return len(self.groups)


def corrupted(pixels: Any, corruption: str, severity: int, name: str) -> Any:
    """(H, W, 3) uint8 → likewise; the random part is drawn from the name, not from the time."""
    from imagecorruptions import corrupt

    seed = int.from_bytes(sha256(f"{name} {corruption}/{severity}".encode()).digest()[:4], "big")
    before = np.random.get_state()  # what the package draws from
    np.random.seed(seed)
    try:
        return corrupt(pixels, severity=severity, corruption_name=corruption)
    finally:
        np.random.set_state(before)
