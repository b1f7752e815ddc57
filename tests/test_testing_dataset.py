"""Every check of a dataset: one that passes all, and for each check some that fail it."""

from __future__ import annotations

import itertools
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rib_harness import DataError, DatasetSpec, ImageSet, LabelSpace
from rib_harness.catalog import Catalog
from rib_harness.testing import Check, catalog_with, checks_of, tiny_images
from rib_harness.testing.dataset_checks import DATASET_CHECKS

SPEC = DatasetSpec(
    name="shift",
    target="",
    summary="A shift.",
    license="MIT",
    label_space=LabelSpace("tens", 10),
    classes=10,
)
COUNTER = itertools.count()


@dataclass(frozen=True, eq=False)
class Reader:
    """Picture i."""

    pictures: Any

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pictures[index])


def images(**changes: Any) -> ImageSet:
    made = tiny_images()
    pictures = np.stack([np.asarray(made.image(i)) for i in range(len(made))])
    return replace(made, **{"read": Reader(pictures), **changes})


class Good:
    """Images in memory."""

    def open(self, root: Path | None) -> ImageSet:
        return images()


class OfFiles(Good):
    """Images of a folder, which a data root may have."""

    said = "no folder {root}/shift. Get it: https://example.org/shift.tar"

    def locate(self, root: Path | None) -> str:
        if root is None or not (root / "shift").is_dir():
            raise DataError(self.said.format(root=root))
        return str(root / "shift")

    def open(self, root: Path | None) -> ImageSet:
        self.locate(root)
        return images()


class NotLocated(Good):
    def open(self, root: Path | None) -> ImageSet:
        OfFiles().locate(root)
        return images()


class AnotherError(Good):
    def open(self, root: Path | None) -> ImageSet:
        if root is not None and not (root / "shift").is_dir():
            raise FileNotFoundError("shift")
        return images()


class NoFolder(OfFiles):
    said = "no data. Download them"


class NoHow(OfFiles):
    said = "no folder {root}/shift"


class Downloading(OfFiles):
    def open(self, root: Path | None) -> ImageSet:
        with suppress(Exception):
            socket.create_connection(("example.org", 80))
        return super().open(root)


class OfAnotherLength(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images().taken(np.arange(10 + next(COUNTER) % 5))  # there are only so many


class InAnotherOrder(Good):
    def open(self, root: Path | None) -> ImageSet:
        made = images()
        return replace(made.taken(np.roll(np.arange(len(made)), next(COUNTER))))


class OfTheTime(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(fingerprint=f"{next(COUNTER)}")


class WithoutFingerprint(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(fingerprint="")


class NoImageSet(Good):
    def open(self, root: Path | None) -> Any:
        return []


class LabelTooHigh(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(labels=np.full(24, 10))


class LabelsInInt32(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(labels=images().labels.astype(np.int32))


class IdTooHigh(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(class_map=tuple((k + 1,) for k in range(10)))


class Torn(Reader):
    def __call__(self, index: int) -> Image.Image:
        if index == 23:
            raise OSError("truncated")
        return super().__call__(index)


class Damaged(Good):
    def open(self, root: Path | None) -> ImageSet:
        made = images()
        return replace(made, read=Torn(made.read.pictures))  # type: ignore[attr-defined]


class NotCropped(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(cropped=9)


class WithALambda(Good):
    def open(self, root: Path | None) -> ImageSet:
        made = images()
        return replace(made, read=lambda index: made.image(index))


class Changing(Reader):
    def __reduce__(self) -> Any:
        return Changing, (255 - self.pictures,)


class AnotherPicture(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(read=Changing(images().read.pictures))  # type: ignore[attr-defined]


class Counting(Reader):
    """Brighter each time."""

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pictures[index] // 2 + next(COUNTER) % 100)


class ReadDifferently(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(read=Counting(images().read.pictures))  # type: ignore[attr-defined]


class MadeDifferently(Good):
    """Other pictures at each opening, and one fingerprint."""

    def open(self, root: Path | None) -> ImageSet:
        return images(read=Reader(255 - images().read.pictures + next(COUNTER)))  # type: ignore[attr-defined]


class Seeding(Reader):
    """The same pictures each time, and everybody's next draws with them."""

    def __call__(self, index: int) -> Image.Image:
        np.random.seed(index)
        return Image.fromarray(self.pictures[index] // 2 + np.random.randint(100))


class SeedingNumPy(Good):
    def open(self, root: Path | None) -> ImageSet:
        return images(read=Seeding(images().read.pictures))  # type: ignore[attr-defined]


class SeedingTorch(Good):
    def open(self, root: Path | None) -> ImageSet:
        torch.manual_seed(0)
        return images()


@dataclass
class Partial(Good):
    """A part of the published set, which says so.

    Args:
        told: where.
    """

    told: str = "expected"

    def open(self, root: Path | None) -> ImageSet:
        said: Any = {"expected": 999} if self.told == "expected" else {"notes": ("24 of 999",)}
        return images(**said)


class PartialInItsNotes(Partial):
    def __init__(self) -> None:
        super().__init__("notes")


class Misspelled:
    def opens(self, root: Path | None) -> ImageSet:
        return images()


#: Check, what is broken, its spec's changes, and a part of the message.
BAD: list[tuple[str, type[Good], dict[str, Any], str]] = [
    ("missing-data", AnotherError, {}, "raises FileNotFoundError: shift. Raise a DataError"),
    ("missing-data", NoFolder, {}, "name the folder where they were looked for"),
    ("missing-data", NoHow, {}, "say how to get them"),
    ("missing-data", NotLocated, {}, "it reads files: give it locate(root), which gives the place"),
    ("missing-data", Downloading, {}, "reaches for example.org: never download in silence"),
    ("protocol", Misspelled, {}, "Misspelled has no method open(root). Did you mean 'opens'"),
    ("opens", NoImageSet, {}, "open() gave list: return a rib_harness.ImageSet"),
    ("opens", LabelTooHigh, {}, "does not open: tiny[0]: its label 10 is outside 0 … 9"),
    ("stable", ReadDifferently, {}, "tiny[0], read twice, is two pictures: `read` must depend on"),
    ("stable", MadeDifferently, {}, "tiny[0] is another picture under the same fingerprint"),
    ("stable", SeedingNumPy, {}, "reading it changes the global random state of numpy"),
    ("stable", SeedingTorch, {}, "reading it changes the global random state of torch"),
    ("stable", OfAnotherLength, {}, "opened twice, it has 1"),
    ("stable", InAnotherOrder, {}, "in another order: sort the files"),
    ("stable", OfTheTime, {}, "another fingerprint: hash the contents"),
    ("stable", WithoutFingerprint, {}, "it has no fingerprint: use fingerprint_of"),
    ("labels", LabelsInInt32, {}, "its labels are int32 of shape (24,): expected int64"),
    ("counts", Good, {"classes": 7}, "its spec says 7 classes, it has 10"),
    (
        "counts",
        Partial,
        {"images": 998},
        "says 998 images, its ImageSet expected=999: both are how",
    ),
    ("counts", Good, {"images": 999}, "its spec says 999 images, it has 24: correct the spec"),
    ("class-map", IdTooHigh, {}, "its class map has the id 10; tens has the ids 0 … 9"),
    ("decodes", Damaged, {}, "tiny[23]: this image cannot be decoded (truncated)"),
    ("decodes", NotCropped, {}, "tiny[0] is (8, 8), but it says cropped=9"),
    ("picklable", WithALambda, {}, "make `read` an object of a class at the top of a module"),
    ("picklable", AnotherPicture, {}, "pickled and back, it reads another picture"),
]


def checks_on(target: Any, root: Path | None = None, **spec: Any) -> dict[str, Check]:
    """Check → itself, for a dataset that no package offers."""
    catalog = catalog_with((replace(SPEC, **spec), target), base=Catalog())
    checks = checks_of("testing", catalog, data_root=root)
    return {c.id.rpartition("/")[2]: c for c in checks if c.id.startswith("dataset/")}


def test_a_good_one_passes_every_check() -> None:
    assert {check.outcome()["result"] for check in checks_on(Good).values()} == {"ok"}


def test_one_of_files_passes_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "shift").mkdir()
    assert {check.outcome()["result"] for check in checks_on(OfFiles, tmp_path).values()} == {"ok"}


def test_where_they_are_not_it_is_skipped_with_its_own_words(tmp_path: Path) -> None:
    found = {name: check.outcome() for name, check in checks_on(OfFiles, tmp_path).items()}
    assert found["missing-data"]["result"] == "ok"
    assert found["stable"]["result"] == "skipped"
    said = found["stable"]["reason"]
    assert said.startswith("its data are not on this machine (--data-root): no folder")
    assert said.endswith("Get it: https://example.org/shift.tar")


@pytest.mark.parametrize(("check", "target", "spec", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(
    check: str, target: type[Good], spec: dict[str, Any], said: str
) -> None:
    """Source: what was broken here."""
    found = checks_on(target, **spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


@pytest.mark.parametrize("target", [Partial, PartialInItsNotes])
def test_a_partial_copy_that_says_so_passes(target: type[Partial]) -> None:
    assert checks_on(target, images=999)["counts"].outcome()["result"] == "ok"


def test_one_cause_is_told_once() -> None:
    """Source: a slip of the pen, on which every other check rests; so does a picture."""
    found = {name: check.outcome()["result"] for name, check in checks_on(Misspelled).items()}
    assert [name for name, result in found.items() if result == "failed"] == ["protocol"]
    assert found["missing-data"] == found["picklable"] == "skipped"
    for target, told in ((Damaged, "decodes"), (ReadDifferently, "stable")):
        found = {name: check.outcome()["result"] for name, check in checks_on(target).items()}
        assert [name for name, result in found.items() if result == "failed"] == [told]


def test_the_kits_own_images_pass_and_can_be_sent() -> None:
    class Tiny(Good):
        def open(self, root: Path | None) -> ImageSet:
            return tiny_images()

    assert {check.outcome()["result"] for check in checks_on(Tiny).values()} == {"ok"}


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in DATASET_CHECKS}
    assert names == {check for check, *_ in BAD}
