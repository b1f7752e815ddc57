"""Which figures a part of a store allows: each with its words and the data behind it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness.escaping import in_csv
from rib_harness.frontier import AT_EQUAL_GAIN, at_equal_gain, drawn, frontiers
from rib_harness.report import figures
from rib_harness.report.curves import (
    frontier_points,
    learning_of,
    mean_over_corruptions,
    severities,
)
from rib_harness.report.data import Line, Part
from rib_harness.report.flips import class_changes
from rib_harness.report.naming import class_name, file_name, unique
from rib_harness.statistics import Interval
from rib_harness.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ByCorruption = Mapping[str, Sequence[float | None]]

#: Curves or panels that one figure can show and be read.
TOGETHER = 8


@dataclass(frozen=True)
class Chart:
    """A figure with its words and its data.

    Args:
        section: where on the page it belongs.
        name: file name without ending.
        title: what it shows.
        note: what to know in order to read it.
        columns, rows: its data, as a table.
        draw: makes the figure.
        on_page: whether the page shows it as a picture; else a table of its own stands there.
    """

    section: str
    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(repr=False)
    draw: Callable[[], Figure] = field(repr=False)
    on_page: bool = True

    def csv(self) -> str:
        """Its data."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in (self.columns, *self.rows):
            writer.writerow("" if value is None else in_csv(value) for value in row)
        return out.getvalue()

    def save(self, folder: Path) -> list[Path]:
        """PDF, SVG, PNG and CSV."""
        files = figures.save(self.draw(), folder / self.name)
        table = folder / f"{self.name}.csv"
        table.write_text(self.csv(), encoding="utf-8")
        return [*files, table]


def charts_of(part: Part, store: Store) -> list[Chart]:
    """All figures that the data allows, in the order of the page."""
    if not part.lines:
        return []
    return [
        *_overview(part),
        *_heatmaps(part),
        *_severity(part),
        *_radars(part),
        *_learning(part, store),
        *_frontier(part),
        *_equal_gain(part),
    ]


def class_charts(part: Part, store: Store, names: Mapping[str, Sequence[str]]) -> Iterator[Chart]:
    """One a line and dataset: the page has a table with filters instead.

    Args:
        names: dataset → names of its classes; an absent one gets numbers.
    """
    for line in part.lines:
        for dataset in part.datasets:
            changes = class_changes(line, dataset, store)
            if not changes:
                continue
            known = names.get(dataset, ())
            called = [class_name(known, one.name) for one in changes]
            short = [unique([name], 28)[name] for name in called]
            yield Chart(
                "classes", file_name("classes", line.label, dataset),
                f"Change of each class of {dataset}: {line.label}",
                "The mean over the other fine-tuning sets and seeds.",
                ("class", "n", "before", "after", "change", "half interval"),
                [(name, c.n, c.before, c.after, c.change, c.half)
                 for name, c in zip(called, changes, strict=True)],
                partial(
                    figures.per_class, short, [c.change for c in changes], [c.n for c in changes]
                ),
                on_page=False,
            )  # fmt: skip


def write(
    charts: Iterable[Chart], folder: Path, prefix: str = "", taken: set[str] | None = None
) -> list[Path]:
    """Each chart as PDF, SVG, PNG and CSV, under names of which each is given once.

    Args:
        charts: what to draw.
        folder: made if it is not there.
        prefix: of every name.
        taken: names that were given before; these are added.
    """
    files: list[Path] = []
    taken = set() if taken is None else taken
    for chart in charts:
        name, k = prefix + chart.name, 2
        while name.lower() in taken:
            name, k = f"{prefix}{chart.name}-{k}", k + 1
        taken.add(name.lower())
        files += replace(chart, name=name).save(folder)
    return files


def _overview(part: Part) -> Iterator[Chart]:
    lines, methods, backbones = part.lines, unique(part.methods), unique(part.backbones)
    values = {(methods[line.method], backbones[line.backbone]): line.mri for line in lines}
    if not any(values.values()):
        return
    yield Chart(
        "overview",
        "mri",
        "mRI of each method and backbone",
        "Mean change of accuracy on the other datasets, in points, with 95 % intervals.",
        ("method", "backbone", "mRI", "mRI low", "mRI high"),
        [(line.method, line.backbone, *_ends(line.mri)) for line in lines],
        partial(figures.dots, list(methods.values()), list(backbones.values()), values),
    )
    columns = ("mRI", "mRI low", "mRI high", "before", "before low", "before high", "after",
               "after low", "after high")  # fmt: skip
    for title, names, chosen in _bars(part):
        groups = list(zip(names, chosen, strict=True))
        for k, block in enumerate(_chunks(groups, 12)):
            after = [line.after for _, line in block]
            if not any(after):
                continue
            yield Chart(
                "overview",
                file_name("before-after", title, _number(k)),
                f"Mean OOD accuracy before and after fine-tuning: {title}",
                "The number above is mRI in points; whiskers are 95 % intervals.",
                ("group", *columns),
                [
                    (name, *_ends(line.mri), *_ends(line.before), *_ends(line.after))
                    for name, line in block
                ],
                partial(
                    figures.before_after,
                    list(unique((name for name, _ in block), 22).values()),
                    [_estimate(line.before) for _, line in block],
                    [_estimate(value) for value in after],
                    [(value.low, value.high) if value else None for value in after],
                ),
            )


def _bars(part: Part) -> Iterator[tuple[str, list[str], list[Line]]]:
    """The paper's form: one group a pretraining, one chart a method; else a group a method."""
    if len(part.backbones) == 1:
        yield part.backbones[0], [line.method for line in part.lines], list(part.lines)
        return
    names = {line.backbone: line.arm.record.get("pretraining") or "" for line in part.lines}
    if len(set(names.values())) < len(names) or "" in names.values():
        names = {backbone: backbone for backbone in names}
    for method in part.methods:
        chosen = [line for line in part.lines if line.method == method]
        yield method, [names[line.backbone] for line in chosen], chosen


def _heatmaps(part: Part) -> Iterator[Chart]:
    columns, short = part.datasets, unique((part.short[name] for name in part.datasets), 16)
    for line in part.lines:
        cells = {(i, j): line.change(i, j) for i in line.sources for j in columns}
        yield Chart(
            "changes",
            file_name("change", line.label),
            f"Change of accuracy: {line.label}",
            "Fine-tuned on the row, scored on the column; on the diagonal it is the fine-tuning "
            "set itself, which mRI leaves out.",
            ("fine-tuned on", "scored on", "n", "change", "low", "high"),
            [(i, j, line.n(j), *_ends(value)) for (i, j), value in cells.items()],
            partial(
                figures.heatmap,
                [short[part.short[i]] for i in line.sources],
                [short[part.short[j]] for j in columns],
                [
                    [None if i == j else _estimate(cells[i, j]) for j in columns]
                    for i in line.sources
                ],
                next(iter(unique([line.label], 60).values())),
            ),
            on_page=False,
        )


def _severity(part: Part) -> Iterator[Chart]:
    for dataset in part.datasets:
        for backbone in part.backbones:
            known = {
                line: found
                for line in part.lines
                if line.backbone == backbone and "after" in (found := severities(line, dataset))
            }
            apart = backbone if len(part.backbones) > 1 else ""
            for k, block in enumerate(_chunks(list(known), TOGETHER - 1)):
                of = {line: known[line]["after"] for line in block}
                names = unique(line.method for line in block)
                curves = {"before": known[block[0]]["before"]}
                curves |= {names[line.method]: values for line, values in of.items()}
                yield from _severity_pair(part, dataset, apart, _number(k), curves)


def _severity_pair(
    part: Part, dataset: str, backbone: str, number: str, curves: Mapping[str, ByCorruption]
) -> Iterator[Chart]:
    """The mean over corruptions, and each corruption."""
    title = " ".join(filter(None, (dataset, backbone, number)))
    means = {label: mean_over_corruptions(values) for label, values in curves.items()}
    note = (
        f"After: the mean over the fine-tuning sets other than {dataset}. "
        f"n = {part.n(dataset) or 0:,} images over all corruptions and severities."
    )
    yield Chart(
        "severity",
        file_name("severity", dataset, backbone, number),
        f"Accuracy over severity: {title}",
        f"Mean over corruptions. {note}",
        ("curve", "severity", "accuracy"),
        [(label, s, y) for label, values in means.items() for s, y in enumerate(values, 1)],
        partial(figures.severity, means),
    )
    yield Chart(
        "severity",
        file_name("severity-by-corruption", dataset, backbone, number),
        f"Accuracy over severity, by corruption: {title}",
        note,
        ("curve", "corruption", "severity", "accuracy"),
        [
            (label, corruption, s, y)
            for label, by_corruption in curves.items()
            for corruption, values in by_corruption.items()
            for s, y in enumerate(values, 1)
        ],
        partial(figures.severity, curves),
    )


def _radars(part: Part) -> Iterator[Chart]:
    axes = part.members
    if len(axes) < 3:
        return
    for source in part.sources:
        lines = [line for line in part.lines if source in line.sources]
        for k, block in enumerate(_chunks(lines, TOGETHER)):
            names = unique(line.label for line in block)
            values = {
                line: ([line.accuracy(j) for j in axes], [line.accuracy(j, source) for j in axes])
                for line in block
            }
            yield Chart(
                "radar",
                file_name("radar", source, _number(k)),
                f"Fine-tuned on {source}: accuracy before and after {_number(k)}".strip(),
                f"Top-1 in % on each dataset. The axis of {source} is the fine-tuning set itself.",
                ("line", "dataset", "n", "before", "after"),
                [
                    (line.label, j, line.n(j), before, after)
                    for line, both in values.items()
                    for j, before, after in zip(axes, *both, strict=True)
                ],
                partial(
                    figures.radar,
                    list(unique((part.short[j] for j in axes), 14).values()),
                    {names[line.label]: both for line, both in values.items()},
                ),
            )


def _learning(part: Part, store: Store) -> Iterator[Chart]:
    for line in part.lines:
        panels = learning_of(line, store, part.members)
        if not panels:
            continue
        names = unique(panels)
        yield Chart(
            "learning",
            file_name("learning", line.label),
            f"Learning curves: {line.label}",
            f"Seed {line.arm.seeds[0]}. One panel a fine-tuning set. Training accuracy is the "
            "mean over each epoch while the weights change; a probe is a small fixed slice "
            "of each other dataset, a diagnosis that nothing is chosen by.",
            ("fine-tuned on", "curve", "step", "accuracy"),
            [
                (source, label, x, y)
                for source, lines in panels.items()
                for label, points in lines.items()
                for x, y in points
            ],
            partial(figures.learning, {names[source]: lines for source, lines in panels.items()}),
        )


def _frontier(part: Part) -> Iterator[Chart]:
    points = frontier_points(part.lines)
    if sum(x is not None and y is not None for _, _, x, y, _ in points) < 2:
        return
    families = unique((family for _, family, *_ in points), 34)
    labels = {label: unique([label], 24)[label] for label, *_ in points}
    yield Chart(
        "frontier",
        "frontier",
        "Gain on the fine-tuning set and mRI",
        f"Gain: {'on held-out images where a method keeps some, else ' * part.held_out}training "
        "accuracy, the mean over sources. Up and to the right is better; a line joins the settings "
        "of one method.",
        ("point", "family", "gain", "gain low", "gain high", "mRI", "mRI low", "mRI high"),
        [
            (label, family, *_ends(line.gain), *_ends(line.mri))
            for label, family, _, _, line in points
        ],
        partial(figures.frontier, [(labels[a], families[b], x, y) for a, b, x, y, _ in points]),
    )


def _equal_gain(part: Part) -> Iterator[Chart]:
    for mine in at_equal_gain(frontiers(part.trials), part.first.u):
        backbone = mine[0].frontier.backbone
        yield Chart(
            "frontier",
            file_name("equal-gain", backbone),
            f"Methods at equal effort: {backbone}",
            f"{mine[0].frontier.setting}. Every setting that was tried of each method; a line "
            f"joins those than which no other has more gain and more mRI. {AT_EQUAL_GAIN} The "
            f"dashed line is the gain of {mine[0].gain:.1f} points, at which the table compares.",
            ("method", "gain", "mRI there", "low", "high", "minus the best", "low", "high",
             "dominated by"),
            [
                (row.frontier.name, row.gain, *_ends(row.mri), *_ends(row.difference),
                 ", ".join(row.dominated_by))
                for row in mine
            ],
            partial(figures.equal_gain, {backbone: drawn(mine)}),
        )  # fmt: skip


def _number(k: int) -> str:
    """Of a figure that goes on: none for the first."""
    return f"({k + 1})" if k else ""


def _chunks(values: Sequence[Any], size: int) -> list[list[Any]]:
    """In even portions of at most `size`."""
    portions = math.ceil(len(values) / size)
    length = math.ceil(len(values) / portions) if portions else 1
    return [list(values[k : k + length]) for k in range(0, len(values), length)]


def _ends(value: Interval | None) -> tuple[float | None, float | None, float | None]:
    if value is None:
        return None, None, None
    if math.isnan(value.low):
        return value.estimate, None, None
    return value.estimate, value.low, value.high


def _estimate(value: Interval | None) -> float | None:
    return value.estimate if value else None
