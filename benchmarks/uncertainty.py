"""Intervals for the full suite: simulated scores of its size, two cores, time and memory.

4 million rows × 73 checkpoints (8 sources × 9 methods, and the untouched backbone), 50 000
photographs, 2 000 resamples. The baseline is the same bootstrap over rows that were not summed
within photographs, measured on a few resamples of one checkpoint on C.

    python benchmarks/uncertainty.py [--scale 0.01]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rib_harness.arms import Arm
from rib_harness.matrix import Cell, Matrix
from rib_harness.results import RunResult
from rib_harness.store import Store
from rib_harness.uncertainty import Uncertainty

#: Dataset → photographs, and groups of each.
SETS = {
    "v2": (10_000, 1),
    "a": (7_500, 1),
    "r": (30_000, 1),
    "sketch": (50_889, 1),
    "object": (18_574, 1),
    "cartoon": (50_000, 1),
    "drawing": (50_000, 1),
    "c": (50_000, 75),
    "val": (50_000, 1),
}
SHARES = ("cartoon", "drawing", "c", "val")
METHODS = 9


def simulate(folder: Path, scale: float) -> list[RunResult]:
    """A store of scores, and its runs. Each photograph has a difficulty that its rows share."""
    store = Store(folder)
    store.prepare()
    rng = np.random.default_rng(0)
    members = tuple(name for name in SETS if name != "val")
    shared = rng.normal(0, 1.2, max(int(50_000 * scale), 20))
    runs, pre, tables = [], {}, {}
    for name, (photographs, groups) in SETS.items():
        n = max(int(photographs * scale), 20)
        latent = shared if name in SHARES else rng.normal(0, 1.2, n)
        photograph = np.tile(np.arange(n), groups)
        group = np.repeat([f"kind{g // 5}/{g % 5 + 1}" for g in range(groups)], n)
        label = rng.integers(0, 1000, len(photograph), dtype=np.int32)
        ease = latent[photograph] - np.repeat(np.arange(groups) % 5, n) * 0.4
        prefix = "val" if name in SHARES else name
        source = pa.DictionaryArray.from_arrays(
            photograph.astype(np.int32), [f"{prefix}-{i:08}" for i in range(n)]
        )
        marks = group if groups > 1 else np.full(len(label), "")
        tables[name] = (label, ease, marks, source)
        pre[name] = save(store, f"pre-{name}", tables[name], 0.4, rng, whole=True)
    cells_pre = {name: f"pre-{name}" for name in SETS}
    for method in range(METHODS):
        post, keys = {}, {}
        for source in members:
            keys[source] = {name: f"{method}-{source}-{name}" for name in SETS}
            shift = rng.normal(0.4 - 0.05 * method, 0.05)
            post[source] = {
                name: save(store, keys[source][name], tables[name], shift, rng) for name in SETS
            }
        matrix = Matrix(members, ("val",), members, pre, post, (SHARES,))
        record = {"cells": {"pre": cells_pre, "post": keys}, "seed": 0}
        runs.append(RunResult(record, matrix, {}))
    return runs


def save(store: Store, key: str, table: tuple, shift: float, rng, whole: bool = False) -> Cell:  # type: ignore[type-arg, no-untyped-def]
    """The columns that are read of a checkpoint; of the untouched backbone all that matter."""
    label, ease, group, source = table
    correct = rng.logistic(size=len(label)) < ease + shift
    columns = {"label": label, "prediction": np.where(correct, label, label + 1)}
    if whole:
        columns |= {"group": pa.array(group).dictionary_encode(), "source": source}
    store.folder(key).mkdir(parents=True)
    pq.write_table(pa.table(columns), store.folder(key) / "scores.parquet", compression="zstd")
    # All groups are of one size, so the mean over groups is the mean over rows.
    return Cell(100 * correct.mean(), int(correct.sum()), len(correct))


def intervals(path: Path, runs: list[RunResult]) -> None:
    """In a process of its own, so that its memory is its own."""
    begun = time.perf_counter()
    arms = [Arm((run,)) for run in runs]
    uncertainty = Uncertainty(Store(path), resamples=2000)
    uncertainty.prepare(arms)
    found = [(uncertainty.mri(arm), uncertainty.mri_closed_form(arm)) for arm in arms]
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    widths = [boot.half / closed.half for boot, closed in found]
    boot, closed = found[0]
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "peak GiB": round(peak, 2),
                "first mRI, bootstrap": str(boot),
                "first mRI, closed form": str(closed),
                "bootstrap / closed form, half-widths": [round(w, 3) for w in widths],
            },
            indent=1,
        )
    )
    print(f"baseline, rows not summed / this: {baseline(path, runs) / seconds:.0f} ×")


def baseline(path: Path, runs: list[RunResult], times: int = 3) -> float:
    """Seconds that the same resamples would take over rows, from a few of one checkpoint on C."""
    folder = Store(path).folder("pre-c")
    table = pq.read_table(folder / "scores.parquet")
    right = np.asarray(table.column("label")) == np.asarray(table.column("prediction"))
    group = np.asarray(table.column("group").combine_chunks().indices)
    photograph = np.asarray(table.column("source").combine_chunks().indices)
    rng, begun = np.random.default_rng(0), time.perf_counter()
    for _ in range(times):
        weight = np.bincount(rng.integers(0, photograph.max() + 1, photograph.max() + 1),
                             minlength=photograph.max() + 1)[photograph]  # fmt: skip
        np.bincount(group, weight * right) / np.bincount(group, weight)
    return (time.perf_counter() - begun) / times * 2000 * (1 + len(runs) * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory() as folder:
        runs = simulate(Path(folder), scale)
        rows = sum(cell.n for cell in runs[0].matrix.pre.values())
        print(f"{rows:,} rows × {1 + 8 * METHODS} checkpoints, 2,000 resamples")
        child = multiprocessing.get_context("spawn").Process(
            target=intervals, args=(Path(folder), runs)
        )
        child.start()
        child.join()


if __name__ == "__main__":
    main()
