"""What each kind of study makes of its arms: a table, answers in words, points and a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rib_harness.arms import Arm
from rib_harness.errors import RibError
from rib_harness.frontier import AT_EQUAL_GAIN, at_equal_gain, drawn, frontiers, rows_of
from rib_harness.matrix import IncompleteError
from rib_harness.statistics import Interval
from rib_harness.study import SuiteSettings, Variation
from rib_harness.uncertainty import Uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rib_harness.catalog import Catalog

#: Names of settings, as an axis says them.
SPOKEN = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "per_class": "fine-tuning images a class",
    "keep": "share of the fine-tuning set",
}


class Made(NamedTuple):
    """A kind of figure, before study, suite and notes are put to it."""

    table: list[dict[str, str]]
    answers: list[str]
    points: list[dict[str, Any]]
    figure: Callable[[], Figure] | None


class Data(NamedTuple):
    """What every kind of figure is made from."""

    own: SuiteSettings
    parts: list[tuple[Variation, list[Arm]]]
    uncertainty: Uncertainty
    catalog: Catalog

    @property
    def arms(self) -> list[Arm]:
        """Those of all parts."""
        return [arm for _, arms in self.parts for arm in arms]

    def show(self, arm: Arm) -> tuple[str, ...]:
        """The fine-tuning sets that are shown."""
        return self.own.show or tuple(arm.record["sources"])


def _before_after(data: Data) -> Made:
    table, points, answers = [], [], []
    names = names_of(data.arms)
    of, lost = data.uncertainty, []
    for arm, name in zip(data.arms, names, strict=True):
        before = _known(of.mean_before, arm)
        after, mri = _known(of.mean_after, arm), _known(of.mri, arm)
        table.append({"pretraining": name, "before, %": level(before), "after, %": level(after),
                      "mRI": change(mri)})  # fmt: skip
        points.append({**_head(arm), **_flat("before", before), **_flat("after", after),
                       **_flat("mri", mri)})  # fmt: skip
        if mri is not None and mri.high < 0:
            lost.append(name)
    answers.append(
        f"Fine-tuning costs robustness (mRI below 0 with its whole interval) in {len(lost)} of "
        f"{len(names)}{': ' if lost else ''}{'; '.join(lost)}."
    )

    def draw() -> Figure:
        from rib_harness.report.figures import before_after

        ends = [None if p["after"] is None else (p["after_low"], p["after_high"]) for p in points]
        return before_after(
            names, [p["before"] for p in points], [p["after"] for p in points], ends
        )

    return Made(table, answers, points, draw)


def _radar(data: Data) -> Made:
    table, points, answers, of = [], [], [], data.uncertainty
    panels: dict[str, tuple[list[float | None], list[float | None]]] = {}
    axes: tuple[str, ...] = ()
    for arm, name in zip(data.arms, names_of(data.arms), strict=True):
        axes = arm.matrices[0].members
        for source in data.show(arm):
            found = [
                (_known(of.accuracy, arm, j), _known(of.accuracy, arm, j, source)) for j in axes
            ]
            title = f"{name}, fine-tuned on {source}"
            panels[title.replace(", ", "\n")] = tuple([v.estimate if v else None for v in side]
                                  for side in zip(*found, strict=True))  # type: ignore[assignment]  # fmt: skip
            for j, (before, after) in zip(axes, found, strict=True):
                moved = _known(of.change, arm, source, j)
                table.append({
                    "pretraining": name,
                    "dataset": f"{j} (own)" if j == source else j,
                    "accuracy, %": " → ".join(f"{v.estimate:.1f}" if v else "INCOMPLETE"
                                              for v in (before, after)),
                    "change": change(moved),
                })  # fmt: skip
                points.append({**_head(arm), "source": source, "dataset": j,
                               **_flat("before", before), **_flat("after", after),
                               **_flat("change", moved)})  # fmt: skip
            answers.append(
                f"{title}: {change(_known(of.ri, arm, source))} points on the other sets, "
                f"{change(_known(of.change, arm, source, source))} on the set itself (trained on)."
            )

    def draw() -> Figure:
        from rib_harness.report.figures import radar

        return radar(short_names(axes), panels)

    return Made(table, answers, points, draw)


def _dots(data: Data) -> Made:
    backbones = names_of(data.arms, per_method=False)
    columns = list(dict.fromkeys(backbones))
    methods = list(dict.fromkeys(str(arm.method) for arm in data.arms))
    values: dict[tuple[str, str], Interval | None] = {}
    table, points, answers = [], [], []
    for arm, backbone in zip(data.arms, backbones, strict=True):
        values[str(arm.method), backbone] = mri = _known(data.uncertainty.mri, arm)
        table.append({"method": str(arm.method), "backbone": backbone, "mRI": change(mri),
                      "gain": signed(gain(arm))})  # fmt: skip
        points.append({**_head(arm), **_flat("mri", mri), "gain": gain(arm)})
    for column in columns:
        known = {m: v for m in methods if (v := values.get((m, column))) is not None}
        if known:
            best = max(known, key=lambda method: known[method].estimate)
            kept = [method for method, mri in known.items() if mri.high >= 0]
            answers.append(
                f"{column}: {best} keeps most, mRI {change(known[best])}. mRI is below 0 with its "
                f"whole interval for {len(known) - len(kept)} of {len(known)} methods"
                f"{'; not for ' if kept else ''}{', '.join(kept)}."
            )
    answers.append(
        "gain: mean change on the fine-tuning set itself (training accuracy), or on images of it "
        "that a method holds out."
    )

    def draw() -> Figure:
        from rib_harness.report.figures import dots

        return dots(methods, columns, values)

    return Made(table, answers, points, draw)


def _learning(data: Data) -> Made:
    table, points, answers = [], [], []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for arm, name in zip(data.arms, names_of(data.arms), strict=True):
        for source in data.show(arm):
            title = f"{name}, on {source}"
            rows = _probes(data.uncertainty, arm, source)
            if not rows:
                answers.append(f"{title}: nothing was measured along the way.")
                continue
            panels[title.replace(", ", "\n")] = {
                label: [(row["step"], row[column]) for row in rows]
                for label, column in (("fine-tuning set", "own"), ("mean of the others", "others"))
            }
            points += [{**_head(arm), "source": source, **row} for row in rows]
            own, others = ([row[column] for row in rows] for column in ("own", "others"))
            low = int(np.argmin(others))
            table.append({
                "pretraining": name, "fine-tuned on": source,
                "own set, %": f"{own[0]:.1f} → {own[-1]:.1f}",
                "others, %": f"{others[0]:.1f} → {others[-1]:.1f}",
                "others, lowest": f"{others[low]:.1f} at update {rows[low]['step']:,}",
            })  # fmt: skip
            if others[low] >= others[0]:
                answers.append(f"{title}: the others do not fall.")
                continue
            half = (others[0] + others[low]) / 2
            when = next(row["step"] for row in rows if row["others"] <= half)
            answers.append(
                f"{title}: the others fall by {others[0] - others[low]:.1f} points at most; half "
                f"of that is lost by update {when:,} of {rows[-1]['step']:,}."
            )
    if points:
        answers.append("Measured on a small fixed slice of each set: a diagnostic, no result.")

    def draw() -> Figure:
        from rib_harness.report.figures import learning

        return learning(panels)

    return Made(table, answers, points, draw)


def _curves(data: Data) -> Made:
    table, points = [], []
    panels: dict[str, dict[str, list[tuple[float | str, Interval | None]]]] = {}
    kept: dict[str, list[tuple[str, Interval | None, float | None]]] = {}
    every = names_of([arms for _, some in data.parts[:1] for arms in some])
    for part, arms in data.parts:
        spoken = SPOKEN.get(part.panel, part.panel or "recipe")
        for arm, name in zip(arms, every, strict=True):
            mri = _known(data.uncertainty.mri, arm)
            x = part.x if part.x is not None else "base"
            panels.setdefault(spoken, {}).setdefault(name, []).append((x, mri))
            kept.setdefault(name, []).append((part.label, mri, gain(arm)))
            row = {"recipe": part.label, "backbone": name, "mRI": change(mri),
                   "gain": signed(gain(arm))}  # fmt: skip
            if len(every) == 1:
                del row["backbone"]
            table.append(row)
            points.append({"panel": part.panel, "x": x, **_head(arm), **_flat("mri", mri),
                           "gain": gain(arm)})  # fmt: skip
    answers = [_below(name, told) for name, told in kept.items()]
    if kept:
        answers.append(
            "gain: on the whole fine-tuning set, the images trained on among them. The best of "
            "many recipes on the sets that score them is flattered; it is no way to choose one."
        )

    def draw() -> Figure:
        from rib_harness.report.figures import curves

        return curves(panels, "mRI (points)")

    return Made(table, answers, points, draw)


def _below(name: str, told: Sequence[tuple[str, Interval | None, float | None]]) -> str:
    """In how many recipes mRI is below 0, and in which it is not."""
    known = [(label, mri, own) for label, mri, own in told if mri is not None]
    rest = [
        f"{label} ({change(mri)}, gain {signed(own)})" for label, mri, own in known if mri.high >= 0
    ]
    return (
        f"{name}: mRI is below 0 with its whole interval in {len(known) - len(rest)} of "
        f"{len(known)}{'; not at: ' if rest else ''}{'; '.join(rest)}."
    )


def _scatter(data: Data) -> Made:
    from scipy.stats import spearmanr

    from rib_harness.measure import measure

    table, points, answers = [], [], []
    panels: dict[str, list[tuple[float, float, str]]] = {}
    names = names_of(data.arms)
    for reference in data.own.metrics:
        metric = data.catalog.get("metric", reference)
        for arm, name in zip(data.arms, names, strict=True):
            try:
                values = measure(arm.runs[0], data.uncertainty.store, metric)
            except RibError as error:  # features that failed, or a set that it is not for
                answers.append(f"{reference}, {name}: {error}")
                continue
            found = {(value.source, value.dataset): value.value for value in values}
            mine = []
            for source, others in arm.matrices[0].pairs.items():
                for j in others:
                    moved = _known_number(arm.change, source, j)
                    # A distance may be of one of the two only.
                    places = [(source, j), (None, j), (source, None)]
                    x = next((found[place] for place in places if place in found), None)
                    points.append({**_head(arm), "metric": reference, "source": source,
                                   "dataset": j, "distance": x, "change": moved})  # fmt: skip
                    if x is not None and moved is not None:
                        mine.append((x, moved, name if len(names) > 1 else f"on {source}"))
            panels.setdefault(reference, []).extend(mine)
            enough = len(mine) > 2 and all(len({p[k] for p in mine}) > 1 for k in (0, 1))
            rho = float(spearmanr(*zip(*[p[:2] for p in mine], strict=True))[0]) if enough else None
            table.append({"distance": reference, "backbone": name, "Spearman's ρ": signed(rho),
                          "n": str(len(mine))})  # fmt: skip
    if points:
        answers.append(
            "ρ of the distance from the fine-tuning set with the change of accuracy; cells of one "
            "source or one dataset are not independent, so there is no p."
        )

    def draw() -> Figure:
        from rib_harness.report.figures import scatter

        return scatter(panels, "change of accuracy (points)")

    return Made(table, answers, points, draw)


def _equal_gain(data: Data) -> Made:
    compared = at_equal_gain(frontiers(data.arms), data.uncertainty)
    table, answers = [], []
    panels = {}
    for mine in compared:
        backbone = mine[0].frontier.backbone
        panels[backbone] = drawn(mine)
        for row in mine:
            edge = row.frontier.edge
            table.append({
                "backbone": backbone,
                "method": row.frontier.name,
                "gains": f"{signed(edge[0].gain)} to {signed(edge[-1].gain)}",
                f"mRI at {mine[0].gain:.1f}": "not reached" if row.mri is None
                else change(row.mri),
                "minus the best": "" if row.difference is None else change(row.difference),
            })  # fmt: skip
        none = [row.frontier.name for row in mine if not row.dominated_by]
        answers.append(
            f"{backbone}, at a gain of {mine[0].gain:.1f} points: {mine[0].frontier.name} has "
            f"most. Dominated by no other: {', '.join(none)}."
        )
    answers.append(AT_EQUAL_GAIN)

    def draw() -> Figure:
        from rib_harness.report.figures import equal_gain

        return equal_gain(panels)

    return Made(table, answers, rows_of(compared), draw)


KINDS: dict[str, Callable[[Data], Made]] = {
    "before-after": _before_after,
    "radar": _radar,
    "dots": _dots,
    "learning": _learning,
    "curves": _curves,
    "scatter": _scatter,
    "equal-gain": _equal_gain,
}


def names_of(arms: Sequence[Arm], *, per_method: bool = True) -> list[str]:
    """What to call each: its pretraining where that tells them apart, else its backbone."""
    told = {arm.backbone: str(arm.record.get("pretraining") or "") for arm in arms}
    unique = len(set(told.values())) == len(told) > 1 and "" not in told.values()
    several = per_method and len({arm.method for arm in arms}) > 1
    return [
        (told[arm.backbone] if unique else arm.backbone) + (f" · {arm.method}" if several else "")
        for arm in arms
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Names of datasets without the first word that several have in common.

    >>> short_names(["imagenet-v2", "imagenet-r", "objectnet"])
    ['v2', 'r', 'objectnet']
    """
    first = [name.partition("-")[0] for name in names]
    return [
        name.partition("-")[2] if "-" in name and first.count(word) > 1 else name
        for name, word in zip(names, first, strict=True)
    ]


def gain(arm: Arm) -> float | None:
    """Its gain in points; None where a cell is missing."""
    try:
        return arm.gain
    except IncompleteError:
        return None


def level(value: Interval | None) -> str:
    """`61.6 [60.1, 63.0]`."""
    return _shown(value, "{:.1f}")


def change(value: Interval | None) -> str:
    """`−5.1 [−6.0, −4.2]`."""
    return _shown(value, "{:+z.1f}")


def signed(value: float | None) -> str:
    """`+0.31`."""
    return "INCOMPLETE" if value is None else f"{value:+z.2f}".replace("-", "−")


def _shown(value: Interval | None, form: str) -> str:
    if value is None:
        return "INCOMPLETE"
    estimate, low, high = (form.format(v) for v in (value.estimate, value.low, value.high))
    return f"{estimate} [{low}, {high}]".replace("-", "−")


def _known(compute: Callable[..., Interval], *arguments: Any) -> Interval | None:
    try:
        return compute(*arguments)
    except IncompleteError:
        return None


def _known_number(compute: Callable[..., float], *arguments: Any) -> float | None:
    try:
        return compute(*arguments)
    except IncompleteError:
        return None


def _flat(name: str, value: Interval | None) -> dict[str, float | None]:
    """An interval as columns."""
    return {
        name: value.estimate if value else None,
        f"{name}_low": value.low if value else None,
        f"{name}_high": value.high if value else None,
    }


def _head(arm: Arm) -> dict[str, Any]:
    """Columns that say which arm it is."""
    record = arm.record
    return {
        "backbone": arm.backbone,
        "pretraining": record.get("pretraining", ""),
        "pretraining_images": record.get("pretraining_images"),
        "method": arm.method,
        "seeds": "+".join(map(str, arm.seeds)),
    }


def _probes(uncertainty: Uncertainty, arm: Arm, source: str) -> list[dict[str, Any]]:
    """(step, own, others) along the first stage, means over seeds, in %."""
    rows: dict[int, list[tuple[float, float]]] = {}
    others = arm.matrices[0].pairs[source]
    for run in arm.runs:
        for row in uncertainty.store.history(run.record["finetune"][source]):
            if "probe" in row and row["stage"] == 0:
                mean = float(np.mean([row["probe"][name] for name in others]))
                rows.setdefault(row["step"], []).append((row["probe"][source], mean))
    return [
        {"step": step, **dict(zip(("own", "others"), np.mean(found, axis=0).tolist(),
                                  strict=True))}
        for step, found in sorted(rows.items())
    ]  # fmt: skip
