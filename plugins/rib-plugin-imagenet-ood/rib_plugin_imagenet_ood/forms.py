"""One set, however a person has it: which file is which image, and what its class is called.

Forms: the official layout in folders, its archives (read in place), a Hugging Face dataset (on
the Hub or local), WebDataset tars. All give the same rows.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from rib_harness import DataError
from rib_harness.errors import nearest
from rib_harness.files.choose import LABELS, PICTURES, choose, told
from rib_harness.files.hub import (
    PREFIX,
    SPLITS,
    HubRows,
    NoPicturesError,
    is_saved_dataset,
    pick_split,
)
from rib_harness.files.members import Members
from rib_harness.pictures import is_picture
from rib_plugin_imagenet_ood.published import ALL_ARCHIVES, SOLUTION, Published


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
        answers: Kaggle's tables of the validation set's classes that lie among the files.
        notes: what was chosen among several things, and what was left out.
    """

    form: str
    location: str
    classes: Sequence[str] | Sequence[int]
    groups: Sequence[str]
    files: Sequence[str]
    source: Source
    names: Sequence[str] = ()
    answers: Sequence[bytes] = ()
    notes: Sequence[str] = ()

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
    there: list[Path] = []
    for place in folders:
        # A folder of one that is there already says nothing new: `imagenet` above `imagenet/val`.
        if any(_one_in_the_other(place, one) for one in there):
            continue
        if place.is_dir() and (
            is_saved_dataset(place)
            or _archives_in(place, published, [])
            or _has_pictures(place, published.skip)
        ):
            there.append(place)
    if len(there) > 1:
        raise DataError(
            f"{' and '.join(map(str, there))} may both be the set. Name one: "
            f"--data {published.name}:at={there[0]}"
        )
    if there:
        return _not_another(published, str(there[0]))
    for place in files if not published.groups else ():  # C's lie together in a folder
        if place.is_file():
            return str(place)
    raise DataError(
        f"no such folder, or none with images: looked for {' and '.join(map(str, folders))}. {get}"
    )


def _one_in_the_other(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _not_another(published: Published, location: str) -> str:
    """The location, unless its name, or that of what it links to, is another variant's."""
    for path in (Path(location), Path(location).resolve()):
        for other in published.skip:
            if "-format" in other and path.name.startswith(other.split("-format")[0]):
                raise DataError(f"{location} is {other}, not {published.folders[0]}.")
    return location


def rows_of(
    published: Published, location: str, image: str | None = None, label: str | None = None
) -> Rows:
    """The images at a location, in whichever form they are there.

    Args:
        image, label: the column, or the kind of a WebDataset's files, that holds pictures and
            classes; None takes the one whose name says so.

    Raises:
        DataError: none of the forms, a damaged one, or one that may be meant in two ways.
    """
    place, notes = Path(location), list[str]()
    if location.startswith(PREFIX) or is_saved_dataset(place):
        try:
            return _hub(published, location, image, label)
        except NoPicturesError:  # a table beside pictures
            if not _has_pictures(place, published.skip):
                raise
    paths = [place]
    if place.is_dir() and not _has_pictures(place, published.skip):
        paths = _archives_in(place, published, notes) or paths
    members = Members(paths, published.skip)
    names = members.names
    chosen = [i for i, name in enumerate(names) if is_picture(name)]
    if not chosen:
        raise DataError(f"{place} holds no images.")
    end = ".cls" if label is None else f".{label}".lower()
    classes = [name for name in names if name.lower().endswith(end) and not is_picture(name)]
    labelled = {_sample_of(name)[0] for name in classes}
    if labelled and any(_sample_of(names[i])[0] in labelled for i in chosen):
        return _webdataset(members, location, chosen, image, label, notes)
    if asked := [f"{k}={v}" for k, v in (("image", image), ("label", label)) if v is not None]:
        raise DataError(
            f"{location}: {', '.join(asked)} names a column, or a kind of a WebDataset's files as "
            "jpg of KEY.jpg; here are files in folders of classes."
        )
    return _layout(published, members, location, chosen, notes)


def _archives_in(folder: Path, published: Published, notes: list[str]) -> list[Path]:
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
    splits = sorted(set().union(*of_split.values()))
    if not splits:
        return shards
    if not set(splits) & set(published.splits):
        return []
    split = pick_split(splits, published.splits, str(folder), notes)
    return [path for path in shards if split in of_split[path]]


def _splits_in(path: Path) -> set[str]:
    """Words of a shard's path: `imagenet1k-train-0001.tar`, `test/0.tar`."""
    return set(re.split(r"[-_./]", path.as_posix().lower()))


def _has_pictures(folder: Path, skip: Collection[str]) -> bool:
    """Whether there is a picture below a folder; looks until the first."""
    for _, folders, files in os.walk(folder, followlinks=True):
        if any(is_picture(name) for name in files):
            return True
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".")]
    return False


def _layout(
    published: Published, members: Members, location: str, chosen: list[int], notes: list[str]
) -> Rows:
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
        answers=[
            members.read(i)
            for i, name in enumerate(members.names)
            if name.rpartition("/")[2] == SOLUTION
        ],
        notes=[*notes, *_left_out(members.names, chosen)],
    )


def _left_out(names: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """A note of the files that lie where pictures do, and are none by their names."""
    if len(names) == len(chosen):
        return []

    def level(name: str) -> tuple[int, list[str]]:
        folders = name.split("/")[:-1]
        return len(folders), folders[:-1]

    pictures, levels = set(chosen), {str(level(names[i])) for i in chosen}
    suffixes = Counter(
        suffix if re.fullmatch(r"\.\w+", suffix) else "without a suffix"
        for i, name in enumerate(names)
        if i not in pictures and str(level(name)) in levels
        for suffix in [PurePosixPath(name).suffix.lower()]
    )
    listed = ", ".join(f"{n:,} {suffix}" for suffix, n in suffixes.most_common())
    return [f"left out, as no pictures by their names: {listed}"] if listed else []


def _sample_of(name: str) -> tuple[str, str]:
    """Key and kind of a WebDataset's file: a key ends at the first dot of the file's name.

    >>> _sample_of("a/x.seg.PNG")
    ('a/x', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    key, _, kind = file.partition(".")
    return f"{folder}{slash}{key}", kind.lower()


def _webdataset(
    members: Members,
    location: str,
    chosen: list[int],
    image: str | None,
    label: str | None,
    notes: list[str],
) -> Rows:
    """KEY.jpg beside KEY.cls, which holds the class as a number."""
    samples = [_sample_of(name) for name in members.names]
    keys = [(members.part_of(i), key) for i, (key, _) in enumerate(samples)]
    kinds = sorted({samples[i][1] for i in chosen})
    # Shards may have some pictures as jpg and others as png; both of one key are two pictures.
    taken = {kind for kind in kinds if PICTURES.is_usual(kind)}
    of_key = Counter(keys[i] for i in chosen if samples[i][1] in taken)
    if image is not None or not taken or max(of_key.values()) > 1:
        taken = {choose(PICTURES, kinds, image, location)}
    left = Counter(samples[i][1] for i in chosen if samples[i][1] not in taken)
    chosen = [i for i in chosen if samples[i][1] in taken]

    others = sorted({kind for _, kind in samples} - set(kinds))
    classes_of = [kind for kind in others if kind.split(".")[-1] == "cls"]
    kind = choose(LABELS, others if label is not None else classes_of, label, location)
    notes += told(LABELS, kind, classes_of)
    labels = {keys[i]: i for i, (_, of) in enumerate(samples) if of == kind}
    bare = len(set(labels) - {keys[i] for i in chosen})
    if left:
        listed = ", ".join(f"{n:,} .{one}" for one, n in left.items())
        notes.append(f"pictures of .{', .'.join(sorted(taken))}; left out: {listed}")
    if bare:
        notes.append(f"{bare:,} of {len(labels):,} labels have no picture")
    classes = []
    for i in chosen:
        at = labels.get(keys[i])
        if at is None:
            raise DataError(f"{members.where(i)} has no {samples[i][0]}.{kind} beside it.")
        text = members.read(at).decode("ascii", "replace").strip()
        if not text.isdigit():
            raise DataError(f"{members.where(at)}: expected a class number, got {text[:20]!r}.")
        classes.append(int(text))
    return Rows(
        form="webdataset",
        location=location,
        classes=classes,
        groups=[""] * len(chosen),
        files=[members.names[i].rpartition("/")[2] for i in chosen],
        source=_Files(members, chosen),
        notes=notes,
    )


def _hub(published: Published, location: str, image: str | None, label: str | None) -> Rows:
    """Rows with an image and a class: a WNID, or a number."""
    if published.groups:
        raise DataError(f"{location}: no copy of {published.name} on the Hub is known.")
    rows = HubRows(location, published.splits, image)
    names: Sequence[str] = ()
    classes: Sequence[Any]
    column = rows.label_column(label)
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
        notes=rows.notes,
    )
