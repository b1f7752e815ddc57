"""`rib-harness plugins`: install, upgrade and uninstall, by the environment's own installer.

Nothing is done before it was shown and confirmed; without a terminal that needs `--yes`, which
has no environment variable, so that nothing can say yes beforehand.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rib_harness.cli.data_ import SubVerbs
from rib_harness.errors import RibError, nearest
from rib_harness.hookspecs import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from rib_harness.registry import Registry

#: How the names of plugins' distributions begin; another bare name must be in the registry.
PREFIX = "rib-plugin-"

_VCS = ("git+", "hg+", "svn+", "bzr+")


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
    from rib_harness.registry import load_registry

    registry = load_registry()
    distribution = wanted(name, registry)
    _change(["install", *_checked(extra), name], distribution, registry, yes)


@command.command("upgrade")
@_arguments
def upgrade(name: str, extra: tuple[str, ...], yes: bool) -> None:
    """Upgrade an installed plugin to the newest version that its requirements allow."""
    from rib_harness.registry import load_registry

    distribution = installed(name)
    _change(
        ["install", "--upgrade", *_checked(extra), distribution], distribution, load_registry(), yes
    )


@command.command("uninstall")
@_arguments
def uninstall(name: str, extra: tuple[str, ...], yes: bool) -> None:
    """Uninstall a plugin; its own dependencies stay."""
    from rib_harness.registry import load_registry

    distribution = installed(name)
    _change(["uninstall", *_checked(extra), distribution], distribution, load_registry(), yes)


def wanted(text: str, registry: Registry) -> str:
    """The distribution that a NAME means, as far as it can be told before it is installed.

    Args:
        text: a requirement, a path or an URL.
        registry: knows which names need not begin with `rib-plugin-`.

    Raises:
        RibError: it is none of these, the path does not exist, or the name is no plugin's.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    if text.startswith((*_VCS, "https://", "http://", "file://")):
        return ""
    if text.startswith("-"):
        raise RibError(f"Expected the name of a plugin, got the option {text!r}.")
    if text.endswith((".whl", ".tar.gz", ".zip")) or "/" in text.partition("@")[0] or "\\" in text:
        path = Path(text)
        if not path.exists():
            raise RibError(f"There is no file or folder {text}.")
        try:
            return str(parse_wheel_filename(path.name)[0]) if path.suffix == ".whl" else ""
        except InvalidWheelFilename as error:
            raise RibError(f"{text} is no wheel: {error}") from None
    try:
        name = canonicalize_name(Requirement(text).name)
    except InvalidRequirement:
        raise RibError(
            f"Expected a distribution such as rib-plugin-x or rib-plugin-x==0.3, a path such as "
            f"./rib-plugin-x, or an URL such as git+https://…, got {text!r}."
        ) from None
    if not name.startswith(PREFIX) and registry.find(name) is None:
        close = nearest(PREFIX + name, (entry.name for entry in registry.entries))
        raise RibError(
            f"{name!r} is not known as a plugin: its name does not begin with {PREFIX!r}, and the "
            f"registry does not have it.{close} To install it all the same, use pip itself, or "
            "give a path or an URL."
        )
    return name


def installed(name: str) -> str:
    """The installed distribution of a plugin: NAME is its own or its distribution's.

    Raises:
        RibError: no such plugin is installed; other packages are not touched.
    """
    from packaging.utils import canonicalize_name

    points = [p for p in metadata.entry_points(group=ENTRY_POINT_GROUP) if p.dist is not None]
    owners = {(p.name, canonicalize_name(p.dist.name)) for p in points if p.dist is not None}
    same = canonicalize_name(name)
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
    if find_spec("pip") is None:
        raise RibError(
            f"The environment {sys.prefix} has no pip, and uv did not make it or is not on PATH. "
            "Install pip (python -m ensurepip) or uv."
        )
    return [sys.executable, "-m", "pip"]


def installer_command(arguments: Sequence[str]) -> list[str]:
    """The whole command for `install …` or `uninstall …`; it asks nothing itself."""
    base, (verb, *rest) = installer(), arguments
    if base[0] == "uv":
        return [*base, verb, "--python", sys.executable, *rest]
    return [*base, verb, *(["--yes"] if verb == "uninstall" else []), *rest]


def _checked(extra: tuple[str, ...]) -> tuple[str, ...]:
    """What goes on to the installer: options; a second plugin is not one."""
    if extra and not extra[0].startswith("-"):
        raise click.UsageError(
            f"One plugin at a time, got also {extra[0]!r}. Options of the installer go behind --."
        )
    return extra


def _change(arguments: list[str], distribution: str, registry: Registry, yes: bool) -> None:
    """Show, ask, run, and show what came of it."""
    verb, todo, before = arguments[0], installer_command(arguments), _plugins_now()
    click.echo(f"Will run: {shlex.join(todo)}")
    for plugin in before:
        if _canonical(plugin) == distribution:
            place = f" ({plugin['url']})" if plugin["url"] else ""
            click.echo(
                f"Installed now: {distribution} {plugin['version']}, {plugin['source']}{place}"
            )
            break
    for line in describe(distribution, registry) if verb == "install" else ():
        click.echo(line)
    if not yes:
        if not sys.stdin.isatty():
            raise RibError("Nothing was done: there is no terminal to ask on. Add --yes.")
        if not click.confirm("Go on?"):
            click.echo("Nothing was done.")
            return
    done = subprocess.run(todo)
    if done.returncode:
        raise RibError(f"The installer failed with exit code {done.returncode}; see above.")
    after = _plugins_now()
    if verb == "uninstall":
        gone = distribution not in {_canonical(plugin) for plugin in after}
        click.echo(f"{distribution} is {'gone' if gone else 'still there: see list-plugins'}.")
        return
    changed = [p for p in after if _facts(p) not in map(_facts, before)]
    shown = [p for p in after if distribution and _canonical(p) == distribution] or changed
    for plugin in shown:
        offers = [one for ids in plugin["components"].values() for one in ids]
        click.echo(
            f"{plugin['name']} ({plugin['distribution']} {plugin['version']}): {plugin['status']}"
            + (f": {plugin['reason']}" if plugin["reason"] else "")
            + (f"; offers {', '.join(offers)}" if offers else "")
        )
    if not shown:
        raise RibError(
            "The installer succeeded, but no plugin came of it: the distribution has no entry "
            f"point in the group {ENTRY_POINT_GROUP!r}, or lies where this Python does not look."
        )


def describe(distribution: str, registry: Registry) -> list[str]:
    """What a person should know before saying yes.

    Args:
        distribution: its name; empty where it cannot be told yet.
        registry: of known plugins.
    """
    entry = registry.find(distribution) if distribution else None
    if entry is None:
        return ["The registry does not know it: look at its sources. It will run with your rights."]
    from rib_harness.registry import TIERS

    lines = [
        f"The registry knows the name {entry.name}: {entry.summary}",
        f"  {entry.tier}: {TIERS[entry.tier]}; sources: {entry.repository}; "
        f"maintainers: {', '.join(entry.maintainers)}",
    ]
    return lines + ([f"  provides {', '.join(entry.ids)}"] if entry.ids else [])


def _plugins_now() -> list[dict[str, Any]]:
    """`list-plugins` of a fresh process: this one has loaded what was there before."""
    code = "from rib_harness.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "list-plugins", "--json"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RibError(f"rib-harness itself does not start any more:\n{done.stderr.strip()}")
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def _canonical(plugin: dict[str, Any]) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(plugin["distribution"]))


def _facts(plugin: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(plugin[name] for name in ("name", "distribution", "version", "url", "commit"))
