"""Promises of the repository itself: README, registry, public names."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rib_harness
from rib_harness import cli
from rib_harness.catalog import load_catalog

ROOT = Path(__file__).parents[1]


def console_commands() -> list[str]:
    """Of the README, and of the pages' blocks without `$ `; test_docs.py has the others."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            asked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            if not asked or page.name == "README.md":
                commands += [line.split("  #")[0].strip() for line in asked or lines]
    return [one for one in commands if one.startswith("rib-harness")]


@pytest.mark.parametrize("command", console_commands())
def test_every_command_of_the_readme_and_the_docs_is_understood(
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Names and options are real; what needs data or a finished step says just that."""
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("run", "evaluate") or arguments[:2] == ["study", "run"]:
        arguments.append("--dry-run")
    if arguments[:2] == ["data", "prepare"]:
        arguments.append("--offline")
        monkeypatch.setattr("rib_harness.files.download.go_offline", lambda: None)
    code = cli._code(arguments)
    err = capsys.readouterr().err
    if code:
        assert code == 1
        assert re.search(r"no such folder|[Tt]here is no store|has no finished step|neither in|"
                         "forbids to download|there is no file or folder", err)  # fmt: skip


def test_no_number_with_a_sign_can_be_shown_as_minus_zero() -> None:
    """What rounds to zero has no sign of its own: `z` in the format says so."""
    assert f"{-1e-9:+z.2f}" == "+0.00"
    sources = [*ROOT.glob("rib_harness/**/*.py"), *ROOT.glob("plugins/*/rib_plugin_*/**/*.py")]
    assert len(sources) > 100
    without = re.compile(r":\+[,\d]*\.\w*[fg]")
    assert [path.name for path in sources if without.search(path.read_text("utf-8"))] == []


def test_there_are_commands_to_test() -> None:
    assert len(console_commands()) > 5


@pytest.mark.slow
def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example and the method, as they stand there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    method, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed: list[object] = []
    exec(example, {"print": lambda *values: printed.append(values[0])})
    assert isinstance(printed[0], float)
    names: dict[str, object] = {"__name__": "readme"}
    monkeypatch.setitem(__import__("sys").modules, "readme", type(rib_harness)("readme"))
    exec(method, names)
    from rib_harness.testing import tiny_task

    task = tiny_task()
    start = task.pretrained.fingerprint()
    towards = names["TowardsTheStart"]
    assert callable(towards)
    assert towards(keep=0.0).finetune(task).head.weight.equal(task.pretrained.head.weight)
    assert task.pretrained.fingerprint() == start


def test_the_examples_of_style_are_from_this_code() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(examples) == text.count("```python") > 2
    for path, example in examples:
        assert example in (ROOT / path).read_text(encoding="utf-8"), path


def test_the_targets_and_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^make ([a-z ]+)", text, re.MULTILINE)
               for name in line.split()}  # fmt: skip
    made = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"test", "lint", "docs"} <= targets <= set(made)
    house = text.partition("## The house")[2].partition("## Where")[0]
    core = re.findall(r"^      (\S.*?)  ", house, re.MULTILINE)
    names = [name for line in core for name in line.split(", ")]
    assert "catalog.py" in names and "results.py" in names
    for name in names:
        assert (ROOT / "rib_harness" / name).exists(), name


def test_the_page_of_the_methods_is_fresh() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_methods.py"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == made.stdout, "python docs/make_methods.py > docs/methods.md"


def test_every_method_says_what_it_does_when_it_helps_and_what_it_costs() -> None:
    for component in load_catalog().list("method"):
        doc = component.signature.doc
        for part in ("\n\nHelps: ", "\n\nCost: ", "\n\nSource: ", "\n\n    "):
            assert part in doc, f"{component.id}: {part.strip() or 'a formula'} is missing"
        assert all(option.doc for option in component.signature.options), component.id


def test_the_registry_says_what_the_installed_plugins_say() -> None:
    installed = {p.distribution: p for p in load_catalog().plugins if p.status == "ok"}
    entries = {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
        for path in (ROOT / "registry" / "plugins").glob("*.toml")
    }
    folders = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    assert set(entries) == folders
    for name, entry in entries.items():
        offered = {k: list(v) for k, v in (installed[name].components or {}).items()}
        assert entry["provides"] == offered
        assert entry["name"] == name


def test_every_public_name_is_there() -> None:
    for name in rib_harness.__all__:
        assert getattr(rib_harness, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rib_harness.nothing


def test_every_hook_has_a_docstring_and_every_registration_hook_is_used() -> None:
    from rib_harness import hookspecs

    offered = {kind for plugin in load_catalog().plugins for kind in plugin.components or {}}
    for hook, spec in hookspecs.REGISTRATION.items():
        assert getattr(hookspecs, hook).__doc__
        assert spec.kind in offered


def test_uv_takes_every_package_of_the_repository_from_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert set(project["tool"]["uv"]["sources"]) == {"rib-harness", *folders}


def unsafe(source: str) -> list[int]:
    """Lines that start Python so that it takes modules from the current folder."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.List | ast.Tuple)
        for part, following in itertools.pairwise([*node.elts, ast.Constant("")])
        if ast.unparse(part) == "sys.executable" and ast.unparse(following) not in ("'-P'", "*rest")
    ]


def test_no_process_takes_modules_from_the_current_folder() -> None:
    assert unsafe("run([sys.executable, '-m', 'pip'])") == [1]
    assert unsafe("run([sys.executable])") == [1]
    assert unsafe("run([sys.executable, '-P', '-m', 'pip'])") == []
    sources = [*ROOT.glob("rib_harness/**/*.py"), *ROOT.glob("plugins/*/rib_plugin_*/**/*.py")]
    found = {str(path): unsafe(path.read_text(encoding="utf-8")) for path in sources}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_host_of_a_registry_and_no_lock_file_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    assert "uv.lock" not in tracked.stdout.split()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[\w.+]+", line) for line in lines)
