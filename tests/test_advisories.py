"""No version with a known hole is allowed by a floor, and no code from a repository is run."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rib_harness import cli
from rib_harness.cli.new_plugin_ import LAYERS

ROOT = Path(__file__).parents[1]
ADVISORIES = tomllib.loads((ROOT / "tests" / "advisories.toml").read_text("utf-8"))["advisory"]
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]


def requirements(project: Mapping[str, Any]) -> Iterator[Requirement]:
    """All that a pyproject.toml names: to run, by extras, to build and to develop."""
    own = project.get("project", {})
    for group in (
        own.get("dependencies", ()),
        *own.get("optional-dependencies", {}).values(),
        *project.get("dependency-groups", {}).values(),
        project.get("build-system", {}).get("requires", ()),
    ):
        yield from (Requirement(one) for one in group if isinstance(one, str))


def unsafe(project: Mapping[str, Any]) -> list[str]:
    """Requirements that let a version with a known hole in."""
    found = []
    for one in requirements(project):
        floors = [Version(s.version) for s in one.specifier if s.operator in (">=", "==", "~=")]
        for advisory in ADVISORIES:
            if canonicalize_name(one.name) == advisory["package"] and (
                not floors or max(floors) < Version(advisory["safe"])
            ):
                found.append(f"{one}: {advisory['id']} is mended in {advisory['safe']}")
    return found


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_no_floor_is_below_a_known_hole(path: Path) -> None:
    assert unsafe(tomllib.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("kind", LAYERS)
def test_nor_is_a_new_plugins(kind: str, tmp_path: Path) -> None:
    assert cli._code(["new-plugin", "mine", "--kind", kind, "--path", str(tmp_path)]) == 0
    text = (tmp_path / "rib-plugin-mine" / "pyproject.toml").read_text(encoding="utf-8")
    assert unsafe(tomllib.loads(text)) == []


def test_nor_is_a_version_that_this_is_tested_with() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert unsafe({"dependency-groups": {"all": [one for one in lines if "==" in one]}}) == []


@pytest.mark.parametrize(
    ("requirement", "known"),
    [("torch>=2.5", 2), ("torch>=2.6", 1), ("torch>=2.10", 0), ("torch", 2), ("torch<3", 2),
     ("Jinja2~=3.1.5", 1), ("jinja2==3.1.6", 0), ("numpy", 0)],
)  # fmt: skip
def test_a_floor_that_is_below_is_found(requirement: str, known: int) -> None:
    """So that the tests above can fail, wherever it stands."""
    for project in (
        {"project": {"dependencies": [requirement]}},
        {"project": {"optional-dependencies": {"x": [requirement]}}},
        {"dependency-groups": {"x": [requirement]}},
        {"build-system": {"requires": [requirement]}},
    ):
        assert len(unsafe(project)) == known


def test_every_advisory_is_whole_and_of_a_package_that_is_named() -> None:
    named = {
        canonicalize_name(one.name)
        for path in PROJECTS
        for one in requirements(tomllib.loads(path.read_text(encoding="utf-8")))
    }
    for one in ADVISORIES:
        assert set(one) == {"package", "safe", "id", "why", "source"}
        assert one["package"] in named
        assert one["source"].startswith("https://")


#: What runs code that a repository or a file of weights brings along.
TRUST = re.compile(r"trust_remote_code|weights_only\s*=\s*(?!True\b)")


def test_no_code_of_a_repository_or_a_checkpoint_is_run() -> None:
    assert TRUST.search("load_dataset('x', trust_remote_code=True)")
    assert TRUST.search("torch.load('x', weights_only=False)")
    assert not TRUST.search("torch.load('x', weights_only=True)")
    sources = [
        path
        for folder in ("rib_harness", "plugins", "benchmarks", "docs")
        for ending in ("py", "j2")
        for path in (ROOT / folder).rglob(f"*.{ending}")
    ]
    assert len(sources) > 150
    assert [path for path in sources if TRUST.search(path.read_text(encoding="utf-8"))] == []
