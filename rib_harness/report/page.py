"""One HTML file of what a store shows: self-contained, without the network, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness import __version__
from rib_harness.errors import RibError
from rib_harness.report.charts import (
    Chart,
    charts_of,
    class_charts,
    write,
)
from rib_harness.report.curves import PROBED
from rib_harness.report.data import Line, Part, parts_of
from rib_harness.report.facts import provenance
from rib_harness.report.figures import signed
from rib_harness.report.flips import FLIPS, Flips, class_changes, flips_of, worst_and_best
from rib_harness.report.naming import class_name, file_name
from rib_harness.report.neighbours import NEAREST, Neighbours, neighbours_of
from rib_harness.report.style import inline_svg
from rib_harness.report.thumbnails import Opened, open_datasets, thumbnails
from rib_harness.results import RunResult
from rib_harness.statistics import SEEDS_NEEDED, Interval
from rib_harness.store import Store
from rib_harness.uncertainty import Uncertainty

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog

HERE = Path(__file__).parent

#: Pictures of figures in one section at most, and rows of one table of data.
FIGURES_SHOWN, ROWS_SHOWN = 16, 120

#: Share of the budget that the pictures of nearest images have, where there are some.
FOR_NEIGHBOURS = 0.4

#: What of the provenance stands above the results; the rest is below them.
HEADER = ("backbones", "sources", "seeds", "preset", "recipe", "limit", "hardware", "packages")

#: Section → its heading, what it says, and what would make it appear where it is empty.
SECTIONS: dict[str, tuple[str, str, str]] = {
    "overview": ("Overview", "", ""),
    "changes": (
        "Change on each dataset",
        "A<sub>i</sub><sup>(j)</sup> − A<sub>pre</sub><sup>(j)</sup> in points: fine-tuned on the "
        "row, scored on the column. Blue is a gain, orange a loss; 95 % intervals below. The "
        "hatched cell is the fine-tuning set itself: training accuracy, left out of mRI.",
        "",
    ),
    "frontier": (
        "Accuracy and robustness",
        "",
        "A frontier needs two methods or settings with a whole matrix, for example "
        "--sweep wise-ft:alpha=0,0.5,1.",
    ),
    "severity": (
        "Severity of corruptions",
        "",
        "No dataset here has groups such as fog/3: a suite with corruptions, such as digits-c or "
        "imagenet-c, makes these curves appear.",
    ),
    "radar": (
        "Before and after, by dataset",
        "",
        "A radar needs at least three datasets and a method that was fine-tuned.",
    ),
    "learning": (
        "Learning curves",
        "",
        "No fine-tuning here kept a history: methods that train (ft, lwf, …) make these appear.",
    ),
    "classes": ("Change of each class", "", "Classes need a method that was fine-tuned."),
    "flips": ("Flip explorer", "", "Flips need a method that was fine-tuned."),
}


@dataclass(frozen=True)
class Shown:
    """A chart as the page has it.

    Args:
        chart: its words and data.
        svg: the picture.
        rows: of its data, as many as the page carries.
    """

    chart: Chart
    svg: str
    rows: Sequence[tuple[Any, ...]]


def write_report(
    runs: Sequence[RunResult],
    store: Store,
    catalog: Catalog,
    out: Path,
    *,
    figures: Path | None = None,
    budget: float = 4.0,
    data_root: Path | None = None,
) -> list[Path]:
    """Write the page, and the figures where a folder is given.

    Args:
        runs: which of the store's.
        out: the page's file.
        figures: folder of PDF, SVG, PNG and CSV files.
        budget: of the pictures, in MB.
        data_root: folder of the datasets; None is where the runs had it.

    Returns:
        the page, then the folder of figures.
    """
    parts = parts_of(runs, Uncertainty(store))
    opened = [open_datasets(part, store, catalog, data_root) for part in parts]
    text = render(parts, store, opened, budget=budget)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        if figures is None:
            return [out]
        taken: set[str] = set()
        for part, sets in zip(parts, opened, strict=True):
            names = {name: sets.classes(name) for name in part.datasets}
            charts = chain(charts_of(part, store), class_charts(part, store, names))
            prefix = f"{file_name(title_of(part))}-" if len(parts) > 1 else ""
            write(charts, figures, prefix, taken)
    except OSError as error:
        raise RibError(
            f"{error.filename or out} cannot be written: {error.strerror or error}. "
            "Choose another --out or --figures."
        ) from None
    return [out, figures]


def render(
    parts: Sequence[Part], store: Store, opened: Sequence[Opened], *, budget: float = 4.0
) -> str:
    """The page.

    Args:
        parts: see `data.parts_of`.
        store: where the scores are.
        opened: the datasets of each part, for pictures and names of classes.
        budget: of the pictures, in MB.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": _signed, "fixed": _fixed, "count": _count, "time": _time,
                            "memory": _memory, "value": _value}  # fmt: skip
    # An `<svg>` of ours, and JSON in which no tag can begin.
    environment.filters |= {"picture": Markup, "json": lambda data: Markup(embedded(data))}
    return environment.get_template("page.html.j2").render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        version=__version__,
        sections={k: (head, Markup(said), empty) for k, (head, said, empty) in SECTIONS.items()},
        parts=[
            _part(k, part, store, sets, budget / len(parts))
            for k, (part, sets) in enumerate(zip(parts, opened, strict=True))
        ],
    )


def embedded(data: Any) -> str:
    """JSON for a `<script type="application/json">`: no `<` in it, so no tag can begin or end.

    >>> embedded("</script>")
    '"\\\\u003c/script>"'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def title_of(part: Part) -> str:
    """Suite, limit, options of datasets, and the members where they are not all."""
    record = part.record
    told = [str(record["suite"])]
    told += [f"limit {record['limit']} a class"] if record["limit"] else []
    told += [f"{name}: {options}" for name, options in (record.get("data") or {}).items()]
    if len(part.members) < len(record["suite_members"]):
        told.append(
            f"{len(part.members)} members: {', '.join(part.short[m] for m in part.members)}"
        )
    return ", ".join(told)


def _part(k: int, part: Part, store: Store, opened: Opened, budget: float) -> dict[str, Any]:
    """What the template needs of one part."""
    charts = charts_of(part, store)
    by_section: dict[str, list[Shown]] = {section: [] for section in SECTIONS}
    left_out: dict[str, int] = {}
    for chart in charts:
        if not chart.on_page:
            continue
        shown = by_section[chart.section]
        if len(shown) == FIGURES_SHOWN:
            left_out[chart.section] = left_out.get(chart.section, 0) + 1
            continue
        svg = _picture(chart, f"f{k}-{len(shown)}-{chart.section}")
        shown.append(Shown(chart, svg, chart.rows[:ROWS_SHOWN]))
    flips, facts = flips_of(part, store, FLIPS), provenance(part)
    probed = any(row[1] == PROBED for s in by_section.get("learning", ())
                 for row in s.chart.rows)  # fmt: skip
    fewer: dict[str, list[str]] = {}
    for line in part.lines:
        if len(line.sources) < len(line.arm.record["suite_members"]):
            fewer.setdefault(line.arm.sources, []).append(line.label)
    return {
        "id": f"p{k}",
        "part": part,
        "title": title_of(part),
        "facts": [(what, text) for what, text in facts if what in HEADER],
        "provenance": [(what, text) for what, text in facts if what not in HEADER],
        "notes": list(dict.fromkeys(note for run in part.runs for note in run.record["notes"])),
        "answers": list(dict.fromkeys(
            f"{run.record['backbone']}: {line}"
            for run in part.runs for line in run.describe_known_answers())),
        "choices": [line for run in part.runs if run.method for line in run.describe_choices()],
        "ruined": [run.describe_ruined() for run in part.runs if run.matrix.ruined],
        "incomplete": [line for line in (*part.lines, *part.untouched) if line.missing],
        "fewer": fewer,
        "few_seeds": any(len(line.arm.seeds) < SEEDS_NEEDED for line in part.lines),
        "baselines": _baselines(part),
        "charts": by_section,
        "left_out": left_out,
        "heatmaps": [_heatmap(line, part) for line in part.lines],
        "probed": probed,
        "classes": _classes(part, store, opened),
        "flips": _explorer(part, flips, neighbours_of(part, flips, store), opened, budget)
        if part.lines else None,
    }  # fmt: skip


def _picture(chart: Chart, name: str) -> str:
    return inline_svg(chart.draw(), name, chart.title, chart.note)


def _baselines(part: Part) -> list[tuple[str, dict[str, Interval | None]]]:
    """Backbone → dataset → accuracy before, of the first line that has each."""
    found: dict[str, dict[str, Interval | None]] = {}
    for line in (*part.lines, *part.untouched):
        row = found.setdefault(line.backbone, {})
        for name in part.datasets:
            if row.get(name) is None:
                row[name] = line.accuracy_interval(name)
    return list(found.items())


def _heatmap(line: Line, part: Part) -> dict[str, Any]:
    """The cells of one line, with how strongly each is coloured: 0 to 100."""
    values = {(i, j): line.change(i, j) for i in line.sources for j in part.datasets}
    scored = [abs(v.estimate) for (i, j), v in values.items() if v is not None and i != j]
    most = max([*scored, 0.1])  # what rounds to nothing has no colour
    rows = [
        (
            i,
            line.ri(i),
            [
                (
                    j,
                    value,
                    0 if value is None else min(100, round(100 * abs(value.estimate) / most)),
                    None if value is None else line.u.flips(line.arm, i, j),
                )
                for j in part.datasets
                for value in [values[i, j]]
            ],
        )
        for i in line.sources
    ]
    return {"line": line, "rows": rows}


def _classes(part: Part, store: Store, opened: Opened) -> dict[str, Any] | None:
    """The worst and the best classes of each line and dataset, for the page's script."""
    tables = {}
    for k, line in enumerate(part.lines):
        for d, dataset in enumerate(part.datasets):
            changes = class_changes(line, dataset, store)
            names = opened.classes(dataset)
            rows = [
                [class_name(names, c.name), c.n, round(c.before, 2), round(c.after, 2),
                 None if c.half is None else round(c.half, 2)]
                for c in worst_and_best(changes)
            ]  # fmt: skip
            if rows:
                tables[f"{k}/{d}"] = {"rows": rows, "of": len(changes)}
    if not tables:
        return None
    return {
        "lines": [line.label for line in part.lines], "datasets": part.datasets, "tables": tables,
    }  # fmt: skip


def _explorer(
    part: Part, flips: Flips, near: Neighbours, opened: Opened, budget: float
) -> dict[str, Any]:
    """The flips with their images and pictures, for the page's script."""
    images = flips.images()
    place = {(d, row): i for i, (d, row, _) in enumerate(images)}
    wanted = [(flips.datasets[d], row) for d, row, _ in images]
    share = FOR_NEIGHBOURS if near.of else 0.0
    pictures, problem = thumbnails(wanted, opened.sets, budget * (1 - share))
    without = sum(count for (name, row), (_, _, count) in zip(wanted, images, strict=True)
                  if (name, row) not in pictures)  # fmt: skip
    shut = {name: why for name, why in opened.why.items() if name in flips.datasets}
    names: list[dict[int, str]] = []
    for d, dataset in enumerate(flips.datasets):
        mine = flips.flips[flips.flips[:, 2] == d]
        seen = {*map(int, mine[:, 4]), *map(int, mine[:, 5])}  # one of the two is the label
        names.append({c: class_name(opened.classes(dataset), c) for c in sorted(seen)})
    return {
        "lines": flips.lines,
        "sources": flips.sources,
        "short": [part.short[name] for name in flips.sources],
        "datasets": flips.datasets,
        "seeds": flips.seeds,
        "names": names,
        "groups": [flips.rows[d].group[0] if d in flips.rows else []
                   for d in range(len(flips.datasets))],
        "images": [
            [d, row, int(flips.rows[d].label[row]), int(flips.rows[d].group[1][row]),
             pictures.get((name, row), "")]
            for (d, row, _), (name, _) in zip(images, wanted, strict=True)
        ],
        "flips": [
            [int(k), int(s), place[int(d), int(row)], int(before), int(after)]
            for k, s, d, row, before, after in flips.flips
        ],
        "cells": [
            [c.line, c.source, c.dataset, c.n, c.lost, c.gained] for c in flips.cells
        ],
        **_nearest(flips, near, place, opened, budget * share),
        "encoders": near.encoders,
        "total": flips.total,
        "without": without,
        "shut": shut,
        "problem": problem,
        "notes": flips.notes,
    }  # fmt: skip


def _nearest(
    flips: Flips,
    near: Neighbours,
    place: dict[tuple[int, int], int],
    opened: Opened,
    budget: float,
) -> dict[str, Any]:
    """The nearest images of each flip: encoder/source/image → places, cosines, same photograph."""
    shown = near.images()
    at = {image: k for k, image in enumerate(shown)}
    wanted = [(flips.sources[s], row) for s, row in shown]
    pictures, _ = thumbnails(wanted, opened.sets, budget)
    rows = {name: flips.rows[flips.datasets.index(name)] for name in near.kept}
    return {
        "near": {
            f"{b}/{s}/{place[d, row]}": [
                [at[s, one.row], round(one.cosine, 3), int(one.same)] for one in found
            ]
            for (b, s, d, row), found in near.of.items()
        },
        "nearest": [
            [s, row, class_name(opened.classes(name), int(rows[name].label[row])),
             pictures.get((name, row), "")]
            for (s, row), (name, _) in zip(shown, wanted, strict=True)
        ],
        "kept": [[name, *counts] for name, counts in near.kept.items()],
        "most_near": NEAREST,
        "no_near": near.why,
    }  # fmt: skip


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else signed(value, digits)


def _fixed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _time(seconds: float | None) -> str:
    """Two figures that a person can take in.

    >>> _time(45.8), _time(3000), _time(100000)
    ('45.8 s', '50.0 min', '27.8 h')
    """
    if seconds is None:
        return "–"
    for unit, size in (("h", 3600 * 2), ("min", 120)):
        if seconds >= size:
            return f"{seconds / (size / 2):.1f} {unit}"
    return f"{seconds:.1f} s"


def _memory(used: float | None) -> str:
    return "–" if used is None else f"{used / 2**30:.2f} GiB"


def _value(value: Any) -> str:
    """A cell of a table of data."""
    if isinstance(value, float):
        return _fixed(value)
    return "–" if value is None else str(value)
