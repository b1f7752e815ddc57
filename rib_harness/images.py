"""Sets of labelled images and what happens to a picture before a model sees it. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rib_harness.errors import ConfigError, DataError
from rib_harness.pictures import as_rgb, named, undecodable

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input, as data: hashed, recorded, and half of it done on device.

    Args:
        size: side of the square input, in pixels.
        resize: what the shorter side becomes before the centre crop; None crops only.
        interpolation: PIL's filter for the resize.
        mean, std: a channel, of values in 0 … 1; applied on the device.
    """

    size: int
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, fits in (("mean", lambda x: 0 <= x <= 1), ("std", lambda x: x > 0)):
            value = getattr(self, name)
            numbers = isinstance(value, tuple | list) and all(isinstance(x, Real) for x in value)
            if not numbers or len(value) != 3 or not all(map(fits, value)):
                raise ConfigError(
                    [
                        f"Preprocess: expected {name} as three numbers, one a channel, of pixels "
                        f"in 0 … 1, got {value!r}."
                    ]
                )
            object.__setattr__(self, name, tuple(value))

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The input before normalisation: (3, size, size), uint8.

        Equal to torchvision's `Resize(resize) → CenterCrop(size)` on a PIL image, to the bit.
        """
        picture = as_rgb(picture)
        if self.resize is not None:
            picture = resize_shorter_side(picture, self.resize, _FILTERS[self.interpolation])
        array = np.asarray(centre_crop(picture, self.size))
        return np.ascontiguousarray(array.transpose(2, 0, 1))

    def cropped(self, picture: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """The part inside `box` (left, top, right, bottom), resized to the input: (3, S, S)."""
        filter_ = _FILTERS[self.interpolation]
        part = as_rgb(picture).resize((self.size, self.size), filter_, box=box)
        return np.ascontiguousarray(np.asarray(part).transpose(2, 0, 1))

    def for_crops(self, side: int) -> Preprocess:
        """For pictures that are square crops already: no resize where they have the size."""
        return replace(self, resize=None if side == self.size else self.size)

    def pixel_fields(self) -> dict[str, Any]:
        """The part that decides `pixels`; mean and std come later."""
        return {"size": self.size, "resize": self.resize, "interpolation": self.interpolation}

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`."""
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def resize_shorter_side(picture: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    """Make the shorter side `size`; the longer is rounded down, as torchvision does."""
    width, height = picture.size
    shorter, longer = min(width, height), max(width, height)
    if shorter == size:
        return picture
    scaled = int(size * longer / shorter)
    return picture.resize((size, scaled) if width <= height else (scaled, size), how)


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle `size` × `size`; a smaller picture is padded with black, as torchvision does."""
    width, height = picture.size
    if width < size or height < size:
        left, top = max((size - width) // 2, 0), max((size - height) // 2, 0)
        canvas = Image.new(picture.mode, (max(width, size), max(height, size)))
        canvas.paste(picture, (left, top))
        picture, (width, height) = canvas, canvas.size
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return picture.crop((left, top, left + size, top + size))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images as columns; labels are known without decoding a picture.

    All that a run's steps share, so nothing of it can be written to: arrays are read-only, lists
    become tuples.

    Args:
        labels: (N,) int64, indices into `classes`.
        classes: names of this set's K classes.
        class_map: for each class, its ids in the suite's label space. Several ids score by their
            maximum and train by their log-sum-exp.
        read: index → PIL image; safe to call from several threads.
        names: (N,) a name for each image in messages, e.g. its file.
        source: (N,) which photograph this is a version of; the same text, the same photograph.
        group: (N,) e.g. `"fog/3"`; empty texts where there are no groups.
        fingerprint: hash of the contents, see `fingerprint_of`.
        notes: what a user should know, e.g. that classes are missing.
        cropped: side of the pictures, where they are square crops already, as ImageNet-C's are:
            resizing those once more costs points (`Preprocess.for_crops`).
        limit: images a class (and group) that were taken at most (`--limit`); None is all.
        expected: how many images the published set holds.
        expected_per_class: likewise in each class (and group), where these are equal.
        location: where the set was found, for people.
        form: what it was found as, e.g. `folder` or `tar`.
        contents: (N,) digest of each image's bytes, where they were read; to tell duplicates.
        published: index → the picture as it was published, where `read` changes it and a licence
            asks for the former wherever it is shown; None is `read`.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    class_map: tuple[tuple[int, ...], ...]
    read: Callable[[int], Image.Image]
    names: Sequence[str]
    source: NDArray[np.str_]
    group: NDArray[np.str_]
    fingerprint: str
    notes: tuple[str, ...] = ()
    cropped: int | None = None
    limit: int | None = None
    expected: int | None = None
    expected_per_class: int | None = None
    location: str = ""
    form: str = ""
    contents: Sequence[str] = ()
    published: Callable[[int], Image.Image] | None = None

    def __post_init__(self) -> None:
        n, k = len(self.labels), len(self.classes)
        if not isinstance(self.labels, np.ndarray):
            raise DataError(
                f"expected labels as an int64 array (N,), got {type(self.labels).__name__}: "
                "np.asarray(labels, dtype=np.int64)"
            )
        for column in ("names", "source", "group"):
            came = len(getattr(self, column))
            if came != n:
                raise DataError(f"an image set needs {n} {column}, one an image; got {came}")
        if len(self.class_map) != k:
            raise DataError(f"class_map needs {k} entries, one a class; got {len(self.class_map)}")
        if n == 0:
            raise DataError("an image set needs at least one image")
        if self.labels.min() < 0 or self.labels.max() >= k:
            worst = int(np.argmax((self.labels < 0) | (self.labels >= k)))
            raise DataError(
                f"{self.names[worst]}: its label {self.labels[worst]} is outside 0 … {k - 1}"
            )
        seen: dict[int, str] = {}
        for name, ids in zip(self.classes, self.class_map, strict=True):
            if not isinstance(ids, tuple | list) or not ids or not all(type(i) is int for i in ids):
                raise DataError(
                    f"class_map: expected a tuple of ids for the class {name!r}, plain integers "
                    f"as (3,), got {ids!r}"
                )
            for i in ids:
                if i in seen:
                    raise DataError(
                        f"class_map: the id {i} is of {seen[i]!r} and of {name!r}; each may be "
                        "in one class, once"
                    )
                seen[i] = name
        for column in ("labels", "source", "group", "names", "contents", "classes", "notes"):
            object.__setattr__(self, column, _fixed(getattr(self, column)))
        object.__setattr__(self, "class_map", tuple(map(tuple, self.class_map)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def others(self) -> int | None:
        """The class that stands for all ids outside the set, if there is one: it has no image."""
        most = max(range(len(self.class_map)), key=lambda k: len(self.class_map[k]))
        rest = sum(map(len, self.class_map)) - len(self.class_map[most])
        stands = len(self.class_map[most]) > max(rest, 1) and most not in self.labels
        return most if stands else None

    def image(self, index: int) -> Image.Image:
        """The picture, in RGB (`rib_harness.pictures.as_rgb`).

        Raises:
            DataError: it cannot be decoded; the message names it.
        """
        return self._decoded(self.read, index)

    def shown(self, index: int) -> Image.Image:
        """The picture for people to see, as it was published."""
        return self._decoded(self.published or self.read, index)

    def _decoded(self, read: Callable[[int], Image.Image], index: int) -> Image.Image:
        try:
            with named(self.names[index]):
                picture = read(int(index))
                if isinstance(picture, Image.Image):
                    return as_rgb(picture)
        except (DataError, KeyboardInterrupt):
            raise
        except BaseException as error:  # `sys.exit` in it, too
            raise DataError(undecodable(self.names[index], error)) from error
        raise DataError(
            f"{self.names[index]}: `read` gave {type(picture).__name__}, expected a PIL image: "
            "Image.fromarray(…)"
        ) from TypeError(type(picture).__name__)

    def taken(self, indices: NDArray[np.int64]) -> ImageSet:
        """These images only, in this order."""
        return replace(
            self,
            labels=self.labels[indices],
            names=[self.names[int(i)] for i in indices],
            source=self.source[indices],
            group=self.group[indices],
            read=_Chosen(self.read, indices),
            published=_Chosen(self.published, indices) if self.published else None,
            contents=[self.contents[int(i)] for i in indices] if self.contents else (),
        )

    def limited(self, per_class: int | None) -> ImageSet:
        """The first `per_class` images of each class (in each group); None changes nothing."""
        if per_class is None:
            return self
        seen: dict[tuple[int, str], int] = {}
        keep = []
        for i, (label, group) in enumerate(zip(self.labels, self.group, strict=True)):
            cell = (int(label), str(group))
            seen[cell] = seen.get(cell, 0) + 1
            if seen[cell] <= per_class:
                keep.append(i)
        return replace(self.taken(np.asarray(keep, dtype=np.int64)), limit=per_class)


def _fixed(column: Any) -> Any:
    """A column that cannot be written to; other sequences, as those that read a file, stay."""
    if isinstance(column, np.ndarray):
        column = column.view()
        column.flags.writeable = False
    return tuple(column) if isinstance(column, list) else column


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Reads image i of a subset."""

    read: Callable[[int], Image.Image]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.read(int(self.indices[index]))


def fingerprint_of(
    *,
    classes: Sequence[str],
    class_map: Sequence[Sequence[int]],
    labels: Sequence[int] | NDArray[np.int64],
    group: Sequence[str] | NDArray[np.str_],
    contents: Sequence[str],
) -> str:
    """Hash of a set's contents: not of where or how it is stored, nor of its files' names.

    Args:
        contents: a digest of each image's bytes (or pixels), in the order of the rows.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([list(classes), [list(ids) for ids in class_map]]).encode())
    for label, name, content in zip(labels, group, contents, strict=True):
        digest.update(f"{int(label)}\0{name}\0{content}\n".encode())
    return digest.hexdigest()
