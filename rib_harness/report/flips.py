"""Which images went from right to wrong, or back, by fine-tuning; and which classes pay for it.

The true totals are kept for every cell; of the images themselves only so many as a page can carry,
drawn in one fixed order of the images, so that the methods' samples show the same ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rib_harness.errors import StoreError
from rib_harness.report.data import Line, Part
from rib_harness.store import AGAIN, SCORES, Store

#: Flips on a page at most; the totals are of all.
FLIPS = 40_000

#: Classes of one table of changes at most: the worst and the best.
WORST, BEST = 20, 10

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """How one dataset's images went over, for one line and fine-tuning set.

    Args:
        line, source, dataset: places in `Flips.lines`, `.sources` and `.datasets`.
        n, lost, gained, kept, wrong: images; lost is right before and wrong after.
    """

    line: int
    source: int
    dataset: int
    n: int
    lost: int
    gained: int
    kept: int
    wrong: int


@dataclass(frozen=True)
class Rows:
    """Columns of one dataset that all checkpoints share.

    Args:
        label: (N,).
        group, photograph: texts, and (N,) which of them each row has.
    """

    label: Ints
    group: tuple[list[str], Ints]
    photograph: tuple[list[str], Ints]


@dataclass
class Flips:
    """What the explorer holds, as columns.

    Args:
        lines, sources, datasets: labels.
        cells: the true totals.
        flips: (F, 6): line, source, dataset, row of the dataset, prediction before and after.
        rows: dataset's place → the columns that all checkpoints share.
        seeds: line's place → of which seed the images are.
        notes: what is left out, and why.
    """

    lines: list[str]
    sources: list[str]
    datasets: list[str]
    cells: list[Cell] = field(default_factory=list)
    flips: Ints = field(default_factory=lambda: np.empty((0, 6), dtype=np.int64))
    rows: dict[int, Rows] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Flips in all."""
        return sum(cell.lost + cell.gained for cell in self.cells)

    def images(self) -> list[tuple[int, int, int]]:
        """(dataset, row, flips) of the images that are shown, the most telling first.

        Datasets take turns, so that none is without pictures; within one, the images that flip
        most often come first.
        """
        counts = Counter((int(d), int(row)) for d, row in self.flips[:, 2:4])
        turn: dict[int, int] = {}
        ordered = []
        for (dataset, row), count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
            turn[dataset] = turn.get(dataset, 0) + 1
            ordered.append((turn[dataset], dataset, row, count))
        return [(dataset, row, count) for _, dataset, row, count in sorted(ordered)]


def flips_of(part: Part, store: Store, most: int = FLIPS) -> Flips:
    """Compare before and after image by image, for each line's first seed.

    Args:
        most: flips to keep; cells with fewer keep all of theirs.

    Raises:
        StoreError: a file of scores is damaged.
    """
    found = Flips([line.label for line in part.lines], part.sources, part.datasets,
                  seeds=[line.arm.seeds[0] for line in part.lines])  # fmt: skip
    # Of each cell: what one may hold until all are known.
    strata = 2 * len(part.lines) * len(part.sources) * len(part.datasets)
    ceiling = min(most, max(64, 20 * most // max(strata, 1)))
    blocks: list[Ints] = []
    for d, dataset in enumerate(part.datasets):
        for k, line in enumerate(part.lines):
            blocks += _compare(found, (k, d), line, dataset, store, ceiling)
    cap = _fair_cap([len(block) for block in blocks], most)
    if blocks:
        found.flips = np.concatenate([block[:cap] for block in blocks])
    return found


def _compare(
    found: Flips, place: tuple[int, int], line: Line, dataset: str, store: Store, most: int
) -> list[Ints]:
    """Counts one line's cells of a dataset; returns the flips lost and gained of each, in order."""
    k, d = place
    run = line.arm.runs[0]
    if line.cell(run, dataset) is None:
        return []
    pre = str(run.record["cells"]["pre"][dataset])
    if d not in found.rows:
        found.rows[d] = read_rows(store, pre)
    label, before = found.rows[d].label, predictions(store, pre)
    if len(before) != len(label):
        found.notes.append(f"{line.label}: its {dataset} is of other images, and left out here.")
        return []
    order, blocks = _order(dataset, len(label)), []
    for s, source in enumerate(found.sources):
        if line.cell(run, dataset, source) is None:
            continue
        after = predictions(store, str(run.record["cells"]["post"][source][dataset]))
        _same_length(after, label, store, dataset)
        was, now = before == label, after == label
        lost, gained = was & ~now, now & ~was
        found.cells.append(
            Cell(k, s, d, len(label), int(lost.sum()), int(gained.sum()), int((was & now).sum()),
                 int((~was & ~now).sum()))
        )  # fmt: skip
        for flipped in (lost, gained):
            rows = np.flatnonzero(flipped)
            rows = rows[np.argsort(order[rows], kind="stable")][:most]
            block = np.empty((len(rows), 6), dtype=np.int64)
            block[:, :3] = k, s, d
            block[:, 3], block[:, 4], block[:, 5] = rows, before[rows], after[rows]
            blocks.append(block)
    return blocks


@dataclass(frozen=True)
class ClassChange:
    """A class before and after.

    Args:
        name: its place among the classes of the dataset.
        n: its images.
        before, after: accuracy in %, after: the mean over the other fine-tuning sets and seeds.
        half: half of the 95 % interval of the change, in points: normal, by photograph; None of
            one photograph.
    """

    name: int
    n: int
    before: float
    after: float
    half: float | None

    @property
    def change(self) -> float:
        """In points."""
        return self.after - self.before


def class_changes(line: Line, dataset: str, store: Store) -> list[ClassChange]:
    """Each class of a dataset, the worst change first; empty where a cell is missing.

    The fine-tuning set itself is left out of the mean. The interval is of the mean of paired
    differences, those of one photograph taken together (Liang & Zeger 1986).
    """
    others = [source for source in line.sources if source != dataset]
    cells = [(run, source) for run in line.arm.runs for source in others]
    if not cells or any(
        line.cell(run, dataset) is None or line.cell(run, dataset, source) is None
        for run, source in cells
    ):
        return []
    pre = str(line.arm.runs[0].record["cells"]["pre"][dataset])
    rows = read_rows(store, pre)
    was = (predictions(store, pre) == rows.label).astype(np.float64)
    now = np.zeros(len(was))
    for run, source in cells:
        after = predictions(store, run.record["cells"]["post"][source][dataset])
        _same_length(after, rows.label, store, dataset)
        now += (after == rows.label) / len(cells)
    n = np.bincount(rows.label)
    before, later = (100 * np.bincount(rows.label, x) / np.maximum(n, 1) for x in (was, now))
    residual = (now - was) - ((later - before) / 100)[rows.label]
    clusters, place = np.unique(
        rows.label * (rows.photograph[1].max(initial=0) + 1) + rows.photograph[1],
        return_inverse=True,
    )
    of = clusters // (rows.photograph[1].max(initial=0) + 1)
    squares = np.bincount(of, np.bincount(place, residual) ** 2, minlength=len(n))
    groups = np.bincount(of, minlength=len(n))
    with np.errstate(divide="ignore", invalid="ignore"):
        half = 196 * np.sqrt(squares * groups / (groups - 1)) / n
    changes = [
        ClassChange(int(k), int(n[k]), float(before[k]), float(later[k]),
                    float(half[k]) if groups[k] > 1 else None)
        for k in np.flatnonzero(n)
    ]  # fmt: skip
    return sorted(changes, key=lambda one: (one.change, one.name))


def worst_and_best(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """What a page shows of many classes."""
    if len(changes) <= WORST + BEST:
        return list(changes)
    return [*changes[:WORST], *changes[-BEST:]]


def predictions(store: Store, key: str) -> Ints:
    """(N,), what a checkpoint said of each image."""
    return _column(_read(store, key, ["prediction"]), "prediction")


def read_rows(store: Store, key: str) -> Rows:
    """The columns of a dataset that do not depend on the checkpoint."""
    table = _read(store, key, ["label", "group", "source"])
    return Rows(_column(table, "label"), _texts(table, "group"), _texts(table, "source"))


def _read(store: Store, key: str, columns: list[str]) -> Any:
    path = store.file(key, SCORES)
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}). {AGAIN}") from None


def _column(table: Any, name: str) -> Ints:
    return np.asarray(table.column(name)).astype(np.int64)


def _texts(table: Any, name: str) -> tuple[list[str], Ints]:
    encoded = table.column(name).combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)


def _same_length(after: Ints, label: Ints, store: Store, dataset: str) -> None:
    if len(after) != len(label):
        raise StoreError(
            f"The scores of {dataset} in {store.path} are of {len(label)} images before "
            f"fine-tuning and of {len(after)} after it."
        )


def _order(dataset: str, n: int) -> Ints:
    """A fixed random rank of each image: who is drawn first, for every method."""
    digest = hashlib.sha256(f"flips/{dataset}/{n}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    return generator.permutation(n)


def _fair_cap(counts: Sequence[int], most: int) -> int:
    """The largest cap for which all capped counts add up to at most `most`.

    >>> _fair_cap([1, 10, 10], 11)
    5
    """
    low, high = 0, max(counts, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= most:
            low = middle
        else:
            high = middle - 1
    return low
