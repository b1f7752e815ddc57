"""`rib-harness run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import option, run_options

if TYPE_CHECKING:
    from rib_harness.config import RunConfig


@click.command("run")
@run_options(train=True)
@option("--dry-run", is_flag=True, help="Show the plan, compute nothing.")
def command(config: RunConfig, dry_run: bool) -> None:
    """Fine-tune on each member of a suite, measure on all the others.

    With nothing but --method it runs the embedded suite digits-rib, offline. The same command
    again does only what is missing.
    """
    from rib_harness.cli.work import work

    if not config.method:
        raise click.UsageError(
            "Name a method, e.g. --method lwf; see `rib-harness list methods`. "
            "To measure the untouched backbone only: rib-harness evaluate"
        )
    work(config, dry_run=dry_run)
