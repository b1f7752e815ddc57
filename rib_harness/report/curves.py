"""What a line shows over severities, steps and settings: points of curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rib_harness.report.data import Line
from rib_harness.store import Store


def severities(line: Line, dataset: str) -> dict[str, dict[str, list[float | None]]]:
    """`"before"` and `"after"` → corruption → accuracy in % by severity; empty without groups.

    After: the mean over the other sources and over seeds, None where one is missing. A set has
    severities where its groups are `corruption/number`.
    """
    names = {
        group
        for run in line.arm.runs
        for source in (None, *line.sources)
        if (cell := line.cell(run, dataset, source)) is not None
        for group in cell.groups
    }
    split = [(name.rpartition("/")[0], name.rpartition("/")[2]) for name in names]
    if not names or not all(corruption and level.isdigit() for corruption, level in split):
        return {}
    levels = sorted({int(level) for _, level in split})
    others = [source for source in line.sources if source != dataset]

    def of(group: str, sources: Sequence[str | None]) -> float | None:
        cells = [line.cell(run, dataset, source) for run in line.arm.runs for source in sources]
        counts = [cell.groups.get(group) if cell else None for cell in cells]
        there = [100 * count[0] / count[1] for count in counts if count]
        return sum(there) / len(there) if there and len(there) == len(counts) else None

    return {
        when: {
            corruption: [of(f"{corruption}/{level}", sources) for level in levels]
            for corruption in sorted({corruption for corruption, _ in split})
        }
        for when, sources in (("before", [None]), ("after", others))
        if sources
    }


def mean_over_corruptions(
    by_corruption: Mapping[str, Sequence[float | None]],
) -> list[float | None]:
    """The mean at each severity; None where a corruption is missing."""
    means: list[float | None] = []
    for values in zip(*by_corruption.values(), strict=True):
        there = [value for value in values if value is not None]
        means.append(sum(there) / len(there) if len(there) == len(values) else None)
    return means


Curve = list[tuple[float, float | None]]

TRAINED, PROBED = "fine-tuning set (training)", "other sets (probe)"


def learning_of(line: Line, store: Store, members: Sequence[str]) -> dict[str, dict[str, Curve]]:
    """Source → label → (step, accuracy in %), of the first seed; empty where nothing was trained.

    A probe is a small fixed slice of each scoring set, measured on the way: a diagnosis. Steps of
    successive stages are added up.
    """
    curves: dict[str, dict[str, Curve]] = {}
    record = line.arm.record
    for source in line.sources:
        key = record["finetune"].get(source)
        rows = store.history(key) if key else []
        lines: dict[str, Curve] = {TRAINED: [], PROBED: []}
        for step, row in _in_order(rows):
            if row.get("accuracy") is not None:
                lines[TRAINED].append((step, row["accuracy"]))
            probes = [v for j, v in row.get("probe", {}).items() if j in members and j != source]
            if probes:
                lines[PROBED].append((step, sum(probes) / len(probes)))
        found = {label: points for label, points in lines.items() if points}
        if found:
            curves[source] = found
    return curves


def _in_order(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows with their steps counted from the first stage's begin."""
    ends: dict[int, int] = {}
    for row in rows:
        ends[row["stage"]] = max(ends.get(row["stage"], 0), row["step"])
    begin, at = {}, 0
    for stage in sorted(ends):
        begin[stage] = at
        at += ends[stage]
    ordered = [(begin[row["stage"]] + row["step"], row) for row in rows]
    return sorted(ordered, key=lambda pair: pair[0])


def frontier_points(
    lines: Sequence[Line],
) -> list[tuple[str, str, float | None, float | None, Line]]:
    """(label, family, gain, mRI, line); a family that differs in one number is in its order."""
    families: dict[str, list[Line]] = {}
    for line in lines:
        families.setdefault(f"{line.family}\0{line.backbone}", []).append(line)
    points = []
    for family in families.values():
        option = _the_number_that_differs(family)
        if option:
            family.sort(key=lambda line: line.arm.record["options"][option])
        name = family[0].family if len(family) > 1 else family[0].label
        if len(family) > 1 and len({line.backbone for line in lines}) > 1:
            name += f" · {family[0].backbone}"
        for line in family:
            told = f"{option}={line.arm.record['options'][option]:g}" if option else line.label
            x, y = line.gain, line.mri
            points.append((told if len(family) > 1 else line.label, name,
                           x.estimate if x else None, y.estimate if y else None, line))  # fmt: skip
    return points


def _the_number_that_differs(lines: Sequence[Line]) -> str | None:
    options = [line.arm.record["options"] for line in lines]
    names = [n for n in options[0] if len({json.dumps(o.get(n)) for o in options}) > 1]
    if len(names) != 1:
        return None
    values = [option.get(names[0]) for option in options]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return names[0] if numbers else None
