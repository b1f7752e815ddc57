"""`rib-harness results`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rib_harness.cli.options import UserPath, chosen, no_plugin, option, store
from rib_harness.cli.say import echo, write

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog
    from rib_harness.results import Results, RunResult

FORMS = ["table", "json", "csv", "md", "latex", "parquet", "model-card", "bibtex"]


@click.command("results")
@store
@option("--format", "form", type=click.Choice(FORMS), default="table",
        help="json: a list of runs; csv, parquet: a row a cell; md: a table a run; latex: methods "
             "by backbones; model-card: of one run, for the Hugging Face Hub; bibtex: all that the "
             "results rest on.")  # fmt: skip
@option("--metric", multiple=True, metavar="NAME",
        help="Show this metric instead, e.g. ece, or `all` for all that apply, as table, json or "
             "csv. Repeatable.")  # fmt: skip
@option("--out", type=UserPath(dir_okay=False), help="Write to this file.")
@option("--method", "-m", multiple=True, metavar="REF", help="Only these methods. Repeatable.")
@option("--backbone", "-b", multiple=True, metavar="REF", help="Only these backbones.")
@option("--suite", metavar="NAME", help="Only this suite.")
@option(
    "--show-trials",
    is_flag=True,
    help="Show the settings that --trials tried, too; json, csv and parquet have them always.",
)
@no_plugin
def command(
    store: Path | None,
    form: str,
    metric: tuple[str, ...],
    out: Path | None,
    method: tuple[str, ...],
    backbone: tuple[str, ...],
    suite: str | None,
    show_trials: bool,
    no_plugin: tuple[str, ...],
) -> None:
    """Show the results of a store again. Exits with 1 if a matrix is incomplete."""
    from rib_harness.catalog import load_catalog
    from rib_harness.cli.tables import print_results
    from rib_harness.errors import RibError
    from rib_harness.provenance import changed_code
    from rib_harness.results import Results, collect
    from rib_harness.store import Store

    path = store or Path("rib-store")
    if not path.exists():
        raise RibError(f"There is no store {path}: name one with --store, or run something first.")
    catalog = load_catalog(block=no_plugin)
    opened, keep = Store(path), chosen(catalog, method, backbone, suite)
    whole = collect(opened)
    source = whole.store or opened
    told = set(source.damaged)  # in the log; more may be found when features are read
    runs = [run for run in whole if keep(run)]
    if not show_trials and (metric or form in ("md", "latex", "model-card")):
        runs = [run for run in runs if not run.trial_of]
    results = Results(runs, source)
    if not len(results):
        kept = len(opened.step_keys())
        raise RibError(
            f"No results in {path} match."
            if len(whole) or not kept
            else f"{path} holds {kept} steps and no record of a run that can be read. The command "
            "that made them writes it anew, and computes nothing that is done."
        )
    if form == "table" and out is not None:
        raise click.UsageError("--out needs a --format other than table.")
    failed: list[str] = []
    if metric:
        _write(_metrics(results, catalog, metric, form, failed), out)
    elif form == "table":
        print_results(results, catalog, trials=show_trials)
    else:
        for line in changed_code([done for run in results for done in run.made], catalog):
            echo(line, err=True)
        _write(_document(results, catalog, form), out)
    problems = [*failed, *sorted(results.damaged)]
    if told:
        problems.append("Some of what the store holds does not verify, see above.")
    problems += [said for path, said in source.damaged.items() if path not in told]
    if not results.complete:
        problems.append(
            "INCOMPLETE: cells are missing. Give the same `run` or `evaluate` again: it computes "
            "only these."
        )
    if problems:
        raise RibError("\n".join(problems))


def _document(results: Results, catalog: Catalog, form: str) -> str | bytes:
    """The results in a form for elsewhere."""
    from rib_harness import export
    from rib_harness.citations import cite

    if form == "parquet":
        return export.to_parquet(results)
    if form == "bibtex":
        return cite(results, catalog)
    if form == "model-card":
        return export.to_model_card(results, cite(results, catalog))
    return results.dumps(form)


def _metrics(
    results: Results, catalog: Catalog, names: tuple[str, ...], form: str, failed: list[str]
) -> str:
    """Metrics of every run: CSV or JSON, or nothing more once a table each is printed.

    Args:
        results: from a store.
        catalog: where the metrics are.
        names: of the metrics; `all` is all that apply, the others are told on stderr.
        form: `"table"`, `"csv"` or `"json"`.
        failed: is told why a metric that was asked for by name has no value in any run or is not
            whole, and what failed of `all`.
    """
    import json

    from rib_harness.cli.tables import print_values, title_of
    from rib_harness.errors import InapplicableError, RibError
    from rib_harness.matrix import IncompleteError
    from rib_harness.measure import MissingFeaturesError, measure
    from rib_harness.provenance import code_of
    from rib_harness.results import csv_of

    if form not in ("table", "csv", "json"):
        raise click.UsageError("--metric is shown as table, csv or json.")
    if results.store is None:
        raise TypeError(results)
    whole = "all" in names
    chosen = catalog.list("metric") if whole else [catalog.get("metric", n) for n in names]
    rows: list[dict[str, object]] = []
    reasons: dict[tuple[str, bool], list[str]] = {}  # and whether it is a failure → of which runs
    without = (InapplicableError, IncompleteError, MissingFeaturesError)
    for component in chosen:
        before = len(rows)
        errors: list[tuple[RunResult, RibError]] = []
        for run in results:
            try:
                values = measure(run, results.store, component)
            except RibError as error:
                errors.append((run, error))
                continue
            head = {"run": run.id, "suite": run.record["suite"], "backbone": run.record["backbone"],
                    "method": run.method, "seed": run.record["seed"], "metric": component.id,
                    "version": component.spec.version,
                    "code": code_of(component.spec)}  # fmt: skip
            rows += [{**head, "source": v.source, "dataset": v.dataset, "value": v.value}
                     for v in values]  # fmt: skip
        # What does not apply to some runs, as of a suite without ImageNet-C, is no failure.
        applies = len(rows) > before
        for run, problem in errors:
            fine = isinstance(problem, without if whole else InapplicableError)
            key = f"{component.spec.name}: {problem}", not (fine and (whole or applies))
            reasons.setdefault(key, []).append(title_of({**run.record, "method": run.method}))
    left_out: list[str] = []
    for (reason, failure), runs in reasons.items():
        of = f" ({', '.join(runs)})" if len(runs) < len(results) else ""
        (failed if failure else left_out).append(reason + of)
    if not rows:
        raise RibError("\n".join([*left_out, *failed]) or "These metrics have no value here.")
    for reason in left_out:
        echo(f"left out: {reason}", err=True)
    if form == "table":
        print_values(rows, {c.id: c.spec for c in chosen})
        return ""
    if form == "json":
        return json.dumps(rows, indent=1) + "\n"
    return csv_of(rows)


def _write(document: str | bytes, out: Path | None) -> None:
    """To the file, else to stdout; not bytes to a terminal."""
    import sys

    from rib_harness.errors import RibError
    from rib_harness.store import write_atomically

    if out is not None:
        try:
            write_atomically(out, document)
        except OSError as error:
            raise RibError(
                f"{out} cannot be written: {error.strerror or error}. Choose another --out."
            ) from None
    elif isinstance(document, bytes) and sys.stdout.isatty():
        raise click.UsageError("This form is binary: name a file with --out.")
    else:
        write(document)
