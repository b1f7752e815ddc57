"""`rib-harness plugins`: install, upgrade and uninstall, by the environment's own installer.

Nothing is done before it was shown and confirmed; without a terminal that needs `--yes`, which
has no environment variable, so that nothing can say yes beforehand. What is installed is read from
metadata only: a plugin that cannot be loaded can be uninstalled all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.data_ import SubVerbs
from rib_harness.cli.say import echo
from rib_harness.cli.wanted import Wanted, is_there, wanted
from rib_harness.errors import RibError, nearest
from rib_harness.hookspecs import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from rib_harness.catalog import Plugin
    from rib_harness.registry import Registry

#: Options of pip or uv that bring other packages (-e and --editable do with a folder; alone they go
#: with NAME), change those that are there, or choose another environment. Short ones also stand
#: after flags, such as -qr; pip takes long ones shortened, too.
_ELSEWHERE = re.compile(
    r"-[IUVhnqvy]*([rtpP]|e.)"
    r"|--(requirem|gr|ed\w*=)"
    r"|--(exact|upgrade-[gp]|reinstall-p)"
    r"|--(ta|prefi|(root|python|system)(=|$))"
)


@click.group("plugins", cls=SubVerbs)
def command() -> None:
    """Install, upgrade or uninstall a plugin in the running environment, after asking.

    What is installed runs with your rights. `rib-harness registry show NAME` says who a known
    plugin is from, `rib-harness list-plugins` what is installed and from where.
    """


def _arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Name, `--yes`, and what goes on to the installer behind `--`."""
    function = click.argument("extra", nargs=-1, metavar="[-- INSTALLER_OPTION…]")(function)
    function = click.argument("name")(function)
    return click.option("--yes", "-y", is_flag=True, help="Do not ask: for scripts.")(function)


@command.command("install")
@_arguments
def install(name: str, extra: tuple[str, ...], yes: bool) -> None:
    """Install a plugin.

    NAME is a distribution (rib-plugin-x or rib-plugin-x==0.3), a wheel or folder, or an URL
    (git+https://…). A bare name must begin with rib-plugin- or be in the registry.
    """
    from rib_harness.registry import known_plugins

    registry = known_plugins()
    plugin = wanted(name, registry)
    _change(["install", *_checked(extra), plugin.text], plugin, registry, yes)


@command.command("upgrade")
@_arguments
def upgrade(name: str, extra: tuple[str, ...], yes: bool) -> None:
    """Upgrade an installed plugin to the newest version that its requirements allow."""
    from rib_harness.registry import known_plugins

    found = installed(name)
    arguments = ["install", "--upgrade", *_checked(extra), found]
    _change(arguments, Wanted(found, found), known_plugins(), yes)


@command.command("uninstall")
@_arguments
def uninstall(name: str, extra: tuple[str, ...], yes: bool) -> None:
    """Uninstall a plugin; its own dependencies stay."""
    from rib_harness.registry import Registry

    found = installed(name)
    _change(["uninstall", *_checked(extra), found], Wanted(found, found), Registry(), yes)


def installed(name: str) -> str:
    """The installed distribution of a plugin: NAME is its own or its distribution's.

    Raises:
        RibError: no such plugin is installed; other packages are not touched.
    """
    owners = {(p.name, _canonical(p)) for p in here() if p.distribution != "unknown"}
    same = _normal(name)
    found = {d for _, d in owners if d == same} or {d for p, d in owners if p == name}
    if len(found) == 1:
        return str(found.pop())
    if found:
        raise RibError(f"{name!r} is claimed by {', '.join(sorted(found))}: name one of them.")
    known = {one for pair in owners for one in pair}
    raise RibError(
        f"No installed plugin is called {name!r}.{nearest(name, known)} "
        "See `rib-harness list-plugins`."
    )


def installer() -> list[str]:
    """The command of the environment's installer: uv where uv made it, else pip.

    Raises:
        RibError: there is neither.
    """
    config = Path(sys.prefix) / "pyvenv.cfg"
    lines = config.read_text(encoding="utf-8").splitlines() if config.exists() else []
    if any(line.partition("=")[0].strip() == "uv" for line in lines) and shutil.which("uv"):
        return ["uv", "pip"]
    # By metadata: to look for the module itself switches setuptools' distutils off (boft needs it).
    if not any(metadata.distributions(name="pip")):
        raise RibError(
            f"The environment {sys.prefix} has no pip, and uv did not make it or is not on PATH. "
            "Install pip (python -m ensurepip) or uv."
        )
    return [sys.executable, "-P", "-m", "pip"]


def installer_command(arguments: Sequence[str]) -> list[str]:
    """The whole command for `install …` or `uninstall …`; it asks nothing itself."""
    base, (verb, *rest) = installer(), arguments
    if base[0] == "uv":
        return [*base, verb, "--python", sys.executable, *rest]
    return [*base, verb, *(["--yes"] if verb == "uninstall" else []), *rest]


def _checked(extra: tuple[str, ...]) -> tuple[str, ...]:
    """What goes on to the installer: options that are for this plugin and environment."""
    for one in extra:
        if not one.startswith("-"):
            raise click.UsageError(
                f"One plugin at a time, got also {one!r}. Options of the installer go behind --, "
                "each in one word, such as --constraint=FILE."
            )
        if _ELSEWHERE.match(one):
            raise click.UsageError(
                f"{one} would change other packages than the plugin, or another environment than "
                "this one: use the installer itself."
            )
    return extra


def _change(arguments: list[str], plugin: Wanted, registry: Registry, yes: bool) -> None:
    """Show, ask, run, and show what came of it."""
    verb, todo, before = arguments[0], installer_command(arguments), here()
    echo(f"Will run: {shlex.join(todo)}")
    for one in before:
        if _canonical(one) == plugin.distribution:
            place = f" ({one.url})" if one.url else ""
            echo(f"Installed now: {plugin.distribution} {one.version}, {one.source}{place}")
            break
    for line in describe(plugin, registry) if verb == "install" else ():
        echo(line)
    if not yes:
        if not sys.stdin.isatty():
            raise RibError("Nothing was done: there is no terminal to ask on. Add --yes.")
        if not click.confirm("Go on?"):
            echo("Nothing was done.")
            return
    done = subprocess.run(todo)
    if done.returncode:
        raise RibError(f"The installer failed with exit code {done.returncode}; see above.")
    if verb == "uninstall":
        gone = plugin.distribution not in map(_canonical, here())
        echo(f"{plugin.distribution} is {'gone' if gone else 'still there: see above'}.")
        return
    _show(_came(plugin, before))


def _came(plugin: Wanted, before: Sequence[Plugin]) -> list[Plugin]:
    """What an installation brought, or left as it was.

    Raises:
        RibError: no plugin.
    """
    after = here()
    found = (
        [one for one in after if plugin.distribution and _canonical(one) == plugin.distribution]
        or [one for one in after if one not in before]
        or [one for one in after if plugin.url and one.url == _bare(plugin.url)]
    )
    if not found:
        raise RibError(
            "The installer succeeded, but no plugin came of it: the distribution has no entry "
            f"point in the group {ENTRY_POINT_GROUP!r}, or lies where this Python does not look."
        )
    return found


def _show(plugins: Sequence[Plugin]) -> None:
    """Load what was installed, in a process of its own, and say what it offers.

    Raises:
        RibError: that process failed.
    """
    names = ", ".join(sorted(set(map(_canonical, plugins))))
    back = "\n".join(
        f"To take it away again: rib-harness plugins uninstall {one}"
        for one in sorted(set(map(_canonical, plugins)))
    )
    try:
        loaded = load_apart([one.name for one in plugins])
    except ValueError as error:
        raise RibError(f"{names} is installed, but {error}\n{back}") from None
    mine = set(map(_canonical, plugins))
    for told in (one for one in loaded if _normal(one["distribution"]) in mine):
        offers = [one for ids in told["components"].values() for one in ids]
        echo(
            f"{told['name']} ({told['distribution']} {told['version']}): {told['status']}"
            + (f": {told['reason']}" if told["reason"] else "")
            + (f"; offers {', '.join(offers)}" if offers else "")
        )
    if any(told["status"] in ("broken", "incompatible", "conflict") for told in loaded):
        echo(back, err=True)


def describe(plugin: Wanted, registry: Registry) -> list[str]:
    """What a person should know before saying yes.

    Args:
        plugin: what is to be installed.
        registry: of known plugins; it speaks of names, not of what lies at a path or an URL.
    """
    from rib_harness.registry import TIERS

    entry = registry.find(plugin.distribution) if plugin.distribution else None
    if entry is None:
        return ["The registry does not know it: look at its sources. It will run with your rights."]
    if plugin.url:
        return [
            f"The registry knows a plugin of this name, from {entry.repository}; this one comes "
            f"from {_bare(plugin.url)}, and the registry says nothing of it: look at its sources. "
            "It will run with your rights."
        ]
    lines = [
        f"The registry knows the name {entry.name}: {entry.summary}",
        f"  {entry.tier}: {TIERS[entry.tier]}; sources: {entry.repository}; "
        f"maintainers: {', '.join(entry.maintainers)}",
    ]
    lines += [f"  provides {', '.join(entry.ids)}"] if entry.ids else []
    if is_there(plugin.text, Path.is_dir):
        lines.append(f"The folder {plugin.text} here is not it: that would be ./{plugin.text}")
    return lines


def here() -> tuple[Plugin, ...]:
    """The installed plugins as their metadata tells them: none is imported."""
    from rib_harness.catalog import load_catalog

    importlib.invalidate_caches()  # an installer may have run
    return load_catalog(environ={"RIB_PLUGINS": ""}).plugins


def load_apart(names: Sequence[str]) -> list[dict[str, Any]]:
    """`list-plugins --json` of a fresh process that loads these plugins only.

    Args:
        names: of plugins; those that the environment does not let load stay blocked.

    Raises:
        ValueError: the process failed, or wrote something else; what happened is a sentence.
    """
    from rib_harness.loading import listed

    allowed = set(names)
    if "RIB_PLUGINS" in os.environ:
        said = listed("RIB_PLUGINS", os.environ)
        allowed &= {one.name for one in here() if {_normal(one.name), _canonical(one)} & said}
    environment = {k: v for k, v in os.environ.items() if k != "RIB_STRICT_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from rib_harness.cli import main; main()",
         "list-plugins", "--json"],
        capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace",
        env={**environment, "RIB_PLUGINS": ",".join(allowed)},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(f"rib-harness does not start with it: exit code {done.returncode}; {last}")
    try:
        told: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        raise ValueError(
            f"it writes to stdout while it is loaded, which is for results: {done.stdout[:60]!r}…"
        ) from None
    return told


def _bare(url: str) -> str:
    """An URL as an installation records it: without its tool, revision, fragment and user name."""
    tool, plus, rest = url.partition("+")
    url = rest.partition("#")[0] if plus and tool.isalpha() else url.partition("#")[0]
    url = re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", url)
    return re.sub(r"^(\w+://[^@]*)@.*$", r"\1", url) if plus and tool.isalpha() else url


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _canonical(plugin: Plugin) -> str:
    return _normal(plugin.distribution)
