"""`rib-harness study`: list the studies, and run one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rib_harness.cli.data_ import SubVerbs
from rib_harness.cli.options import UserPath, json_flag, option, run_options
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.config import RunConfig
    from rib_harness.findings import Findings


@click.group("study", cls=SubVerbs)
def command() -> None:
    """Run a study: a question, the runs that answer it, a table and a figure."""


@command.command("list")
@json_flag
def list_(as_json: bool) -> None:
    """The studies that ship with the harness."""
    from rib_harness.study import FIGURES, load_studies

    studies = load_studies()
    if as_json:
        rows = [
            {"name": name, "title": one.title, "question": one.question, "paper": one.paper,
             "figure": one.figure, "suites": list(one.suites)}
            for name, one in studies.items()
        ]  # fmt: skip
        echo(json.dumps(rows, indent=1))
        return
    from rib_harness.cli.tables import console, table

    shown = table("study", "question", "figure")
    for name, one in studies.items():
        shown.add_row(name, one.question, FIGURES[one.figure])
    console().print(shown)
    console().print("Run one: rib-harness study run NAME", style="dim")


@command.command("run")
@click.argument("study", metavar="NAME|FILE")
@run_options(train=True)
@option("--out", type=UserPath(file_okay=False), default=Path("studies"),
        help="Folder of the table and the figure.")  # fmt: skip
@option("--dry-run", is_flag=True, help="Say how much there is to do, compute nothing.")
def run_(study: str, config: RunConfig, out: Path, dry_run: bool) -> None:
    """Run a study, or a TOML file of your own; the same command again goes on where it was.

    The options of `run` win over the study's own settings.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.errors import RibError
    from rib_harness.study import StudyFailedError, find_study, plan_study, totals, variations
    from rib_harness.study import run_study as execute

    found = find_study(study)
    given = {name: getattr(config, name) for name in config.model_fields_set - {"suite"}}
    parts = variations(found, config.suite, given)
    with RichProgress() as progress:
        catalog = load_catalog(block=config.no_plugin)
        plans = plan_study(found, config.suite, parts, catalog, progress)
        total = totals(plans)
        progress.say(
            f"{len(parts)} configuration(s), {total['steps']} steps, {total['done']} done "
            f"already; left: {total['updates']:,} updates, {total['images']:,} images to score"
        )
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            progress.say(f"note: {note}")
        if dry_run:
            return
        for place in (out, *out.parents):
            if place.exists() and not place.is_dir():
                raise RibError(f"{place} is no folder. Choose another --out.")
        try:
            ran, failures = execute(parts, catalog, progress)
        except KeyboardInterrupt:
            progress.say(f"Stopped. What is done is kept in {parts[0].config.store}; "
                         "the same command goes on from here.")  # fmt: skip
            sys.exit(130)
        from rib_harness.findings import find
        from rib_harness.store import Store
        from rib_harness.uncertainty import Uncertainty

        findings = find(
            found, config.suite, ran, Uncertainty(Store(parts[0].config.store)), catalog
        )
    written = findings.write(out)
    _print(findings)
    echo(f"Store: {parts[0].config.store}", err=True)
    echo("\n".join(str(path) for path in written))
    if failures:
        raise StudyFailedError(failures)


def _print(findings: Findings) -> None:
    from rib_harness.cli.tables import console, table

    console().print(f"{findings.study.title} · {findings.suite}", style="bold")
    console().print(findings.study.question)
    if findings.table:
        shown = table(*findings.table[0])
        for row in findings.table:
            shown.add_row(*row.values())
        console().print(shown)
    for text in findings.answers:
        console().print(text)
    for text in findings.notes:
        console().print(text, style="dim")
