"""`rib-harness data`: the sets on this machine, and how they get here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.options import UserPath, json_flag, no_plugin, option
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.catalog import Bound
    from rib_harness.files.verify import Report

data_root = option(
    "--data-root",
    type=UserPath(file_okay=False),
    help="Folder that holds the datasets.",
)
name_argument = click.argument("name", metavar="NAME[:OPTION=VALUE]")


class SubVerbs(click.Group):
    """Offers the nearest name."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest verb in the error."""
        from rib_harness.errors import nearest

        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(
                f"No verb {args[0]!r}.{nearest(args[0], self.commands)}", context
            )
        return super().resolve_command(context, args)


@click.group("data", cls=SubVerbs)
def command() -> None:
    """List, fetch, prepare, make and verify datasets."""


@command.command("list")
@data_root
@json_flag
@no_plugin
def list_(data_root: Path | None, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """All datasets, and which of them are here."""
    from rib_harness.catalog import load_catalog

    rows = []
    for component in load_catalog(block=no_plugin).list("dataset"):
        here = _location(_bound(component.id, no_plugin), data_root)
        rows.append((component, here))
    if as_json:
        echo(
            json.dumps(
                [
                    {
                        "id": c.id,
                        "images": c.spec.images,  # type: ignore[attr-defined]
                        "classes": c.spec.classes,  # type: ignore[attr-defined]
                        "license": c.spec.license,
                        "location": here or None,
                    }
                    for c, here in rows
                ],
                indent=1,
            )
        )
        return
    from rib_harness.cli.tables import console, table

    shown = table("dataset", "images", "classes", "licence", "here", right=("images", "classes"))
    for component, here in rows:
        spec: Any = component.spec
        shown.add_row(
            spec.name,
            f"{spec.images:,}" if spec.images else "",
            f"{spec.classes:,}" if spec.classes else "",
            spec.license,
            _below(here, data_root) or "–",
        )
    console().print(shown)
    if data_root is None:
        echo("No data folder was given (--data-root DIR or RIB_DATA_ROOT).", err=True)


@command.command()
@name_argument
@data_root
@json_flag
@no_plugin
def info(name: str, data_root: Path | None, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """What is known of a dataset: counts, licence, files, where it is published."""
    from dataclasses import asdict

    from rib_harness.files.prepare import archives_of

    bound = _bound(name, no_plugin)
    archives = archives_of(bound)
    spec = bound.spec
    here = _location(bound, data_root)
    if as_json:
        facts = {
            "id": bound.component.id,
            **{k: getattr(spec, k) for k in ("summary", "citation", "license", "homepage")},
            **{k: getattr(spec, k) for k in ("images", "classes", "may_train")},
            "archives": [asdict(archive) for archive in archives],
            "location": here or None,
        }
        echo(json.dumps(facts, indent=1))
        return
    echo(f"{bound.component.id}: {spec.summary}")
    for label, text in (
        ("images", f"{spec.images:,} in {spec.classes:,} classes" if spec.images else ""),
        ("citation", spec.citation),
        ("licence", spec.license + ("" if spec.may_train else " (never a source, unless with "
                                    f"--accept-license {spec.name})")),
        ("homepage", spec.homepage),
        ("here", here or "no"),
    ):  # fmt: skip
        if text:
            echo(f"  {label}: {text}")
    for archive in archives:
        size = f", {archive.size:,} bytes" if archive.size else ""
        digest = (archive.sha256 and f"sha256 {archive.sha256}") or f"md5 {archive.md5}"
        echo(f"  file: {archive.name}{size}, {digest}")
        for url in archive.urls:
            echo(f"    {url}")
        if archive.get:
            echo(f"    {archive.get}")


@command.command()
@name_argument
@data_root
@option(
    "--from",
    "given",
    multiple=True,
    type=UserPath(),
    metavar="PATH",
    help="Archives or one folder that you have; they are linked to. Repeatable.  "
    "[default: download]",
)
@option("--offline", is_flag=True, help="Never use the network.")
@option("--copy", is_flag=True, help="Copy what --from names instead of linking to it.")
@option(
    "--extract/--no-extract",
    default=None,
    help="Unpack archives, or read them in place.  [default: what suits the set]",
)
@option("--keep", is_flag=True, help="Keep downloaded archives that were unpacked.")
@option("--password", metavar="TEXT", help="Of an encrypted archive (ObjectNet's).")
@option("--any-checksum", is_flag=True, help="Take archives other than the published ones.")
@option("--allow-partial", is_flag=True, help="Take a set that is not whole.")
@json_flag
@no_plugin
def prepare(
    name: str, data_root: Path | None, as_json: bool, no_plugin: tuple[str, ...], **wishes: Any
) -> None:  # fmt: skip
    """Put a dataset below the data folder: whole and checked, or not at all.

    What was downloaded is kept when it stops, and the same command goes on from there.
    """
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.files import prepare as preparing
    from rib_harness.files.download import go_offline
    from rib_harness.signals import TerminateAsInterrupt

    bound = _bound(name, no_plugin)
    root = _needed(data_root)
    if wishes["offline"]:
        go_offline()
    with TerminateAsInterrupt(), RichProgress() as progress:
        report = preparing.prepare(bound, root, preparing.Wishes(**wishes), progress)
    _print(report, name, as_json)


@command.command()
@name_argument
@data_root
@click.option("--all", "everything", is_flag=True, help="Decode every picture, not a sample.")
@json_flag
@no_plugin
@click.pass_context
def verify(
    context: click.Context,
    name: str,
    data_root: Path | None,
    everything: bool,
    as_json: bool,
    no_plugin: tuple[str, ...],
) -> None:
    """Check a dataset: counts, classes, duplicates, and whether its pictures decode."""
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.files.verify import verify as check

    bound = _bound(name, no_plugin)
    with RichProgress() as progress:
        images = bound.images(data_root)
        bar = progress.bar("decode", len(images) if everything else min(len(images), 500))
        try:
            report = check(images, everything=everything, advance=bar.advance)
        finally:
            bar.close()
    _print(report, name, as_json)
    if not report.whole:
        context.exit(1)


@command.command()
@name_argument
@data_root
@no_plugin
def path(name: str, data_root: Path | None, no_plugin: tuple[str, ...]) -> None:
    """Print where a dataset lies."""
    bound = _bound(name, no_plugin)
    there = bound.location(data_root) or bound.images(data_root).location
    echo(there or "It is made when it is used; no folder.")


@command.command()
@name_argument
@data_root
@json_flag
@no_plugin
def make(name: str, data_root: Path | None, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """Make a dataset from another one on this machine, e.g. imagenet-c from ImageNet val."""
    from rib_harness.catalog import guarded
    from rib_harness.cli.show_progress import RichProgress
    from rib_harness.errors import DataError
    from rib_harness.files.verify import verify as check
    from rib_harness.signals import TerminateAsInterrupt

    bound = _bound(name, no_plugin)
    dataset = bound.build()
    if not hasattr(dataset, "make"):
        raise DataError(
            f"{bound.spec.name} cannot be made here, from another dataset: put it below the data "
            f"folder (rib-harness data prepare {name})."
        )
    with TerminateAsInterrupt(), RichProgress() as progress, guarded(bound.component.what):
        made = dataset.make(_needed(data_root), progress)
    _print(check(made), made.location, as_json)


def _bound(name: str, no_plugin: tuple[str, ...]) -> Bound:
    from rib_harness.catalog import load_catalog
    from rib_harness.files.download import go_offline, is_offline

    if is_offline():
        go_offline()

    return load_catalog(block=no_plugin).bind("dataset", name)


def _needed(root: Path | None) -> Path:
    if root is None:
        raise click.UsageError("Say where: --data-root DIR, or the variable RIB_DATA_ROOT.")
    return root


def _location(bound: Bound, root: Path | None) -> str:
    """Where a dataset lies; empty if it is not here, or its code fails, which is told."""
    from rib_harness.errors import PluginError, RibError

    try:
        there = bound.location(root)
    except PluginError as error:
        echo(str(error), err=True)
        return ""
    except RibError:
        return ""
    return "made when used" if there is None else there


def _below(here: str, root: Path | None) -> str:
    """Short: below the data folder, if it lies there."""
    if root is not None and Path(here).is_relative_to(root):
        return str(Path(here).relative_to(root))
    return here


def _print(report: Report, name: str, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(report.to_json(), indent=1))
        return
    of = f" of {report.expected:,}" if report.expected is not None else ""
    echo(
        f"{name}: {report.images:,} images{of}, {report.classes:,} of "
        f"{report.expected_classes:,} classes"
    )
    if report.location:
        echo(f"  {report.form}: {report.location}")
    echo(f"  fingerprint: {report.fingerprint}")
    echo(f"  decoded: {report.decoded:,}")
    for line in report.notes:
        echo(f"  note: {line}")
    for line in report.problems:
        echo(f"  DIFFERS: {line}")
    echo("  whole" if report.whole else "  not the published set")
