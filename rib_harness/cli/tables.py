"""Tables that are right in 80 columns, without a terminal, and with NO_COLOR."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rib_harness.escaping import printable

if TYPE_CHECKING:
    from rib_harness.arms import Arm
    from rib_harness.catalog import Catalog
    from rib_harness.irt import Told
    from rib_harness.results import Results, RunResult
    from rib_harness.statistics import Interval


#: Called ASCII, so that rich puts no wider one in its place: what a terminal cannot encode is
#: replaced where it is written.
_BOX = Box(str(SIMPLE_HEAD), ascii=True)

#: The columns that tables are made for.
COLUMNS = 80


class Screen(Console):
    """Shows what is printable, cuts no table, and leaves a reader that has gone to the program."""

    def __init__(self, **settings: Any):
        super().__init__(markup=False, highlight=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich's, which makes of it all that is given as a text."""
        return super().render_str(printable(text), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """As rich's, but no column of a table goes away where a terminal is narrow."""
        width = self.width
        for one in objects:
            if isinstance(one, _Table):
                self.width = max(width, min(one.needed(self), COLUMNS))
        super().print(*objects, **settings)
        self.width = width

    def on_broken_pipe(self) -> None:
        """Called while the BrokenPipeError is handled: rich would exit with 1."""
        raise


def console() -> Console:
    """stdout; 80 columns where it is no terminal, and nowhere where it is closed."""
    width = None
    if sys.stdout is not None and sys.stdout.isatty():
        width = shutil.get_terminal_size((COLUMNS, 24)).columns
    if width is None:
        given = os.environ.get("COLUMNS", "")
        width = int(given) if given.isdigit() and int(given) > 0 else COLUMNS
    return Screen(width=width)


class _Table(Table):
    """Knows how narrow it can be."""

    def needed(self, screen: Console) -> int:
        """The columns in which no word is cut, and no number."""
        for column in self.columns:
            if column.no_wrap:  # rich would cut it as it breaks others
                cells = [str(column.header), *map(str, column.cells)]
                column.min_width = max(map(cell_len, cells))
        return Measurement.get(screen, screen.options.update(max_width=COLUMNS), self).minimum


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table with the harness's looks."""
    made = _Table(box=_BOX, pad_edge=False)
    for name in columns:
        if name in right:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def print_results(results: Results, catalog: Catalog, *, trials: bool = False) -> None:
    """For each suite and backbone: A_pre and RI of each source, then each method's summary.

    Args:
        results: of which the trials are left out, and compared at equal gain at the end.
        catalog: of the plugins that are installed.
        trials: show these as all others.
    """
    from rib_harness.results import Results

    together: dict[tuple[str, ...], list[RunResult]] = {}
    for run in results:
        if run.trial_of and not trials:
            continue
        record = run.record
        parts = ("suite", "backbone", "weights", "limit", "members", "preset", "recipe", "notes",
                 "expected")  # fmt: skip
        key = (*(str(record.get(part)) for part in parts), str(record["cells"]["pre"]))
        together.setdefault(key, []).append(run)
    for runs in together.values():
        trained = [run for run in runs if run.method is not None]
        for columns in _that_fit(trained, runs[0]):
            _print_matrix(runs[0], columns, results.backbone_of(runs[0]))
        if trained:
            _print_summary(shown := Results(trained, results.store), catalog)
            results.damaged |= shown.damaged
        choices = [line for run in trained for line in run.describe_choices()]
        for line in [*runs[0].describe_known_answers(), *choices]:
            console().print(line, style="dim")
        for note in runs[0].record["notes"]:
            console().print(f"note: {note}", style="dim")

    if any(run.trial_of for run in results):
        print_equal_gain(results)


def print_equal_gain(results: Results, gain: float | None = None) -> None:
    """The methods that had trials, at equal gain."""
    from rib_harness.arms import arms_of
    from rib_harness.frontier import AT_EQUAL_GAIN, at_equal_gain, frontiers

    found = frontiers(arms_of(results))
    for mine in at_equal_gain(found, results.uncertainty, gain):
        heads = ("trials", "gains", "mRI there", "95 %", "minus best", "95 % ")
        shown = table("method", *heads, right=heads)
        shown.collapse_padding = True
        shown.columns[0].min_width = min(16, max(len(row.frontier.name) for row in mine))
        for row in mine:
            edge = row.frontier.edge
            shown.add_row(
                row.frontier.name,
                f"{len(row.frontier.trials)}/{row.frontier.drawn}",
                f"{edge[0].gain:+z.1f} {edge[-1].gain:+z.1f}",
                "not reached" if row.mri is None else _number(row.mri.estimate),
                _ends(row.mri),
                "" if row.difference is None else _number(row.difference.estimate),
                _ends(row.difference),
            )
        console().print(
            f"{mine[0].frontier.setting}: at a gain of {mine[0].gain:+z.2f}", style="bold"
        )
        console().print(shown)
        for row in mine:
            if row.dominated_by:
                console().print(f"{row.frontier.name} has less wherever it is than "
                                f"{', '.join(row.dominated_by)}.")  # fmt: skip
    for one in (one for group in found for one in group if not one.trials):
        console().print(f"{one.setting}: none of {one.drawn} trials of {one.name} is whole.")
    console().print(AT_EQUAL_GAIN, style="dim")


def print_irt(told: Sequence[Told]) -> None:
    """Which datasets tell the models apart, the most telling first."""
    from rib_harness.irt import WHAT_IT_SAYS

    for one in told:
        heads = ("right", "discrimination", "spread", "inform.", "error", "headroom")
        shown = table("dataset", *heads, right=heads)
        shown.collapse_padding = True
        names = [m.name + " (ref)" * (m.role == "reference") for m in one.members]
        shown.columns[0].min_width = min(20, max(map(len, names)))
        for name, member in zip(names, one.members, strict=True):
            shown.add_row(
                name,
                f"{member.right:.1f}",
                f"{(slope := member.curves.discrimination).estimate:.2f} "
                f"[{slope.low:.2f} {slope.high:.2f}]",
                f"{member.curves.spread:.1f}",
                f"{member.information:.2g}",
                f"{member.error:.2g}",
                f"{member.headroom:.2g}",
            )
        console().print(f"{one.setting} · {len(one.models)} models", style="bold")
        console().print(shown)
        ends = " to ".join(f"{m.ability:+z.1f} ({m.name})" for m in (one.models[-1], one.models[0]))
        console().print(f"abilities: from {ends}")
        for note in one.notes:
            console().print(f"note: {note}", style="dim")
    console().print(WHAT_IT_SAYS, style="dim")


def _that_fit(runs: Sequence[RunResult], first: RunResult) -> list[list[RunResult]]:
    """The methods in portions whose columns fit beside the names; at least one portion."""
    names = [*first.matrix.members, *(f"{name} (ref)" for name in first.matrix.references)]
    free = console().width - max(map(len, names)) - 20
    portions: list[list[RunResult]] = [[]]
    used = 0
    for run in runs:
        width = max(len(f"RI {_short(run)}"), 10) + 3
        if portions[-1] and used + width > free:
            portions.append([])
            used = 0
        portions[-1].append(run)
        used += width
    return portions


def _print_matrix(first: RunResult, runs: Sequence[RunResult], backbone: str) -> None:
    from rib_harness.results import describe_recipe, known

    record, matrix = first.record, first.matrix
    title = f"{record['suite']} · {backbone}"
    if record["limit"] is not None:
        title += f" · limit {record['limit']} a class"
    if len(matrix.sources) not in (0, len(record["suite_members"])):
        title += f" · {len(matrix.sources)} of {len(record['suite_members'])} sources"
    if record["recipe"] is not None:
        title += f"\npreset {record['preset']} · {describe_recipe(record['recipe'])}"
    names = [f"RI {_short(run)}" for run in runs]
    shown = table("dataset", "n", "A_pre", *names, right=("n", "A_pre"))
    for column in shown.columns[3:]:
        column.justify = "right"
    for name in (*matrix.members, *matrix.references):
        cell = matrix.pre.get(name)
        values = [_number(run.ri[name]) if name in run.ri else "–" for run in runs]
        label = name if name in matrix.members else f"{name} (ref)"
        shown.add_row(
            label,
            f"{cell.n:,}" if cell else "–",
            f"{cell.top1:.2f}" if cell else "INCOMPLETE",
            *values,
        )
        if name == matrix.members[-1]:
            shown.add_section()
    pre = [matrix.pre[name].top1 for name in matrix.members if name in matrix.pre]
    mean = f"{sum(pre) / len(pre):.2f}" if len(pre) == len(matrix.members) else "INCOMPLETE"
    shown.add_section()
    shown.add_row(
        "mean / mRI" if runs else "mean",
        "",
        mean,
        *(_number(known(getattr, run, "mri")) for run in runs),
        style="bold",
    )
    console().print(title, style="bold")
    console().print(shown)


def _print_summary(results: Results, catalog: Catalog) -> None:
    from rib_harness.arms import arms_of
    from rib_harness.catalog import FIRST_PARTY
    from rib_harness.errors import InapplicableError
    from rib_harness.guard import guarded
    from rib_harness.options import load_target
    from rib_harness.provenance import changed_code
    from rib_harness.results import known
    from rib_harness.statistics import SEEDS_NEEDED

    wanted = ("mri", "mean-ood-accuracy", "gain", "forgetting")
    # Of the first-party plugin only: another metric of one of these names is another number.
    metrics = {
        c.spec.name: c
        for c in catalog.list("metric")
        if c.spec.name in wanted and c.plugin.distribution in FIRST_PARTY
    }
    heads = {"mri": "mRI", "mean-ood-accuracy": "OOD after", "gain": "gain",
             "forgetting": "forgot"}  # fmt: skip
    names = [name for name in wanted if name in metrics]
    columns = ("seed", *(heads[name] for name in names))
    columns = (*columns[:2], "95 %", *columns[2:])
    shown = table("method", *columns, right=columns)
    # Names tell the rows apart: they have as much room as 80 columns leave.
    shown.collapse_padding = True
    shown.columns[0].min_width = min(16, max((len(run.method or "") for run in results), default=0))
    for run in results:
        values = []
        for name in names:
            compute = load_target(metrics[name].spec.target, metrics[name].what)
            try:
                with guarded(metrics[name].what):
                    value = known(compute, run.matrix)
            except InapplicableError:  # a suite without a reference has nothing to forget
                values.append("–")
            else:
                values.append(_number(value, sign=name != "mean-ood-accuracy"))
        interval = results.interval(run)
        mark = " RUINED" if run.matrix.ruined else ""
        mark += " *" if changed_code(run.made, catalog) else ""
        shown.add_row(
            f"{run.method}{mark}", str(run.record["seed"]), values[0], _ends(interval), *values[1:]
        )
    arms = arms_of(results)
    for arm in arms:
        interval = results.interval_of(arm) if len(arm.runs) > 1 else None
        if interval is not None:
            seeds = f"mean of {len(arm.runs)}"
            shown.add_row(
                arm.method, seeds, _number(interval.estimate), _ends(interval), style="bold"
            )
    console().print(shown)
    for line in changed_code([done for run in results for done in run.made], catalog):
        console().print(f"* {line}")
    for run in results:
        if run.matrix.ruined:
            console().print(run.describe_ruined())
    incomplete = [run for run in results if not run.complete]
    for run in incomplete:
        missing = run.matrix.missing
        low, high = run.matrix.mri_bounds
        console().print(
            f"INCOMPLETE: {run.method}: {len(missing)} cells are missing, e.g. {missing[0]}; mRI "
            f"is from {low:+z.2f} to {high:+z.2f}",
        )
    seeded = any(len(arm.runs) >= SEEDS_NEEDED for arm in arms)
    apart = {bool(run.matrix.held_out) for run in results}
    own = "the fine-tuning set itself (training accuracy)"
    if apart == {True}:
        own = "held-out images of the fine-tuning set"
    elif True in apart:
        own += ", or held-out images of it"
    console().print(
        "A_pre and OOD after: top-1 %. RI, mRI, gain, forgot: points. RI of a row: mean change "
        f"on the other members after fine-tuning on it; gain: on {own}; "
        "forgot: on the reference. 95 %: over photographs of one training, not over trainings"
        + ("; in means of 3 seeds or more over these too." if seeded else "."),
        style="dim",
    )
    _print_shared(arms, results)


def _print_shared(arms: Sequence[Arm], results: Results) -> None:
    """What pairs of datasets made from the same photographs do to the numbers."""
    from rib_harness.errors import RibError

    matrix = arms[0].matrices[0]
    mixed = [i for i, row in matrix.pairs.items() if len(matrix.unshared.get(i, ())) < len(row)]
    told = []
    for arm in arms if mixed and results.store is not None else ():
        with suppress(RibError):
            value = results.uncertainty.mri_unshared(arm)
            told.append(f"{arm.method} {value.estimate:+z.2f} ({_ends(value)})")
    if told:
        console().print(
            f"mRI without the pairs that share photographs ({', '.join(mixed)}): {', '.join(told)}",
            style="dim",
        )
    for reference in matrix.references:
        sources = [i for i in matrix.sources if matrix.shared(i, reference)]
        if sources:
            console().print(
                f"forgot: {', '.join(sources)} {'is' if len(sources) == 1 else 'are'} made from "
                f"the photographs of {reference}, so fine-tuning there trains on these.",
                style="dim",
            )


def _short(run: RunResult) -> str:
    seed = f" s{run.record['seed']}" if run.record["seed"] else ""
    return f"{run.method}{seed}"


def _number(value: float | None, *, sign: bool = True) -> str:
    if value is None:
        return "INCOMPLETE"
    return f"{value:+z.2f}" if sign else f"{value:z.2f}"


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.low:+z.1f} {interval.high:+z.1f}"


def title_of(run: Mapping[str, Any]) -> str:
    """Of a run, for a line: its backbone, method and seed."""
    seed = f" · seed {run['seed']}" if run["seed"] is not None else ""
    return f"{run['backbone']} · {run['method'] or 'untouched'}{seed}"


def print_values(rows: Sequence[Mapping[str, Any]], specs: Mapping[str, Any]) -> None:
    """Metrics of runs: for each metric and run a table, sources down, datasets across or down."""
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        together.setdefault((row["metric"], row["run"]), []).append(row)
    for (metric, _), values in together.items():
        spec, first = specs[metric], values[0]
        title = f"{spec.name} · {title_of(first)}"
        better = "higher" if spec.higher_is_better else "lower"
        unit = f"in {spec.unit}, " if spec.unit else ""
        console().print(title, style="bold")
        shown = table("fine-tuned on", "measured on", spec.name, right=(spec.name,))
        for row in values:
            source = row["source"] or ("all" if row["dataset"] is None else "untouched")
            shown.add_row(source, row["dataset"] or "", f"{row['value']:z.4g}")
        console().print(shown)
        console().print(f"{unit}{better} is better", style="dim")
