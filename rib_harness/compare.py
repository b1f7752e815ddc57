"""Two arms side by side: which is more robust, where, and is the difference real?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rib_harness.arms import Arm, arms_of
from rib_harness.errors import RibError, nearest
from rib_harness.escaping import in_markdown
from rib_harness.given import user_path
from rib_harness.matrix import IncompleteError
from rib_harness.results import RunResult, collect, csv_of
from rib_harness.statistics import SEEDS_NEEDED, Interval, holm
from rib_harness.store import Store
from rib_harness.uncertainty import Flips, Uncertainty

#: Version of the JSON form of a comparison.
FORMAT = "rib-harness.compare/2"

#: What the two arms of a pair share, but for what is compared.
FIXED = ("suite", "limit", "members", "data", "backbone", "method")

#: What they share if they can.
WISHED = ("preset", "recipe", "probe_every", "weights")

#: A difference with an adjusted p below it is called one.
ALPHA = 0.05

#: Where a side has fewer than three seeds, there is no saying what other seeds would do.
OF_TRAININGS = "of these trainings, not of the methods"


@dataclass(frozen=True)
class Side:
    """What stands on one side of a comparison.

    Args:
        text: what the user wrote.
        kind: `"method"`, `"backbone"`, `"run"` or `"store"`.
        arms: what that is.
        uncertainty: of the store that they are in.
    """

    text: str
    kind: str
    arms: tuple[Arm, ...]
    uncertainty: Uncertainty


@dataclass(frozen=True)
class CellComparison:
    """One cell of the matrix under A and under B.

    Args:
        source, dataset: fine-tuned on, measured on.
        role: `"ood"` (the cells of mRI), `"own"` (the fine-tuning set itself) or `"reference"`.
        a, b: change from before fine-tuning, in points, the mean over seeds.
        difference: b − a, with its interval.
        flips: images that B gains, loses and keeps against A.
        p: of McNemar's test, adjusted by Holm over all cells of the comparison. It is of the
            trainings: two seeds of one method differ so, too.
    """

    source: str
    dataset: str
    role: str
    a: float
    b: float
    difference: Interval
    flips: Flips
    p: float


@dataclass(frozen=True)
class Comparison:
    """Arm B against arm A, on the same images.

    Args:
        a, b: the arms.
        of_a, of_b: their stores.
        p: that mRI does not differ, adjusted by Holm over the comparisons made together.
    """

    a: Arm
    b: Arm
    of_a: Uncertainty
    of_b: Uncertainty
    p: float | None = None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Sources that both have."""
        return tuple(i for i in self.a.record["sources"] if i in self.b.record["sources"])

    @cached_property
    def seeded(self) -> bool:
        """Whether both have seeds enough to say something of their methods."""
        return all(len(arm.runs) >= SEEDS_NEEDED for arm in (self.a, self.b))

    @cached_property
    def complete(self) -> bool:
        """Whether every cell of both is there."""
        return self.a.complete and self.b.complete

    @cached_property
    def mri(self) -> tuple[Interval | None, Interval | None]:
        """mRI of A and of B, each over its own sources; None where cells are missing."""
        return _mri(self.of_a, self.a), _mri(self.of_b, self.b)

    @cached_property
    def difference(self) -> Interval | None:
        """mRI of B − mRI of A over the common sources; None where cells are missing."""
        try:
            return self.of_a.mri_difference(self.a, self.b, self.of_b, self.sources)
        except IncompleteError:
            return None

    @cached_property
    def common(self) -> tuple[Interval | None, Interval | None]:
        """mRI of A and of B over the common sources; None where cells are missing."""
        return (
            _mri(self.of_a, self.a, self.sources),
            _mri(self.of_b, self.b, self.sources),
        )

    @cached_property
    def unshared(self) -> tuple[Interval, Interval] | None:
        """mRI of A and of B without pairs that share photographs; None where none do."""
        if all(len(self.a.matrices[0].unshared.get(i, ())) == len(others)
               for i, others in self.a.matrices[0].pairs.items()):  # fmt: skip
            return None
        try:
            return self.of_a.mri_unshared(self.a), self.of_b.mri_unshared(self.b)
        except IncompleteError:
            return None

    @cached_property
    def ri(self) -> dict[str, tuple[float, float, Interval] | None]:
        """Source → RI of A, of B, and their difference; None where a cell is missing."""
        rows: dict[str, tuple[float, float, Interval] | None] = {}
        for i in self.sources:
            try:
                difference = self.of_a.ri_difference(self.a, self.b, i, self.of_b)
                rows[i] = (self.a.ri(i), self.b.ri(i), difference)
            except IncompleteError:
                rows[i] = None
        return rows

    @cached_property
    def cells(self) -> tuple[CellComparison, ...]:
        """Every cell that both have."""
        matrix, cells = self.a.matrices[0], []
        for i in self.sources:
            for j in (*matrix.members, *matrix.references):
                role = "own" if i == j else "reference" if j in matrix.references else "ood"
                try:
                    a, b = self.a.change(i, j), self.b.change(i, j)
                    difference = self.of_a.cell_difference(self.a, self.b, i, j, self.of_b)
                except IncompleteError:
                    continue
                flips = self.of_a.flips_between(self.a, self.b, i, j, self.of_b)
                cells.append(CellComparison(i, j, role, a, b, difference, flips, flips.p))
        adjusted = holm([cell.p for cell in cells])
        return tuple(replace(cell, p=p) for cell, p in zip(cells, adjusted, strict=True))

    @property
    def spread(self) -> tuple[float | None, float | None]:
        """Standard deviation of mRI over the seeds of A and of B; None below three seeds."""
        return tuple(  # type: ignore[return-value]
            float(np.std([m.mri for m in arm.matrices], ddof=1))
            if mri is not None and len(arm.runs) >= SEEDS_NEEDED
            else None
            for arm, mri in zip((self.a, self.b), self.mri, strict=True)
        )

    @cached_property
    def notes(self) -> list[str]:
        """What a reader should know before believing a difference."""
        notes = []
        named = {"method", "backbone"}  # in the heads; with another backbone, its weights too
        named |= {"weights"} if self.a.backbone != self.b.backbone else set()
        for name in (*FIXED, *WISHED, "shares"):
            ours, theirs = self.a.record.get(name), self.b.record.get(name)
            if ours != theirs and name not in named:
                notes.append(f"they differ in {name}: {_differing(ours, theirs)}")
        for letter, arm in (("A", self.a), ("B", self.b)):
            if len(arm.record["sources"]) != len(arm.record["suite_members"]):
                notes.append(f"{letter} runs over {arm.sources}")
            if len(one_sided := arm.record["sources"]) != len(self.sources):
                notes.append(
                    f"differences are over the {len(self.sources)} sources that both have; "
                    f"{letter} has {len(one_sided)}"
                )
        few = [
            f"{letter} has {len(arm.runs)} seed{'s'[: len(arm.runs) > 1]}"
            for letter, arm in (("A", self.a), ("B", self.b))
            if len(arm.runs) < SEEDS_NEEDED
        ]
        if few:
            notes.append(
                f"{', '.join(few)}: intervals and p are over images of these trainings; what is "
                f"said of the methods needs {SEEDS_NEEDED} seeds of each, better five: --seed "
                "0 --seed 1 and so on"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """As `compare --format json` prints it; accuracies in %, changes in points."""
        mri_a, mri_b = self.mri
        return {
            "format": FORMAT,
            "a": _told(self.a, mri_a, self.spread[0]),
            "b": _told(self.b, mri_b, self.spread[1]),
            "complete": self.complete,
            "sources": list(self.sources),
            "about": "methods" if self.seeded else "these trainings",
            "mri_difference": {
                **_interval(self.difference),
                "p": None if self.difference is None else self.difference.p,
                "p_holm": self.p,
            },
            "mri_unshared": None
            if self.unshared is None
            else {"a": self.unshared[0].estimate, "b": self.unshared[1].estimate},
            "ri": {
                i: None if row is None else {"a": row[0], "b": row[1], **_interval(row[2])}
                for i, row in self.ri.items()
            },
            "cells": self.rows(),
            "notes": self.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell, for CSV and data frames."""
        return [
            {
                "source": cell.source,
                "dataset": cell.dataset,
                "role": cell.role,
                "a": cell.a,
                "b": cell.b,
                **_interval(cell.difference),
                "about": "methods" if self.seeded else "these trainings",
                "gained": cell.flips.gained,
                "lost": cell.flips.lost,
                "kept": cell.flips.kept,
                "wrong": cell.flips.wrong,
                "p_mcnemar": cell.flips.p,
                "p_holm": cell.p,
            }
            for cell in self.cells
        ]


def find_side(
    text: str,
    store: Store | None,
    keep: Any = lambda run: True,
    label: Callable[[str, str], str] = lambda kind, text: text,
) -> Side:
    """What the user means: a store's folder, a run's id, a method or a backbone.

    Args:
        text: as written.
        store: where ids, methods and backbones are looked for.
        keep: which runs may be in it.
        label: (kind, reference) → its label, so that `lwf:alpha=1.0` finds `lwf`.

    Raises:
        RibError: nothing of this name, with the nearest.
    """
    path = user_path(text)
    if (path / "store.json").exists():
        return _side(text, "store", Store(path), keep, lambda run: not run.trial_of)
    if store is None:
        raise RibError(
            f"{text!r} is no store, and there is no store to look for a method, a backbone or a "
            "run of that name: name one with --store."
        )
    every = [run for run in collect(store) if run.method is not None and keep(run)]
    # One setting of those that were tried is meant by its id only.
    runs = [run for run in every if not run.trial_of]
    methods = {str(run.method) for run in runs}
    backbones = {run.record["backbone"] for run in runs}
    if (method := label("method", text)) in methods:
        return _side(
            text, "method", store, keep, lambda run: run.method == method and not run.trial_of
        )
    if (backbone := label("backbone", text)) in backbones:
        return _side(
            text, "backbone", store, keep,
            lambda run: run.record["backbone"] == backbone and not run.trial_of,
        )  # fmt: skip
    ids = [run.id for run in every if len(text) >= 4 and run.id.startswith(text)]
    if len(ids) == 1:
        return _side(text, "run", store, keep, lambda run: run.id == ids[0])
    if ids:
        raise RibError(f"{text!r} begins the ids of several runs: {', '.join(ids)}.")
    known = sorted(methods | backbones)
    raise RibError(
        f"{text!r} is no store, and {store.path} has no method, backbone or run of that name."
        f"{nearest(text, known)} It has: {', '.join(known) or 'nothing'}."
    )


def _side(text: str, kind: str, store: Store, keep: Any, wanted: Any) -> Side:
    runs: list[RunResult] = [
        run for run in collect(store) if run.method is not None and keep(run) and wanted(run)
    ]
    if not runs:
        raise RibError(f"{text}: {store.path} has no such results.")
    return Side(text, kind, tuple(arms_of(runs)), Uncertainty(store))


def compare(first: Side, *others: Side, left_out: list[str] | None = None) -> list[Comparison]:
    """Every arm of the other sides against the arm of the first that it belongs to.

    p of the difference of mRI is adjusted by Holm over all that are compared with one arm.

    Args:
        first: A.
        others: each is a B.
        left_out: is told which arms of the first belong to none of another.

    Raises:
        RibError: nothing fits together, or more than one arm does.
    """
    made = []
    for other in others:
        pairs, reasons = _pairs(first, other)
        made += [Comparison(a, b, first.uncertainty, other.uncertainty) for a, b in pairs]
        if left_out is not None:
            left_out += reasons
    for one in made:
        _check_comparable(one)
    adjusted = []
    for one in made:
        family = [c for c in made if c.a is one.a and c.difference is not None]
        ps = holm([c.difference.p for c in family if c.difference and c.difference.p is not None])
        place = [i for i, c in enumerate(family) if c is one]
        adjusted.append(replace(one, p=ps[place[0]] if place else None))
    return adjusted


def _pairs(first: Side, other: Side) -> tuple[list[tuple[Arm, Arm]], list[str]]:
    """The arms that belong together, and why others do not."""
    compared = {"run": FIXED[4:], "method": ("method",), "backbone": ("backbone", "weights"),
                "store": ()}  # fmt: skip
    loose = {*compared[first.kind], *compared[other.kind]}
    if first.kind != other.kind and "run" not in (first.kind, other.kind):
        raise RibError(
            f"{first.text!r} is a {first.kind} and {other.text!r} a {other.kind}: compare two of "
            "a kind."
        )
    pairs, reasons = [], []
    for a in first.arms:
        same = [b for b in other.arms if _is_same(first, a, other, b)]
        fits = [b for b in other.arms if b not in same and not _unlike(a, b, set(FIXED) - loose)]
        alike = [b for b in fits if not _unlike(a, b, set(WISHED) - loose)] or fits
        if len(alike) > 1:
            listed = "\n".join(
                f"  - {b.runs[0].id}: {b.describe()} · options {b.record['options']}" for b in alike
            )
            raise RibError(
                f"{a.describe()}\nmay be compared with more than one of {other.text!r}; name a run "
                f"by its id:\n{listed}"
            )
        pairs += [(a, b) for b in alike]
        if not alike:
            near = min(other.arms, key=lambda b: len(_unlike(a, b, set(FIXED) - loose)))
            differ = _unlike(a, near, set(FIXED) - loose) or ["nothing: it is the same arm"]
            reasons.append(f"{a.describe()}: the nearest differs in {', '.join(differ)}")
    if not pairs:
        raise RibError(
            f"No results of {first.text!r} and {other.text!r} belong together.\n"
            + "\n".join(f"  - {reason}" for reason in reasons)
        )
    return pairs, reasons


def _is_same(first: Side, a: Arm, other: Side, b: Arm) -> bool:
    """Whether the two are the same runs, not runs of one kind in two stores."""
    stores = (side.uncertainty.store.path.resolve() for side in (first, other))
    return len(set(stores)) == 1 and [r.id for r in a.runs] == [r.id for r in b.runs]


def _unlike(a: Arm, b: Arm, names: set[str]) -> list[str]:
    return [name for name in sorted(names) if a.record.get(name) != b.record.get(name)]


def _mri(
    uncertainty: Uncertainty, arm: Arm, sources: Sequence[str] | None = None
) -> Interval | None:
    try:
        return uncertainty.mri(arm, sources)
    except IncompleteError:
        return None


def _check_comparable(one: Comparison) -> None:
    """Raise where there is nothing to compare, or a dataset of the two is not the same images."""
    if not one.sources:
        a, b = (", ".join(arm.record["sources"]) for arm in (one.a, one.b))
        raise RibError(
            f"{one.a.describe()}\n{one.b.describe()}\nhave no source in common: A was fine-tuned "
            f"on {a}; B on {b}."
        )
    different = []
    for name, key in one.a.record["cells"]["pre"].items():
        other = one.b.record["cells"]["pre"].get(name)
        ours = one.of_a.store.inputs(key)
        theirs = one.of_b.store.inputs(other) if other else None
        if ours is not None and theirs is not None and ours["dataset"] != theirs["dataset"]:
            different.append(name)
    if different:
        raise RibError(
            f"{one.a.describe()}\n{one.b.describe()}\nwere not measured on the same images: "
            f"{', '.join(different)} differ. Run both again on the same data."
        )


def _differing(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        return ", ".join(f"{k} {ours.get(k)} and {theirs.get(k)}" for k in names)
    return f"{ours} and {theirs}"


def _interval(one: Interval | None) -> dict[str, Any]:
    if one is None:
        return {"difference": None, "low": None, "high": None, "covers": None}
    return {"difference": one.estimate, "low": one.low, "high": one.high, "covers": one.covers}


def _told(arm: Arm, mri: Interval | None, spread: float | None) -> dict[str, Any]:
    record = arm.record
    return {
        "runs": [run.id for run in arm.runs],
        "suite": record["suite"],
        "backbone": arm.backbone,
        "method": arm.method,
        "seeds": list(arm.seeds),
        "preset": record["preset"],
        "recipe": record["recipe"],
        "limit": record["limit"],
        "sources": {"used": len(record["sources"]), "of": len(record["suite_members"])},
        "mri": None if mri is None else mri.estimate,
        "low": None if mri is None else mri.low,
        "high": None if mri is None else mri.high,
        "bounds": None if mri is not None else list(arm.mri_bounds),
        "sd_over_seeds": spread,
    }


def dumps(made: Sequence[Comparison], form: str) -> str:
    """As text: `"json"`, `"csv"` (a row a cell), `"md"` or `"latex"` (a row a source)."""
    if form == "json":
        return json.dumps([one.to_json() for one in made], indent=1) + "\n"
    if form == "csv":
        rows = []
        for one in made:
            head = {"a_run": one.a.runs[0].id, "b_run": one.b.runs[0].id,
                    "backbone_a": one.a.backbone, "backbone_b": one.b.backbone,
                    "method_a": one.a.method, "method_b": one.b.method}  # fmt: skip
            rows += [{**head, **row} for row in one.rows()]
        return csv_of(rows)
    return "\n".join(_table(one, form) for one in made)


def table_rows(one: Comparison) -> list[tuple[str, str, str, str]]:
    """Source, RI of A, RI of B, and their difference; the last row is mRI."""
    rows = []
    for i, row in one.ri.items():
        if row is None:
            rows.append((i, "INCOMPLETE", "INCOMPLETE", "–"))
        else:
            rows.append((i, f"{row[0]:+z.2f}", f"{row[1]:+z.2f}", str(row[2])))
    a, b = (f"{m.estimate:+z.2f}" if m is not None else "INCOMPLETE" for m in one.common)
    rows.append(("mRI", a, b, str(one.difference) if one.difference else "–"))
    return rows


def heads(one: Comparison) -> tuple[str, str, str, str]:
    """Of the columns of `table_rows`."""
    return "RI", "A", "B", "B − A [95 %]" if one.seeded else "B − A [95 %], these trainings"


def bounds(arm: Arm) -> str:
    """What an incomplete matrix allows: `INCOMPLETE, -40.10 to +12.30`."""
    low, high = arm.mri_bounds
    return f"INCOMPLETE, {low:+z.2f} to {high:+z.2f}"


def sentences(one: Comparison) -> list[str]:
    """The tests, in words."""
    lines = []
    for letter, mri, arm in zip("AB", one.mri, (one.a, one.b), strict=True):
        over = "" if len(one.sources) == len(arm.record["sources"]) else f" over {arm.sources}"
        lines.append(f"mRI of {letter}{over}: {mri if mri is not None else bounds(arm)}")
    if one.unshared is not None:
        a, b = one.unshared
        lines.append(f"mRI without pairs that share photographs: A {a}, B {b}")
    if one.difference is not None:
        text = f"mRI of B less that of A: {one.difference}, p = {one.difference.p:.4f}"
        if one.p is not None and one.p != one.difference.p:
            text += f", {one.p:.4f} by Holm"
        lines.append(text)
    if not one.seeded:
        lines = [f"{line} ({OF_TRAININGS})" for line in lines]
    ood = [cell for cell in one.cells if cell.role == "ood"]
    worse = sum(cell.p < ALPHA and cell.flips.lost > cell.flips.gained for cell in ood)
    better = sum(cell.p < ALPHA and cell.flips.gained > cell.flips.lost for cell in ood)
    lines.append(
        f"afterwards B is right on more images than A in {better} and on fewer in {worse} of "
        f"{len(ood)} cells outside the fine-tuning set (McNemar, p < {ALPHA} by Holm, "
        f"{OF_TRAININGS})"
    )
    for letter, spread in zip("AB", one.spread, strict=True):
        if spread is not None:
            lines.append(f"{letter}: standard deviation of mRI over seeds {spread:.2f}")
    return lines + [f"note: {note}" for note in one.notes]


def _table(one: Comparison, form: str) -> str:
    columns, rows = heads(one), table_rows(one)
    told = [f"A: {one.a.describe()}", f"B: {one.b.describe()}", *sentences(one)]
    if form == "latex":
        from rib_harness.export import latex_table

        return latex_table(columns, rows, told)
    lines = ["| " + " | ".join(columns) + " |", "|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(map(in_markdown, row)) + " |" for row in rows]
    return "\n".join(["", *lines, "", *(f"- {in_markdown(line)}" for line in told)]) + "\n"
