"""From a store's results to what the page and the figures show: plain data, no HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rib_harness.arms import Arm, arms_of
from rib_harness.matrix import Cell, IncompleteError
from rib_harness.results import RunResult
from rib_harness.statistics import Interval
from rib_harness.uncertainty import CellName, Uncertainty

#: What the lines of one table must share to be compared: the same images, the same sources' names.
SAME_IMAGES = ("suite", "limit", "data", "members", "references")


@dataclass(frozen=True, eq=False)
class Line:
    """One arm as the page shows it: a row of the overview.

    Args:
        arm: its runs.
        label: tells it from the other lines of its part.
        method: the label without the backbone.
        backbone: label of the backbone.
        u: intervals of its store.
    """

    arm: Arm
    label: str
    method: str
    backbone: str
    u: Uncertainty

    @property
    def family(self) -> str:
        """Lines that differ in options only are one family: `wise-ft` at each alpha."""
        return self.method.partition(":")[0]

    @cached_property
    def mri(self) -> Interval | None:
        """mRI in points; None where a cell is missing."""
        return self._known(lambda: self.u.mri(self.arm))

    @cached_property
    def before(self) -> Interval | None:
        """Mean OOD accuracy of the untouched backbone, in %."""
        return self._known(lambda: self.u.mean_before(self.arm))

    @cached_property
    def after(self) -> Interval | None:
        """Mean OOD accuracy after fine-tuning, in %."""
        return self._known(lambda: self.u.mean_after(self.arm))

    @cached_property
    def gain(self) -> Interval | None:
        """Mean gain on the fine-tuning set, in points: training accuracy, or on held-out images.

        Of held-out images it has no interval: each seed has others.
        """
        if self.arm.held_out:
            return self._known(lambda: Interval(self.arm.gain, math.nan, math.nan))
        return self._mean_change([(i, i) for i in self.sources])

    @cached_property
    def unshared(self) -> Interval | None:
        """mRI without pairs that share photographs; None also where every pair is left out."""
        return self._known(lambda: self.u.mri_unshared(self.arm))

    @cached_property
    def forgetting(self) -> dict[str, Interval | None]:
        """Reference → A_pre − A_i, the mean over sources, in points."""
        references = self.arm.record["references"]
        return {r: self._mean_change([(i, r) for i in self.sources], -1.0) for r in references}

    @property
    def sources(self) -> list[str]:
        """What it was fine-tuned on."""
        return list(self.arm.record["sources"])

    @property
    def missing(self) -> list[str]:
        """Cells that are not there, of any seed, as `i → j`."""
        return list(dict.fromkeys(gone for m in self.arm.matrices for gone in m.missing))

    def ri(self, source: str) -> Interval | None:
        """RI of one source, in points."""
        return self._known(lambda: self.u.ri(self.arm, source))

    def change(self, source: str, dataset: str) -> Interval | None:
        """A_i^(j) − A_pre^(j), in points."""
        return self._known(lambda: self.u.change(self.arm, source, dataset))

    def accuracy(self, dataset: str, source: str | None = None) -> float | None:
        """Top-1 in %, the mean over seeds; None where it is missing."""
        cells = [self.cell(run, dataset, source) for run in self.arm.runs]
        there = [cell.top1 for cell in cells if cell is not None]
        return sum(there) / len(there) if there and len(there) == len(cells) else None

    def accuracy_interval(self, dataset: str) -> Interval | None:
        """Top-1 of the untouched backbone in %."""
        return self._known(lambda: self.u.accuracy(self.arm, dataset))

    def n(self, dataset: str) -> int | None:
        """Images of a dataset."""
        for run in self.arm.runs:
            for source in (None, *self.sources):
                if cell := self.cell(run, dataset, source):
                    return cell.n
        return None

    @staticmethod
    def cell(run: RunResult, dataset: str, source: str | None = None) -> Cell | None:
        """A cell of a run's matrix."""
        matrix = run.matrix
        row = matrix.pre if source is None else matrix.post.get(source, {})
        return row.get(dataset)

    @property
    def cost(self) -> dict[str, float | None]:
        """Seconds to fine-tune and to score (all sources, the mean over seeds); peak bytes."""
        seconds: dict[str, list[float]] = {"train": [], "score": []}
        peaks: dict[str, list[int]] = {"max_rss": [], "max_device_memory": []}
        for run in self.arm.runs:
            trained = set(run.record["finetune"].values())
            scored = {k for row in run.record["cells"]["post"].values() for k in row.values()}
            for key, facts in run.provenance.items():
                if "seconds" in facts and key in trained | scored:
                    seconds["train" if key in trained else "score"].append(facts["seconds"])
                for name, found in peaks.items():
                    found += [facts[name]] if facts.get(name) else []
        totals = {name: sum(all_) / len(self.arm.runs) for name, all_ in seconds.items() if all_}
        return {
            "train": totals.get("train"),
            "score": totals.get("score"),
            "memory": max(peaks["max_rss"], default=None),
            "device_memory": max(peaks["max_device_memory"], default=None),
        }

    def _mean_change(self, pairs: Sequence[tuple[str, str]], sign: float = 1.0) -> Interval | None:
        cells: dict[CellName, float] = {}
        for i, j in pairs:
            for cell, factor in (((i, j), sign), ((None, j), -sign)):
                cells[cell] = cells.get(cell, 0.0) + factor / len(pairs)
        if not cells:
            return None
        return self._known(lambda: self.u.difference(self.arm, {}, self.arm, cells))

    @staticmethod
    def _known(compute: Callable[[], Interval]) -> Interval | None:
        try:
            return compute()
        except IncompleteError:
            return None


@dataclass(frozen=True, eq=False)
class Part:
    """Lines that can be compared: one suite, the same images.

    Args:
        lines: those with a method, in the order of the store.
        untouched: those that only measure a backbone.
        trials: settings that a line chose among; they are in the comparison at equal gain only.
    """

    lines: tuple[Line, ...]
    untouched: tuple[Line, ...]
    trials: tuple[Arm, ...] = ()

    @property
    def first(self) -> Line:
        """Any line: what the part shares is in each."""
        return (*self.lines, *self.untouched)[0]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the part shares."""
        return self.first.arm.record

    @property
    def members(self) -> list[str]:
        """𝔻."""
        return list(self.record["members"])

    @property
    def references(self) -> list[str]:
        """Datasets outside 𝔻."""
        return list(self.record["references"])

    @property
    def datasets(self) -> list[str]:
        """All that are scored."""
        return [*self.members, *self.references]

    @property
    def sources(self) -> list[str]:
        """Members that some line was fine-tuned on."""
        used = {source for line in self.lines for source in line.sources}
        return [name for name in self.members if name in used]

    @property
    def backbones(self) -> list[str]:
        """Their labels, each once."""
        return list(dict.fromkeys(line.backbone for line in (*self.lines, *self.untouched)))

    @property
    def methods(self) -> list[str]:
        """Labels without the backbone, each once."""
        return list(dict.fromkeys(line.method for line in self.lines))

    @property
    def runs(self) -> list[RunResult]:
        """All runs."""
        return [run for line in (*self.lines, *self.untouched) for run in line.arm.runs]

    @property
    def mixed(self) -> list[str]:
        """Sources that share photographs with another member."""
        matrix = self.first.arm.matrices[0]
        return [i for i in self.sources if any(matrix.shared(i, j) for j in self.members if j != i)]

    @property
    def mixed_with_references(self) -> list[str]:
        """Sources that are made from a reference's photographs."""
        matrix = self.first.arm.matrices[0]
        return [i for i in self.sources if any(matrix.shared(i, r) for r in self.references)]

    @property
    def held_out(self) -> bool:
        """Whether a line's gain is on held-out images."""
        return any(line.arm.held_out for line in self.lines)

    @cached_property
    def short(self) -> dict[str, str]:
        """Dataset → its name without what all have in front: `digits-r` → `r`."""
        return without_prefix(self.datasets)

    def n(self, dataset: str) -> int | None:
        """Images of a dataset."""
        found = (line.n(dataset) for line in (*self.lines, *self.untouched))
        return next((n for n in found if n is not None), None)


def parts_of(runs: Iterable[RunResult], uncertainty: Uncertainty) -> list[Part]:
    """The runs as parts of lines that can be compared, in the order of the store."""
    together: dict[str, list[Arm]] = {}
    for arm in arms_of(runs):
        key = json.dumps([arm.record.get(one) for one in SAME_IMAGES], sort_keys=True)
        together.setdefault(key, []).append(arm)
    parts = []
    for arms in together.values():
        uncertainty.prepare(arms)
        trials = tuple(arm for arm in arms if arm.runs[0].trial_of)
        lines = label_lines([arm for arm in arms if not arm.runs[0].trial_of], uncertainty)
        if not lines:  # what chose among them is not wanted
            continue
        trained = tuple(line for line in lines if line.arm.method is not None)
        parts.append(Part(trained, tuple(line for line in lines if line not in trained), trials))
    return parts


def label_lines(arms: Sequence[Arm], uncertainty: Uncertainty) -> list[Line]:
    """A line for each arm, whose label is the method and what else tells it from the others."""
    several = len({arm.backbone for arm in arms}) > 1
    methods = [(arm.method or "untouched") + _told_apart(arm, arms) for arm in arms]
    lines = []
    for arm, method in zip(arms, methods, strict=True):
        label = f"{method} · {arm.backbone}" if several else method
        lines.append(Line(arm, label, method, arm.backbone, uncertainty))
    return lines


def _told_apart(arm: Arm, arms: Sequence[Arm]) -> str:
    """What of preset, recipe, sources and weights differs among arms of one method and backbone."""
    same = [a for a in arms if (a.method, a.backbone) == (arm.method, arm.backbone)]
    if len(same) < 2:
        return ""
    told = []
    if len({a.record["preset"] for a in same}) > 1:
        told.append(str(arm.record["preset"]))
    recipes = [a.record["recipe"] or {} for a in same]
    for name, value in (arm.record["recipe"] or {}).items():
        if len({json.dumps(recipe.get(name)) for recipe in recipes}) > 1:
            told.append(f"{name.replace('_', ' ')} {value}")
    if len({tuple(a.record["sources"]) for a in same}) > 1:
        told.append(arm.sources)
    return f" ({', '.join(told or [f'no. {same.index(arm) + 1}'])})"


def without_prefix(names: Sequence[str]) -> dict[str, str]:
    """Name → the name without a beginning that all share, up to a hyphen.

    >>> without_prefix(["digits-r", "digits-c"])
    {'digits-r': 'r', 'digits-c': 'c'}
    >>> without_prefix(["imagenet-r", "objectnet"])
    {'imagenet-r': 'imagenet-r', 'objectnet': 'objectnet'}
    """
    heads = {name.rpartition("-")[0] for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return {name: name.removeprefix(f"{head}-") if head else name for name in names}
