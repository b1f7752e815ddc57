"""One set, however a person has it: which file is which image, and what its class is called.

Forms: the official layout in folders, its archives (read in place), a Hugging Face dataset (on
the Hub or local), WebDataset tars. All give the same rows.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rib_harness import DataError
from rib_harness.errors import nearest
from rib_harness.files.hub import PREFIX, SPLITS, HubRows, is_saved_dataset
from rib_harness.files.members import Members
from rib_plugin_imagenet_ood.published import ALL_ARCHIVES, Published

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


class Source(Protocol):
    """Where the images of a set come from; can be sent to another process."""

    def where(self, index: int) -> str:
        """What to call an image in messages."""
        ...

    def read(self, index: int) -> bytes:
        """The bytes of its file."""
        ...

    def digests(self, indices: Sequence[int]) -> list[str]:
        """SHA-256 of each of these images."""
        ...


@dataclass(frozen=True)
class Rows:
    """The images of a set in one form.

    Args:
        form: for people: folder, tar, zip, webdataset, hub.
        location: where they lie.
        classes: of each image the name of its class folder, or a number where the form has
            numbers only.
        groups: of each image its group; empty texts where there are none.
        files: of each image its file name; empty where the form has none.
        source: what reads them.
        names: what the form says that the numbers stand for, if it says so.
    """

    form: str
    location: str
    classes: Sequence[str] | Sequence[int]
    groups: Sequence[str]
    files: Sequence[str]
    source: Source
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class _Files:
    """Some of the files of folders or archives."""

    members: Members
    chosen: Sequence[int]

    def where(self, index: int) -> str:
        return self.members.where(self.chosen[index])

    def read(self, index: int) -> bytes:
        return self.members.read(self.chosen[index])

    def digests(self, indices: Sequence[int]) -> list[str]:
        return self.members.digests([self.chosen[index] for index in indices])


@dataclass(frozen=True)
class _HubRows:
    """The rows of a Hugging Face dataset."""

    rows: HubRows

    def where(self, index: int) -> str:
        return f"{self.rows.where} row {index}"

    def read(self, index: int) -> bytes:
        return self.rows.read(index)

    def digests(self, indices: Sequence[int]) -> list[str]:
        everything = self.rows.digests()
        return [everything[index] for index in indices]


def find(published: Published, root: Path | None, at: str | None) -> str:
    """Where the set lies: `at`, or below the data root; a path or `hf:REPO`.

    Raises:
        DataError: nowhere; says where was looked and how to get it.
    """
    if at is not None:
        if not at.startswith(PREFIX) and not Path(at).exists():
            raise DataError(f"{published.name}: at={at}: there is no file or folder there.")
        return _not_another(published, at)
    get = f"Get it: rib-harness data prepare {published.reference or published.name}"
    for first in published.archives[:1]:
        get += "" if first.urls else f" --from {first.name}. {first.get}"
    if not published.archives:
        get = "Make it from ImageNet val: rib-harness data make imagenet-c"
    if root is None:
        raise DataError(
            f"no data folder was given: use --data-root DIR (or RIB_DATA_ROOT), with the set in "
            f"DIR/{published.folders[0]}. {get}"
        )
    folders = [root / folder for folder in published.folders]
    files = [
        folder / archive.name
        for archive in published.archives[:1]
        for folder in (root / published.name, root)
    ]
    for place in folders:
        if place.is_dir() and (
            is_saved_dataset(place)
            or _archives_in(place, published)
            or _has_pictures(place, published.skip)
        ):
            return _not_another(published, str(place))
    for place in files if not published.groups else ():  # C's lie together in a folder
        if place.is_file():
            return str(place)
    raise DataError(
        f"no such folder, or none with images: looked for {' and '.join(map(str, folders))}. {get}"
    )


def _not_another(published: Published, location: str) -> str:
    """The location, unless its name, or that of what it links to, is another variant's."""
    for path in (Path(location), Path(location).resolve()):
        for other in published.skip:
            if other.startswith("imagenetv2-") and path.name.startswith(other.split("-format")[0]):
                raise DataError(f"{location} is {other}, not {published.folders[0]}.")
    return location


def rows_of(published: Published, location: str) -> Rows:
    """The images at a location, in whichever form they are there.

    Raises:
        DataError: none of the forms, or a damaged one.
    """
    if location.startswith(PREFIX) or is_saved_dataset(Path(location)):
        return _hub(published, location)
    place = Path(location)
    paths = [place]
    if place.is_dir() and not _has_pictures(place, published.skip):
        paths = _archives_in(place, published) or paths
    members = Members(paths, published.skip)
    chosen = [i for i, name in enumerate(members.names) if _is_image(name)]
    if not chosen:
        raise DataError(f"{place} holds no images.")
    if any(name.endswith(".cls") for name in members.names):
        return _webdataset(members, location, chosen)
    return _layout(published, members, location, chosen)


def _archives_in(folder: Path, published: Published) -> list[Path]:
    """The set's own archives in a folder, else the shards of a WebDataset."""
    official = [folder / a.name for a in published.archives if a.images]
    there = [path for path in official if path.is_file()]
    if there and len(there) < len(official):
        missing = ", ".join(path.name for path in official if path not in there)
        raise DataError(f"{folder} lacks {missing}: the set needs all of its archives.")
    if there:
        return there
    others = {archive.name for archive in ALL_ARCHIVES}
    shards = sorted(
        path
        for pattern in ("*.tar", "*/*.tar")
        for path in folder.glob(pattern)
        if path.is_file() and path.name not in others and not path.name.startswith(".")
    )
    of_split = {path: _splits_in(path.relative_to(folder)) & SPLITS for path in shards}
    if any(of_split.values()):
        for split in published.splits:
            if chosen := [path for path in shards if split in of_split[path]]:
                return chosen
        return []
    return shards


def _splits_in(path: Path) -> set[str]:
    """Words of a shard's path: `imagenet1k-train-0001.tar`, `test/0.tar`."""
    return set(re.split(r"[-_./]", path.as_posix().lower()))


def _has_pictures(folder: Path, skip: Collection[str]) -> bool:
    """Whether there is a picture below a folder; looks until the first."""
    for _, folders, files in os.walk(folder, followlinks=True):
        if any(_is_image(name) for name in files):
            return True
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".")]
    return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _layout(published: Published, members: Members, location: str, chosen: list[int]) -> Rows:
    """CLASS/FILE or CORRUPTION/SEVERITY/CLASS/FILE, below any wrapping folder."""
    parts = [members.names[i].split("/") for i in chosen]
    groups = [""] * len(chosen)
    if published.groups:
        groups = [sys.intern("/".join(part[-4:-2])) for part in parts]
        wanted = dict.fromkeys(published.groups)
        wrong = next((i for i, group in enumerate(groups) if group not in wanted), None)
        if wrong is not None:
            raise DataError(
                f"{members.where(chosen[wrong])}: expected CORRUPTION/SEVERITY/CLASS/FILE, as "
                f"{published.groups[0]}/n01440764/ILSVRC2012_val_00000293.JPEG."
                + nearest(groups[wrong], wanted)
            )
        missing = [group for group in wanted if group not in set(groups)]
        if missing:
            raise DataError(
                f"{location} lacks {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}: "
                f"the set needs all {len(wanted)} of corruption/severity."
            )
    path = members.parts[0].path
    return Rows(
        form="folder" if path.is_dir() else path.suffix.removeprefix("."),
        location=location,
        classes=[sys.intern(part[-2]) if len(part) > 1 else "" for part in parts],
        groups=groups,
        files=[part[-1] for part in parts],
        source=_Files(members, chosen),
    )


def _webdataset(members: Members, location: str, chosen: list[int]) -> Rows:
    """KEY.jpg beside KEY.cls, which holds the class as a number."""
    names = members.names
    labels = {
        (members.part_of(i), name.removesuffix(".cls")): i
        for i, name in enumerate(names)
        if name.endswith(".cls")
    }
    classes = []
    for i in chosen:
        # A key ends at the first dot of the file's name (`x.seg.png` belongs to `x`).
        folder, slash, file = names[i].rpartition("/")
        key = f"{folder}{slash}{file.partition('.')[0]}"
        label = labels.get((members.part_of(i), key))
        if label is None:
            raise DataError(f"{members.where(i)} has no {key}.cls beside it.")
        text = members.read(label).decode("ascii", "replace").strip()
        if not text.isdigit():
            raise DataError(f"{members.where(label)}: expected a class number, got {text[:20]!r}.")
        classes.append(int(text))
    return Rows(
        form="webdataset",
        location=location,
        classes=classes,
        groups=[""] * len(chosen),
        files=[names[i].rpartition("/")[2] for i in chosen],
        source=_Files(members, chosen),
    )


def _hub(published: Published, location: str) -> Rows:
    """Rows with an image and a class: `wnid`, or a number in `label` or `cls`."""
    if published.groups:
        raise DataError(f"{location}: no copy of {published.name} on the Hub is known.")
    rows = HubRows(location, published.splits)
    names: Sequence[str] = ()
    classes: Sequence[Any]
    column = next((c for c in ("wnid", "label", "cls") if c in rows.features), None)
    if column is None:
        raise DataError(
            f"{location} has no column wnid, label or cls. Its columns: {', '.join(rows.features)}."
        )
    classes = rows.column(column)
    missing = next((i for i, one in enumerate(classes) if one is None), None)
    if missing is not None:
        raise DataError(f"{location} row {missing} has no label.")
    names = tuple(getattr(rows.features[column], "names", None) or ())
    if classes and isinstance(classes[0], int) and min(classes) < 0:
        raise DataError(f"{location}: labels of −1: this split has no labels, as ImageNet's test.")

    return Rows(
        form="hub",
        location=location,
        classes=classes,
        groups=[""] * len(rows),
        files=rows.names,
        source=_HubRows(rows),
        names=names,
    )
