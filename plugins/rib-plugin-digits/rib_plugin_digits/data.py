"""The datasets of `digits-rib`, made from scikit-learn's 1 797 handwritten digits.

The photographs are split once: training, reference test, and fresh ones for v2, a, r, sketch and
object. As in the paper's suite, c, cartoon and drawing are made from the reference test.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rib_harness import ImageSet, cache_dir, fingerprint_of, read_checked, write_checked
from rib_plugin_digits import render

Name = Literal["train", "test", "v2", "a", "r", "sketch", "cartoon", "drawing", "object", "c"]

#: The label space: ten digits, of which the 1 has two ids, without and with a flag.
CLASSES = (
    "zero", "one, bare", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "one, flagged",
)  # fmt: skip
FLAGGED_ONE = 10

#: Photographs for each part; c, cartoon and drawing are made from `test`.
SPLIT = {"train": 760, "test": 300, "v2": 180, "r": 150, "sketch": 150, "object": 140, "a": 117}

#: The classes that the subset sets hold.
SUBSETS = {"r": (0, 1, 2, 4, 6, 7, 10), "a": (2, 3, 5, 8, 9)}

#: Images of the hard set, of several candidates for each photograph.
HARD_CANDIDATES = 12


@dataclass(frozen=True)
class Digits:
    """One dataset of the suite.

    Args:
        part: which one; `train` is the in-distribution training split, `test` the reference.
    """

    part: Name

    def open(self, root: Path | None) -> ImageSet:
        """The images; `root` is not used, since everything is made from scikit-learn's data."""
        made = _load()
        pictures, labels = made[f"{self.part}/pictures"], made[f"{self.part}/labels"]
        source, group = made[f"{self.part}/source"], made[f"{self.part}/group"]
        classes, class_map, own = _classes_of(self.part, labels)
        return ImageSet(
            labels=own,
            classes=classes,
            class_map=class_map,
            read=_Reader(pictures, crop=2 if self.part == "object" else 0),
            names=[f"digits-{self.part}[{i}]" for i in range(len(own))],
            source=source,
            group=group,
            fingerprint=fingerprint_of(
                classes=classes,
                class_map=class_map,
                labels=own,
                group=group,
                contents=[hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures],
            ),
        )


@dataclass(frozen=True, eq=False)
class _Reader:
    """Picture i, without its border."""

    pictures: NDArray[np.uint8]
    crop: int

    def __call__(self, index: int) -> Image.Image:
        picture = self.pictures[index]
        if self.crop:
            picture = picture[self.crop : -self.crop, self.crop : -self.crop]
        return Image.fromarray(picture)


def _classes_of(
    part: Name, ids: NDArray[np.int64]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], NDArray[np.int64]]:
    """Names, class map and own labels: a subset for r and a, two ids for the 1 of object."""
    if part == "object":
        names = tuple(name.split(",")[0] for name in CLASSES[:10])
        class_map = tuple((i, FLAGGED_ONE) if i == 1 else (i,) for i in range(10))
        return names, class_map, np.where(ids == FLAGGED_ONE, 1, ids)
    chosen = SUBSETS.get(part, tuple(range(len(CLASSES))))
    own = np.searchsorted(np.asarray(chosen), ids)
    return tuple(CLASSES[i] for i in chosen), tuple((i,) for i in chosen), own


def _load() -> dict[str, NDArray[Any]]:
    """All parts, made on first use and kept in the cache folder."""
    path = cache_dir("digits") / f"digits-{_makers()}.npz"
    kept = read_checked(path)
    if kept is not None:
        with np.load(io.BytesIO(kept)) as arrays:
            return dict(arrays)
    made = make()
    file = io.BytesIO()
    np.savez(file, **made)  # type: ignore[arg-type]
    write_checked(path, file.getvalue())
    return made


def _makers() -> str:
    """Hash of all that makes the pictures: a cached file of other code must not be taken."""
    digest = hashlib.sha256()
    for file in (Path(__file__), Path(render.__file__)):
        digest.update(file.read_bytes())
    for package in ("numpy", "pillow", "scikit-learn"):
        digest.update(f"{package} {metadata.version(package)}".encode())
    return digest.hexdigest()[:16]


def make() -> dict[str, NDArray[Any]]:
    """Every part: pictures, label ids, source photographs and groups."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ids = digits.target.astype(np.int64)
    # A flag is ink to the upper left of the stroke.
    flag = digits.images[:, 2:5, 0:3].sum((1, 2)) > 20
    ids[(ids == 1) & flag] = FLAGGED_ONE
    inks = np.stack([render.upscale(image) for image in digits.images])
    photographs = _split(ids)
    parts: dict[str, NDArray[Any]] = {}

    def add(
        part: str, chosen: NDArray[np.int64], pictures: list[render.Picture], group: list[str]
    ) -> None:
        parts[f"{part}/pictures"] = np.stack(pictures)
        parts[f"{part}/labels"] = ids[chosen]
        parts[f"{part}/source"] = np.array([f"digit-{i:04d}" for i in chosen])
        parts[f"{part}/group"] = np.array(group)

    def rendered(part: str, chosen: NDArray[np.int64], how: render.Renderer) -> None:
        if part in SUBSETS:
            chosen = chosen[np.isin(ids[chosen], SUBSETS[part])]
        pictures = [how(inks[i], _generator(part, i)) for i in chosen]
        add(part, chosen, pictures, [""] * len(chosen))

    rendered("train", photographs["train"], render.clean)
    rendered("test", photographs["test"], render.clean)
    rendered("v2", photographs["v2"], render.fresh)
    rendered("r", photographs["r"], render.rendition)
    rendered("sketch", photographs["sketch"], render.sketch)
    rendered("object", photographs["object"], render.scene)
    rendered("cartoon", photographs["test"][:200], render.cartoon)
    rendered("drawing", photographs["test"][:200], render.drawing)

    chosen, pictures = _hard(ids, inks, photographs)
    add("a", chosen, pictures, [""] * len(chosen))

    corrupted, groups, sources = [], [], []
    for name, corrupt in render.CORRUPTIONS.items():
        for severity in range(1, 6):
            for position, i in enumerate(photographs["test"][:50]):
                picture = parts["test/pictures"][position]
                corrupted.append(corrupt(picture, severity, _generator(name, i, severity)))
                groups.append(f"{name}/{severity}")
                sources.append(i)
    add("c", np.asarray(sources), corrupted, groups)
    return parts


def _split(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    order = np.random.default_rng(0).permutation(len(ids))
    ends = np.cumsum(list(SPLIT.values()))
    pieces = np.split(order, ends[:-1])
    return dict(zip(SPLIT, (piece[:n] for piece, n in zip(pieces, SPLIT.values(), strict=True)),
                    strict=True))  # fmt: skip


def _hard(
    ids: NDArray[np.int64], inks: NDArray[np.float64], photographs: dict[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], list[render.Picture]]:
    """The candidates that the nearest class mean of the clean training split gets wrong.

    As ImageNet-A was filtered against one fixed model, not against those that are scored.
    """
    train = photographs["train"]
    means = np.stack([inks[train][ids[train] == k].mean(0).ravel() for k in range(len(CLASSES))])
    chosen, pictures = [], []
    for i in photographs["a"]:
        if ids[i] not in SUBSETS["a"]:
            continue
        kept = 0
        for candidate in range(HARD_CANDIDATES):
            picture = render.hard(inks[i], _generator("a", i, candidate))
            grey = picture.mean(2).ravel() / 255
            wrong = ((means - grey) ** 2).sum(1).argmin() != ids[i]
            if wrong and kept < 2:
                chosen.append(i)
                pictures.append(picture)
                kept += 1
    return np.asarray(chosen), pictures


def _generator(name: str, *numbers: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{name}/{[int(n) for n in numbers]}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
