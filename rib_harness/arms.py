"""Runs that differ in nothing but the seed, taken together: one arm of a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rib_harness.matrix import IncompleteError, Matrix
from rib_harness.results import RunResult, describe_recipe

#: What two runs of one arm share.
SAME = ("suite", "backbone_id", "backbone", "weights", "method_id", "method", "options", "preset",
        "recipe", "trial_of", "limit", "data", "members", "references", "sources", "shares",
        "probe_every", "versions")  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A backbone and a method with one recipe, over its seeds.

    Args:
        runs: at least one, by seed.
    """

    runs: tuple[RunResult, ...]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the first of its runs is."""
        return self.runs[0].record

    @property
    def backbone(self) -> str:
        """Label of the backbone."""
        return str(self.record["backbone"])

    @property
    def method(self) -> str | None:
        """Label of the method; None for the untouched backbone."""
        return self.runs[0].method

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds, ascending."""
        return tuple(run.record["seed"] for run in self.runs)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """One a seed."""
        return tuple(run.matrix for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether every cell of every seed is there."""
        return all(run.complete for run in self.runs)

    @property
    def mri(self) -> float:
        """mRI in points, the mean over seeds.

        Raises:
            IncompleteError: a cell of a seed is missing.
        """
        return sum(matrix.mri for matrix in self.matrices) / len(self.runs)

    @property
    def mri_bounds(self) -> tuple[float, float]:
        """Smallest and largest mRI that the missing cells allow, the mean over seeds."""
        bounds = [matrix.mri_bounds for matrix in self.matrices]
        low, high = (sum(side) / len(bounds) for side in zip(*bounds, strict=True))
        return low, high

    @property
    def ruined(self) -> list[str]:
        """Sources whose fine-tuning ruined the model, with any seed; see `Matrix.ruined`."""
        return sorted({source for matrix in self.matrices for source in matrix.ruined})

    def ri(self, source: str) -> float:
        """RI of one source in points, the mean over seeds."""
        return sum(matrix.ri(source) for matrix in self.matrices) / len(self.runs)

    @property
    def held_out(self) -> bool:
        """Whether its gain is on images that were not trained on."""
        return any(matrix.held_out for matrix in self.matrices)

    @property
    def gain(self) -> float:
        """Mean of A_i^(i) − A_pre^(i) over sources and seeds, in points; see `Matrix.gain`."""
        gains = [matrix.gain(i) for matrix in self.matrices for i in matrix.sources]
        if not gains:
            raise IncompleteError("A gain needs at least one source; nothing was fine-tuned here.")
        return sum(gains) / len(gains)

    def change(self, source: str, dataset: str) -> float:
        """A_i^(j) − A_pre^(j) in points, the mean over seeds."""
        return sum(m.change(source, dataset) for m in self.matrices) / len(self.runs)

    @property
    def sources(self) -> str:
        """`7 of 8 sources`."""
        return f"{len(self.record['sources'])} of {len(self.record['suite_members'])} sources"

    def describe(self) -> str:
        """One line: suite, backbone, method, seeds, recipe."""
        record = self.record
        parts = [str(record["suite"]), self.backbone, self.method or "untouched"]
        if self.method is not None:
            parts.append(f"seeds {', '.join(map(str, self.seeds))}")
            parts.append(f"preset {record['preset']}")
            parts.append(describe_recipe(record["recipe"]))
        if record["limit"] is not None:
            parts.append(f"limit {record['limit']} a class")
        if len(record["sources"]) not in (0, len(record["suite_members"])):
            parts.append(self.sources)
        return " · ".join(parts)


def arms_of(runs: Iterable[RunResult]) -> list[Arm]:
    """The runs by arm, in the order in which the first run of each arm comes.

    Runs of other data or another version of a plugin are no further seeds: a seed is in an arm
    once.
    """
    together: dict[tuple[str, int], list[RunResult]] = {}
    seen: dict[str, int] = {}
    for run in runs:
        same = [run.record.get(part) for part in SAME] + [run.record["cells"]["pre"]]
        key = json.dumps(same, sort_keys=True)
        with_seed = f"{key}{run.record['seed']}"
        times = seen[with_seed] = seen.get(with_seed, 0) + 1
        together.setdefault((key, times), []).append(run)
    return [
        Arm(tuple(sorted(same, key=lambda run: run.record["seed"] or 0)))
        for same in together.values()
    ]
