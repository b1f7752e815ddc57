"""Methods at equal effort: gain against mRI over each method's trials, and mRI at equal gain.

A table at everybody's defaults compares defaults. With `--trials N` each method has N settings, its
learning rate among them, and what can be compared is which mRI it reaches *at the same gain*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rib_harness.arms import Arm
from rib_harness.matrix import IncompleteError
from rib_harness.results import describe_recipe
from rib_harness.statistics import Interval

if TYPE_CHECKING:
    from rib_harness.uncertainty import Uncertainty


#: What is compared, for those who read it.
AT_EQUAL_GAIN = (
    "Gain: on held-out images of the fine-tuning sets. mRI at a gain is interpolated between a "
    "method's two nearest settings; its interval takes these two as given."
)


@dataclass(frozen=True)
class Trial:
    """One setting of a method.

    Args:
        arm: its runs.
        gain: mean gain on the held-out images of the fine-tuning sets, in points.
        mri: in points.
    """

    arm: Arm
    gain: float
    mri: float


#: What trials share that may be compared: the same images, the same effort.
SAME = ("suite", "backbone_id", "backbone", "weights", "preset", "run_recipe", "limit", "data",
        "members", "references", "sources", "shares", "probe_every")  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """The trials of one method, of one backbone, recipe and set of seeds.

    Args:
        method: label of the method that chooses among them, as `trials(lwf,8)`.
        trials: those whose matrices are whole, in the order drawn.
        drawn: how many there are: one that diverged has no matrix.
        setting: what it shares with those that it may be compared with, in words.
        backbone: label.
    """

    method: str
    trials: tuple[Trial, ...]
    drawn: int
    setting: str = ""
    backbone: str = ""

    @property
    def name(self) -> str:
        """The method without what was done to it: `lwf`."""
        return self.method.removeprefix("trials(").rpartition(",")[0]

    @cached_property
    def edge(self) -> tuple[Trial, ...]:
        """By gain: the trials than which none has as much gain and as much mRI, and more of one."""
        best: list[Trial] = []
        for one in sorted(self.trials, key=lambda t: (-t.gain, -t.mri)):
            if not best or one.mri > best[-1].mri:
                best.append(one)
        return tuple(reversed(best))

    def at(self, gain: float) -> list[tuple[Arm, float]] | None:
        """Arms and weights whose mRI is this method's at a gain; None where no trial reaches it.

        Between two trials of the edge a straight line, below its first trial that one: it has more
        gain than is asked for.
        """
        edge = self.edge
        if not edge or gain > edge[-1].gain:
            return None
        above = next(k for k, one in enumerate(edge) if one.gain >= gain)
        if above == 0 or edge[above].gain == gain:
            return [(edge[above].arm, 1.0)]
        low, high = edge[above - 1], edge[above]
        share = (gain - low.gain) / (high.gain - low.gain)
        return [(low.arm, 1 - share), (high.arm, share)]

    def mri_at(self, gain: float) -> float | None:
        """Its mRI at a gain, in points; None where no trial reaches it."""
        parts = self.at(gain)
        return None if parts is None else sum(share * arm.mri for arm, share in parts)

    def dominated_by(self, other: Frontier) -> bool:
        """Whether the other has at least its mRI at each of its gains, and more at one."""
        pairs = [(other.mri_at(one.gain), one.mri) for one in self.edge]
        at_least = all(theirs is not None and theirs >= mine for theirs, mine in pairs)
        return bool(pairs) and at_least and any(theirs != mine for theirs, mine in pairs)


@dataclass(frozen=True)
class AtEqualGain:
    """One method among those that it may be compared with.

    Args:
        frontier: its trials.
        gain: at which all of them are compared, in points.
        mri: interpolated there; None where it does not reach that gain.
        difference: its mRI minus that of the best, on the same images, paired by seed; None for the
            best itself.
        dominated_by: names of the methods that have more mRI wherever it is.
    """

    frontier: Frontier
    gain: float
    mri: Interval | None
    difference: Interval | None
    dominated_by: tuple[str, ...]


def frontiers(arms: Iterable[Arm]) -> list[list[Frontier]]:
    """The trials among the arms by method, those together that may be compared.

    Of a method that had more trials later, all of them: they begin with the first.
    """
    groups: dict[str, dict[str, list[Arm]]] = {}
    for arm in arms:
        if arm.record.get("trial_of"):
            shared = [arm.record.get(part) for part in SAME]
            key = json.dumps([*shared, arm.seeds, arm.record["cells"]["pre"]], sort_keys=True)
            methods = groups.setdefault(key, {})
            methods.setdefault(str(arm.record["trial_of"]), []).append(arm)
    found = []
    for methods in groups.values():
        largest: dict[str, Frontier] = {}
        for method, trials in methods.items():
            one = _frontier(method, trials)
            if one.name not in largest or one.drawn > largest[one.name].drawn:
                largest[one.name] = one
        found.append(list(largest.values()))
    return found


def _frontier(method: str, arms: Sequence[Arm]) -> Frontier:
    whole = []
    for arm in arms:
        try:
            whole.append(Trial(arm, arm.gain, arm.mri))
        except IncompleteError:  # it diverged, or is not done
            continue
    return Frontier(method, tuple(whole), len(arms), _setting(arms[0]), arms[0].backbone)


def _setting(arm: Arm) -> str:
    """Backbone, seeds, and what of the run is not as usual."""
    record = arm.record
    parts = [arm.backbone, f"seed{'s'[: len(arm.seeds) > 1]} {', '.join(map(str, arm.seeds))}"]
    parts += [f"preset {record['preset']}"] if record["preset"] != "default" else []
    parts += [describe_recipe(record["run_recipe"])] if record.get("run_recipe") else []
    parts += [f"limit {record['limit']} a class"] if record["limit"] is not None else []
    parts += [arm.sources] if len(record["sources"]) < len(record["suite_members"]) else []
    return " · ".join(parts)


def at_equal_gain(
    found: Sequence[Sequence[Frontier]], uncertainty: Uncertainty, gain: float | None = None
) -> list[list[AtEqualGain]]:
    """The methods of each group at one gain, the best first.

    Args:
        found: as `frontiers` gives them. A method of which no trial is whole is left out.
        uncertainty: of the store that they are in.
        gain: in points; None is the largest that every method of the group reaches.
    """
    compared = []
    for group in found:
        mine = [one for one in group if one.edge]
        if not mine:
            continue
        where = min(one.edge[-1].gain for one in mine) if gain is None else gain
        reached = [one for one in mine if one.at(where) is not None]
        reached.sort(key=lambda one: one.mri_at(where) or 0.0, reverse=True)
        rows = []
        for one in [*reached, *(one for one in mine if one not in reached)]:
            parts, mri, difference = one.at(where), None, None
            if parts is not None:
                mri = uncertainty.mri_of(parts)
                if one is not reached[0]:
                    best = [(arm, -share) for arm, share in reached[0].at(where) or []]
                    difference = uncertainty.mri_of([*parts, *best])
            names = tuple(o.name for o in mine if o is not one and one.dominated_by(o))
            rows.append(AtEqualGain(one, where, mri, difference, names))
        compared.append(rows)
    return compared


def rows_of(compared: Sequence[Sequence[AtEqualGain]]) -> list[dict[str, Any]]:
    """A row a trial, for CSV, JSON and data frames; what is of the method is in each of its rows.

    `edge` says whether another trial of the method has more of both.
    """

    def ends(name: str, value: Interval | None) -> dict[str, float | None]:
        values = (None,) * 3 if value is None else (value.estimate, value.low, value.high)
        return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))

    return [
        {
            "backbone": row.frontier.backbone,
            "setting": row.frontier.setting,
            "method": row.frontier.name,
            "trial": one.arm.method,
            "seeds": "+".join(map(str, one.arm.seeds)),
            "gain": one.gain,
            "mri": one.mri,
            "edge": one in row.frontier.edge,
            "equal_gain": row.gain,
            **ends("mri_at_equal_gain", row.mri),
            **ends("minus_best", row.difference),
            "dominated_by": " ".join(row.dominated_by),
        }
        for rows in compared
        for row in rows
        for one in row.frontier.trials
    ]


def drawn(
    rows: Sequence[AtEqualGain],
) -> tuple[dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]], float]:
    """For a figure: method → (gain, mRI) of every trial, and of the edge; the gain compared at."""
    clouds = {
        row.frontier.name: (
            [(one.gain, one.mri) for one in row.frontier.trials],
            [(one.gain, one.mri) for one in row.frontier.edge],
        )
        for row in rows
    }
    return clouds, rows[0].gain
