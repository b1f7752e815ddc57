"""The index of known plugins: who offers what, read as data only.

`registry/plugins/DISTRIBUTION.toml` is one entry. `python -m rib_harness.registry` checks them all
and writes `registry/index.json`, which the wheel carries, and `registry/schema.json`. Nothing here
imports or installs a plugin, and nothing goes over the network.
"""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.utils import canonicalize_name
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rib_harness.errors import RibError, nearest

log = logging.getLogger("rib_harness")

#: Version of the index's form.
FORMAT = "rib-harness.registry/1"

#: Of the checkout; a wheel has the index only, beside this file.
FOLDER = Path(__file__).parents[1] / "registry"

Tier = Literal["first-party", "verified", "listed", "archived"]
Kind = Literal["backbone", "dataset", "method", "metric", "suite"]
_NAME = r"[a-z0-9]+([._-][a-z0-9]+)*"
Id = Annotated[str, Field(pattern=f"^{_NAME}/{_NAME}$")]

#: What `describe-plugin --toml` writes where a distribution says nothing; no entry may keep it.
FILL_IN = "FILL IN"

#: What a tier promises, for people.
TIERS: dict[str, str] = {
    "first-party": "of this repository, tested with it",
    "verified": "a maintainer of rib-harness has read it and run its conformance tests",
    "listed": "its authors say so; nobody else has looked",
    "archived": "no longer maintained",
}


class RegistryError(RibError):
    """An entry, or the index, is not what it should be; all problems at once."""


class Entry(BaseModel):
    """What the registry says of one distribution. The fields of its TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern="^[a-z0-9]+(-[a-z0-9]+)*$", description="The distribution's name.")
    summary: str = Field(min_length=1, max_length=200, description="One line: what it offers.")
    repository: str = Field(
        pattern=r"^(https://[^\s/@]+/\S+|plugins/[a-z0-9-]+)$",
        description="URL of its sources; a first-party plugin's folder in this repository.",
    )
    maintainers: tuple[str, ...] = Field(min_length=1, description="Who answers for it.")
    tier: Tier = Field(description="; ".join(f"{name}: {says}" for name, says in TIERS.items()))
    provides: dict[Kind, tuple[Id, ...]] = Field(
        default_factory=dict, description="Kind → canonical ids `plugin/name` of its components."
    )

    @field_validator("summary", "repository", "maintainers")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        # It is shown in terminals, and its author is anybody.
        for text in (value,) if isinstance(value, str) else value:
            if not text.isprintable() or not text.strip():
                raise ValueError("expected one line of printable text")
            if text == FILL_IN:
                raise ValueError("still to be filled in")
        return value

    @field_validator("provides")
    @classmethod
    def _once(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for kind, ids in value.items():
            for one in ids:
                if ids.count(one) > 1:
                    raise ValueError(f"the {kind} {one!r} is named twice")
        return value

    @model_validator(mode="after")
    def _of_this_repository(self) -> Entry:
        if (self.tier == "first-party") != self.repository.startswith("plugins/"):
            raise ValueError(
                "a plugin of this repository is first-party and has the repository "
                f"'plugins/{self.name}'; any other has another tier and an URL (https)"
            )
        if self.tier == "first-party" and self.repository != f"plugins/{self.name}":
            raise ValueError(f"expected the repository 'plugins/{self.name}'")
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """Canonical ids of all its components."""
        return tuple(one for ids in self.provides.values() for one in ids)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of its plugins: the first halves of its ids; without ids, after its own name."""
        names = dict.fromkeys(one.partition("/")[0] for one in self.ids)
        return tuple(names) or (self.name.removeprefix("rib-plugin-"),)

    @property
    def installed(self) -> str | None:
        """The installed version, or None. Nothing is imported."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None

    def to_json(self) -> dict[str, Any]:
        """As `registry list --json` prints it."""
        return {**self.model_dump(mode="json"), "installed": self.installed}


def read_entries(folder: Path) -> list[Entry]:
    """All entries of a folder of TOML files, sorted by name.

    Raises:
        RegistryError: every problem of every file.
    """
    entries, problems = [], []
    for path in sorted(filter(_is_entry, folder.iterdir())):
        try:
            entry = Entry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            problems += [f"{path.name}: {_told(item)}" for item in error.errors()]
        except OSError as error:
            problems.append(f"{path.name} cannot be read: {error}")
        except ValueError as error:  # no TOML, or no UTF-8
            problems.append(f"{path.name} is not valid TOML: {error}")
        else:
            entries.append(entry)
            if entry.name != path.stem:
                problems.append(f"{path.name}: name: expected {path.stem!r}, got {entry.name!r}.")
    problems += _clashes(entries) + _strangers(entries, folder.absolute().parent.parent)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise RegistryError(f"{len(problems)} problem(s) in {folder}:\n{lines}")
    return entries


def _is_entry(path: Path) -> bool:
    """Not a file that an editor hides, such as `.#a.toml`, which may be a link to nothing."""
    return path.suffix == ".toml" and not path.name.startswith(".") and path.is_file()


def _told(item: Mapping[str, Any]) -> str:
    """One problem of a field, or of the whole entry."""
    field = ".".join(map(str, item["loc"]))
    if not field:
        return f"{item['msg']}."
    close = nearest(field, Entry.model_fields) if item["type"] == "extra_forbidden" else ""
    return f"{field}: {item['msg']}, got {item['input']!r}.{close}"


def _clashes(entries: Iterable[Entry]) -> list[str]:
    """Names that two distributions claim.

    With one plugin name neither would load beside the other; with one short name of a component,
    what runs today with the short name would stop with the second one installed. First come those
    of this repository, then those that are archived, which nobody changes any more.
    """
    rank = {"first-party": 0, "archived": 1}
    owner: dict[tuple[str, str], str] = {}
    problems = []
    for entry in sorted(entries, key=lambda entry: (rank.get(entry.tier, 2), entry.name)):
        claims = [("plugin", plugin) for plugin in entry.plugins]
        claims += [(k, one.partition("/")[2]) for k, ids in entry.provides.items() for one in ids]
        for kind, name in claims:
            first = owner.setdefault((kind, name), entry.name)
            if first != entry.name and (kind == "plugin" or entry.tier not in rank):
                problems.append(f"{entry.name}.toml: the {kind} name {name!r} is taken by {first}.")
    return problems


def _strangers(entries: Iterable[Entry], root: Path) -> list[str]:
    """Entries that say they are of this repository, which has no such distribution."""
    problems = []
    for entry in entries:
        if entry.tier == "first-party":
            file = root / entry.repository / "pyproject.toml"
            try:
                name = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]
            except (OSError, ValueError, KeyError, TypeError):
                name = None
            if name != entry.name:
                problems.append(
                    f"{entry.name}.toml: repository: {entry.repository} holds no distribution "
                    f"{entry.name!r}."
                )
    return problems


def make_index(entries: Sequence[Entry]) -> str:
    """The text of `index.json`."""
    plugins = [entry.model_dump(mode="json") for entry in entries]
    return json.dumps({"format": FORMAT, "plugins": plugins}, indent=1, ensure_ascii=False) + "\n"


def make_schema() -> str:
    """The text of `schema.json`: JSON Schema of one entry, for editors and other tools."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Entry.model_json_schema(),
        "title": "An entry of rib-harness's registry of plugins",
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


class Registry:
    """The known plugins.

    Args:
        entries: one a distribution.

    Example:
        >>> load_registry().get("rib-plugin-timm").tier
        'first-party'
    """

    def __init__(self, entries: Iterable[Entry] = ()):
        self.entries = tuple(sorted(entries, key=lambda entry: entry.name))
        self._by_name = {entry.name: entry for entry in self.entries}

    def find(self, distribution: str) -> Entry | None:
        """The entry of a distribution, or None."""
        return self._by_name.get(canonicalize_name(distribution))

    def get(self, name: str) -> Entry:
        """The entry of a distribution, or of the plugin of this name.

        Raises:
            RibError: there is none; with the nearest names.
        """
        found = self.find(name) or next((e for e in self.entries if name in e.plugins), None)
        if found is None:
            own = f"rib-plugin-{name.removeprefix('rib-plugin-')}"
            with suppress(metadata.PackageNotFoundError):
                raise RibError(
                    f"{own} {metadata.version(own)} is installed, and not in the registry. "
                    "registry/README.md says how it gets in."
                )
            known = [*self._by_name, *(plugin for e in self.entries for plugin in e.plugins)]
            raise RibError(
                f"The registry knows no plugin {name!r}.{nearest(name, known)} "
                "See `rib-harness registry list`."
            )
        return found

    def search(self, text: str) -> list[Entry]:
        """Entries in whose name, summary or ids every word of the text occurs, in any case."""
        words = text.lower().split()
        return [
            entry
            for entry in self.entries
            if all(w in " ".join((entry.name, entry.summary, *entry.ids)).lower() for w in words)
        ]

    def providers(self, kind: str, name: str) -> list[Entry]:
        """Entries that offer a component of this kind under its id or short name."""
        return [
            entry
            for entry in self.entries
            for one in entry.provides.get(kind, ())  # type: ignore[call-overload]
            if name in (one, one.partition("/")[2])
        ]

    def install_hint(self, kind: str, name: str, installed: Iterable[str]) -> str:
        """Who provides a component that nothing installed has; empty where nobody known does.

        Args:
            kind: of the component.
            name: its short name or id.
            installed: names of the distributions that are here already.
        """
        here = {canonicalize_name(one) for one in installed}
        away = [e.name for e in self.providers(kind, name) if e.name not in here]
        if not away:
            return ""
        if len(away) == 1:
            return f"provided by {away[0]}, which is not installed: pip install {away[0]}"
        return f"provided by {' and by '.join(away)}, of which none is installed: pip install ONE"


def load_registry(path: Path | None = None) -> Registry:
    """The registry that came with this rib-harness.

    Args:
        path: an index to read instead.

    Raises:
        RegistryError: the index is damaged or of another version.
    """
    place = path or _index()
    return Registry() if place is None else _read(place)


def known_plugins() -> Registry:
    """As `load_registry`; an empty one, and a warning, where the index is damaged.

    For all that can do without: what is installed can be listed, removed and run all the same.
    """
    try:
        return load_registry()
    except RegistryError as error:
        _warn(str(error))
        return Registry()


@lru_cache(maxsize=4)
def _warn(text: str) -> None:
    """Once a process."""
    log.warning("%s No plugin counts as known.", text)


def _index() -> Path | None:
    """In a wheel beside this module, else in the checkout."""
    places = (Path(__file__).with_name("registry.json"), FOLDER / "index.json")
    return next((place for place in places if place.exists()), None)


@lru_cache(maxsize=4)
def _read(path: Path) -> Registry:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("format") if isinstance(data, Mapping) else None
        if found != FORMAT:
            raise RegistryError(f"{path}: expected format {FORMAT!r}, got {found!r}.")
        return Registry(Entry.model_validate(entry) for entry in data["plugins"])
    except (OSError, ValueError, KeyError, TypeError) as error:  # a ValidationError is a ValueError
        raise RegistryError(f"The registry's index {path} cannot be read: {error}.") from None


def main(arguments: Sequence[str]) -> int:
    """Check the entries and write the index and the schema; with `--check`, only compare."""
    import argparse

    parser = argparse.ArgumentParser("python -m rib_harness.registry", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="%(default)s")
    given = parser.parse_args(arguments)
    try:
        stale = _stale(given.folder)
        if not given.check:
            for path, text in stale.items():
                path.write_text(text, encoding="utf-8")
            return 0
    except (OSError, RegistryError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    if stale:
        names = ", ".join(path.name for path in stale)
        sys.stderr.write(f"Stale: {names}. Run: python -m rib_harness.registry\n")
    return 1 if stale else 0


def _stale(folder: Path) -> dict[Path, str]:
    """The files that do not hold what the entries make, with what they should hold.

    Raises:
        RegistryError: there is no folder of entries, or an entry is wrong.
    """
    if not (folder / "plugins").is_dir():
        raise RegistryError(f"{folder} has no folder `plugins` with entries.")
    made = {
        folder / "index.json": make_index(read_entries(folder / "plugins")),
        folder / "schema.json": make_schema(),
    }
    return {path: text for path, text in made.items() if not _holds(path, text)}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (FileNotFoundError, UnicodeDecodeError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
