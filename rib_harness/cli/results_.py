"""`rib-harness results`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from rib_harness.cli.options import no_plugin, option, store


@click.command("results")
@store
@option("--format", "form", type=click.Choice(["table", "json", "csv", "md"]), default="table",
        help="json: a list of runs; csv: a row a cell; md: a table a run.")  # fmt: skip
@option("--method", "-m", multiple=True, metavar="REF", help="Only these methods. Repeatable.")
@option("--backbone", "-b", multiple=True, metavar="REF", help="Only these backbones.")
@option("--suite", metavar="NAME", help="Only this suite.")
@no_plugin
def command(
    store: Path | None,
    form: str,
    method: tuple[str, ...],
    backbone: tuple[str, ...],
    suite: str | None,
    no_plugin: tuple[str, ...],
) -> None:
    """Show the results of a store again. Exits with 1 if a matrix is incomplete."""
    from rib_harness.catalog import load_catalog
    from rib_harness.cli.tables import print_results
    from rib_harness.errors import RibError
    from rib_harness.results import Results, collect
    from rib_harness.store import Store

    path = store or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}: name one with --store, or run something first.")
    catalog = load_catalog(block=no_plugin)

    def labels(kind: str, texts: tuple[str, ...]) -> set[str]:
        """As references where they are some, so that `lwf:alpha=1.0` finds `lwf`."""
        found = set(texts)
        for text in texts:
            with suppress(RibError):
                found.add(catalog.bind(kind, text).label)
        return found

    methods, backbones = labels("method", method), labels("backbone", backbone)
    results = Results(
        [
            run
            for run in collect(Store(path))
            if (not method or run.method in methods)
            and (not backbone or run.record["backbone"] in backbones)
            and (suite is None or run.record["suite"] == suite)
        ]
    )
    if form == "table":
        print_results(results, catalog)
    else:
        click.echo(results.dumps(form), nl=False)
    if not len(results):
        raise RibError(f"No results in {path} match.")
    if not results.complete:
        raise RibError("INCOMPLETE: cells are missing; the command that made the run goes on.")
