"""Image sets → batches of pixels, decoded once and packed into a form that is cheap to read again.

The unit is uint8: normalisation happens on the device, in `Normalizer`. What is read never
depends on the number of threads; what is random is a function of (seed, epoch, index).
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rib_harness.cache import cache_dir
from rib_harness.disk import pack_limit
from rib_harness.engine.packs import DamagedPackError, Pack, write_pack
from rib_harness.errors import ConfigError, DataError
from rib_harness.images import ImageSet, Preprocess
from rib_harness.readers import Readers

log = logging.getLogger("rib_harness.data")

Advance = Callable[[int], None]

#: Pictures of a pack that are compared with the set's own each time the pack is used.
COMPARED = 5


@dataclass(frozen=True)
class Batch:
    """What a model takes.

    Args:
        images: (N, 3, S, S), normalised float32, on the device.
        labels: (N,), indices into the fine-tuning set's classes.
        index: (N,), which images of the set these are.
        view: how their pictures were drawn; None shows them as they are.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, size: int | None) -> list[Batch]:
        """Pieces of at most `size` images; None keeps it whole."""
        if size is None or size >= len(self):
            return [self]
        columns = zip(
            self.images.split(size), self.labels.split(size), self.index.split(size), strict=True
        )
        return [Batch(*column, self.view) for column in columns]


class Normalizer(nn.Module):
    """uint8 pixels → the model's input: x / 255, minus mean, over std."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess):
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 → float32, as torchvision's ToTensor and Normalize to the bit."""
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


class Pixels:
    """The pixels of an image set under one preprocessing: packed, or decoded at each pass.

    Args:
        images: the set.
        preprocess: see `Preprocess`.
        origin: what else names the set, e.g. its component's id, version and options.
        workers: threads that decode; None is one a core.
        pack: keep the decoded pixels in the user's cache folder; None decides by size.
        advance: told how many more images were decoded, for a progress bar.
        repacked: told that the pack was of other pictures than those that are read now.

    Raises:
        DataError: an image that cannot be decoded, by name.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        *,
        origin: Mapping[str, Any] | None = None,
        workers: int | None = None,
        pack: bool | None = None,
        advance: Advance | None = None,
        repacked: Callable[[], None] | None = None,
    ):
        self.images = images
        self.preprocess = preprocess
        self.origin = dict(origin or {})
        self.workers = workers or os.cpu_count() or 1
        size = len(images) * 3 * preprocess.size**2
        self.packed: _Packed | None = None  # one for all parts of the set
        self.rows: NDArray[np.int64] | None = None  # of the pack, for a part of the set
        if size <= pack_limit() if pack is None else pack:
            self.packed = self._pack(advance, repacked)

    def __len__(self) -> int:
        return len(self.images)

    def of(self, preprocess: Preprocess) -> Pixels:
        """The same pixels for a preprocessing that differs in mean and std only.

        With labels of their own: torch writes to arrays that are read-only.
        """
        other = copy.copy(self)
        other.images = replace(self.images, labels=self.images.labels.copy())
        other.preprocess = preprocess
        return other

    def taken(self, indices: NDArray[np.int64]) -> Pixels:
        """The pixels of these images only."""
        other = copy.copy(self)
        other.images = self.images.taken(indices)
        other.rows = indices if self.rows is None else self.rows[indices]
        return other

    def batches(
        self, order: Sequence[NDArray[np.int64]], augment: Augment | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """For each array of indices, their pixels (N, 3, S, S)."""
        if self.packed is not None and augment is None:
            for position, indices in enumerate(order):
                taken = self.packed.take(indices if self.rows is None else self.rows[indices])
                if taken is None:
                    order = order[position:]
                    break
                yield taken
            else:
                return
        read = self._read if augment is None else self._augmented(augment)
        with Readers(self.workers) as pool:
            ahead = [pool.map(read, indices) for indices in order[:2]]
            for position in range(len(order)):
                yield np.stack(list(ahead.pop(0)))
                if position + 2 < len(order):
                    ahead.append(pool.map(read, order[position + 2]))

    def _read(self, index: int) -> NDArray[np.uint8]:
        return self.preprocess.pixels(self.images.image(index))

    def _augmented(self, augment: Augment) -> Callable[[int], NDArray[np.uint8]]:
        def read(index: int) -> NDArray[np.uint8]:
            return augment(self.images.image(index), int(index), self.preprocess)

        return read

    def _pack(self, advance: Advance | None, repacked: Callable[[], None] | None) -> _Packed | None:
        """The pack, made if needed; None if the disk has no room for it."""
        n, side = len(self.images), self.preprocess.size
        what = {
            "origin": self.origin,
            "fingerprint": self.images.fingerprint,
            "limit": self.images.limit,
            "pixels": self.preprocess.pixel_fields(),
            "pillow": PIL.__version__,  # its decoders and filters make the pixels
        }
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        path = cache_dir("packs") / f"{name}.npy"
        shape = (n, 3, side, side)

        def decoded(advance: Advance | None) -> Iterator[NDArray[np.uint8]]:
            with Readers(self.workers) as pool:
                for chunk in in_order(n, 256):
                    yield from pool.map(self._read, chunk)
                    if advance is not None:
                        advance(len(chunk))

        def make(advance: Advance | None = None) -> Pack | None:
            try:
                return write_pack(path, shape, decoded(advance))
            except OSError as error:
                log.warning(
                    "%s cannot be kept (%s): its pictures are decoded at each pass",
                    path, error.strerror or error,
                )  # fmt: skip
                return None

        pack = None
        try:
            pack = Pack(path, shape)
            if not self._agrees(pack):
                pack = None
                if repacked is not None:
                    repacked()
        except FileNotFoundError:
            pass
        except (DamagedPackError, OSError) as error:
            log.warning("%s; its pictures are decoded again", error)
        pack = pack or make(advance)
        return None if pack is None else _Packed(pack, make)

    def _agrees(self, pack: Pack) -> bool:
        """Whether a few pictures are read as they were packed.

        The fingerprint is of the files: it does not say that a dataset's code has changed.
        """
        some = np.linspace(0, len(pack) - 1, COMPARED).astype(int)
        packed = pack.take(some)
        try:
            return all(
                np.array_equal(one, self._read(i)) for one, i in zip(packed, some, strict=True)
            )
        except DataError as error:
            if error.__cause__ is None or isinstance(error.__cause__, OSError):
                return True  # gone since then: nothing says that the pack is wrong
            raise


@dataclass
class _Packed:
    """A pack that is made again where it does not verify.

    Args:
        make: decodes all pictures into a new one; None where it cannot be kept.
    """

    pack: Pack | None
    make: Callable[[], Pack | None]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """Copies of these pictures, (n, 3, S, S); None where they have to be decoded."""
        try:
            return None if self.pack is None else self.pack.take(rows)
        except DamagedPackError as error:
            log.warning("%s; its pictures are decoded again", error)
        self.pack = self.make()
        return None if self.pack is None else self.pack.take(rows)


@dataclass(frozen=True)
class Augment:
    """Random views of a picture, each a function of (seed, epoch, index) and of nothing else.

    Args:
        kind: `"flip"` mirrors half of them; `"crop-flip"` also cuts out a random part
            (area 8–100 %, aspect 3:4–4:3, as torchvision's RandomResizedCrop).
        seed: of the fit; `epoch` counts its passes.
    """

    kind: str
    seed: int
    epoch: int

    def __call__(
        self, picture: Image.Image, index: int, preprocess: Preprocess
    ) -> NDArray[np.uint8]:
        """The view's pixels, (3, S, S)."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        if self.kind == "crop-flip":
            pixels = preprocess.cropped(picture, _random_box(picture.size, rng))
        elif self.kind == "flip":
            pixels = preprocess.pixels(picture)
        else:
            raise ConfigError([f"augment: expected none, flip or crop-flip, got {self.kind!r}."])
        return np.ascontiguousarray(pixels[:, :, ::-1]) if rng.random() < 0.5 else pixels


def _random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def epoch_order(n: int, batch_size: int, seed: Sequence[int]) -> list[NDArray[np.int64]]:
    """One epoch's batches of shuffled indices, every image once.

    A last batch of a single image joins the one before it: batch-norm cannot train on one.
    """
    order = np.random.default_rng(seed).permutation(n)
    return [order[chunk] for chunk in in_order(n, batch_size)]


def in_order(n: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Batches of consecutive indices; a last one of a single image joins the one before it."""
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1 and batch_size > 1:
        starts.pop()
    return [np.arange(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def to_device(pixels: NDArray[np.uint8], device: Any) -> Tensor:
    """uint8 pixels, copied to the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device, non_blocking=True)
