"""`rib-harness describe-plugin`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import getaddresses
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.options import json_flag, no_plugin, option
from rib_harness.cli.say import echo, write

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog, Plugin

#: Labels under which a project names where its sources are, most telling first.
LABELS = ("repository", "source", "source code", "sourcecode", "code", "github", "homepage")


@click.command("describe-plugin")
@click.argument("name")
@option("--toml", "as_toml", is_flag=True, help="Print the plugin's entry for the registry.")
@json_flag
@no_plugin
def command(name: str, as_toml: bool, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """Describe an installed plugin: NAME is its own or its distribution's.

    With --toml, its entry for the registry, from what its package says of itself.
    """
    from rib_harness.catalog import load_catalog
    from rib_harness.cli.list_plugins_ import print_plugins, to_json
    from rib_harness.registry import FILL_IN, known_plugins

    if as_toml and as_json:
        raise click.UsageError("Choose one of --toml and --json.")
    catalog, registry = load_catalog(block=no_plugin), known_plugins()
    plugins = named(catalog, name)
    if as_toml:
        import tomli_w

        entry = describe(plugins)
        write(tomli_w.dumps(entry, multiline_strings=False))
        missing = [field for field, value in entry.items() if FILL_IN in value]
        for field in missing:
            echo(f"{field}: {_MISSING[field]}", err=True)
        if missing:
            echo("Then install it again: an installed package says what it said that day.",
                       err=True)  # fmt: skip
        return
    if as_json:
        echo(json.dumps([to_json(plugin, registry) for plugin in plugins], indent=1))
        return
    entry = describe(plugins)
    echo(f"{entry['name']}: {entry['summary']}")
    print_plugins(plugins, registry)
    if plugins[0].url:
        echo(f"From {plugins[0].url}")


def named(catalog: Catalog, name: str) -> tuple[Plugin, ...]:
    """The plugins of a distribution, or those of the distribution of this plugin.

    Raises:
        RibError: none is installed; with the nearest names.
    """
    from packaging.utils import canonicalize_name

    from rib_harness.errors import RibError, nearest

    same = canonicalize_name(name)
    found = {p.distribution for p in catalog.plugins if p.name == name}
    found = found or {p.distribution for p in catalog.plugins
                      if canonicalize_name(p.distribution) == same}  # fmt: skip
    if not found:
        known = {one for p in catalog.plugins for one in (p.name, p.distribution)}
        raise RibError(
            f"No installed plugin is called {name!r}.{nearest(name, known)} "
            "See `rib-harness list-plugins`."
        )
    if len(found) > 1:
        raise RibError(f"{name!r} is claimed by {', '.join(sorted(found))}: name one of them.")
    return tuple(p for p in catalog.plugins if p.distribution in found)


def describe(plugins: Iterable[Plugin]) -> dict[str, Any]:
    """The fields of a registry entry, from the metadata of the distribution and its specs.

    Args:
        plugins: all of one distribution.

    Raises:
        PluginError: one did not load, so what it offers is not known.
    """
    from packaging.utils import canonicalize_name

    from rib_harness.catalog import FIRST_PARTY
    from rib_harness.errors import PluginError
    from rib_harness.registry import FILL_IN

    plugins = tuple(plugins)
    for plugin in plugins:
        if plugin.status != "ok":
            raise PluginError(
                f"The plugin {plugin.name!r} ({plugin.distribution} {plugin.version}) is "
                f"{plugin.status}: {plugin.reason}"
            )
    distribution = plugins[0].distribution
    said: Any = metadata.metadata(distribution)
    # Another distribution may have the name; it has other plugins then.
    own = distribution in FIRST_PARTY and all(
        plugin.name == distribution.removeprefix("rib-plugin-") for plugin in plugins
    )
    provides: dict[str, list[str]] = {}
    for plugin in plugins:
        for kind, ids in (plugin.components or {}).items():
            provides.setdefault(kind, []).extend(ids)
    return {
        "name": canonicalize_name(distribution),
        "summary": said.get("Summary") or FILL_IN,
        "repository": f"plugins/{distribution}" if own else _repository(said) or FILL_IN,
        "maintainers": ["rib-harness maintainers"] if own else _people(said) or [FILL_IN],
        "tier": "first-party" if own else "listed",
        "provides": provides,
    }


_MISSING = {
    "summary": "say `description` in [project] of pyproject.toml.",
    "repository": "say `Repository` in [project.urls] of pyproject.toml.",
    "maintainers": "say `authors` or `maintainers` in [project] of pyproject.toml.",
}


def _repository(said: Any) -> str:
    """The URL of the sources among the project's URLs."""
    urls = {
        label.strip().lower(): url.strip()
        for label, _, url in (line.partition(",") for line in said.get_all("Project-URL") or ())
    }
    urls.setdefault("homepage", said.get("Home-page") or "")
    return next((urls[label] for label in LABELS if urls.get(label)), "")


def _people(said: Any) -> list[str]:
    """Names of the maintainers, else of the authors; an address only where there is no name."""
    for who in ("Maintainer", "Author"):
        plain = [name.strip() for name in (said.get(who) or "").split(",") if name.strip()]
        pairs = getaddresses([said.get(f"{who}-email") or ""])
        people = [*plain, *(name or address for name, address in pairs if name or address)]
        if people:
            return list(dict.fromkeys(people))
    return []
