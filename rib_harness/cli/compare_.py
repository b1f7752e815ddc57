"""`rib-harness compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import chosen, labels_of, no_plugin, option, store
from rib_harness.cli.say import echo, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from rib_harness.catalog import Catalog
    from rib_harness.compare import Comparison
    from rib_harness.results import RunResult


@click.command("compare")
@click.argument("sides", nargs=-1, metavar="A B [MORE]...")
@store
@option("--format", "form", default="table", help="csv: a row a cell; md, latex: a row a source.",
        type=click.Choice(["table", "json", "csv", "md", "latex"]))  # fmt: skip
@option("--method", "-m", multiple=True, metavar="REF", help="Only these methods.")
@option("--backbone", "-b", multiple=True, metavar="REF", help="Only these backbones.")
@option("--suite", metavar="NAME", help="Only this suite.")
@option("--cells", is_flag=True, help="Show every cell, not only every source.")
@option(
    "--at-equal-gain",
    is_flag=True,
    help="Compare all methods that had --trials (or those named) by their mRI at one gain.",
)
@option(
    "--gain",
    type=float,
    metavar="POINTS",
    help="With --at-equal-gain: which.  [default: the largest that all reach]",
)
@option(
    "--irt",
    is_flag=True,
    help="Which datasets tell the models of all methods (or of those named) apart: item response "
    "theory over their images.",
)
@no_plugin
def command(
    sides: tuple[str, ...],
    store: Path | None,
    form: str,
    method: tuple[str, ...],
    backbone: tuple[str, ...],
    suite: str | None,
    cells: bool,
    at_equal_gain: bool,
    gain: float | None,
    irt: bool,
    no_plugin: tuple[str, ...],
) -> None:
    """Compare two methods, backbones, runs or stores, image by image.

    A, B and MORE are labels of methods or of backbones, ids of runs, or folders of stores; all are
    compared with A. Differences are B − A. Exits with 1 if a matrix is incomplete.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.compare import compare, dumps, find_side
    from rib_harness.errors import RibError
    from rib_harness.store import Store

    if gain is not None and not at_equal_gain:
        raise click.UsageError("--gain needs --at-equal-gain.")
    if irt and at_equal_gain:
        raise click.UsageError("Give --irt or --at-equal-gain, not both.")
    if irt:
        _irt(sides, method, store, form, load_catalog(block=no_plugin), backbone, suite)
        return
    if at_equal_gain:
        catalog = load_catalog(block=no_plugin)
        keep = chosen(catalog, (), backbone, suite)
        _at_equal_gain((*sides, *method), store, form, keep, gain)
        return
    if len(sides) < 2:
        raise click.UsageError("Name two things to compare, e.g. rib-harness compare ft lwf.")

    catalog = load_catalog(block=no_plugin)
    keep = chosen(catalog, method, backbone, suite)

    def label(kind: str, text: str) -> str:
        return next((one for one in labels_of(catalog, kind, [text]) if one != text), text)

    path = store or Path("rib-store")
    if store is not None and not store.exists():
        raise RibError(f"There is no store {store}.")
    opened = Store(path) if path.exists() else None
    left_out: list[str] = []
    made = compare(*(find_side(side, opened, keep, label) for side in sides), left_out=left_out)
    for reason in left_out:
        echo(f"left out: {reason}", err=True)
    if form == "table":
        for one in made:
            _print(one, cells=cells)
    else:
        write(dumps(made, form))
    if not all(one.complete for one in made):
        raise RibError(
            "INCOMPLETE: cells are missing. Give the same `run` or `evaluate` again: it computes "
            "only these."
        )


def _at_equal_gain(
    names: tuple[str, ...],
    path: Path | None,
    form: str,
    keep: Callable[[RunResult], bool],
    gain: float | None,
) -> None:
    from rib_harness.arms import arms_of
    from rib_harness.cli.tables import print_equal_gain
    from rib_harness.errors import RibError, nearest
    from rib_harness.frontier import at_equal_gain, frontiers, rows_of
    from rib_harness.results import Results, collect, csv_of
    from rib_harness.store import Store

    if form not in ("table", "json", "csv"):
        raise click.UsageError("--at-equal-gain has the formats table, json and csv.")
    path = path or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}.")
    whole = collect(Store(path))
    trials = [run for run in whole if run.trial_of and keep(run)]
    found = [one for group in frontiers(arms_of(trials)) for one in group]
    known = {one.name for one in found}
    if unknown := [name for name in names if name not in known]:
        raise RibError(
            f"{path} has no trials of {unknown[0]!r}.{nearest(unknown[0], known)} It has them of: "
            f"{', '.join(sorted(known)) or 'nothing; give run --trials N'}."
        )
    if not found:
        raise RibError(f"{path} has no trials: give `run` --trials N, e.g. --trials 8.")
    kept = {one.method for one in found if not names or one.name in names}
    results = Results([run for run in trials if run.trial_of in kept], whole.store)
    if form == "table":
        print_equal_gain(results, gain)
        return
    rows = rows_of(at_equal_gain(frontiers(arms_of(results)), results.uncertainty, gain))
    write(json.dumps(rows, indent=1) if form == "json" else csv_of(rows))


def _irt(
    sides: tuple[str, ...],
    method: tuple[str, ...],
    path: Path | None,
    form: str,
    catalog: Catalog,
    backbone: tuple[str, ...],
    suite: str | None,
) -> None:
    from rib_harness.arms import arms_of
    from rib_harness.cli.tables import print_irt
    from rib_harness.errors import RibError, nearest
    from rib_harness.irt import tell_apart
    from rib_harness.results import collect, csv_of
    from rib_harness.store import Store

    if form not in ("table", "json", "csv"):
        raise click.UsageError("--irt has the formats table, json and csv.")
    path = path or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}.")
    store, names = Store(path), (*sides, *method)
    runs = [run for run in collect(store) if not run.trial_of]
    known = {run.method for run in runs if run.method is not None}
    for name in names:
        if not labels_of(catalog, "method", [name]) & known:
            raise RibError(
                f"{path} has no method {name!r}.{nearest(name, known)} It has: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
    keep = chosen(catalog, names, backbone, suite)
    told = tell_apart(arms_of(run for run in runs if keep(run)), store)
    if form == "table":
        print_irt(told)
    elif form == "json":
        write(json.dumps([one.to_json() for one in told], indent=1) + "\n")
    else:
        write(csv_of([row for one in told for row in one.rows()]))


def _print(one: Comparison, *, cells: bool) -> None:
    from rib_harness.cli.tables import console, table
    from rib_harness.compare import heads, sentences, table_rows

    screen = console()
    screen.print(f"A: {one.a.describe()}", style="bold")
    screen.print(f"B: {one.b.describe()}", style="bold")
    columns = heads(one)
    shown = table(*columns, right=columns[1:])
    shown.columns[0].no_wrap = True
    *rows, last = table_rows(one)
    for row in rows:
        shown.add_row(*row)
    shown.add_section()
    shown.add_row(*last, style="bold")
    screen.print(shown)
    if cells:
        right = (columns[3], "gained", "lost", "p (Holm)")
        for source in one.sources:
            screen.print(f"fine-tuned on {source}:")
            shown = table("measured on", *right, right=right)
            for cell in one.cells:
                if cell.source == source:
                    counts = (f"{n:,.0f}" for n in (cell.flips.gained, cell.flips.lost))
                    shown.add_row(cell.dataset, str(cell.difference), *counts, f"{cell.p:.2g}")
            screen.print(shown)
    for line in sentences(one):
        screen.print(line, style="dim" if line.startswith("note") else "")
