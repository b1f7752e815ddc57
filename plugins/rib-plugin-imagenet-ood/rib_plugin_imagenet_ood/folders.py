"""Image sets from folders in the official layouts: CLASS/IMAGE, or CORRUPTION/SEVERITY/CLASS/IMAGE.

The files' content decides the fingerprint, so a copy in another place is the same set. Digests
are kept with each file's size and time, and made anew for the files that changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rib_harness import DataError, ImageSet, cache_dir, fingerprint_of
from rib_harness.errors import nearest

log = logging.getLogger("rib_harness.imagenet_ood")

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class File:
    """One image file.

    Args:
        path: below the set's folder, with forward slashes.
        folder: name of its class folder.
        group: e.g. `fog/3`.
    """

    path: str
    folder: str
    group: str
    size: int
    time: int

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return Path(self.path).stem


def image_set(
    root: Path,
    *,
    groups: Sequence[str],
    folders: Sequence[str],
    ids: Sequence[Sequence[int]],
    classes: Sequence[str],
    source: str,
    expected: int,
    others: frozenset[str] = frozenset(),
    red_border: bool = False,
    cropped: int | None = None,
) -> ImageSet:
    """Index a folder; no picture is decoded.

    Args:
        root: the set's folder.
        groups: subfolders `corruption/severity`; empty where the classes lie directly below.
        folders: names of the class folders, in the order of the set's classes.
        ids: for each its ids in the label space.
        classes: names for people.
        source: prefix of the source ids; sets with one prefix share photographs by file name.
        expected: images of the published set.
        others: folders that belong to the set and are not used.
        cropped: side of the pictures, where they are crops already.
        red_border: whether to crop a border of pure red, as ObjectNet's pictures have.

    Raises:
        DataError: a folder that is no class, a group that is missing, or no image at all.
    """
    index_of = {folder: i for i, folder in enumerate(folders)}
    files: list[File] = []
    for group in groups or ("",):
        if group and not (root / group).is_dir():
            raise DataError(f"{root / group} is missing: the set needs all of {', '.join(groups)}.")
        files += _scan(root, group, index_of, others)
    # By class in the order of the label space, never in the order of folder names as text:
    # V2's folders are numbers.
    files.sort(key=lambda f: (index_of[f.folder], f.group, f.path))
    if not files:
        raise DataError(f"{root} holds no images; expected folders such as {root / folders[0]}.")
    labels = np.array([index_of[f.folder] for f in files], dtype=np.int64)
    group_column = np.array([f.group for f in files])
    stems = [f.stem if source == "imagenet-val" else f"{f.folder}/{f.stem}" for f in files]
    sources = np.array([f"{source}/{stem}" for stem in stems])
    class_map = tuple(tuple(one) for one in ids)
    return ImageSet(
        labels=labels,
        classes=tuple(classes),
        class_map=class_map,
        read=_Reader(str(root), [f.path for f in files], red_border),
        names=[str(root / f.path) for f in files],
        source=sources,
        group=group_column,
        cropped=cropped,
        notes=tuple(_notes(labels, folders, len(files), expected)),
        fingerprint=fingerprint_of(
            classes=classes,
            class_map=class_map,
            labels=labels,
            group=group_column,
            source=sources,
            contents=_digests(root, files),
        ),
    )


def _scan(
    root: Path, group: str, index_of: dict[str, int], others: frozenset[str]
) -> Iterator[File]:
    below = root / group if group else root
    for folder in sorted(below.iterdir()):
        if not folder.is_dir() or folder.name.startswith(".") or folder.name in others:
            continue
        if folder.name not in index_of:
            raise DataError(
                f"{folder} is not a class of this set.{nearest(folder.name, index_of)} Expected "
                f"folders such as {', '.join(list(index_of)[:3])}; move other folders away."
            )
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    raise DataError(
                        f"{entry.path} is a folder: images lie directly in their class's folder."
                    )
                if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.name[0] != ".":
                    if not entry.is_file() or not entry.name.isprintable():
                        raise DataError(
                            f"{entry.path!r} is no file that can be read: a broken link, or a name "
                            "that is not UTF-8."
                        )
                    path = "/".join(p for p in (group, folder.name, entry.name) if p)
                    stat = entry.stat()
                    # The time of the last change of any kind: `touch` cannot turn it back.
                    yield File(path, folder.name, group, stat.st_size, stat.st_ctime_ns)


def _notes(labels: np.ndarray, folders: Sequence[str], images: int, expected: int) -> Iterator[str]:
    present = set(labels.tolist())
    missing = [folder for i, folder in enumerate(folders) if i not in present]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        yield (
            f"not whole, {images:,} of {expected:,} images; {len(present)} of {len(folders)} "
            f"classes, none for {shown}"
        )
    elif images != expected:
        yield f"not the published set: {images:,} images, expected {expected:,}"


@dataclass(frozen=True, eq=False)
class _Reader:
    """Image i of a folder."""

    root: str
    paths: list[str]
    red_border: bool

    def __call__(self, index: int) -> Image.Image:
        with Image.open(Path(self.root, self.paths[index])) as picture:
            rgb = picture.convert("RGB")
        return without_red_border(rgb) if self.red_border else rgb


def without_red_border(picture: Image.Image) -> Image.Image:
    """Crop the outer rings of pixels that are all pure red; a picture without any is left alone."""
    pixels = np.asarray(picture)
    red = (pixels == (255, 0, 0)).all(2)
    height, width = red.shape
    rings = 0
    while 2 * (rings + 1) < min(height, width):
        ring = red[rings : height - rings, rings : width - rings]
        if not (ring[0].all() and ring[-1].all() and ring[:, 0].all() and ring[:, -1].all()):
            break
        rings += 1
    return picture.crop((rings, rings, width - rings, height - rings)) if rings else picture


def _digests(root: Path, files: Sequence[File]) -> list[str]:
    """SHA-256 of each file; read again only where size or time differ from last time.

    What was read is kept also when the reading is interrupted.
    """
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
    kept_file = cache_dir("indices") / f"{name}.parquet"
    kept = _read_index(kept_file)
    new = [f for f in files if (f.path, f.size, f.time) not in kept]
    if len(new) > 5000:
        log.warning("%s: reading %s files once, to know their content", root, f"{len(new):,}")
    try:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(new), 1000):
                chunk = new[start : start + 1000]
                digests = pool.map(lambda f: _sha256(root / f.path), chunk)
                for f, digest in zip(chunk, digests, strict=True):
                    kept[f.path, f.size, f.time] = digest
    finally:
        if new:
            _write_index(kept_file, [f for f in files if (f.path, f.size, f.time) in kept], kept)
    return [kept[f.path, f.size, f.time] for f in files]


def _read_index(path: Path) -> dict[tuple[str, int, int], str]:
    try:
        columns = pq.read_table(path).to_pydict()
        rows = zip(*(columns[c] for c in ("path", "size", "time", "digest")), strict=True)
        return {(file, size, time): digest for file, size, time, digest in rows}
    except (pa.ArrowException, KeyError, OSError):  # not there, or damaged
        return {}


def _write_index(
    path: Path, files: Sequence[File], digests: dict[tuple[str, int, int], str]
) -> None:
    table = pa.table(
        {
            "path": [f.path for f in files],
            "size": [f.size for f in files],
            "time": [f.time for f in files],
            "digest": [digests[f.path, f.size, f.time] for f in files],
        }
    )
    scratch = path.with_suffix(f".{os.getpid()}.part")
    pq.write_table(table, scratch)
    scratch.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
