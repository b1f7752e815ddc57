"""Whose code is this? Bad distributions, sources, allowlists, and a result run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rib_harness import cli
from rib_harness.catalog import FIRST_PARTY, Plugin, load_catalog
from rib_harness.cli.list_plugins_ import _standing, entry_of, to_json
from rib_harness.cli.plugins_ import installer
from rib_harness.config import check_requirements
from rib_harness.errors import ConfigError, RibError
from rib_harness.identify import _ask_child
from rib_harness.registry import Entry, Registry, load_registry
from rib_harness.reproduce import compare, find, unknowable, untold

PLUGIN = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1

@hookimpl
def register_methods():
    return [MethodSpec(name="mine", target="rib_bad.mine:Mine", summary="A method.")]
"""


class Bad:
    """A distribution with one fault: its entry point's name, its source, and what is to be said."""

    def __init__(self, plugin: str, source: str, status: str, reason: str):
        self.plugin, self.source, self.status, self.reason = plugin, source, status, reason


BAD = {
    "rib-bad-clash": Bad(
        "digits", PLUGIN, "conflict",
        "the plugin name 'digits' is also claimed by rib-plugin-digits",
    ),
    "rib-bad-old": Bad(
        "old", PLUGIN.replace("API = 1", "API = 0"), "incompatible",
        "fake_rib_bad_old is for API 0; this rib-harness speaks API 1",
    ),
    "rib-bad-import": Bad(
        "import", "import no_such_package\n", "broken",
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "rib-bad-exit": Bad("exit", "import sys\nsys.exit(7)\n", "broken", "SystemExit: 7"),
    "rib-bad-hook": Bad(
        "hook", PLUGIN.replace("register_methods", "register_method"), "broken",
        "ValueError: 'register_method' is no hook of rib-harness. Did you mean 'register_methods'",
    ),
    "rib-bad-torch": Bad("torch-at-top", "import torch\n" + PLUGIN, "ok", ""),
}  # fmt: skip


def install(folder: Path, distribution: str, plugin: str, source: str, origin: Any = None) -> None:
    """A distribution as an installer leaves it."""
    module = "fake_" + distribution.replace("-", "_")
    info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[rib_harness]\n{plugin} = {module}\n")
    if origin is not None:
        text = origin if isinstance(origin, str) else json.dumps(origin)
        (info / "direct_url.json").write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for distribution, bad in BAD.items():
        install(folder, distribution, bad.plugin, bad.source)
    return folder


def rib(site: Path, *arguments: str, expect: int = 0, **variables: str) -> tuple[str, str]:
    """A fresh process, for which a heavy import is still to come."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", "from rib_harness.cli import main; main()", *arguments],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **variables},
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


# The six, in list-plugins, in --json and in run


@pytest.fixture(scope="module")
def listed(site: Path) -> dict[str, dict[str, Any]]:
    out, err = rib(site, "list-plugins", "--json")
    assert err == ""
    return {plugin["distribution"]: plugin for plugin in json.loads(out)}


@pytest.mark.slow
@pytest.mark.parametrize("distribution", BAD)
def test_each_is_told_in_json(distribution: str, listed: dict[str, dict[str, Any]]) -> None:
    bad, plugin = BAD[distribution], listed[distribution]
    assert (plugin["name"], plugin["status"]) == (bad.plugin, bad.status)
    assert plugin["reason"].startswith(bad.reason) and bool(plugin["reason"]) == bool(bad.reason)
    assert ("torch" in plugin["heavy"]) == (distribution == "rib-bad-torch")
    offers = {"method": ["torch-at-top/mine"]} if distribution == "rib-bad-torch" else {}
    assert plugin["components"] == offers
    assert (plugin["version"], plugin["source"], plugin["registry"]) == ("1.5", "index", None)


@pytest.mark.slow
def test_the_others_are_as_they_were(listed: dict[str, dict[str, Any]]) -> None:
    own = [plugin for name, plugin in listed.items() if name in FIRST_PARTY]
    assert own
    assert {(p["status"], p["reason"], p["registry"]) for p in own} == {("ok", "", "first-party")}


@pytest.mark.slow
def test_each_is_told_in_the_table(site: Path) -> None:
    out, _ = rib(site, "list-plugins", COLUMNS="250")
    text = " ".join(out.split())
    for distribution, bad in BAD.items():
        assert f"{bad.plugin} {distribution} 1.5 {bad.status} {bad.reason}".strip() in text
    assert text.count("index, not in the registry") == len(BAD)
    assert "when listed: slow" in text
    narrow, _ = rib(site, "list-plugins")
    assert max(map(len, narrow.splitlines())) <= 80


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same distributions, in this process."""
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [n for n in sys.modules if n.startswith("fake_rib_bad_")]:
        del sys.modules[name]


NEEDED = {name: bad for name, bad in BAD.items() if bad.status not in ("ok", "conflict")}


@pytest.mark.parametrize("distribution", NEEDED)
def test_a_run_that_needs_it_fails_with_its_own_error(
    distribution: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = NEEDED[distribution]
    assert cli._code(["run", "-m", f"{bad.plugin}/mine", "--store", "store"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert (
        f"Error: The method '{bad.plugin}/mine' belongs to the plugin '{bad.plugin}' "
        f"({distribution} 1.5), which is {bad.status}: {bad.reason}"
    ) in told.err
    assert not Path("store").exists()


def test_a_run_that_needs_the_clashing_one_is_told_of_the_clash(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._code(["run", "-m", "digits/mine"]) == 1
    err = capsys.readouterr().err
    assert "No method is called 'digits/mine'." in err
    assert "digits (conflict: the plugin name 'digits' is also claimed by rib-plugin-dig" in err


def test_a_short_name_names_all_that_may_have_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._code(["run", "-m", "nobodys"]) == 1
    err = capsys.readouterr().err
    for bad in BAD.values():
        assert (f"{bad.plugin} ({bad.status}: {bad.reason}" in err) == (bad.status != "ok")


SMALL = ["-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "2", "--device",
         "cpu", "--set", "recipe.epochs=1"]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_needs_none_of_them_is_the_same(site: Path, tmp_path: Path) -> None:
    numbers = []
    for name, folder in (("without", tmp_path / "empty"), ("with", site)):
        store = str(tmp_path / name)
        rib(folder, "run", "-m", "ft", *SMALL, "--store", store)
        out, _ = rib(folder, "results", "--store", store, "--format", "csv")
        numbers.append(out)
    assert numbers[0] == numbers[1]


# Where from


@pytest.mark.parametrize(
    ("origin", "source", "shown", "url"),
    [
        (None, "index", "index", ""),
        ({"url": "file:///w/x.whl", "archive_info": {}}, "local", "local", "file:///w/x.whl"),
        ({"url": "file:///src", "dir_info": {}}, "local", "local", "file:///src"),
        ({"url": "file:///src", "dir_info": {"editable": True}}, "editable", "editable",
         "file:///src"),
        ({"url": "https://example.org/x.whl", "archive_info": {}}, "url", "url",
         "https://example.org/x.whl"),
        ({"url": "https://me:secret@example.org/x",
          "vcs_info": {"vcs": "git", "commit_id": "5e1f0ab77"}},
         "git", "git 5e1f0ab", "https://example.org/x"),
        ({"url": "ssh://git@example.org/x", "vcs_info": {"vcs": "hg", "commit_id": "1"}},
         "hg", "hg 1", "ssh://example.org/x"),
        ({"url": "file:///a@b/src", "dir_info": {}}, "local", "local", "file:///a@b/src"),
        ("{", "unknown", "unknown", ""),
        ([], "unknown", "unknown", ""),
    ],
)  # fmt: skip
def test_where_a_distribution_was_installed_from(
    origin: Any, source: str, shown: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cases of PEP 610; no user name and no password is shown."""
    install(tmp_path / "site", "rib-plugin-p", "p", "RIB_PLUGIN_API = 1\n", origin)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugin = only("rib-plugin-p")
    sys.modules.pop("fake_rib_plugin_p", None)
    assert (plugin.source, plugin.origin, plugin.url) == (source, shown, url)


@pytest.mark.parametrize(
    ("plugin", "source", "url", "said"),
    [
        ("timm", "index", "", "first-party"),
        ("timm", "editable", "file:///src/timm", "first-party by name"),
        ("timm", "local", "file:///w/x.whl", "first-party by name"),
        ("true", "index", "", "not the one that the registry knows by this name"),
        ("true", "local", "file:///w/x.whl", "not the one that the registry knows by this name"),
        ("timm", "git", "https://example.org/t",
         "first-party by name; installed from https://example.org/t"),
        ("timm", "url", "https://example.org/t.whl",
         "first-party by name; installed from https://example.org/t.whl"),
        ("timm", "unknown", "", "first-party by name; installed from an unknown place"),
    ],
)  # fmt: skip
def test_a_tier_alone_is_not_given_for_a_name(
    plugin: str, source: str, url: str, said: str
) -> None:
    """In JSON it is: there `source` and `url` stand beside it."""
    found = Plugin(plugin, "rib-plugin-timm", "1.0", "ok", source=source, url=url)
    assert _standing(found, load_registry()) == said
    tier = "first-party" if plugin == "timm" else None
    assert to_json(found, load_registry())["registry"] == tier


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("https://example.org/x", True),
        ("https://example.org/x.git", True),
        ("https://example.org/x/releases/x-1.0-py3-none-any.whl", True),
        ("https://example.org/xy", False),
        ("https://example.org.evil.example/x", False),
    ],
)
def test_an_url_inside_the_repository_is_the_one_that_the_registry_knows(
    url: str, inside: bool
) -> None:
    fields: dict[str, Any] = {"name": "rib-plugin-x", "summary": "s", "maintainers": ("Ada",),
                              "repository": "https://example.org/x", "tier": "listed"}  # fmt: skip
    known = Registry([Entry(**fields)])
    found = Plugin("x", "rib-plugin-x", "1.0", "ok", source="git", url=url)
    assert (entry_of(found, known) is not None) is inside
    not_it = "not the one that the registry knows by this name"
    assert _standing(found, known) == ("listed" if inside else not_it)
    assert _standing(replace(found, source="local", url="file:///x"), known) == "listed by name"


def only(distribution: str) -> Plugin:
    (found,) = [p for p in load_catalog().plugins if p.distribution == distribution]
    return found


# Which may load


@pytest.mark.parametrize(
    ("variables", "blocked", "loaded"),
    [
        ({"RIB_PLUGINS": "digits,metrics"}, {"timm": "not in RIB_PLUGINS"}, {"digits", "metrics"}),
        ({"RIB_PLUGINS": ""}, {"timm": "not in RIB_PLUGINS"}, set()),
        ({"RIB_PLUGINS_BLOCK": " timm , "}, {"timm": "blocked by RIB_PLUGINS_BLOCK"}, None),
    ],
)
def test_a_blocked_plugin_is_listed_with_the_variable(
    variables: dict[str, str], blocked: dict[str, str], loaded: set[str] | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli._code(["list-plugins", "--json"]) == 0
    plugins = {p["name"]: p for p in json.loads(capsys.readouterr().out)}
    for name, reason in blocked.items():
        assert (plugins[name]["status"], plugins[name]["reason"]) == ("blocked", reason)
        assert plugins[name]["registry"] == "first-party"
    if loaded is not None:
        assert {n for n, p in plugins.items() if p["status"] == "ok"} == loaded


def test_a_typo_in_a_list_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RIB_PLUGINS", "digits,tim")
    monkeypatch.setenv("RIB_PLUGINS_BLOCK", "metrisc")
    assert cli._code(["list-plugins", "--json"]) == 0
    err = capsys.readouterr().err
    assert "RIB_PLUGINS: no plugin is called 'tim'. Did you mean 'timm'" in err
    assert "RIB_PLUGINS_BLOCK: no plugin is called 'metrisc'. Did you mean 'metrics'" in err
    assert "'digits'" not in err


def test_a_distributions_name_in_a_list_is_no_typo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RIB_PLUGINS", "rib-plugin-digits,Rib_Plugin.Metrics")
    monkeypatch.setenv("RIB_PLUGINS_BLOCK", "rib-plugin-tim")
    assert cli._code(["list-plugins", "--json"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "no plugin is called 'rib-plugin-tim'. Did you mean 'rib-plugin-timm'" in line


# A folder that one works in


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """The current folder, with modules that leave a mark when they are imported."""
    for name in ("json", "pip", "multiprocessing", "pickle", "timm", "torch", "rib_harness"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    return tmp_path


def test_no_process_imports_from_the_current_folder(strange: Path) -> None:
    """Neither the one that is asked for a backbone's identity, nor the installer."""
    none: Any = SimpleNamespace(
        spec=SimpleNamespace(target="math:no_such"), arguments=dict,
        component=SimpleNamespace(what="backbone 'x'", signature=SimpleNamespace(options=())),
    )  # fmt: skip
    with pytest.raises(RibError, match="no_such"):
        _ask_child(none)
    subprocess.run([*installer(), "--version"], capture_output=True)
    assert not (strange / "mark").exists()


def test_nor_does_one_that_a_library_starts(strange: Path) -> None:
    """A pool's, which imports multiprocessing before it has the path of its parent."""
    script = strange / "bin" / "rib-harness"
    script.parent.mkdir()
    script.write_text(
        "from multiprocessing import get_context; from rib_harness import cli\n"
        "def verb(_):\n"
        "    child = get_context('spawn').Process(target=print)\n"
        "    child.start(); child.join(); return child.exitcode\n"
        "if __name__ == '__main__':\n"
        "    cli._code = verb; cli.main()"
    )
    assert subprocess.run([sys.executable, script]).returncode == 0
    assert not (strange / "mark").exists()


def test_a_module_of_the_current_folder_is_no_library(tmp_path: Path) -> None:
    """Nor is what lies there installed: `-m` alone puts the folder on the path."""
    mark = f"open({str(tmp_path / 'mark')!r}, 'w').close()\n"
    (tmp_path / "click.py").write_text(mark)
    install(tmp_path, "rib-bad-here", "here", mark)
    command = [sys.executable, "-m", "rib_harness", "list-plugins"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "here" not in done.stdout, done.stderr
    assert not (tmp_path / "mark").exists()


# What a configuration requires


def test_what_cannot_be_checked_is_not_required() -> None:
    """An URL and extras would pass whatever is installed."""
    wrong = ("rib-plugin-digits @ https://example.org/x.whl", "rib-plugin-digits[extra]>=0.1")
    with pytest.raises(ConfigError) as caught:
        check_requirements(wrong)
    assert caught.value.problems == [
        f"requires: {text!r} has an URL or extras, which cannot be checked: expected names and "
        "versions only, such as 'rib-plugin-x>=0.3'."
        for text in wrong
    ]


def test_a_marker_says_where_something_is_required() -> None:
    check_requirements(("no-such-plugin>=1; python_version < '3'", "no-such; extra == 'x'"))
    with pytest.raises(ConfigError, match="which is not installed"):
        check_requirements(("no-such-plugin>=1; python_version >= '3'",))


# A result, run again


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two methods, one of which starts from the other's checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "store"
    methods = ["-m", "ft", "-m", "wise-ft:alpha=0.25"]
    assert cli._code(["run", *methods, *SMALL, "--store", str(folder)]) == 0
    return folder


def ids(store: Path) -> dict[str, str]:
    records = (json.loads(path.read_text()) for path in (store / "runs").glob("*.json"))
    return {record["method"]: record["id"] for record in records}


def as_json(store: Path, capsys: pytest.CaptureFixture[str], method: str = "ft") -> dict[str, Any]:
    capsys.readouterr()
    assert cli._code(["results", "--store", str(store), "--format", "json", "-m", method]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


def reproduce(
    capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0
) -> tuple[str, str]:
    capsys.readouterr()
    assert cli._code(["run", "--reproduce", *arguments]) == expect
    told = capsys.readouterr()
    return " ".join(told.out.split()), told.err


@pytest.mark.slow
def test_a_run_of_a_store_is_run_again_beside_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the beginning of its id; with the checkpoints that it needs, without the other run."""
    (run,) = [run for method, run in ids(store).items() if method.startswith("wise-ft")]
    out, err = reproduce(capsys, run[:6], "--store", str(store))
    assert "Installed: versions as recorded" in err
    assert "Inputs: 13 of 13 recorded steps have the same key." in err
    assert f"Reproduced: all 9 recorded numbers of {run}" in out
    again = store.with_name("store-reproduced")
    assert list(ids(again)) == ["wise-ft:alpha=0.25"]
    # 3 A_pre, 2 fits of ft and 2 averages from them, 2 × 3 scores: not those of ft.
    assert len(list((again / "steps").iterdir())) == 3 + 4 + 6
    _, err = reproduce(capsys, run[:6], "--store", str(store))
    assert "Every step is done already" in err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "record"])
def test_a_file_is_run_again(form: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of `results --format json` says all that this run needs."""
    result = as_json(store, capsys)
    Path("ft.json").write_text(json.dumps([result]))
    named = "ft.json" if form == "file" else str(store / "runs" / f"{ids(store)['ft']}.json")
    out, err = reproduce(capsys, named, "--store", "again", "--device", "cpu")
    assert "Reproduced: all 9 recorded numbers" in out
    assert "Inputs: 11 of 11" in err
    assert as_json(Path("again"), capsys)["mri"] == result["mri"]


def otherwise(result: dict[str, Any]) -> None:
    """As if made elsewhere: another torch, another version of a plugin, a plugin that is gone."""
    for step in result["provenance"]["steps"].values():
        step["packages"]["torch"] = "1.0"
        step["python"] = "3.0"
    for component in result["provenance"]["components"]:
        if component["kind"] == "method":
            component |= {"version": "9.9", "commit": "5e1f"}
        if component["kind"] == "suite":
            component |= {"distribution": "rib-plugin-gone", "editable": False, "commit": ""}


@pytest.mark.slow
def test_other_versions_stop_it_and_are_told(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = as_json(store, capsys)
    otherwise(result)
    Path("ft.json").write_text(json.dumps(result))
    out, err = reproduce(capsys, "ft.json", "--store", "again", expect=1)
    assert "What is installed differs from what" in err and "--allow-mismatch" in err
    assert re.search(r"torch 1\.0 \d", out) and re.search(r"python 3\.0 3\.\d+", out)
    assert re.search(r"rib-plugin-cl-methods .*9\.9 \(.*5e1f\)", out)
    assert re.search(r"rib-plugin-gone 0\.1\.0 not installed", out)
    assert "numpy" not in out
    assert not Path("again").exists()
    out, _ = reproduce(capsys, "ft.json", "--store", "again", "--allow-mismatch")
    assert "Reproduced: all 9 recorded numbers" in out


@pytest.mark.slow
def test_other_numbers_are_told_by_how_much(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = as_json(store, capsys)
    cell = result["post"]["digits-a"]["digits-r"]
    right = cell["correct"] - 1
    told = f"digits-a → digits-r {100 * right / cell['n']:.2f} ({right}/{cell['n']}) "
    told += f"{cell['top1']:.2f} ({cell['correct']}/{cell['n']})"
    cell |= {"correct": right, "top1": 100 * right / cell["n"]}
    was, result["mri"] = result["mri"], 1.5
    Path("ft.json").write_text(json.dumps(result))
    out, err = reproduce(capsys, "ft.json", "--store", "again", expect=1)
    assert told in out
    assert f"mRI +1.50 {was:+.2f}" in out
    assert "Not reproduced: 2 numbers of" in err
    reproduce(capsys, "ft.json", "--store", "again", "--allow-mismatch")


CODE = {"distribution": "rib-plugin-x", "version": "1.0", "editable": True, "commit": ""}
CELL = {"top1": 50.0, "correct": 1, "n": 2}
RESULT: dict[str, Any] = {
    "format": "rib-harness.result/1", "id": "5e1f", "suite": "s", "backbone": "b", "method": "m",
    "seed": 0, "members": ["i", "j"], "data": {}, "preset": "default", "recipe": {"epochs": 1},
    "limit": None, "accepted_licenses": [], "pre": {"i": CELL, "j": CELL},
    "post": {"i": {"i": CELL, "j": CELL}}, "mri": 0.0,
    "provenance": {
        "components": [CODE],
        "steps": {"key": {"python": "3.11", "packages": {}, "components": [CODE]}},
    },
}  # fmt: skip


def changed(*path: Any, to: Any = None, drop: bool = False) -> dict[str, Any]:
    """The result with one part of it otherwise."""
    whole: dict[str, Any] = json.loads(json.dumps(RESULT))
    part: Any = whole
    for name in path[:-1]:
        part = part[name]
    if drop:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return whole


def test_a_whole_result_is_read() -> None:
    Path("x.json").write_text(json.dumps(RESULT))
    recorded = find("x.json", Path("store"))
    assert recorded.title == "5e1f · s · b · m · seed 0"
    untouched = {**changed("post", to={}), "method": None, "recipe": None, "mri": None}
    Path("x.json").write_text(json.dumps(untouched))
    assert find("x.json", Path("store")).settings["method"] == ()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (changed("pre", to={}), "pre: Dictionary should have at least 1 item"),
        (changed("pre", "i", "n", to=0), "pre.i.n: Input should be greater than or equal to 1"),
        (changed("pre", "i", "correct", drop=True), "pre.i.correct: Field required"),
        (changed("provenance", "steps", to={}), "provenance.steps: Dictionary should have at l"),
        (changed("provenance", "steps", to=[]), "provenance.steps: Input should be a valid dict"),
        (changed("provenance", "components", to=[]), "provenance.components: List should have at"),
        (changed("provenance", "components", drop=True), "provenance.components: Field required"),
        (changed("provenance", "components", 0, "commit", to=None), "components.0.commit: Input"),
        (changed("provenance", drop=True), "provenance: Field required"),
        (changed("id", drop=True), "id: Field required"),
        (changed("members", to="ij"), "members: Input should be a valid list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_result_that_lacks_what_is_compared_is_refused(result: dict[str, Any], said: str) -> None:
    """A check of nothing would pass."""
    Path("x.json").write_text(json.dumps([result]))
    with pytest.raises(RibError) as error:
        find("x.json", Path("store"))
    text = str(error.value)
    assert text.startswith("x.json is no whole result, so there is nothing to compare with: ")
    assert said in text and "\n" not in text


def test_many_problems_of_a_result_are_counted() -> None:
    Path("x.json").write_text('{"format": "rib-harness.result/1"}')
    with pytest.raises(RibError, match=r"id: Field required; .*; and 10 more"):
        find("x.json", Path("store"))


@pytest.mark.parametrize("text", ['{"format": "rib-harness.run/1"}', "[]", "[{}]"])
def test_a_damaged_record_of_a_store_is_told(text: str) -> None:
    for folder in ("store/runs", "store/steps"):
        Path(folder).mkdir(parents=True)
    Path("store/runs/5e1f.json").write_text(text)
    with pytest.raises(RibError):
        find("store/runs/5e1f.json", Path("store"))
    with pytest.raises(RibError):
        find("5e1f", Path("store"))


def test_cells_are_compared_both_ways() -> None:
    more = changed("post", "i", "k", to=CELL)
    assert compare(RESULT, RESULT) == compare(more, more) == []
    (here,), (there,) = compare(RESULT, more), compare(more, RESULT)
    assert (here.what, here.recorded, here.now) == ("i → k", "missing", "50.00 (1/2)")
    assert (there.what, there.recorded, there.now) == ("i → k", "50.00 (1/2)", "missing")
    (mri,) = compare(RESULT, changed("mri", to=None))
    assert (mri.what, mri.recorded, mri.now) == ("mRI", "+0.00", "missing")
    assert compare(RESULT, changed("mri", to=1e-9)) == []


def test_code_that_no_commit_names_is_told() -> None:
    for code, names in [
        (CODE, ["rib-plugin-x"]),
        ({**CODE, "commit": "5e1f"}, []),
        ({**CODE, "editable": False}, []),
    ]:
        result = changed("provenance", "components", to=[code])
        result["provenance"]["steps"]["key"]["components"] = [code]
        Path("x.json").write_text(json.dumps(result))
        recorded = find("x.json", Path("store"))
        assert (untold(recorded), unknowable(recorded)) == (names, [])


@pytest.mark.slow
def test_what_cannot_be_run_again_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = as_json(store, capsys)
    Path("two.json").write_text(json.dumps([result, result]))
    Path("none.json").write_text('{"format": "other"}')
    Path("half.json").write_text(json.dumps({"format": result["format"], "id": "x"}))
    Path("text.json").write_text("{")
    for arguments, said in [
        (["two.json"], "two.json holds 2 results"),
        (["none.json"], "none.json is no result: expected what `rib-harness results --format js"),
        (["half.json"], "half.json is no whole result, so there is nothing to compare with: sui"),
        (["text.json"], "text.json is no result"),
        ([str(store)], "Expected one run in the store"),
        (["zzz", "--store", str(store)], "whose id begins with 'zzz' in the store"),
        (["zzz", "--store", "nowhere"], "There is no file or folder zzz, and no store nowhere"),
        ([ids(store)["ft"], "--store", str(store), "-m", "lwf"],
         "--method does not go with --reproduce"),
        ([ids(store)["ft"], "--store", str(store), "--set", "recipe.lr=1"],
         "--recipe does not go with --reproduce"),
    ]:  # fmt: skip
        _, err = reproduce(capsys, *arguments, expect=1)
        assert said in err
    assert not Path("rib-store").exists()


@pytest.mark.slow
def test_a_dry_run_computes_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = reproduce(
        capsys, str(store / "runs" / f"{ids(store)['ft']}.json"), "--dry-run", "--store", "again"
    )
    assert "left:" in out and "wise-ft" not in out
    assert not Path("again").exists()
