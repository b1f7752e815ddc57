"""The sets as components: each opens from any form to the same rows in the same order."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rib_harness import Archive, Column, ConfigError, DataError, ImageSet, Location, fingerprint_of
from rib_harness.pictures import as_rgb
from rib_harness.progress import Progress
from rib_plugin_imagenet_ood.forms import Rows, find, rows_of
from rib_plugin_imagenet_ood.labels import classes_of, labels_of
from rib_plugin_imagenet_ood.published import (
    BY_NAME,
    Published,
    imagenet,
    imagenet_c,
    imagenet_c_made,
    v2,
)


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What all sets do.

    Args:
        at: a folder, an archive, or `hf:REPO`; None looks below the data root.
        image: the column of pictures, or the suffix of a WebDataset's, where there are several.
        label: likewise of the classes.
    """

    at: Location | None = None
    image: Column | None = None
    label: Column | None = None

    def published(self) -> Published:
        """The set with these options."""
        raise NotImplementedError

    @property
    def home(self) -> str:
        """Where its folder lies below a data root."""
        return self.published().folders[0]

    def archives(self) -> tuple[Archive, ...]:
        """The files in which it is published."""
        return self.published().archives

    def locate(self, root: Path | None) -> str:
        """Where it lies; nothing is opened."""
        return find(self.published(), root, self.at)

    def open(self, root: Path | None) -> ImageSet:
        """Index the set: labels and digests, no picture is decoded."""
        return image_set(self.published(), self._rows(root))

    def _rows(self, root: Path | None) -> Rows:
        return rows_of(self.published(), self.locate(root), self.image, self.label)


@dataclass(frozen=True, kw_only=True)
class ShiftedImageNet(_Set):
    """A set with no options but where it lies.

    Args:
        name: which one.
        at: a folder, an archive, or `hf:REPO`; None looks below the data root.
        image: the column of pictures, or the suffix of a WebDataset's, where there are several.
        label: likewise of the classes.
        over: `own` lets the set's classes compete, as its authors do; `all` lets all 1000
            compete, and any class outside the set is a mistake.
    """

    name: str
    over: Literal["own", "all"] = "own"

    def published(self) -> Published:
        """The set of this name."""
        return BY_NAME[self.name]

    def open(self, root: Path | None) -> ImageSet:
        """Index the set, with one class more if all 1000 compete."""
        images = super().open(root)
        return over_all(images) if self.over == "all" else images


@dataclass(frozen=True, kw_only=True)
class ImageNet(_Set):
    """ImageNet-1k itself.

    Args:
        at: a folder, an archive, or `hf:REPO`; None looks below the data root.
        image: the column of pictures, or the suffix of a WebDataset's, where there are several.
        label: likewise of the classes.
        split: `val`, or `train` for a part of the training set.
        per_class: of the training set, images a class, chosen by a hash of their names; None
            takes 50.
    """

    split: Literal["val", "train"] = "val"
    per_class: int | None = None

    def __post_init__(self) -> None:
        if self.per_class is not None and (self.split == "val" or self.per_class < 1):
            raise ConfigError(
                [f"imagenet: per_class={self.per_class}: expected 1 or more, and split=train."]
            )

    def published(self) -> Published:
        """The split."""
        return imagenet(self.split)

    def open(self, root: Path | None) -> ImageSet:
        """Index the split."""
        if self.split == "val":
            return super().open(root)
        published, per_class = self.published(), self.per_class or 50
        part = replace(published, images=1000 * per_class, per_class=per_class)
        return image_set(part, self._rows(root), per_class)


@dataclass(frozen=True, kw_only=True)
class ImageNetV2(_Set):
    """ImageNet-V2.

    Args:
        at: a folder, an archive, or `hf:REPO`; None looks below the data root.
        image: the column of pictures, or the suffix of a WebDataset's, where there are several.
        label: likewise of the classes.
        variant: which of its three samples; the suite's is `matched-frequency`.
    """

    variant: Literal["matched-frequency", "threshold0.7", "top-images"] = "matched-frequency"

    def published(self) -> Published:
        """The sample."""
        return v2(self.variant)


@dataclass(frozen=True, kw_only=True)
class ImageNetC(_Set):
    """ImageNet-C as published.

    Args:
        at: a folder, or the folder that holds its tars; None looks below the data root.
        image, label: of other sets; this one lies in folders.
        extra: also speckle_noise, gaussian_blur, spatter and saturate, which are not part of the
            15.
    """

    extra: bool = False

    def published(self) -> Published:
        """15 or 19 corruptions."""
        return imagenet_c(extra=self.extra)

    def make(self, root: Path, progress: Progress) -> ImageSet:
        """Make them from the validation set: the dataset `imagenet-c-made`.

        Raises:
            DataError: no validation set, or no package for the corruptions.
        """
        from rib_plugin_imagenet_ood.corruptions import make

        if self.at is not None:
            raise ConfigError(["data make writes below the data folder: leave out `at`."])
        made = ImageNetCMade(extra=self.extra)
        published = made.published()
        make(ImageNet().open(root), root / published.folders[0], published.groups, progress, None)
        return made.open(root)


@dataclass(frozen=True, kw_only=True)
class ImageNetCMade(ImageNetC):
    """ImageNet-C made on this machine.

    Args:
        at: a folder; None looks below the data root.
        image, label: of other sets; this one lies in folders.
        extra: also speckle_noise, gaussian_blur, spatter and saturate.
    """

    def published(self) -> Published:
        """15 or 19 corruptions."""
        return imagenet_c_made(extra=self.extra)


def _sample(labels: NDArray[np.int64], files: Sequence[str], per_class: int) -> NDArray[np.int64]:
    """`per_class` images of each class, by a hash of their files' names."""
    names = np.array([sha256(file.encode()).hexdigest() for file in files])
    order = np.lexsort((names, labels))
    rank = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return order[rank < per_class]


def image_set(published: Published, rows: Rows, per_class: int | None = None) -> ImageSet:
    """Columns in an order that no form decides: class, group, content.

    Args:
        per_class: how many of each class to take; None takes all.

    Raises:
        DataError: a class that is none of the set's, or no image of any.
    """
    labels = labels_of(published, rows)
    if per_class is None:
        chosen = np.flatnonzero(labels >= 0)
    else:
        chosen = _sample(labels, rows.files, per_class)
    if not len(chosen):
        raise DataError(f"{rows.location} holds no image of the set's classes.")
    taken = chosen.tolist()
    digests = rows.source.digests(taken)
    source = np.array(
        [
            _source(published, rows.files[i], digest)
            for i, digest in zip(taken, digests, strict=True)
        ]
    )
    group = np.array([rows.groups[i] for i in taken])
    order = np.lexsort((np.array(digests), group, labels[chosen]))
    chosen = chosen[order]
    labels, group, source = labels[chosen], group[order], source[order]
    contents = [digests[i] for i in order]
    classes = classes_of(published)
    names, class_map = [one.name for one in classes], tuple(one.ids for one in classes)
    border = published.name == "objectnet"
    return ImageSet(
        labels=labels,
        classes=tuple(names),
        class_map=class_map,
        read=_Reader(rows, chosen, crop_border=border),
        # Its licence: pictures that are shown anywhere keep the border.
        published=_Reader(rows, chosen, crop_border=False) if border else None,
        names=_Names(rows, chosen),
        source=source,
        group=group,
        cropped=published.cropped,
        notes=(*_notes(published, labels, source), *rows.notes),
        expected=published.images,
        expected_per_class=published.per_class,
        location=rows.location,
        form=rows.form,
        contents=contents,
        fingerprint=fingerprint_of(
            classes=names,
            class_map=class_map,
            labels=labels,
            group=group,
            contents=contents,
        ),
    )


def over_all(images: ImageSet) -> ImageSet:
    """The same images, scored over the whole label space: the other ids are one class more."""
    own = {i for ids in images.class_map for i in ids}
    others = tuple(i for i in range(1000) if i not in own)
    if not others:
        raise ConfigError(["over=all: the set has all 1000 classes, so they compete anyway."])
    return replace(
        images,
        classes=(*images.classes, "any other class"),
        class_map=(*images.class_map, others),
        notes=(*images.notes, "scored over all 1000 classes, not over its own"),
    )


_PHOTOGRAPH = re.compile(r"ILSVRC2012_val_\d{8}")


def _source(published: Published, file: str, digest: str) -> str:
    """Which photograph: val, Cartoon, Drawing and C share theirs, and their files' names say so."""
    if published.from_val:
        found = _PHOTOGRAPH.search(file)
        return f"imagenet-val/{found.group() if found else digest[:16]}"
    return f"{published.name}/{digest[:16]}"


def _notes(published: Published, labels: NDArray[np.int64], source: NDArray[np.str_]) -> list[str]:
    classes = classes_of(published)
    notes = []
    present = set(labels.tolist())
    missing = [one.folder for i, one in enumerate(classes) if i not in present]
    n, expected = len(labels), published.images
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        notes.append(
            f"not whole, {n:,} of {expected:,} images; {len(present)} of {len(classes)} classes, "
            f"none for {shown}"
        )
    elif n != expected:
        notes.append(f"not the published set: {n:,} images, expected {expected:,}")
    if published.from_val and not all(_PHOTOGRAPH.search(one) for one in source[:1]):
        notes.append("its files' names do not say which photographs of ImageNet val they are")
    return notes


@dataclass(frozen=True, eq=False)
class _Names(Sequence[str]):
    """What to call image i in messages; made when asked, since C has millions."""

    rows: Rows
    chosen: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.rows.source.where(int(self.chosen[index]))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Image i. An EXIF rotation is not applied: no published number on these sets does."""

    rows: Rows
    chosen: NDArray[np.int64]
    crop_border: bool

    def __call__(self, index: int) -> Image.Image:
        data = self.rows.source.read(int(self.chosen[index]))
        with Image.open(io.BytesIO(data)) as picture:
            rgb = as_rgb(picture)
        return without_red_border(rgb) if self.crop_border else rgb


def without_red_border(picture: Image.Image) -> Image.Image:
    """Crop ObjectNet's border: the outer rings that are red throughout; if none is, change nothing.

    Pure red in the published PNGs; JPEG copies have it smeared.
    """
    pixels = np.asarray(picture)
    red = (pixels == (255, 0, 0)).all(2)
    if not red[0, 0]:
        # Smeared: about red, as a ring's every pixel is. Two rings at most are the border's.
        red = (pixels[..., 0] > 170) & (pixels[..., 1:].max(2) < 110)
        return _cropped(picture, min(_rings(red), 2))
    return _cropped(picture, _rings(red))


def _rings(red: NDArray[np.bool_]) -> int:
    """How many outer rings are red in every pixel."""
    height, width = red.shape
    rings = 0
    while 2 * (rings + 1) < min(height, width):
        ring = red[rings : height - rings, rings : width - rings]
        if not (ring[0].all() and ring[-1].all() and ring[:, 0].all() and ring[:, -1].all()):
            break
        rings += 1
    return rings


def _cropped(picture: Image.Image, rings: int) -> Image.Image:
    width, height = picture.size
    return picture.crop((rings, rings, width - rings, height - rings)) if rings else picture
