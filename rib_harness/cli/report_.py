"""`rib-harness report`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from rib_harness.cli.options import UserPath, chosen, no_plugin, option, store
from rib_harness.cli.say import echo


@click.command("report")
@store
@option("--out", type=UserPath(dir_okay=False), default=Path("report.html"),
        help="The page: one file that needs nothing else.")  # fmt: skip
@option("--figures", type=UserPath(file_okay=False), metavar="DIR",
        help="Write the figures there too, for papers: PDF, SVG, PNG and CSV.")  # fmt: skip
@option("--thumbnails", type=click.FloatRange(min=0), default=4.0, metavar="MB",
        help="Pictures of images that changed sides, at most; 0 for none.")  # fmt: skip
@option("--method", "-m", multiple=True, metavar="REF", help="Only these methods. Repeatable.")
@option("--backbone", "-b", multiple=True, metavar="REF", help="Only these backbones.")
@option("--suite", metavar="NAME", help="Only this suite.")
@option("--data-root", type=UserPath(file_okay=False),
        help="Folder that holds the datasets, for pictures and names of classes.  "
             "[default: where the run had it]")  # fmt: skip
@no_plugin
def command(
    store: Path | None,
    out: Path,
    figures: Path | None,
    thumbnails: float,
    method: tuple[str, ...],
    backbone: tuple[str, ...],
    suite: str | None,
    data_root: Path | None,
    no_plugin: tuple[str, ...],
) -> None:
    """Draw a store as one HTML page, and as figures for papers.

    Exits with 1 if a matrix is incomplete.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.errors import RibError
    from rib_harness.report.page import write_report
    from rib_harness.results import collect
    from rib_harness.store import Store

    if not math.isfinite(thumbnails):
        raise click.UsageError(f"--thumbnails: expected a number of MB, got {thumbnails}.")
    path = store or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}: name one with --store, or run something first.")
    catalog = load_catalog(block=no_plugin)
    keep = chosen(catalog, method, backbone, suite)
    runs = [run for run in collect(Store(path)) if keep(run)]
    if not runs:
        raise RibError(f"No results in {path} match. See: rib-harness results --store {path}")
    files = write_report(
        runs, Store(path), catalog, out, figures=figures, budget=thumbnails, data_root=data_root
    )
    for file in files:
        echo(str(file))
    if not all(run.complete or run.trial_of for run in runs):  # a trial may have diverged
        raise RibError("INCOMPLETE: cells are missing; the page says which.")
