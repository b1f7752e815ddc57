"""`rib-harness list-plugins`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.options import json_flag, no_plugin
from rib_harness.cli.say import echo

if TYPE_CHECKING:
    from rib_harness.catalog import Plugin
    from rib_harness.registry import Entry, Registry

#: Sources on this machine: what lies there may call itself anything.
_HERE = ("editable", "local")


@click.command("list-plugins")
@json_flag
@no_plugin
def command(as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the installed plugins: where they come from, whether they load, what they offer.

    Where from: index (by name), editable, local (a file or folder), url, or the commit of a
    checkout; then its tier in the registry of known plugins, see `rib-harness registry list`:
    "by name" where the registry cannot say whether this is the plugin that it means.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.registry import known_plugins

    plugins, registry = load_catalog(block=no_plugin).plugins, known_plugins()
    _tell_unknown({name for one in plugins for name in (one.name, one.distribution)})
    if as_json:
        echo(json.dumps([to_json(plugin, registry) for plugin in plugins], indent=1))
        return
    print_plugins(plugins, registry)
    if not plugins:
        echo('No plugin is installed: pip install "rib-harness[standard]"')


def to_json(plugin: Plugin, registry: Registry) -> dict[str, Any]:
    """As `list-plugins --json` prints it."""
    entry = entry_of(plugin, registry)
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": plugin.status,
        "reason": plugin.reason,
        "components": {k: list(v) for k, v in (plugin.components or {}).items()},
        "seconds": round(plugin.seconds, 4),
        "heavy": list(plugin.heavy),
        "source": plugin.source,
        "url": plugin.url,
        "editable": plugin.editable,
        "commit": plugin.commit,
        "registry": entry.tier if entry else None,
    }


def entry_of(plugin: Plugin, registry: Registry) -> Entry | None:
    """What the registry says of a plugin, and not of another that has its distribution's name.

    A distribution may call itself anything: the plugin must be one that the entry speaks of, and
    must not come from an URL outside the entry's repository. A first-party entry has no URL.
    """
    entry = registry.find(plugin.distribution)
    if entry is None or plugin.name not in entry.plugins:
        return None
    comparable = entry.tier != "first-party" and plugin.source not in _HERE and plugin.url
    return None if comparable and not _is_inside(plugin, entry) else entry


def _is_inside(plugin: Plugin, entry: Entry) -> bool:
    """Whether a plugin comes from its entry's repository."""
    return f"{plugin.url.removesuffix('.git')}/".startswith(f"{entry.repository.rstrip('/')}/")


def _standing(plugin: Plugin, registry: Registry) -> str:
    """A tier alone is of what came from the index by name, or from the entry's repository."""
    entry = entry_of(plugin, registry)
    if entry is None:
        if registry.find(plugin.distribution) is None:
            return "not in the registry"
        return "not the one that the registry knows by this name"
    if plugin.source == "index" or _is_inside(plugin, entry):
        return entry.tier
    if plugin.source in _HERE:
        return f"{entry.tier} by name"
    return f"{entry.tier} by name; installed from {plugin.url or 'an unknown place'}"


def print_plugins(plugins: tuple[Plugin, ...], registry: Registry) -> None:
    """A table of plugins; nothing where there are none."""
    from rib_harness.cli.tables import console, table

    shown = table("plugin", "distribution", "status", "offers", "ms", right=("ms",))
    for plugin in plugins:
        offers = []
        for kind, ids in (plugin.components or {}).items():
            names = ", ".join(one.partition("/")[2] for one in ids)
            offers.append(f"{kind}s: {names}" if len(ids) > 1 else f"{kind}: {names}")
        if plugin.heavy:
            offers.append(f"imports {', '.join(plugin.heavy)} when listed: slow")
        if plugin.reason:
            offers.append(plugin.reason)
        shown.add_row(
            plugin.name,
            f"{plugin.distribution} {plugin.version}\n"
            f"{plugin.origin}, {_standing(plugin, registry)}",
            plugin.status,
            "\n".join(offers),
            f"{plugin.seconds * 1000:.0f}",
        )
    if plugins:
        console().print(shown)


def _tell_unknown(names: set[str]) -> None:
    """A typo in the allowlist would block in silence, and one in the blocklist let through."""
    from packaging.utils import canonicalize_name

    from rib_harness.errors import nearest

    known = {canonicalize_name(name) for name in names}
    for variable in ("RIB_PLUGINS", "RIB_PLUGINS_BLOCK"):
        for name in filter(None, map(str.strip, os.environ.get(variable, "").split(","))):
            if canonicalize_name(name) not in known:
                echo(f"{variable}: no plugin is called {name!r}.{nearest(name, names)}", err=True)
