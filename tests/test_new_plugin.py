"""`rib-harness new-plugin`: what it writes installs, passes its tests and is listed, as it is."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from rib_harness.cli.new_plugin_ import LAYERS, class_name, render, valid
from rib_harness.testing import run_cli

KINDS = list(LAYERS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_a_whole_package(kind: str, tmp_path: Path) -> None:
    done = run_cli("new-plugin", "my-own", "--kind", kind, "--path", str(tmp_path))
    assert (done.code, done.err) == (0, "")
    folder = tmp_path / "rib-plugin-my-own"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    own = "dataset" if kind == "suite" else kind
    assert {
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore",
        ".github/workflows/tests.yml",
        "tests/test_conformance.py",
        "rib_plugin_my_own/__init__.py", "rib_plugin_my_own/plugin.py",
        f"rib_plugin_my_own/{own}.py",
    } <= names  # fmt: skip
    assert [line for line in done.out.splitlines() if line.startswith("  ")] == [
        f"  pip install -e '{folder}[test]'",
        f"  python -m pytest {folder}",
        "  rib-harness check-plugin my-own",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "task", "none", "a-name-of-several-words", "v2"])
def test_what_it_writes_is_valid_under_any_name(name: str, kind: str) -> None:
    """Source: Python's and TOML's own parsers; nothing of a template is left over."""
    texts = dict(render(name, kind))
    for path, text in texts.items():
        # A workflow has braces of its own.
        assert not re.search(r"(?<!\$)\{\{|\{%|%\}", text), path
        assert text.endswith("\n") and not text.endswith("\n\n"), path
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["name"] == f"rib-plugin-{name}"
    package = f"rib_plugin_{name.replace('-', '_')}"
    assert project["entry-points"]["rib_harness"] == {name: f"{package}.plugin"}
    job = yaml.safe_load(texts[".github/workflows/tests.yml"])["jobs"]["tests"]
    for version in job["strategy"]["matrix"]["python"]:
        assert version in SpecifierSet(project["requires-python"])
    readme = texts["README.md"].splitlines()
    run = [step["run"] for step in job["steps"] if "run" in step]
    assert run and all(command in readme for command in run)


@pytest.mark.parametrize("kind", KINDS)
def test_the_places_to_change_are_marked(kind: str) -> None:
    texts = dict(render("mine", kind))
    own = "dataset" if kind == "suite" else kind
    for path in ("pyproject.toml", "rib_plugin_mine/plugin.py", f"rib_plugin_mine/{own}.py"):
        assert "CHANGE" in texts[path]


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_tidy(kind: str, tmp_path: Path) -> None:
    """Source: this repository's own linter and formatter."""
    run_cli("new-plugin", "mine", "--kind", kind, "--path", str(tmp_path))
    config, folder = Path(__file__).parents[1] / "pyproject.toml", tmp_path / "rib-plugin-mine"
    for command in (["check", "--ignore", "D1"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(config), "."],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr


# Refusals


def test_the_distributions_prefix_is_no_part_of_the_name(tmp_path: Path) -> None:
    done = run_cli("new-plugin", "rib-plugin-mine", "--kind", "method", "--path", str(tmp_path))
    assert done.code == 0, done.err
    assert [folder.name for folder in tmp_path.iterdir()] == ["rib-plugin-mine"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My_Method", "joined by hyphens, got 'My_Method'. Did you mean 'my-method'?"),
        ("rib-plugin-Mine", "got 'Mine'. Did you mean 'mine'?"),
        ("2nd-try", "Did you mean 'nd-try'?"),
        ("a--b", "Did you mean 'a-b'?"),
        ("!", "Did you mean 'my-plugin'?"),
        ("x" * 300, "expected a name of at most 60 letters, got 300."),
        ("X" * 300, f"Did you mean '{'x' * 60}'?"),
        ("digits", "the plugin name 'digits' is taken by rib-plugin-digits 0.1.0. Did you mean "
         "'my-digits'?"),
        ("lwf", "a method called 'lwf' is in rib-plugin-cl-methods already"),
    ],
)  # fmt: skip
def test_a_bad_name_is_refused_with_the_nearest_good_one(
    name: str, said: str, tmp_path: Path
) -> None:
    done = run_cli("new-plugin", name, "--kind", "method", "--path", str(tmp_path))
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_may_be_taken() -> None:
    assert run_cli("new-plugin", "lwf", "--kind", "metric").code == 0


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rib-plugin-mine").mkdir()
    done = run_cli("new-plugin", "mine", "--kind", "method", "--path", str(tmp_path))
    assert done.code == 1
    assert "rib-plugin-mine exists already: choose another name, or another --path." in done.err
    assert list((tmp_path / "rib-plugin-mine").iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("new-plugin", "mine", "--kind", "method", "--path", str(tmp_path / "file/x"))
    assert done.code == 1 and "cannot be written: Not a directory." in done.err


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    done = run_cli("new-plugin", "mine", "--kind", "method", "--path", str(tmp_path / ("x" * 300)))
    assert done.code == 1 and "cannot be written: File name too long." in done.err


def test_the_commands_that_it_prints_are_right_where_the_path_has_a_space(tmp_path: Path) -> None:
    """Source: the shell's own words."""
    folder = tmp_path / "my own's"
    done = run_cli("new-plugin", "mine", "--kind", "method", "--path", str(folder))
    lines = [shlex.split(line) for line in done.out.splitlines() if line.startswith("  ")]
    assert lines[0] == ["pip", "install", "-e", f"{folder}/rib-plugin-mine[test]"]
    assert lines[1] == ["python", "-m", "pytest", f"{folder}/rib-plugin-mine"]


def test_a_kind_is_needed() -> None:
    done = run_cli("new-plugin", "mine")
    assert done.code == 2 and "Missing option '--kind'" in done.err


def test_names() -> None:
    """Source: the rules, by hand."""
    assert valid("Towards the START") == "towards-the-start"
    assert class_name("towards-the-start", "method") == "TowardsTheStart"
    assert class_name("task", "method") == "TaskMethod"
    assert class_name("none", "metric") == "NoneMetric"


# Outside the workspace


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One package of each kind, and the folder into which all are installed."""
    packages, site = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("site")
    for kind in KINDS:
        done = run_cli("new-plugin", f"my-{kind}", "--kind", kind, "--path", str(packages))
        assert done.code == 0, done.err
    folders = [str(folder) for folder in sorted(packages.iterdir())]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)),
    ]
    done = subprocess.run([*command, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield packages, site


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process that finds what is installed in the folder."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )


def rib(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(site, "-c", "from rib_harness.cli import main; main()", *arguments, cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_own_tests(kind: str, world: tuple[Path, Path]) -> None:
    """Source: pytest, with every warning an error."""
    packages, site = world
    folder = packages / f"rib-plugin-my-{kind}"
    done = python(site, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "failed" not in done.stdout and "skipped" not in done.stdout


@pytest.mark.slow
def test_all_are_listed(world: tuple[Path, Path], tmp_path: Path) -> None:
    _, site = world
    done = rib(site, "list-plugins", "--json", cwd=tmp_path)
    plugins = {one["name"]: one for one in json.loads(done.stdout)}
    for kind in KINDS:
        mine = plugins[f"my-{kind}"]
        assert (mine["status"], mine["heavy"]) == ("ok", [])
        assert f"my-{kind}/my-{kind}" in mine["components"][kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_verb_finds_nothing_wrong(kind: str, world: tuple[Path, Path], tmp_path: Path) -> None:
    _, site = world
    done = rib(site, "check-plugin", f"my-{kind}", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["failed"], answer["skipped"]) == (0, 0, 0), answer


@pytest.mark.slow
def test_they_do_what_their_readmes_say(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Source: the last command of each README."""
    packages, site = world
    for kind in KINDS:
        readme = (packages / f"rib-plugin-my-{kind}/README.md").read_text()
        block = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)[0]
        for command in block.splitlines()[-1].split(" && "):
            arguments = command.split()[1:]
            if arguments[0] == "run":
                arguments += ["--set", "recipe.epochs=1", "--limit", "2"]
            if arguments[0] in ("run", "evaluate") and kind != "suite":  # less than the whole suite
                arguments += ["--dataset", "digits-r", "--dataset", "digits-sketch"]
            if arguments[0] in ("run", "evaluate", "results"):
                arguments += ["--store", str(tmp_path / kind)]
            done = rib(site, *arguments, cwd=tmp_path)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
