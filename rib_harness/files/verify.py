"""Is a set what it claims to be: counts, classes, decodable, no duplicates across classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rib_harness.errors import DataError
from rib_harness.guard import as_it_was
from rib_harness.images import ImageSet
from rib_harness.pictures import named, undecodable
from rib_harness.readers import Readers

#: Images that are decoded unless all are asked for.
SAMPLE = 500

#: Lines of one kind that are listed; the rest is counted.
LISTED = 10

_ORIENTATION = 0x0112  # of EXIF


@dataclass
class Report:
    """What was found.

    Args:
        images, classes: how many there are.
        expected, expected_classes: how many the published set has; None if not known.
        fingerprint: of the contents, whatever the form.
        location, form: where, and as what.
        decoded: how many pictures were decoded.
        problems: what makes it another set than the published one.
        notes: what is worth knowing and no fault.
    """

    images: int
    expected: int | None
    classes: int
    expected_classes: int
    fingerprint: str
    location: str
    form: str
    decoded: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "whole": self.whole}


def verify(
    images: ImageSet, *, everything: bool = False, advance: Callable[[int], None] | None = None
) -> Report:
    """Check a set.

    Args:
        everything: decode all pictures, not a sample of 500.
        advance: told how many more pictures were decoded.
    """
    present = np.unique(images.labels)
    report = Report(
        images=len(images),
        expected=images.expected,
        classes=len(present),
        expected_classes=len(images.classes) - (images.others is not None),
        fingerprint=images.fingerprint,
        location=images.location,
        form=images.form,
    )
    _count(images, report)
    _duplicates(images, report)
    _decode(images, report, everything, advance)
    return report


def _count(images: ImageSet, report: Report) -> None:
    if images.expected is not None and len(images) != images.expected:
        report.problems.append(f"{len(images):,} images, expected {images.expected:,}")
    counts = np.bincount(images.labels, minlength=len(images.classes))
    empty = [images.classes[i] for i in np.flatnonzero(counts == 0) if i != images.others]
    report.problems += _listed(empty, "class without any image")
    expected = images.expected_per_class
    if expected is None:
        return
    off = []
    for group in np.unique(images.group):
        counts = np.bincount(images.labels[images.group == group], minlength=len(images.classes))
        of = f" in {group}" if group else ""
        off += [
            f"{images.classes[i]}{of}: {counts[i]} images, expected {expected}"
            for i in np.flatnonzero((counts != expected) & (counts > 0))
        ]
    report.problems += _listed(off, "class with another number of images")


def _duplicates(images: ImageSet, report: Report) -> None:
    by_content: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(images.contents):
        by_content[digest].append(i)
    within, across = 0, []
    for same in by_content.values():
        if len(same) > 1:
            if len({int(images.labels[i]) for i in same}) > 1:
                across.append(f"{images.names[same[0]]} and {images.names[same[1]]}")
            else:
                within += len(same) - 1
    # Published sets have some of both, so neither makes it another set.
    report.notes += _listed(across, "picture in two classes")
    if within:
        report.notes.append(f"{within:,} pictures are there twice in their class")


def _decode(
    images: ImageSet,
    report: Report,
    everything: bool,
    advance: Callable[[int], None] | None,
) -> None:
    chosen = np.arange(len(images))
    if not everything and len(images) > SAMPLE:
        chosen = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(np.int64))
    broken: list[str] = []
    black = rotated = 0
    with as_it_was(images.location or "the dataset"), Readers() as pool:
        for start in range(0, len(chosen), 1000):  # not all at once: C has millions
            chunk = chosen[start : start + 1000]
            for problem, is_black, is_rotated in pool.map(lambda i: _look(images, int(i)), chunk):
                if problem:
                    broken.append(problem)
                black += is_black
                rotated += is_rotated
                if advance is not None:
                    advance(1)
    report.decoded = len(chosen)
    report.problems += _listed(broken, "picture that cannot be decoded")
    of = "" if len(chosen) == len(images) else f" of the {len(chosen):,} looked at"
    if black:
        report.notes.append(f"{black:,} pictures{of} are all black")
    if rotated:
        report.notes.append(
            f"{rotated:,} pictures{of} carry an EXIF rotation, which is not applied, as in all "
            "published numbers"
        )


def _look(images: ImageSet, index: int) -> tuple[str, bool, bool]:
    """What is wrong with a picture, whether it is all black, whether EXIF would turn it."""
    try:
        with named(images.names[index]):
            rotated = images.read(index).getexif().get(_ORIENTATION, 1) not in (0, 1)
        pixels: NDArray[np.uint8] = np.asarray(images.image(index))
    except DataError as error:
        return str(error), False, False
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return undecodable(images.names[index], error), False, False
    return "", not pixels.any(), rotated


def _listed(items: list[str], what: str) -> list[str]:
    lines = [f"{what}: {item}" for item in items[:LISTED]]
    if len(items) > LISTED:
        lines.append(f"… and {len(items) - LISTED:,} more of: {what}")
    return lines
