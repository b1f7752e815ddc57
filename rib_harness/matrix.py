"""A_pre[j] and A[i][j]: what every metric of level `matrix` is made from. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rib_harness.errors import RibError

#: A ruined model has less than this share of the accuracy that it began with, on its own
#: fine-tuning set.
RUINED = 0.5


class IncompleteError(RibError):
    """A cell is missing; a matrix is never averaged as if it were whole."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint on one dataset.

    Args:
        top1: accuracy in %; with groups, the mean over corruptions of the mean over severities.
        correct, n: counts over all images.
        groups: group, e.g. `fog/3` → [correct, n]; empty where the set has none.
    """

    top1: float
    correct: int
    n: int
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Matrix:
    """Accuracies before and after fine-tuning, of one backbone, method and seed.

    Args:
        members: the shifted datasets 𝔻 of this run.
        references: datasets outside 𝔻.
        sources: members that the backbone is fine-tuned on.
        pre: dataset → the untouched backbone.
        post: source → dataset → after fine-tuning on the source.
        shares: groups of datasets made from the same photographs.
        held_out: source → before and after on the images of it that were not trained on; empty
            where the recipe keeps none, as the protocol does not.
    """

    members: tuple[str, ...]
    references: tuple[str, ...]
    sources: tuple[str, ...]
    pre: Mapping[str, Cell]
    post: Mapping[str, Mapping[str, Cell]]
    shares: tuple[tuple[str, ...], ...] = ()
    held_out: Mapping[str, tuple[Cell, Cell]] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Cells that are not there, as `before → j` or `i → j`."""
        targets = (*self.members, *self.references)
        gone = [f"before → {j}" for j in targets if j not in self.pre]
        for i in self.sources:
            gone += [f"{i} → {j}" for j in targets if j not in self.post.get(i, {})]
        return gone

    @property
    def complete(self) -> bool:
        """Whether every cell is there."""
        return not self.missing

    def change(self, source: str, dataset: str) -> float:
        """A_i^(j) − A_pre^(j), in points: relative robustness (Taori et al. 2020).

        Raises:
            IncompleteError: one of the two is missing.
        """
        try:
            return self.post[source][dataset].top1 - self.pre[dataset].top1
        except KeyError:
            raise IncompleteError(
                f"The cell {source} → {dataset} has no number yet: run the same command again."
            ) from None

    def gain(self, source: str) -> float:
        """A_i^(i) − A_pre^(i) in points: on held-out images where there are some.

        Without them it is training accuracy.

        Raises:
            IncompleteError: one of the two is missing.
        """
        if source in self.held_out:
            before, after = self.held_out[source]
            return after.top1 - before.top1
        return self.change(source, source)

    @property
    def ruined(self) -> dict[str, tuple[float, float]]:
        """Source → accuracy on it before and after, in %, where fine-tuning on it ruined the model.

        That is where less than half of the accuracy is left on the very set that was trained on,
        and the loss is more than two standard errors. A model that learned cannot lose there, so
        what it does on other sets says nothing about its method.
        """
        found = {}
        for i in self.sources:
            before, after = self.pre.get(i), self.post.get(i, {}).get(i)
            if before is None or after is None or after.top1 >= RUINED * before.top1:
                continue
            p, q = before.top1 / 100, after.top1 / 100
            if p - q > 2 * ((p * (1 - p) + q * (1 - q)) / after.n) ** 0.5:
                found[i] = (before.top1, after.top1)
        return found

    def ri(self, source: str) -> float:
        """RI_i: mean change on the other members after fine-tuning on one, in points.

        Source: arXiv:2410.21582.
        """
        others = [j for j in self.members if j != source]
        if not others:
            raise IncompleteError("RI compares one dataset with the others: there is only one.")
        return sum(self.change(source, j) for j in others) / len(others)

    @property
    def mri(self) -> float:
        """mRI: mean of RI_i over the sources, in points.

        Raises:
            IncompleteError: a cell is missing.
        """
        if not self.sources:
            raise IncompleteError("mRI needs at least one source; nothing was fine-tuned here.")
        return sum(self.ri(i) for i in self.sources) / len(self.sources)

    @property
    def pairs(self) -> dict[str, tuple[str, ...]]:
        """Source → the other members: the cells that mRI averages."""
        return {i: tuple(j for j in self.members if j != i) for i in self.sources}

    @property
    def unshared(self) -> dict[str, tuple[str, ...]]:
        """Source → the other members that are not made from its photographs; no empty ones."""
        rows = {i: tuple(j for j in row if not self.shared(i, j)) for i, row in self.pairs.items()}
        return {i: row for i, row in rows.items() if row}

    def shared(self, one: str, other: str) -> bool:
        """Whether two datasets are made from the same photographs."""
        return any(one in group and other in group for group in self.shares)

    @property
    def mri_bounds(self) -> tuple[float, float]:
        """Smallest and largest mRI that the missing cells allow, in points.

        Any accuracy from 0 to 100 % may stand in a missing cell. A missing A_pre[j] is one
        unknown, however many sources are compared with it.
        """
        known, factors = 0.0, dict[tuple[str | None, str], float]()
        for i, others in self.pairs.items():
            for j in others:
                share = 1 / (len(others) * len(self.sources))
                for row, cell, sign in (
                    (i, self.post.get(i, {}).get(j), 1),
                    (None, self.pre.get(j), -1),
                ):
                    if cell is None:
                        factors[row, j] = factors.get((row, j), 0.0) + sign * share
                    else:
                        known += sign * share * cell.top1
        low = sum(100 * factor for factor in factors.values() if factor < 0)
        high = sum(100 * factor for factor in factors.values() if factor > 0)
        return known + low, known + high
