"""Which images of the fine-tuning set a flipped image is most like: a guess at what flipped it.

By the cosine between features of the untouched encoder, which is a simple and strong baseline for
which training images a prediction rests on (after arXiv:2311.03386, whose features are of a
self-supervised encoder). Only images whose features were kept can be found, on either side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rib_harness.errors import StoreError
from rib_harness.features import Features
from rib_harness.report.data import Part
from rib_harness.report.flips import Flips
from rib_harness.store import FEATURES, Store

#: Neighbours of an image, and at most so many images with a fine-tuning set on a page.
NEAREST, PAIRS = 3, 6000

#: A flipped image in the eyes of one encoder: its place, and those of source and dataset in
#: `Flips.sources` and `.datasets`; then the row.
Pair = tuple[int, int, int, int]


@dataclass(frozen=True)
class Neighbour:
    """An image of a fine-tuning set.

    Args:
        row: of the set.
        cosine: between its features and those of the flipped image.
        same: whether both are versions of one photograph.
    """

    row: int
    cosine: float
    same: bool


@dataclass
class Neighbours:
    """What the explorer shows below its flips.

    Args:
        encoders: of each line, which untouched encoder it started from.
        of: flipped image → the nearest images of the set, the nearest first.
        kept: how many images of each source have features, and how many there are.
        why: what is not there; empty where all is.
    """

    encoders: list[int]
    of: dict[Pair, list[Neighbour]] = field(default_factory=dict)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    why: str = ""

    def images(self) -> list[tuple[int, int]]:
        """(source, row) of all that are shown, each once, those of the first pairs first."""
        found = dict.fromkeys((pair[1], one.row) for pair, near in self.of.items() for one in near)
        return list(found)


def neighbours_of(part: Part, flips: Flips, store: Store, most: int = PAIRS) -> Neighbours:
    """The nearest images of the fine-tuning set of each flip whose features were kept.

    An image is no neighbour of itself.

    Args:
        most: pairs of an image and a fine-tuning set; those of the most telling images are kept.
    """
    started = [json.dumps(line.arm.record["cells"]["pre"]) for line in part.lines]
    found = Neighbours([started.index(one) for one in started])
    keys: dict[int, dict[str, str]] = {}
    for encoder, line in zip(found.encoders, part.lines, strict=True):
        for run in line.arm.runs:
            keys.setdefault(encoder, {}).update((run.record.get("features") or {}).get("pre", {}))
    keys = {encoder: known for encoder, known in keys.items() if known}
    if not keys:
        found.why = "no run here kept features; --features N keeps those of N images of each set"
        return found
    read = _Reader(store, keys, found)
    chosen: dict[tuple[int, int, int], list[int]] = {}
    order = {(d, row): k for k, (d, row, _) in enumerate(flips.images())}
    pairs = {
        (order[int(d), int(row)], found.encoders[k], int(s), int(d), int(row))
        for k, s, d, row, _, _ in flips.flips
    }  # fmt: skip
    left = most
    for _, b, s, d, row in sorted(pairs):
        if left and read.has(b, flips.datasets[d], row) and read.of(b, flips.sources[s]):
            chosen.setdefault((b, s, d), []).append(row)
            left -= 1
    near: dict[Pair, list[Neighbour]] = {}
    for (b, s, d), rows in chosen.items():
        source, dataset = flips.sources[s], flips.datasets[d]
        of_set, of_flips = read.of(b, source), read.of(b, dataset)
        if of_set is None or of_flips is None:
            continue
        found.kept[source] = (len(of_set), len(flips.rows[flips.datasets.index(source)].label))
        own = of_set.index if source == dataset else None
        places = np.searchsorted(of_flips.index, rows)
        for row, (which, cosines) in zip(
            rows, nearest(of_flips.features[places], of_set.features, rows, own), strict=True
        ):
            near[b, s, d, row] = [
                Neighbour(int(one), float(cosine), _same(flips, (d, row), (s, int(one))))
                for one, cosine in zip(of_set.index[which], cosines, strict=True)
            ]
    # The most telling images first: their pictures are made first, too.
    found.of = {(b, s, d, row): near[b, s, d, row] for _, b, s, d, row in sorted(pairs)
                if (b, s, d, row) in near}  # fmt: skip
    if not found.of and not found.why:
        found.why = "none of these flips is among the images whose features were kept"
    return found


def nearest(
    queries: NDArray[np.float32],
    features: NDArray[np.float32],
    rows: Sequence[int],
    own: NDArray[np.int64] | None = None,
    count: int = NEAREST,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each query the places of the most alike features, and their cosines, the highest first.

    Args:
        queries: (Q, D).
        features: (N, D).
        rows: (Q,), which images the queries are.
        own: (N,), which images the features are of, where both are of one set: none of these is
            its own neighbour.
    """
    one, other = _unit(queries), _unit(features)
    found = []
    for start in range(0, len(one), 256):
        cosines = one[start : start + 256] @ other.T
        for row, each in zip(rows[start : start + 256], cosines, strict=True):
            if own is not None:
                each[own == row] = -np.inf
            which = np.argsort(-each, kind="stable")[:count]
            which = which[np.isfinite(each[which])]
            found.append((which, each[which]))
    return found


def _unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1), 1e-12)[:, None]
    return unit


def _same(flips: Flips, flipped: tuple[int, int], neighbour: tuple[int, int]) -> bool:
    """Whether an image and one of a source are versions of one photograph."""
    d, row = flipped
    s, other = neighbour
    texts, codes = flips.rows[d].photograph
    theirs, their_codes = flips.rows[flips.datasets.index(flips.sources[s])].photograph
    return texts[codes[row]] == theirs[their_codes[other]]


class _Reader:
    """Features of datasets under each untouched encoder, read once."""

    def __init__(self, store: Store, keys: dict[int, dict[str, str]], found: Neighbours):
        self.store, self.keys, self.found = store, keys, found
        self._kept: dict[tuple[int, str], Features | None] = {}

    def of(self, encoder: int, dataset: str) -> Features | None:
        """None where there are none, or they are damaged: then `why` is told."""
        place = encoder, dataset
        if place not in self._kept:
            self._kept[place] = None
            key = self.keys.get(encoder, {}).get(dataset)
            if key is not None and self.store.done(key) is None:
                self._tell(f"the features of {dataset} are missing or damaged")
            elif key is not None:
                try:
                    self._kept[place] = Features.read(self.store.file(key, FEATURES))
                except StoreError as error:
                    self._tell(str(error).rstrip("."))
        return self._kept[place]

    def _tell(self, why: str) -> None:
        self.found.why = self.found.why or why

    def has(self, encoder: int, dataset: str, row: int) -> bool:
        """Whether the features of this image were kept."""
        features = self.of(encoder, dataset)
        if features is None:
            return False
        place = int(np.searchsorted(features.index, row))
        return place < len(features) and int(features.index[place]) == row
