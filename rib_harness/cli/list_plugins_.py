"""`rib-harness list-plugins`."""

from __future__ import annotations

import json

import click

from rib_harness.cli.options import json_flag, no_plugin


@click.command("list-plugins")
@json_flag
@no_plugin
def command(as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the installed plugins: where they come from, whether they load, what they offer."""
    from rib_harness.catalog import load_catalog

    catalog = load_catalog(block=no_plugin)
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "name": plugin.name,
                        "distribution": plugin.distribution,
                        "version": plugin.version,
                        "status": plugin.status,
                        "reason": plugin.reason,
                        "components": {k: list(v) for k, v in (plugin.components or {}).items()},
                        "seconds": round(plugin.seconds, 4),
                        "heavy": list(plugin.heavy),
                        "editable": plugin.editable,
                        "commit": plugin.commit,
                    }
                    for plugin in catalog.plugins
                ],
                indent=1,
            )
        )
        return
    from rib_harness.cli.tables import console, table

    shown = table("plugin", "distribution", "status", "offers", "ms", right=("ms",))
    for plugin in catalog.plugins:
        offers = []
        for kind, ids in (plugin.components or {}).items():
            names = ", ".join(one.partition("/")[2] for one in ids)
            offers.append(f"{kind}s: {names}" if len(ids) > 1 else f"{kind}: {names}")
        if plugin.heavy:
            offers.append(f"imports {', '.join(plugin.heavy)} when listed: slow")
        if plugin.reason:
            offers.append(plugin.reason)
        distribution = f"{plugin.distribution} {plugin.version}"
        if plugin.editable:
            distribution += " (editable)"
        shown.add_row(
            plugin.name, distribution, plugin.status, "\n".join(offers),
            f"{plugin.seconds * 1000:.0f}",
        )  # fmt: skip
    console().print(shown)
    if not catalog.plugins:
        click.echo('No plugin is installed: pip install "rib-harness[standard]"')
