"""What `run` and `evaluate` share: open, do, show."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rib_harness.cli.plan_ import print_plan
from rib_harness.cli.say import echo
from rib_harness.cli.show_progress import RichProgress

if TYPE_CHECKING:
    from rib_harness.config import RunConfig


def work(config: RunConfig, *, dry_run: bool) -> None:
    """Open a session, do its missing steps, print the table; errors go up, with what is kept."""
    from rib_harness.cli.tables import print_results
    from rib_harness.errors import StoreError
    from rib_harness.runner import MismatchError, PartialFailureError, execute, open_session

    with RichProgress() as progress:
        session = open_session(config, progress)
        plan = session.plan
        if dry_run:
            print_plan(plan)
            return
        if not config.model_fields_set & {"suite"}:
            progress.say(
                "Suite: digits-rib, the embedded one. For the paper's suite: rib-harness "
                "run --suite imagenet-rib --data-root DIR --method "
                + (config.method[0] if config.method else "lwf")
            )
        for note in plan.notes:
            progress.say(f"note: {note}")
        totals = plan.totals()
        progress.say(
            f"{totals['steps']} steps, {totals['done']} done already; left: "
            f"{totals['updates']:,} updates, {totals['images']:,} images to score"
        )
        try:
            results = execute(session)
            failure: MismatchError | PartialFailureError | None = None
        except (MismatchError, PartialFailureError) as problem:
            results, failure = problem.results, problem
        except KeyboardInterrupt:
            kept = sum(session.store.done(step.key) is not None for step in plan.steps)
            same = "the same command, without --rerun," if config.rerun else "the same command"
            progress.say(
                f"Stopped. {kept} of {len(plan.steps)} steps are kept in {session.store.path}; "
                f"{same} goes on from here."
            )
            sys.exit(130)
    print_results(results, session.catalog)
    echo(f"Store: {session.store.path}", err=True)
    if failure is not None:
        raise failure
    if results.damaged:  # what was whole when the run ended
        raise StoreError("\n".join(sorted(results.damaged)))
