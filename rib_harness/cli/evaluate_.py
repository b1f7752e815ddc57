"""`rib-harness evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import option, run_options

if TYPE_CHECKING:
    from rib_harness.config import RunConfig


@click.command("evaluate")
@run_options(train=False)
@option("--dry-run", is_flag=True, help="Show the plan, compute nothing.")
def command(config: RunConfig, dry_run: bool) -> None:
    """Measure an untouched backbone on a suite: A_pre alone, no fine-tuning.

    A later `run` uses these numbers again.
    """
    from rib_harness.cli.work import work

    # A configuration saved by `run` may be given: its methods are left out.
    work(config.model_copy(update={"method": ()}), dry_run=dry_run)
