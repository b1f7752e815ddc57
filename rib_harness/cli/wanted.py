"""What NAME means in `rib-harness plugins install NAME`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rib_harness.errors import RibError, nearest

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from rib_harness.registry import Registry

#: How the names of plugins' distributions begin; another bare name must be in the registry.
PREFIX = "rib-plugin-"

_URLS = ("git+", "hg+", "svn+", "bzr+", "https://", "http://", "file://")
_ARCHIVES = (".whl", ".tar.gz", ".zip")


@dataclass(frozen=True)
class Wanted:
    """What a NAME means, as far as it can be told before it is installed.

    Args:
        text: for the installer.
        distribution: its name; empty where it cannot be told yet.
        url: where it comes from; empty where that is by name.
    """

    text: str
    distribution: str = ""
    url: str = ""


def wanted(text: str, registry: Registry) -> Wanted:
    """What a NAME means: a requirement, an URL, or a path.

    A bare name that a plugin may have is a name, even beside a folder of that name, as for the
    installers.

    Args:
        text: a requirement, a path or an URL.
        registry: knows which names need not begin with `rib-plugin-`.

    Raises:
        RibError: it is none of these, the path does not exist, or the name is no plugin's.
    """
    if text.startswith("-"):
        raise RibError(f"Expected the name of a plugin, got the option {text!r}.")
    requirement = _requirement(text)
    if requirement is not None and requirement.url:
        return Wanted(text, _plugins_name(requirement, registry), requirement.url)
    if text.startswith(_URLS):
        return Wanted(text, _name_of_archive(re.split("[?#]", text)[0].rpartition("/")[2]), text)
    if text.endswith(_ARCHIVES) or "/" in text or "\\" in text:
        return _at(text, text)
    try:
        if requirement is not None:
            return Wanted(text, _plugins_name(requirement, registry))
    except RibError:
        if not is_there(text, Path.is_dir):
            raise
    if is_there(text, Path.is_dir):
        return _at(text, text if text in (".", "..") else f"./{text}")
    raise RibError(
        f"Expected a distribution such as rib-plugin-x or rib-plugin-x==0.3, a path such as "
        f"./rib-plugin-x, or an URL such as git+https://…, got {text!r}."
    )


def _requirement(text: str) -> Requirement | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _plugins_name(requirement: Requirement, registry: Registry) -> str:
    """The distribution of a requirement, if it may be a plugin's."""
    from packaging.utils import canonicalize_name

    name = canonicalize_name(requirement.name)
    if not name.startswith(PREFIX) and registry.find(name) is None:
        close = nearest(PREFIX + name, (entry.name for entry in registry.entries))
        raise RibError(
            f"{name!r} is not known as a plugin: its name does not begin with {PREFIX!r}, and the "
            f"registry does not have it.{close} To install it all the same, use pip itself, or "
            "give a path or an URL."
        )
    return name


def is_there(text: str, test: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether a text is a path that exists; one that is too long for a path is none."""
    with suppress(OSError, ValueError):
        return bool(text) and test(Path(text))
    return False


def _at(text: str, shown: str) -> Wanted:
    """A folder, wheel or other archive; the installer is given it as shown."""
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    path = Path(text)
    if not is_there(text):
        raise RibError(f"There is no file or folder {text}.")
    name = ""
    if path.suffix == ".whl":
        try:
            name = parse_wheel_filename(path.name)[0]
        except InvalidWheelFilename as error:
            raise RibError(f"{text} is no wheel: {error}") from None
    elif path.is_dir():
        try:
            said = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))
            name = canonicalize_name(said["project"]["name"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it may be said elsewhere: the installer knows
    else:
        name = _name_of_archive(path.name)
    return Wanted(shown, name, path.resolve().as_uri())


def _name_of_archive(file: str) -> str:
    """The distribution that a file's name tells, or nothing."""
    from packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        parse_sdist_filename,
        parse_wheel_filename,
    )

    try:
        return (parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename)(file)[0]
    except (InvalidSdistFilename, InvalidWheelFilename):
        return ""
