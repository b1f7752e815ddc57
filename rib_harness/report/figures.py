"""The figures: plain data in, a matplotlib `Figure` out. What is missing is a gap, never a zero.

Each function is pure; none uses pyplot. Accuracies are in %, changes in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rib_harness.report.style import (
    GAIN,
    INK,
    LOSS,
    MUTED,
    PAPER,
    RULE,
    SERIES,
    legend_below,
    new,
    save,
    series,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rib_harness.statistics import Interval

__all__ = ["before_after", "curves", "dots", "equal_gain", "frontier", "heatmap",
           "learning", "per_class", "radar", "save", "scatter", "severity"]  # fmt: skip

Number = float | None
Points = Sequence[tuple[float, float]]

#: Bars of `per_class` at most.
CLASSES_SHOWN = 30


#: Values of a setting, up to which each has a tick of its own.
FEW = 5

#: Families of points from which on a frontier has no legend.
MANY = 10


def before_after(
    names: Sequence[str],
    before: Sequence[Number],
    after: Sequence[Number],
    intervals: Sequence[tuple[float, float] | None] | None = None,
) -> Figure:
    """The paper's bar chart: mean OOD accuracy before and after, the difference (mRI) above.

    Args:
        names: of the groups, e.g. the pretraining of each backbone.
        before, after: in %, one a group; None is a gap.
        intervals: (low, high) of each bar after, in %.

    Source: arXiv:2410.21582, the figure of mRI by pretraining.

    Example:
        >>> chart = before_after(["IN-21K"], [50.10], [49.99])
        >>> [float(bar.get_height()) for bar in chart.axes[0].patches]
        [50.1, 49.99]
    """
    with style():
        figure, grid = new(3.0)
        axis: Axes = grid[0, 0]
        places, width = np.arange(len(names)), 0.38
        first, second = _floats(before), _floats(after)
        axis.bar(places - width / 2, first, width, label="before", color=SERIES[6])
        axis.bar(places + width / 2, second, width, label="after fine-tuning", color=SERIES[0])
        tops = np.fmax(first, second)
        for k, ends in enumerate(intervals or ()):
            if ends is not None and np.isfinite(second[k]):
                _whisker(axis, k + width / 2, ends)
                tops[k] = np.fmax(tops[k], ends[1])
        small = 8 if len(names) <= 6 else 7 if len(names) <= 8 else 6.5
        for k, difference in enumerate(second - first):
            if np.isfinite(difference):
                axis.annotate(
                    signed(difference, 2),
                    (k, tops[k]),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=small,
                    rotation=0 if len(names) <= 10 else 90,
                )
        axis.set_ylabel("mean OOD accuracy (%)")
        if len(names) < 4:  # or the bars would be walls
            axis.set_xlim(-1, len(names))
        axis.margins(y=0.15 if len(names) <= 10 else 0.28)
        _names_below(axis, names)
        legend_below(figure, grid)
    return figure


def radar(
    axes: Sequence[str], panels: Mapping[str, tuple[Sequence[Number], Sequence[Number]]]
) -> Figure:
    """Accuracy on each dataset before and after fine-tuning, one polar panel each.

    Args:
        axes: names of the datasets, clockwise from the top.
        panels: title → (before, after), each in % along `axes`; None is a gap.

    Source: the before/after radar of arXiv:2410.21582.
    """
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    angles = 2 * np.pi * np.arange(len(axes)) / max(len(axes), 1)
    with style():
        figure, grid = new(2.3 * rows + 0.3, rows, columns, subplot_kw={"projection": "polar"})
        for axis, (title, (before, after)) in _panels(grid, panels):
            axis.set_theta_zero_location("N")
            axis.set_theta_direction(-1)
            looks = {"before": (SERIES[6], "--"), "after fine-tuning": (SERIES[0], "-")}
            for (label, (colour, dashes)), values in zip(
                looks.items(), (before, after), strict=True
            ):
                ring, closed = np.append(angles, angles[:1]), _floats([*values, *values[:1]])
                axis.plot(ring, closed, linestyle=dashes, color=colour, label=label)
                if np.isfinite(closed).all() and label != "before":
                    axis.fill(ring, closed, color=colour, alpha=0.12, linewidth=0)
            axis.set_xticks(angles, axes, fontsize=7)
            for angle, text in zip(angles, axis.get_xticklabels(), strict=True):
                side = np.sin(angle)
                text.set_ha("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
            axis.tick_params(axis="x", pad=0)
            axis.set_ylim(0, 100)
            axis.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], fontsize=6, color=MUTED)
            axis.grid(True, axis="both")
            axis.spines["polar"].set_color(RULE)
            axis.set_title(title, pad=10)
        legend_below(figure, grid)
    return figure


def dots(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], Interval | None],
) -> Figure:
    """The mRI table as dots with intervals: one line a row, one colour and marker a column.

    Args:
        rows: e.g. methods, from top to bottom.
        columns: e.g. backbones.
        values: (row, column) → mRI in points; None or absent is a gap.
    """
    with style():
        step = max(0.28, 0.11 * len(columns) + 0.12)
        figure, grid = new(0.9 + step * len(rows) + 0.2 * (len(columns) > 1))
        axis: Axes = grid[0, 0]
        spread = 0.6 / max(len(columns), 1)
        for k, column in enumerate(columns):
            looks = {**series(k), "linestyle": "none"}
            shift = (k - (len(columns) - 1) / 2) * spread
            axis.plot([], [], label=column, **looks)
            for y, row in enumerate(rows):
                value = values.get((row, column))
                if value is not None:
                    axis.plot([value.low, value.high], [y + shift] * 2, color=looks["color"])
                    axis.plot([value.estimate], [y + shift], **looks)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
        axis.locator_params(axis="x", nbins=6)
        axis.set_xlabel("mRI (points), with 95 % intervals")
        legend_below(figure, grid)
    return figure


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Number]],
    title: str = "",
) -> Figure:
    """Changes in points, the number in each cell: blue is a gain, orange a loss.

    Args:
        rows: fine-tuning sets.
        columns: datasets that are scored.
        values: [row][column]; None is hatched.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    table = np.array([_floats(line) for line in values]).reshape(len(rows), len(columns))
    most = float(np.nanmax(np.abs(table))) if np.isfinite(table).any() else 1.0
    colours = LinearSegmentedColormap.from_list("change", [LOSS, "#f6f5f3", GAIN])
    with style():
        figure, grid = new(1.3 + 0.33 * len(rows))
        axis: Axes = grid[0, 0]
        axis.grid(False)
        axis.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=-most, vmax=most, aspect="auto")
        for (y, x), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = abs(value) > 0.62 * most
                axis.text(x, y, signed(value, 1), ha="center", va="center",
                          fontsize=7, color=PAPER if dark else INK)  # fmt: skip
            else:
                axis.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor=RULE,
                              linewidth=0)
                )  # fmt: skip
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_ylabel("fine-tuned on")
        axis.set_xlabel("change on (points)")
        if title:
            axis.set_title(title)
    return figure


def severity(curves: Mapping[str, Sequence[Number] | Mapping[str, Sequence[Number]]]) -> Figure:
    """Accuracy over the severity of corruptions, from 1 on.

    Args:
        curves: label → accuracy in % at severity 1, 2, …; or label → corruption → these, which
            makes one small panel a corruption.
    """
    single = all(not isinstance(values, Mapping) for values in curves.values())
    panels: dict[str, dict[str, Sequence[Number]]] = {}
    for label, values in curves.items():
        by_name = values if isinstance(values, Mapping) else {"": values}
        for corruption, line in by_name.items():
            panels.setdefault(corruption, {})[label] = line
    columns = 1 if single else min(3, len(panels))
    rows = -(-len(panels) // max(columns, 1)) or 1
    with style():
        height = 3.0 if single else 1.45 * rows + 0.5
        figure, grid = new(
            height + 0.13 * len(curves), rows, columns or 1, sharex=True, sharey=True
        )
        order = {label: k for k, label in enumerate(curves)}
        for axis, (title, lines) in _panels(grid, panels):
            for label, values in lines.items():
                looks = _before_is_grey(label, order[label])
                axis.plot(range(1, len(values) + 1), _floats(values), label=label, **looks)
            most = max((len(values) for values in lines.values()), default=5)
            axis.set_xticks(range(1, most + 1))
            axis.set_title(title, fontsize=8)
        _x_label(grid, len(panels), "severity")
        figure.supylabel("accuracy (%)", fontsize=9)
        legend_below(figure, grid)
    return figure


def learning(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Number]]]]) -> Figure:
    """Learning curves: accuracy over the steps of a fine-tuning.

    Args:
        panels: title → label → (step, accuracy in %) in order of the steps.
    """
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with style():
        figure, grid = new(1.7 * rows + 0.6 + 0.13 * len(labels), rows, columns, sharey=True)
        for axis, (title, lines) in _panels(grid, panels):
            for label, points in lines.items():
                looks = series(labels.index(label))
                looks["marker"] = looks["marker"] if len(points) <= 25 else None
                axis.plot([x for x, _ in points], _floats([y for _, y in points]), label=label,
                          **looks, markersize=3)  # fmt: skip
            axis.set_title(title, fontsize=8)
        _x_label(grid, len(panels), "step")
        figure.supylabel("accuracy (%)", fontsize=9)
        legend_below(figure, grid)
    return figure


def frontier(points: Sequence[tuple[str, str, Number, Number]]) -> Figure:
    """Accuracy against robustness: mean gain on the fine-tuning set and mRI of each method.

    Args:
        points: (label, family, gain in points, mRI in points); one family is joined by a line,
            in the order given.
    """
    families: dict[str, list[tuple[str, float, float]]] = {}
    for label, family, x, y in points:
        if x is not None and y is not None and np.isfinite(x) and np.isfinite(y):
            families.setdefault(family, []).append((label, x, y))
    with style():
        named = len(families) > MANY  # points say their names: a legend would be the figure
        figure, grid = new(5.2 if named else 3.4)
        axis: Axes = grid[0, 0]
        for k, (family, members) in enumerate(families.items()):
            looks = series(k)
            looks["linestyle"] = "-" if len(members) > 1 else "none"
            looks["zorder"] = 2 if len(members) > 1 else 3
            axis.plot([x for _, x, _ in members], [y for *_, y in members], label=family, **looks)
            for label, x, y in members if len(members) > 1 or named else ():
                told = label if named else label.removeprefix(family).lstrip(":· ") or label
                axis.annotate(told, (x, y), (4, 4), textcoords="offset points",
                              fontsize=5.5 if named else 7, color=MUTED)  # fmt: skip
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.grid(True, axis="both")
        axis.set_xlabel("gain on the fine-tuning set (points)")
        axis.set_ylabel("mRI (points)")
        axis.margins(0.12)
        if not named:
            legend_below(figure, grid)
        if len(families) == 1:
            axis.set_title(next(iter(families)))
    return figure


def equal_gain(panels: Mapping[str, tuple[Mapping[str, tuple[Points, Points]], float]]) -> Figure:
    """Gain against mRI for every trial of each method, and the edge that they reach.

    Args:
        panels: title → label → (gain, mRI) of all trials in points, and of those on the edge by
            gain; and the gain at which methods are compared.
    """
    labels = list(dict.fromkeys(label for clouds, _ in panels.values() for label in clouds))
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    with style():
        figure, grid = new(3.4 * rows + 0.1 * len(labels), rows, columns)
        for axis, (title, (clouds, gain)) in _panels(grid, panels):
            for label, (trials, edge) in clouds.items():
                looks = series(labels.index(label))
                faint = {**looks, "linestyle": "none", "alpha": 0.35}
                axis.plot([x for x, _ in trials], [y for _, y in trials], **faint)
                looks["linestyle"] = "-" if len(edge) > 1 else "none"
                axis.plot([x for x, _ in edge], [y for _, y in edge], label=label, **looks)
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.axvline(gain, color=MUTED, linewidth=0.8, linestyle="--")
            axis.grid(True, axis="both")
            axis.margins(0.08)
            if len(panels) > 1:
                axis.set_title(title)
        _x_label(grid, len(panels), "gain on held-out images (points)")
        figure.supylabel("mRI (points)", fontsize=9)
        legend_below(figure, grid)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float | str, Interval | None]]]], y_label: str
) -> Figure:
    """A number with its interval over a setting, one panel a setting.

    Args:
        panels: label of the x axis → label of the curve → (x, value). Numbers get a log axis
            where they span a factor of ten or more; texts stand side by side.
        y_label: of all panels.
    """
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with style():
        figure, grid = new(2.2 * rows + 0.4 + 0.13 * len(labels), rows, columns, sharey=True)
        for axis, (x_label, lines) in _panels(grid, panels):
            values = [x for points in lines.values() for x, _ in points]
            places = _x_axis(axis, values)
            # Between two texts there is nothing for a line to say.
            joined = (
                {} if all(isinstance(x, int | float) for x in values) else {"linestyle": "none"}
            )
            for label, points in lines.items():
                looks = {**series(labels.index(label)), **joined}
                there = [(places[x], value) for x, value in points if value is not None]
                axis.plot([places[x] for x, _ in points],
                          _floats([v.estimate if v else None for _, v in points]),
                          label=label, **looks)  # fmt: skip
                for x, value in there:
                    axis.plot([x, x], [value.low, value.high], color=looks["color"], linewidth=1)
            axis.set_xlabel(x_label)
            axis.axhline(0, color=INK, linewidth=0.8)
        figure.supylabel(y_label, fontsize=9)
        legend_below(figure, grid)
    return figure


def scatter(panels: Mapping[str, Sequence[tuple[float, float, str]]], y_label: str) -> Figure:
    """One number against others, with Spearman's ρ and n in each panel's title.

    Args:
        panels: label of the x axis → (x, y, label of the point's colour; may be empty).
        y_label: of all panels.
    """
    from scipy.stats import spearmanr

    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    labels = list(dict.fromkeys(label for points in panels.values() for *_, label in points))
    with style():
        figure, grid = new(2.3 * rows + 0.4 + 0.13 * len(labels), rows, columns, sharey=True)
        for axis, (x_label, points) in _panels(grid, panels):
            known = [p for p in points if np.isfinite(p[0]) and np.isfinite(p[1])]
            for k, label in enumerate(labels):
                mine = [(x, y) for x, y, one in known if one == label]
                looks = {**series(k), "linestyle": "none"}
                axis.plot([x for x, _ in mine], [y for _, y in mine], label=label, **looks,
                          markersize=3.5)  # fmt: skip
            xs, ys = {x for x, *_ in known}, {y for _, y, _ in known}
            # Ranks of a constant, or of two points, say nothing.
            told = f"n = {len(known)}"
            if len(known) > 2 and len(xs) > 1 and len(ys) > 1:
                rho = spearmanr([x for x, *_ in known], [y for _, y, _ in known]).statistic
                told = f"ρ = {signed(rho, 2)}, {told}"
            axis.set_title(told, fontsize=8)
            axis.set_xlabel(x_label)
            axis.axhline(0, color=INK, linewidth=0.8)
        figure.supylabel(y_label, fontsize=9)
        legend_below(figure, grid)
    return figure


def per_class(names: Sequence[str], change: Sequence[Number], n: Sequence[int]) -> Figure:
    """Change of each class in points, the worst first.

    Args:
        names: of the classes.
        change: in points; None is left out.
        n: images of each class.
    """
    known = [(c, name, k) for name, c, k in zip(names, change, n, strict=True) if c is not None]
    known = sorted((one for one in known if np.isfinite(one[0])), key=lambda one: one[:2])
    shown = known[:CLASSES_SHOWN]
    with style():
        figure, grid = new(0.9 + 0.19 * max(len(shown), 1))
        axis: Axes = grid[0, 0]
        places = range(len(shown))
        axis.barh(places, [c for c, *_ in shown], 0.7,
                  color=[LOSS if c < 0 else GAIN for c, *_ in shown])  # fmt: skip
        axis.set_yticks(places, [f"{_short(name)} ({k})" for _, name, k in shown], fontsize=7)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
        axis.set_xlabel("change of accuracy (points); n in brackets")
        if len(known) > len(shown):
            axis.set_title(f"the worst {len(shown)} of {len(known)} classes")
    return figure


def signed(value: float, digits: int) -> str:
    """With its sign, and a true minus; what rounds to zero has none.

    >>> signed(-1.25, 1), signed(-1e-15, 2)
    ('−1.2', '0.00')
    """
    rounded = round(float(value), digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def _floats(values: Sequence[Number]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _panels(grid: Any, panels: Mapping[str, Any]) -> list[tuple[Any, tuple[str, Any]]]:
    """Each panel with its axes; axes without one are hidden."""
    cells = list(grid.flat)
    for axis in cells[len(panels) :]:
        axis.set_visible(False)
    return list(zip(cells, panels.items(), strict=False))


def _names_below(axis: Axes, names: Sequence[str]) -> None:
    """Names under the groups, turned where they would meet."""
    crowded = len(names) * max(map(len, names), default=0) > 58
    turn: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    if len(names) > 12:
        turn["rotation"] = 60
    axis.set_xticks(range(len(names)), list(names), **(turn if crowded else {}))


def _whisker(axis: Axes, x: float, ends: tuple[float, float]) -> None:
    axis.plot([x, x], ends, color=INK, linewidth=1)
    for y in ends:
        axis.plot([x - 0.06, x + 0.06], [y, y], color=INK, linewidth=1)


def _before_is_grey(label: str, k: int) -> dict[str, Any]:
    if label.startswith("before"):
        return {"color": INK, "marker": "o", "linestyle": "--", "markersize": 3, "zorder": 3}
    return {**series(k), "markersize": 3}


def _x_label(grid: Any, panels: int, text: str) -> None:
    """The label under the lowest panel of each column."""
    columns = grid.shape[1]
    for k in range(max(0, panels - columns), panels):
        grid.flat[k].set_xlabel(text)
        grid.flat[k].tick_params(labelbottom=True)


def _x_axis(axis: Axes, values: Sequence[float | str]) -> dict[Any, float]:
    """Where each x stands; sets scale and ticks."""
    once = list(dict.fromkeys(values))
    if any(isinstance(value, str) for value in once):
        axis.set_xticks(range(len(once)), [str(value) for value in once])
        axis.set_xlim(-0.5, len(once) - 0.5)
        return {value: float(k) for k, value in enumerate(once)}
    numbers = sorted(float(value) for value in once)
    if len(numbers) <= FEW:
        axis.set_xticks(numbers)
        axis.tick_params(axis="x", labelrotation=0 if len(numbers) < FEW else 30)
    if numbers and numbers[0] > 0 and numbers[-1] >= 10 * numbers[0]:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axis.set_xscale("log")
        if len(numbers) <= FEW:  # the scale has set its own
            axis.set_xticks(numbers)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return {value: float(value) for value in once}
