"""Intervals of a run's numbers, from its stored scores: no model is run.

What varies is which photographs were taken. Every resample draws photographs, once for each group
of datasets that are made from the same ones, and is used for all checkpoints: before and after are
compared on the same images, and 75 versions of one photograph count as one. Where there are three
seeds or more, which seed was drawn varies too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rib_harness.arms import Arm
from rib_harness.errors import RibError, StoreError
from rib_harness.matrix import IncompleteError
from rib_harness.results import RunResult
from rib_harness.statistics import (
    SEEDS_NEEDED,
    Floats,
    Interval,
    clustered_mcnemar,
    mcnemar,
    over_seeds,
    percentile_interval,
    resamples,
    without_interaction,
)
from rib_harness.store import AGAIN, SCORES, Store

#: A cell: the source (None: before fine-tuning) and the dataset.
CellName = tuple[str | None, str]

#: Where the scores are, an arm, a weighted sum of its cells, and the weight of that.
Term = tuple["Uncertainty", Arm, Mapping[CellName, float], float]

#: Numbers of photographs × groups × checkpoints that are held at once: 256 MiB.
BLOCK = 2**26


@dataclass(frozen=True)
class Flips:
    """How the images of a dataset went over from one classifier to another; means over seeds.

    Args:
        gained: wrong, then right.
        lost: right, then wrong.
        kept: right both times.
        wrong: wrong both times.
        p: two-sided, of McNemar's test, by photograph where one has several images; the largest
            of the seeds, or of the pairs of seeds.
    """

    gained: float
    lost: float
    kept: float
    wrong: float
    p: float


class Uncertainty:
    """Bootstrap intervals of the runs of one store.

    Args:
        store: where the scores are.
        resamples: how many.
        level: of the intervals, in %.

    Example:
        >>> results = rib_harness.run(method="lwf", store="s")             # doctest: +SKIP
        >>> Uncertainty(Store("s")).mri(arms_of(results)[0])               # doctest: +SKIP
    """

    def __init__(self, store: Store, resamples: int = 2000, level: float = 95.0):
        self.store, self.resamples, self.level = store, resamples, level
        self._pools: dict[str, _Pool] = {}
        self._draws: dict[tuple[str, str], Floats] = {}
        self._influence: dict[tuple[str, str], NDArray[np.float32]] = {}
        # By id() of a run whose scores are read: runs cannot be hashed, and one that is kept here
        # gives its id to no other.
        self._read: dict[int, tuple[RunResult, list[_Pool]]] = {}

    def mri(self, arm: Arm, sources: Sequence[str] | None = None) -> Interval:
        """mRI in points, the mean over seeds; over some of its sources if they are named."""
        return self._interval(arm, _mri(arm, sources))

    def mri_unshared(self, arm: Arm) -> Interval:
        """mRI without the pairs that are made from the same photographs, in points."""
        return self._interval(arm, _mean_change(arm.matrices[0].unshared))

    def ri(self, arm: Arm, source: str) -> Interval:
        """RI of one source in points."""
        others = arm.matrices[0].pairs[source]
        return self._interval(arm, _changes(source, others, 1 / len(others)))

    def change(self, arm: Arm, source: str, dataset: str) -> Interval:
        """A_i^(j) − A_pre^(j) in points."""
        return self._interval(arm, _changes(source, (dataset,), 1.0))

    def accuracy(self, arm: Arm, dataset: str, source: str | None = None) -> Interval:
        """Top-1 in % before, or after fine-tuning on a source."""
        return self._interval(arm, {(source, dataset): 1.0})

    def mean_before(self, arm: Arm) -> Interval:
        """Mean of A_pre over the members, in %."""
        members = arm.matrices[0].members
        return self._interval(arm, {(None, j): 1 / len(members) for j in members})

    def mean_after(self, arm: Arm) -> Interval:
        """Mean OOD accuracy after fine-tuning in %: mRI + the mean of A_pre over the members."""
        cells, members = _mri(arm), arm.matrices[0].members
        for j in members:
            cells[None, j] = cells.get((None, j), 0.0) + 1 / len(members)
        return self._interval(arm, cells)

    def mri_closed_form(self, arm: Arm) -> Interval:
        """mRI with the normal interval of the linearised variance between photographs.

        Over images only; it stands beside the bootstrap as a check. Source: Taylor linearisation
        of ratio means, Särndal et al. 1992, Model Assisted Survey Sampling, 5.5.
        """
        self.prepare([arm])
        values = _by_seed(arm, _mri(arm))
        estimate, variance = sum(values) / len(values), 0.0
        weights = {c: f / len(arm.runs) for c, f in _mri(arm).items()}
        for pool in self._read[id(arm.runs[0])][1]:
            total = np.zeros(pool.size)
            for run in arm.runs:
                for cell, factor in weights.items():
                    if cell[1] in pool.datasets:
                        total += factor * self._influence[pool.id, _key(run, cell)]
            variance += pool.size / max(pool.size - 1, 1) * float((total**2).sum())
        from scipy.stats import norm

        half = float(norm.ppf(0.5 + self.level / 200)) * variance**0.5
        return Interval(estimate, estimate - half, estimate + half, self.level)

    def mri_difference(
        self,
        a: Arm,
        b: Arm,
        other: Uncertainty | None = None,
        sources: Sequence[str] | None = None,
    ) -> Interval:
        """mRI of `b` minus mRI of `a`, on the same resamples.

        Args:
            a, b: two arms over the same datasets.
            other: of the store of `b`, if that is another one.
            sources: over which; None is all, each arm its own.
        """
        return self.difference(a, _mri(a, sources), b, _mri(b, sources), other)

    def ri_difference(
        self, a: Arm, b: Arm, source: str, other: Uncertainty | None = None
    ) -> Interval:
        """RI of one source under `b` minus that under `a`, in points."""
        return self.mri_difference(a, b, other, [source])

    def cell_difference(
        self, a: Arm, b: Arm, source: str, dataset: str, other: Uncertainty | None = None
    ) -> Interval:
        """Change of one cell under `b` minus that under `a`, in points."""
        cell = _changes(source, (dataset,), 1.0)
        return self.difference(a, cell, b, cell, other)

    def difference(
        self,
        a: Arm,
        of_a: Mapping[CellName, float],
        b: Arm,
        of_b: Mapping[CellName, float],
        other: Uncertainty | None = None,
    ) -> Interval:
        """A weighted sum of cells of `b` minus one of `a`."""
        sides = [(self, a, of_a, -1.0), (other or self, b, of_b, 1.0)]
        return self._combined([[side] for side in sides])

    def mri_of(self, parts: Sequence[tuple[Arm, float]]) -> Interval:
        """A weighted sum of the mRI of arms with the same seeds, which are paired.

        Args:
            parts: arms and their weights: 1 and −1 is a difference.

        Raises:
            IncompleteError: a cell is missing.
        """
        first = parts[0][0]
        for arm, _ in parts:
            if arm.seeds != first.seeds:
                raise RibError(
                    f"Arms of the seeds {first.seeds} and {arm.seeds} are no pairs: run both with "
                    "the same seeds."
                )
        return self._combined([[(self, arm, _mri(arm), share) for arm, share in parts]])

    def flips(self, arm: Arm, source: str, dataset: str) -> Flips:
        """Images gained, lost and kept by fine-tuning on a source."""
        pairs = [(_key(run, (None, dataset)), _key(run, (source, dataset))) for run in arm.runs]
        return self._flips(pairs)

    def flips_between(
        self, a: Arm, b: Arm, source: str, dataset: str, other: Uncertainty | None = None
    ) -> Flips:
        """Images that `b` gains, loses and keeps against `a`, after fine-tuning on a source.

        Every seed of `a` with every seed of `b`: that of one is no partner of the other's.
        """
        cell = (source, dataset)
        keys = [(_key(x, cell), _key(y, cell)) for x in a.runs for y in b.runs]
        return self._flips(keys, other)

    def prepare(self, arms: Iterable[Arm]) -> None:
        """Read all the scores of these arms in one go; else each arm is read when it is asked."""
        wanted: dict[str, dict[str, str]] = {}
        runs = [run for arm in arms for run in arm.runs if id(run) not in self._read]
        pools = [self._pools_of(run) for run in runs]
        for run, of in zip(runs, pools, strict=True):
            for pool in of:
                for cell in _cells(run):
                    key = _key(run, cell)
                    if cell[1] in pool.datasets and (pool.id, key) not in self._draws:
                        wanted.setdefault(pool.id, {})[key] = cell[1]
        for identity, keys in wanted.items():
            self._resample(self._pools[identity], keys)
        self._read |= {id(run): (run, of) for run, of in zip(runs, pools, strict=True)}

    def _interval(self, arm: Arm, cells: Mapping[CellName, float]) -> Interval:
        return self._combined([[(self, arm, cells, 1.0)]])

    def _combined(self, sides: Sequence[Sequence[Term]]) -> Interval:
        """A weighted sum of cells of arms.

        Args:
            sides: each has seeds of its own; the arms of one side have the same and are paired.
        """
        estimate, draws = 0.0, np.zeros(self.resamples)
        seeded: list[tuple[list[float], Floats]] = []
        names, seeds = [], []
        for name, terms in zip("AB", sides, strict=False):
            values: NDArray[np.float64] = np.zeros(len(terms[0][1].runs))
            drawn = np.zeros((len(values), self.resamples))
            for of, arm, cells, share in terms:
                values += share * np.array(_by_seed(arm, cells))  # raises where a cell is missing
                drawn += share * of._drawn(arm, cells)
            estimate += float(values.mean())
            draws = draws + drawn.mean(0)
            trained = any(source is not None for _, _, cells, _ in terms for source, _ in cells)
            if len(values) >= SEEDS_NEEDED and trained:
                seeded.append((values.tolist(), drawn))
                names.append(name)
                seeds.append(terms[0][1].seeds)
        covers = "images"
        if seeded:
            draws = without_interaction(draws, [each for _, each in seeded])
            draws = over_seeds(draws, [each for each, _ in seeded], f"{seeds}")
            covers = "images and seeds"
            if len(names) < len(sides):
                covers += f" of {names[0]}"
        return percentile_interval(estimate, draws, self.level, covers)

    def _drawn(self, arm: Arm, cells: Mapping[CellName, float]) -> Floats:
        """(seeds, resamples): the weighted sum of each seed on each resample."""
        self.prepare([arm])
        draws = np.zeros((len(arm.runs), self.resamples))
        for row, run in zip(draws, arm.runs, strict=True):
            of = {name: pool for pool in self._read[id(run)][1] for name in pool.datasets}
            for cell, factor in cells.items():
                row += factor * self._draws[of[cell[1]].id, _key(run, cell)]
        return draws

    def _pools_of(self, run: RunResult) -> list[_Pool]:
        """The run's datasets, those together that share photographs."""
        known: dict[str, str] = {}  # any scores say which photographs a dataset has
        for cell in _cells(run):
            known.setdefault(cell[1], _key(run, cell))
        groups, rest = [], list(known)
        for shared in run.matrix.shares:
            group = [name for name in rest if name in shared]
            rest = [name for name in rest if name not in shared]
            groups += [group] if group else []
        groups += [[name] for name in rest]
        pools = []
        for group in groups:
            identity = "+".join(str(run.record["cells"]["pre"][name]) for name in group)
            if identity not in self._pools:
                keys = {name: known[name] for name in group}
                self._pools[identity] = _Pool(identity, self.store, keys)
            pools.append(self._pools[identity])
        return pools

    def _resample(self, pool: _Pool, keys: Mapping[str, str]) -> None:
        """Accuracies in % of some checkpoints on every resample of the pool's photographs."""
        widest = max(pool.layouts[name].counts.shape[1] for name in keys.values())
        step = max(BLOCK // (pool.size * widest), 1)
        names = list(keys)
        for start in range(0, len(names), step):
            block = names[start : start + step]
            rights = {key: pool.right(self.store, key, keys[key]) for key in block}
            for key, right in rights.items():
                self._influence[pool.id, key] = pool.layouts[keys[key]].influence(right)
            pulls = np.stack([self._influence[pool.id, key] for key in block], axis=1)
            stacked = np.concatenate(list(rights.values()), axis=1)
            drawn = {key: np.empty(self.resamples) for key in block}
            row = 0
            for times in resamples(pool.size, self.resamples, pool.seed):
                tops, linear = times @ stacked, times @ pulls
                counts = {name: times @ pool.layouts[name].counts for name in set(keys.values())}
                column = 0
                for k, key in enumerate(block):
                    below = counts[keys[key]]
                    top = tops[:, column : column + below.shape[1]]
                    here = 100 * (top / np.maximum(below, 1)).sum(1, dtype=np.float64)
                    # A resample that has no image of a group says nothing of it: there the
                    # linearised accuracy stands in, which needs none.
                    lacking = (below == 0).any(1)
                    here[lacking] = pool.layouts[keys[key]].rate(rights[key]) + linear[lacking, k]
                    drawn[key][row : row + len(times)] = here
                    column += below.shape[1]
                row += len(times)
            for key, draws in drawn.items():
                self._draws[pool.id, key] = draws

    def _flips(self, pairs: Sequence[tuple[str, str]], other: Uncertainty | None = None) -> Flips:
        counts, p = np.zeros(4), 0.0
        stores = (self.store, (other or self).store)
        right = [
            {pair[side]: right_rows(stores[side], pair[side]) for pair in pairs} for side in (0, 1)
        ]
        photograph = photographs(self.store, pairs[0][0])
        single = len(photograph) == photograph.max(initial=-1) + 1
        for first, second in pairs:
            before, after = right[0][first], right[1][second]
            if not len(before) == len(after) == len(photograph):
                raise RibError(f"The scores {first} and {second} are not of the same images.")
            gained, lost = after & ~before, before & ~after
            counts += [gained.sum(), lost.sum(), (before & after).sum(), (~before & ~after).sum()]
            if single:
                p = max(p, mcnemar(int(gained.sum()), int(lost.sum())))
            else:
                by_photograph = (
                    np.bincount(photograph, one).astype(float) for one in (gained, lost)
                )
                p = max(p, clustered_mcnemar(*by_photograph))
        gained_n, lost_n, kept, wrong = counts / len(pairs)
        return Flips(float(gained_n), float(lost_n), float(kept), float(wrong), p)


@dataclass(frozen=True)
class _Layout:
    """Where each row of a dataset counts.

    Args:
        place: (N,), photograph · columns + column.
        share: (N,), what a right row adds to its column.
        counts: (P, columns), rows of each photograph; groups with the same rows are one column.
    """

    place: NDArray[np.int64]
    share: NDArray[np.float32]
    counts: NDArray[np.float32]

    def right(self, correct: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(P, columns): right rows of each photograph, by their share."""
        sums = np.bincount(self.place, self.share * correct, minlength=self.counts.size)
        return sums.reshape(self.counts.shape).astype(np.float32)

    def rate(self, right: NDArray[np.float32]) -> float:
        """The accuracy in %."""
        total = self.counts.sum(0, dtype=np.float64)
        return float(100 * (right.sum(0, dtype=np.float64) / total).sum())

    def influence(self, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P,): what each photograph adds to the accuracy in %, linearised; sums to 0."""
        total = self.counts.sum(0, dtype=np.float64)
        rate = right.sum(0, dtype=np.float64) / total
        pulls: NDArray[np.float32] = (100 * ((right - rate * self.counts) / total).sum(1)).astype(
            np.float32
        )
        return pulls


class _Pool:
    """Datasets that are made from the same photographs, and are resampled together.

    Args:
        id: the keys of their baselines.
        keys: dataset → key of scores on it, from which rows are known.
    """

    def __init__(self, identity: str, store: Store, keys: Mapping[str, str]):
        self.id, self.datasets, self._store, self._keys = identity, tuple(keys), store, keys

    @cached_property
    def _read(self) -> tuple[int, str, dict[str, _Layout]]:
        columns = {}
        for name, key in self._keys.items():
            table = _table(self._store, key, ["source", "group"])
            columns[name] = [_codes(table.column(one)) for one in ("source", "group")]
        photographs = sorted({text for (texts, _), _ in columns.values() for text in texts})
        place = {text: i for i, text in enumerate(photographs)}
        size = len(photographs)
        layouts = {}
        for name, ((sources, source), (groups, group)) in columns.items():
            here = np.array([place[text] for text in sources], dtype=np.int64)[source]
            layouts[name] = _lay_out(here, size, groups, group)
        seed = hashlib.sha256("\n".join([*self.datasets, "", *photographs]).encode()).hexdigest()
        return size, seed, layouts

    @property
    def size(self) -> int:
        """Number of photographs."""
        return self._read[0]

    @property
    def seed(self) -> str:
        """The same for the same photographs of the same datasets, in whatever store."""
        return self._read[1]

    @property
    def layouts(self) -> dict[str, _Layout]:
        """Where rows count, by dataset."""
        return self._read[2]

    def right(self, store: Store, key: str, dataset: str) -> NDArray[np.float32]:
        """A checkpoint's right rows by photograph."""
        layout, correct = self.layouts[dataset], right_rows(store, key)
        if len(correct) != len(layout.place):
            raise StoreError(
                f"{store.folder(key)} has {len(correct)} rows, its baseline in "
                f"{self._store.folder(self._keys[dataset])} {len(layout.place)}: they are not of "
                "the same images. Run both again, in another --store."
            )
        return layout.right(correct)


def _lay_out(
    photograph: NDArray[np.int64], size: int, groups: list[str], group: NDArray[np.int64]
) -> _Layout:
    """Accuracy is a sum over columns of right / counts: one column for all that have equal counts.

    A whole ImageNet-C has each photograph once in each of its 75 groups: one column.
    """
    if len(groups) > 1 and "" in groups:
        # As `Scores.summary` does: where there are groups, a row without one counts nowhere.
        none = groups.index("")
        layout = _lay_out(
            photograph[group != none],
            size,
            [name for name in groups if name],
            (group - (group > none))[group != none],
        )
        place, share = np.zeros(len(group), np.int64), np.zeros(len(group), np.float32)
        place[group != none], share[group != none] = layout.place, layout.share
        return _Layout(place, share, layout.counts)
    families = [name.split("/")[0] for name in groups]
    weight = np.array([1 / (len(set(families)) * families.count(one)) for one in families])
    counts = np.bincount(photograph * len(groups) + group, minlength=size * len(groups))
    by_group = counts.reshape(size, len(groups)).T
    column_of: dict[bytes, int] = {}
    columns = np.array([column_of.setdefault(c.tobytes(), len(column_of)) for c in by_group])
    first = [int(np.flatnonzero(columns == c)[0]) for c in range(len(column_of))]
    return _Layout(
        photograph * len(column_of) + columns[group],
        weight.astype(np.float32)[group],
        np.ascontiguousarray(by_group[first].T, dtype=np.float32),
    )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct texts, and which of them each row has."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)


def _table(store: Store, key: str, columns: list[str]) -> Any:
    path = store.file(key, SCORES)
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}). {AGAIN}") from None


def photographs(store: Store, key: str) -> NDArray[np.int64]:
    """(N,), which photograph each row is a version of, from 0."""
    return _codes(_table(store, key, ["source"]).column("source"))[1]


def right_rows(store: Store, key: str) -> NDArray[np.bool_]:
    """(N,), whether each prediction is the label."""
    table = _table(store, key, ["label", "prediction"])
    right: NDArray[np.bool_] = np.asarray(table.column(0)) == np.asarray(table.column(1))
    return right


def _mri(arm: Arm, sources: Sequence[str] | None = None) -> dict[CellName, float]:
    """mRI as a weighted sum of cells, over all sources or some."""
    every = arm.matrices[0].pairs
    return _mean_change({i: every[i] for i in (every if sources is None else sources)})


def _mean_change(pairs: Mapping[str, Sequence[str]]) -> dict[CellName, float]:
    """The mean over sources of the mean change on what each is paired with."""
    cells: dict[CellName, float] = {}
    if not pairs:
        raise IncompleteError("mRI needs at least one source; nothing was fine-tuned here.")
    for source, others in pairs.items():
        for cell, factor in _changes(source, others, 1 / (len(others) * len(pairs))).items():
            cells[cell] = cells.get(cell, 0.0) + factor
    return cells


def _changes(source: str, datasets: Sequence[str], factor: float) -> dict[CellName, float]:
    after: dict[CellName, float] = {(source, j): factor for j in datasets}
    return {**after, **{(None, j): -factor for j in datasets}}


def _by_seed(arm: Arm, cells: Mapping[CellName, float]) -> list[float]:
    """The weighted sum for each seed.

    Raises:
        IncompleteError: a cell is missing.
    """
    values = []
    for matrix in arm.matrices:
        value = 0.0
        for (source, dataset), factor in cells.items():
            row = matrix.pre if source is None else matrix.post.get(source, {})
            if dataset not in row:
                raise IncompleteError(
                    f"The cell {source or 'before'} → {dataset} has no number yet: run the same "
                    "command again."
                )
            value += factor * row[dataset].top1
        values.append(value)
    return values


def _cells(run: RunResult) -> list[CellName]:
    """The cells that have numbers."""
    cells: list[CellName] = [(None, j) for j in run.matrix.pre]
    cells += [(i, j) for i, row in run.matrix.post.items() for j in row]
    order = {name: k for k, name in enumerate([*run.matrix.members, *run.matrix.references])}
    return sorted((c for c in cells if c[1] in order), key=lambda cell: order[cell[1]])


def _key(run: RunResult, cell: CellName) -> str:
    """The step whose scores are in a cell."""
    source, dataset = cell
    cells = run.record["cells"]
    return str(cells["pre"][dataset] if source is None else cells["post"][source][dataset])
