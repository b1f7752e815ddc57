"""`rib-harness run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import option, run_options
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog
    from rib_harness.config import RunConfig
    from rib_harness.reproduce import Difference, Recorded


@click.command("run")
@run_options(train=True)
@option("--dry-run", is_flag=True, help="Show the plan, compute nothing.")
@option("--reproduce", metavar="RESULT",
        help="Run a recorded result again, and compare: the beginning of a run's id in --store, "
             "STORE/runs/ID.json, a store with one run, or a file of `results --format json`. It "
             "goes into --store, or STORE-reproduced where that is its own. --allow-mismatch goes "
             "on where other versions are installed.")  # fmt: skip
def command(config: RunConfig, dry_run: bool, reproduce: str | None) -> None:
    """Fine-tune on each member of a suite, measure on all the others.

    With nothing but --method it runs the embedded suite digits-rib, offline. The same command
    again does only what is missing.
    """
    from rib_harness.cli.work import work

    if reproduce is not None:
        _reproduce(reproduce, config, dry_run)
        return
    if not config.method:
        raise click.UsageError(
            "Name a method, e.g. --method lwf; see `rib-harness list methods`. "
            "To measure the untouched backbone only: rib-harness evaluate"
        )
    work(config, dry_run=dry_run)


def _reproduce(text: str, given: RunConfig, dry_run: bool) -> None:
    """Check what is installed, run, compare.

    Raises:
        RibError: something else is installed, or the numbers differ; not with --allow-mismatch.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.cli.plan_ import print_plan
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.cli.tables import print_results
    from rib_harness.errors import RibError
    from rib_harness.reproduce import compare, find, narrowed
    from rib_harness.runner import execute, open_session

    recorded = find(text, given.store)
    config = recorded.config(given)
    catalog = load_catalog(block=config.no_plugin)
    _check_installed(recorded, catalog, allow=given.allow_mismatch)
    with RichProgress() as progress:
        session = narrowed(open_session(config, progress, catalog), recorded)
        same = len(recorded.keys & {step.key for step in session.plan.steps})
        progress.say(f"Inputs: {same} of {len(recorded.keys)} recorded steps have the same key.")
        if dry_run:
            print_plan(session.plan)
            return
        if not session.plan.missing:
            progress.say(f"Every step is done already in {config.store}: nothing is run again.")
        results = execute(session)
    print_results(results, catalog)
    echo(f"Store: {config.store}", err=True)
    found = compare(recorded.result, results[0].to_json())
    if not found:
        cells = sum(map(len, (recorded.result["pre"], *recorded.result["post"].values())))
        echo(f"Reproduced: all {cells} recorded numbers of {recorded.title} are the same.")
        return
    _print(found, "top-1 in % (right/all)")
    if not given.allow_mismatch:
        raise RibError(f"Not reproduced: {len(found)} numbers of {recorded.title} differ.")


def _check_installed(recorded: Recorded, catalog: Catalog, *, allow: bool) -> None:
    from rib_harness.errors import RibError
    from rib_harness.reproduce import differences, unknowable, untold

    for name in unknowable(recorded):
        echo(f"note: {name} had uncommitted changes then; what they were is not known.", err=True)
    found = differences(recorded, catalog)
    if not found:
        said = f"Installed: versions as recorded for {recorded.title}"
        if rest := ", ".join(untold(recorded)):
            said += f"; the code of {rest}, installed editable without a commit, is not known"
        echo(f"{said}.", err=True)
        return
    _print(found, "installed")
    if not allow:
        raise RibError(
            f"What is installed differs from what {recorded.title} was made with, see above. "
            "Install that, or go on with --allow-mismatch."
        )


def _print(found: Sequence[Difference], what: str) -> None:
    from rib_harness.cli.tables import console, table

    shown = table(what, "recorded", "now")
    for one in found:
        shown.add_row(one.what, one.recorded, one.now)
    console().print(shown)
