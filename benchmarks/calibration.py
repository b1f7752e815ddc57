"""How often what is said of two methods is wrong, and how often intervals cover.

    python benchmarks/calibration.py                     # simulated; about 20 minutes
    python benchmarks/calibration.py --samples 200       # less exact
    python benchmarks/calibration.py --store STORE       # runs of one method with many seeds

Simulated: photographs of a latent difficulty, three datasets of which two share photographs,
methods that change single images alike in all their seeds, and seeds that differ in more than that.
"wrong": both sides are one method, and p < .05. Real: the seeds of one method are split into two
sides again and again, and compared as if they were two methods: every difference is a wrong one.
"""

import argparse
import sys
from itertools import combinations, islice, product
from pathlib import Path
from unittest import mock

import numpy as np

from rib_harness import Arm, Uncertainty, arms_of
from rib_harness import uncertainty as module
from rib_harness.results import collect
from rib_harness.store import Store

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.test_uncertainty import THREE, Population, Sample

LEVEL = 0.05

#: Seeds a side, spread of their thresholds, photographs a dataset.
CASES = [(1, 0.0, 100), (1, 0.0, 300), *product((3, 5), (0.03, 0.15), (100, 300))]


class Same(Population):
    """Two methods that are one."""

    def threshold(self, method: str, source: str | None, dataset: str) -> float:
        """That of `ft`."""
        return super().threshold("ft", source, dataset)


def simulated(samples: int) -> None:
    """Coverage of intervals, and how often p < .05 where nothing differs."""
    print("seeds  tau  photographs | covers, %: mRI  difference  cell | wrong, %: mRI  cell")
    for seeds, tau, size in CASES:
        covers, wrong = np.zeros(3), np.zeros(2)
        differ, same = (kind(THREE, size=size, seeds=seeds, tau=tau) for kind in (Population, Same))
        for number in range(samples):
            sample = Sample(differ, number, ("ft", "lwf"))
            a, b = sample.arms
            with mock.patch.object(
                module, "_table", lambda s, k, c, of=sample: of.tables[k].select(c)
            ):
                of = Uncertainty(Store("nowhere"), 500)
                found = [of.mri(a), of.mri_difference(a, b), of.cell_difference(a, b, "c", "d")]
            # Of one training, what it differs in from another is true of it.
            truths = [
                differ.mri("ft"),
                differ.mri("lwf") - differ.mri("ft"),
                differ.change("lwf", "c", "d") - differ.change("ft", "c", "d"),
            ]
            covers += [i.low <= truth <= i.high for i, truth in zip(found, truths, strict=True)]
            sample = Sample(same, number, ("ft", "same"), alike=True)
            with mock.patch.object(
                module, "_table", lambda s, k, c, of=sample: of.tables[k].select(c)
            ):
                of = Uncertainty(Store("nowhere"), 500)
                a, b = sample.arms
                tests = [of.mri_difference(a, b), of.cell_difference(a, b, "c", "d")]
            wrong += [i.p < LEVEL for i in tests]
        shown = [f"{100 * x / samples:5.1f}" for x in (*covers, *wrong)]
        print(f"{seeds:5d} {tau:4.2f} {size:12d} | {'  '.join(shown[:3])} | {'  '.join(shown[3:])}",
              flush=True)  # fmt: skip


def real(path: str, splits: int) -> None:
    """How often two halves of one method's seeds are told apart."""
    store = Store(path)
    for arm in arms_of(run for run in collect(store) if run.method is not None):
        of = Uncertainty(store)
        of.prepare([arm])
        for k in (1, 3, 5):
            runs = arm.runs
            if len(runs) < 2 * k:
                continue
            pairs = [
                (one, other)
                for one in combinations(range(len(runs)), k)
                for other in combinations(sorted(set(range(len(runs))) - set(one)), k)
                if one < other
            ]
            order = np.random.default_rng(0).permutation(len(pairs))
            chosen = [pairs[i] for i in islice(order, splits)]
            found = [
                of.mri_difference(*(Arm(tuple(runs[i] for i in side)) for side in pair))
                for pair in chosen
            ]
            wrong = 100 * np.mean([i.p < LEVEL for i in found])
            half = np.median([i.half for i in found])
            print(f"{arm.backbone} {arm.method}: {k} a side, {len(chosen)} splits: p < .05 in "
                  f"{wrong:.1f} %, half width {half:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--store")
    parser.add_argument("--splits", type=int, default=300)
    given = parser.parse_args()
    if given.store:
        real(given.store, given.splits)
    else:
        simulated(given.samples)


if __name__ == "__main__":
    main()
