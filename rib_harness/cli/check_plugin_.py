"""`rib-harness check-plugin`."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import click

from rib_harness.cli.options import UserPath, json_flag, option
from rib_harness.cli.say import echo


@click.command("check-plugin")
@click.argument("name")
@option("--reference", multiple=True, metavar="REF",
        help="Check a component with these options, e.g. timm:resnet18,pretrained=false, not "
             "with its defaults. Repeatable.")  # fmt: skip
@option("--neutral", multiple=True, metavar="REF=METHOD",
        help="A setting of a method and what it then is: ft, pretrained or a method, e.g. "
             "lwf:alpha=0=ft. Repeatable.")  # fmt: skip
@option("--data-root", type=UserPath(file_okay=False),
        help="Folder that holds the datasets; those that are not there are skipped.")  # fmt: skip
@json_flag
def command(
    name: str,
    reference: tuple[str, ...],
    neutral: tuple[str, ...],
    data_root: Path | None,
    as_json: bool,
) -> int:
    """Check that a plugin and its components keep what they promise: exit 0 if they do, else 1."""
    from rich.progress import track

    from rib_harness.cli.tables import Screen
    from rib_harness.testing.checks import checks_of

    pairs = [text.rpartition("=") for text in neutral]
    for text, (left, _, right) in zip(neutral, pairs, strict=True):
        if not (left and right):
            raise click.UsageError(f"--neutral: expected REF=METHOD, got {text!r}.")
    if len({left for left, _, _ in pairs}) < len(pairs):
        raise click.UsageError("--neutral: a setting is given twice.")
    checks = checks_of(
        name,
        references=reference,
        neutral={left: right for left, _, right in pairs},
        data_root=data_root,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries; a table is asked for
        screen = Screen(stderr=True)
        shown = track(checks, f"Checking {name}", console=screen, transient=True,
                      disable=not screen.is_terminal)  # fmt: skip
        rows = [{"check": check.id, **check.outcome()} for check in shown]
    counts = {
        result: sum(row["result"] == result for row in rows)
        for result in ("ok", "failed", "skipped")
    }
    if as_json:
        echo(json.dumps({"plugin": name, **counts, "checks": rows}, indent=1))
    else:
        _show(rows, counts)
    return 1 if counts["failed"] else 0


def _show(rows: list[dict[str, str]], counts: dict[str, int]) -> None:
    """A row a component, then what failed or was skipped, with the reason."""
    from rib_harness.cli.tables import console, table

    outcomes: dict[str, Counter[str]] = {}
    told: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        component, _, check = row["check"].rpartition("/")
        outcomes.setdefault(component, Counter())[row["result"]] += 1
        if row["result"] != "ok":
            told.setdefault((row["result"], component, row["reason"]), []).append(check)
    columns = [result for result in counts if counts[result]]
    shown = table("component", *columns, right=columns)
    for component, found in outcomes.items():
        shown.add_row(component, *(str(found[result] or "") for result in columns))
    console().print(shown)
    for (result, component, reason), checks in sorted(
        told.items(), key=lambda one: one[0][0], reverse=True
    ):
        echo(f"{result}: {component}: {', '.join(checks)}: {reason}")
    echo(", ".join(f"{counts[result]} {result}" for result in columns))
