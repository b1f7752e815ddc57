"""`rib-harness list`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import click

from rib_harness.catalog import Component
from rib_harness.cli.options import json_flag, no_plugin
from rib_harness.cli.say import echo
from rib_harness.specs import KINDS

_KINDS = [name for kind in KINDS for name in (f"{kind}s", kind)]


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS, case_sensitive=False),
                metavar="[" + "|".join(f"{kind}s" for kind in KINDS) + "]")  # fmt: skip
@json_flag
@no_plugin
def command(kind: str, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the components of one kind."""
    from rib_harness.catalog import load_catalog

    catalog = load_catalog(block=no_plugin)
    components = catalog.list(kind.removesuffix("s"))
    if as_json:
        echo(json.dumps([to_json(component) for component in components], indent=1))
        return
    from rib_harness.cli.tables import console, table

    shown = table(kind.removesuffix("s"), "plugin", "summary")
    for component in components:
        shown.add_row(component.spec.name, component.plugin.name, component.spec.summary)
    console().print(shown)
    if kind.removesuffix("s") == "backbone":
        short = table("short name", "stands for", "pretraining", "images", right=("images",))
        for family, variant in catalog.aliases():
            short.add_row(
                variant.alias,
                f"{family.spec.name}:{variant.tag}",
                variant.pretraining,
                f"{variant.pretraining_images:,}" if variant.pretraining_images else "",
            )
        console().print(short)


def _finite(value: Any) -> Any:
    """JSON has no infinity: an open end of a range is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(component: Component) -> dict[str, Any]:
    """The spec's fields, the canonical id and the plugin."""
    return {
        "id": component.id,
        "kind": component.spec.kind,
        **_finite(asdict(component.spec)),
        "plugin": component.plugin.name,
        "distribution": component.plugin.distribution,
        "distribution_version": component.plugin.version,
    }
