"""Methods at equal effort: gain against mRI over each method's trials, and mRI at equal gain.

A table at everybody's defaults compares defaults. With `--trials N` each method has N settings, its
learning rate among them, and what can be compared is which mRI it reaches *at the same gain*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rib_harness.arms import Arm
from rib_harness.matrix import IncompleteError
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


@dataclass(frozen=True)
class Frontier:
    """The trials of one method on one backbone.

    Args:
        method: label of the method that chooses among them, as `trials(lwf,8)`.
        backbone: label.
        trials: those whose matrices are whole, in the order drawn.
        drawn: how many there are: one that diverged has no matrix.
    """

    method: str
    backbone: str
    trials: tuple[Trial, ...]
    drawn: int

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
    """One method among those of its backbone.

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


def frontiers(arms: Iterable[Arm]) -> list[Frontier]:
    """The trials among the arms by method and backbone, in the order in which they come."""
    together: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in arms:
        if arm.record.get("trial_of"):
            key = (str(arm.record["trial_of"]), arm.backbone, str(arm.record.get("weights")))
            together.setdefault(key, []).append(arm)
    made = []
    for (method, backbone, _), trials in together.items():
        whole = []
        for arm in trials:
            try:
                whole.append(Trial(arm, arm.gain, arm.mri))
            except IncompleteError:  # it diverged, or is not done
                continue
        made.append(Frontier(method, backbone, tuple(whole), len(trials)))
    return made


def at_equal_gain(
    found: Sequence[Frontier], uncertainty: Uncertainty, gain: float | None = None
) -> list[AtEqualGain]:
    """The methods of each backbone at one gain, the best first.

    Args:
        found: as `frontiers` gives them.
        uncertainty: of the store that they are in.
        gain: in points; None is the largest that every method of the backbone reaches.
    """
    rows = []
    for backbone in dict.fromkeys(one.backbone for one in found):
        mine = [one for one in found if one.backbone == backbone and one.edge]
        if not mine:
            continue
        where = min(one.edge[-1].gain for one in mine) if gain is None else gain
        there = {one.method: one.at(where) for one in mine}
        mine.sort(key=lambda one: -(one.mri_at(where) or 0) if there[one.method] else float("inf"))
        best = there[mine[0].method]
        for one in mine:
            parts, mri, difference = there[one.method], None, None
            if parts is not None and best is not None:
                mri = uncertainty.mri_of(parts)
                if one is not mine[0]:
                    against = [(arm, -share) for arm, share in best]
                    difference = uncertainty.mri_of([*parts, *against])
            names = tuple(o.name for o in mine if o is not one and one.dominated_by(o))
            rows.append(AtEqualGain(one, where, mri, difference, names))
    return rows


def rows_of(rows: Sequence[AtEqualGain]) -> list[dict[str, Any]]:
    """A row a trial, for CSV, JSON and data frames; what is of the method is in each of its rows.

    `edge` says whether another trial of the method has more of both.
    """

    def ends(name: str, value: Interval | None) -> dict[str, float | None]:
        values = (None,) * 3 if value is None else (value.estimate, value.low, value.high)
        return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))

    return [
        {
            "backbone": row.frontier.backbone,
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
