"""What came of a study: its table, its answers in words, every number, and its figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness.arms import Arm, arms_of
from rib_harness.escaping import in_markdown
from rib_harness.results import csv_of, describe_recipe
from rib_harness.study import Study, Variation
from rib_harness.study_kinds import KINDS, Data
from rib_harness.uncertainty import Uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rib_harness.catalog import Catalog

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Findings:
    """What came of a study on one suite.

    Args:
        study: which.
        suite: on which suite.
        table: rows of texts, as they are shown.
        answers: to the question, in words.
        notes: what the numbers rest on: recipe, seeds, sources.
        points: rows of plain numbers, everything that the figure shows.
        figure: draws it; None where there is nothing to draw.
    """

    study: Study
    suite: str
    table: Sequence[Mapping[str, str]]
    answers: Sequence[str]
    notes: Sequence[str]
    points: Sequence[Row]
    figure: Callable[[], Figure] | None

    def to_csv(self) -> str:
        """The points."""
        return csv_of(self.points)

    def to_markdown(self) -> str:
        """Question, table, answers and notes."""
        title, suite, question = map(
            in_markdown, (self.study.title, self.suite, self.study.question)
        )
        lines = [f"**{title}** · {suite}", "", question, ""]
        if self.table:
            head = [in_markdown(name) for name in self.table[0]]
            lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            for row in self.table:
                lines.append(f"| {' | '.join(map(in_markdown, row.values()))} |")
            lines.append("")
        lines += [f"- {in_markdown(text)}" for text in (*self.answers, *self.notes)]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """NAME.pdf, .svg, .png, .csv and .md in a folder; which they are."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / self.study.name
        written: list[Path] = []
        if self.figure is not None:
            from rib_harness.report.figures import save

            written += save(self.figure(), stem)
        for ending, text in ((".csv", self.to_csv()), (".md", self.to_markdown())):
            path = stem.with_name(stem.name + ending)
            path.write_text(text, encoding="utf-8")
            written.append(path)
        return written


def find(
    study: Study,
    suite: str,
    parts: Sequence[Variation],
    uncertainty: Uncertainty,
    catalog: Catalog,
) -> Findings:
    """What came of the configurations of a study.

    Args:
        parts: as `run_study` gives them.
        uncertainty: of the store that they are in.
        catalog: with the metrics that the study names.
    """
    ran = [(part, arms_of(part.results)) for part in parts if part.results is not None]
    trained = [(part, [arm for arm in arms if arm.method is not None]) for part, arms in ran]
    data = Data(study.on(suite), trained, uncertainty, catalog)
    uncertainty.prepare(data.arms)
    table, answers, points, figure = KINDS[study.figure](data)
    notes = _notes(data.arms)
    if any("[" in text for row in table for text in row.values()):
        notes.append(
            "in brackets: 95 % intervals over images of these trainings, from three seeds on over "
            "seeds too"
        )
    return Findings(study, suite, table, answers, notes, points, figure if points else None)


def _notes(arms: Sequence[Arm]) -> list[str]:
    """What all arms share: preset, recipe, seeds, sources; and what is missing."""
    notes = []
    recipes = {describe_recipe(arm.record["recipe"]) for arm in arms}
    for what, values in (
        ("recipe", recipes if len(recipes) == 1 else set()),
        ("preset", {arm.record["preset"] for arm in arms}),
        ("seeds", {", ".join(map(str, arm.seeds)) for arm in arms}),
        ("fine-tuned on", {arm.sources for arm in arms}),
        ("limit a class", {str(arm.record["limit"]) for arm in arms if arm.record["limit"]}),
    ):
        if values:
            notes.append(f"{what}: {'; '.join(sorted(values))}")
    for arm in arms:
        if not arm.complete and not arm.runs[0].trial_of:  # of a trial that diverged: see table
            gone = sum(len(matrix.missing) for matrix in arm.matrices)
            notes.append(f"INCOMPLETE: {arm.describe()}: {gone} cells are missing")
    return notes
