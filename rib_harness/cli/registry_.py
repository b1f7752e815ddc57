"""`rib-harness registry`: the plugins that are known, installed or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from rib_harness.cli.data_ import SubVerbs
from rib_harness.cli.options import json_flag
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.registry import Entry


@click.group("registry", cls=SubVerbs)
def command() -> None:
    """List the known plugins, installed or not. Read from a file: nothing is asked of the network.

    To be in the list says who a plugin is from, not that it is safe: what is installed runs with
    your rights.
    """


@command.command("list")
@json_flag
def list_(as_json: bool) -> None:
    """List all known plugins."""
    from rib_harness.registry import load_registry

    _print(load_registry().entries, as_json)


@command.command("search")
@click.argument("text", nargs=-1, required=True)
@json_flag
def search(text: tuple[str, ...], as_json: bool) -> None:
    """List plugins in whose name, summary or components each word occurs."""
    from rib_harness.registry import load_registry

    words = " ".join(text)
    found = load_registry().search(words)
    _print(found, as_json)
    if not found:
        echo(f"No known plugin speaks of {words!r}. See `rib-harness registry list`.", err=True)


@command.command("show")
@click.argument("name")
@json_flag
def show(name: str, as_json: bool) -> None:
    """Show what is known of one plugin: NAME is its distribution's or its own."""
    from rib_harness.registry import load_registry

    entry = load_registry().get(name)
    if as_json:
        echo(json.dumps(entry.to_json(), indent=1))
        return
    print_entry(entry)
    if entry.installed is None:
        echo(f"Install it: rib-harness plugins install {entry.name}")


def print_entry(entry: Entry) -> None:
    """All fields as a table."""
    from rib_harness.cli.tables import console, table
    from rib_harness.registry import TIERS

    shown = table("", "")
    shown.show_header = False
    shown.add_row("name", entry.name)
    shown.add_row("summary", entry.summary)
    shown.add_row("repository", entry.repository)
    shown.add_row("maintainers", ", ".join(entry.maintainers))
    shown.add_row("tier", f"{entry.tier}: {TIERS[entry.tier]}")
    for kind, ids in entry.provides.items():
        shown.add_row(f"{kind}s", ", ".join(ids))
    shown.add_row("installed", entry.installed or "no")
    console().print(shown)


def _print(entries: Sequence[Entry], as_json: bool) -> None:
    from rib_harness.cli.tables import console, table

    if as_json:
        echo(json.dumps([e.to_json() for e in entries], indent=1))
        return
    shown = table("plugin", "tier", "installed", "summary")
    for entry in entries:
        shown.add_row(entry.name, entry.tier, entry.installed or "no", entry.summary)
    if entries:
        console().print(shown)
