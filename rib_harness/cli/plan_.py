"""`rib-harness plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import json_flag, run_options
from rib_harness.cli.say import echo
from rib_harness.cli.tables import console, table

if TYPE_CHECKING:
    from rib_harness.config import RunConfig
    from rib_harness.plan import Plan


@click.command("plan")
@run_options(train=True)
@json_flag
def command(config: RunConfig, as_json: bool) -> None:
    """Show which steps a run needs, which are done, and how much is left. Computes nothing."""
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.disk import needed
    from rib_harness.runner import open_session

    with RichProgress() as progress:
        plan = open_session(config, progress).plan
    if as_json:
        document = {
            "format": "rib-harness.plan/1",
            "suite": plan.suite.spec.name,
            "steps": [step.to_json() for step in plan.steps],
            "totals": plan.totals(),
            "disk": needed(plan.missing),
            "notes": list(plan.notes),
        }
        echo(json.dumps(document, indent=1))
    else:
        print_plan(plan)


def print_plan(plan: Plan) -> None:
    """The steps as a table, the totals, and the disk that they need."""
    from rich.filesize import decimal

    from rib_harness.disk import IN_STORE, described, needed

    shown = table("step", "key", "", "images", "updates", right=("images", "updates"))
    for step in plan.steps:
        shown.add_row(
            step.id,
            step.key[:8],
            "done" if step.done else "",
            f"{step.images:,}" if step.images else "",
            f"{step.updates:,}" if step.updates else "",
        )
    console().print(shown)
    for note in plan.notes:
        console().print(f"note: {note}")
    totals = plan.totals()
    echo(
        f"{totals['steps']} steps, {totals['done']} done; left: {totals['updates']:,} updates, "
        f"{totals['images']:,} images to score"
    )
    needs = needed(plan.missing)
    if plan.missing:
        total = sum(needs[name] for name in IN_STORE)
        line = f"disk: about {decimal(total)} in the store ({described(needs)})"
        packs = f", up to {decimal(needs['packs'])} of decoded images in the cache"
        echo(line + packs * bool(needs["packs"]))
