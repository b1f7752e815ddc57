"""The registry: entries are data that is checked, the index is fresh, the verbs show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rib_harness import cli, registry
from rib_harness.catalog import FIRST_PARTY, Catalog, Plugin, load_catalog
from rib_harness.cli.describe_plugin_ import describe
from rib_harness.cli.tables import console
from rib_harness.errors import RibError, UnknownComponentError
from rib_harness.registry import Entry, Registry, RegistryError, load_registry, read_entries
from rib_harness.specs import KINDS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "registry"

ENTRY = """
name = "rib-plugin-x"
summary = "A method."
repository = "https://example.org/x"
maintainers = ["Ada"]
tier = "listed"

[provides]
method = ["x/mine"]
"""


def entry(name: str = "rib-plugin-x", **fields: Any) -> Entry:
    return Entry(**{**tomllib.loads(ENTRY), "name": name, **fields})


def call(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> tuple[str, str]:
    assert cli._code(list(arguments)) == expect
    told = capsys.readouterr()
    return told.out, told.err


# The files


def test_the_index_and_the_schema_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.main(["--check", str(FOLDER)]) == 0, capsys.readouterr().err


def test_a_stale_index_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.main([str(tmp_path)]) == 1
    assert "has no folder `plugins`" in capsys.readouterr().err
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "rib-plugin-x.toml").write_text(ENTRY)
    assert registry.main(["--check", str(tmp_path)]) == 1
    assert "Stale: index.json, schema.json" in capsys.readouterr().err
    assert registry.main([str(tmp_path)]) == 0
    assert registry.main(["--check", str(tmp_path)]) == 0
    assert load_registry(tmp_path / "index.json").entries == (entry(),)
    (tmp_path / "plugins" / "rib-plugin-x.toml").write_text(ENTRY.replace("Ada", "Eve"))
    assert registry.main(["--check", str(tmp_path)]) == 1


def test_what_an_editor_hides_is_no_entry(tmp_path: Path) -> None:
    """Emacs locks a.toml with the link .#a.toml to nothing."""
    (tmp_path / "rib-plugin-x.toml").write_text(ENTRY)
    (tmp_path / ".#a.toml").symlink_to("ada@host.1:2")
    (tmp_path / "b.toml").symlink_to("nothing")
    (tmp_path / ".c.toml").write_text("name = 1")
    (tmp_path / "d.toml").mkdir()
    assert read_entries(tmp_path) == [entry()]


def test_what_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for name in ("rib-plugin-x", "rib-plugin-y"):
        (plugins / f"{name}.toml").write_text("name = 1")
    read = Path.read_text

    def refused(path: Path, **settings: Any) -> str:
        if path.name == "rib-plugin-x.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **settings)

    monkeypatch.setattr(Path, "read_text", refused)
    assert registry.main(["--check", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "rib-plugin-x.toml cannot be read: [Errno 13] Permission denied" in err
    assert "rib-plugin-y.toml: name: Input should be a valid string" in err


def test_an_index_that_is_no_text_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugins").mkdir()
    assert registry.main([str(tmp_path)]) == 0
    (tmp_path / "index.json").write_bytes(b"\xff")
    assert registry.main(["--check", str(tmp_path)]) == 1
    assert "Stale: index.json." in capsys.readouterr().err
    assert registry.main([str(tmp_path)]) == 0
    assert registry.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.json").mkdir()
    for arguments in ([], ["--check"]):
        assert registry.main([*arguments, str(tmp_path)]) == 1
        assert "index.json" in capsys.readouterr().err


def test_a_mistyped_option_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugins").mkdir()
    with pytest.raises(SystemExit) as stopped:
        registry.main(["--chekc", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--chekc" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plugins"]


def test_every_first_party_plugin_has_an_entry_and_nobody_else_says_so() -> None:
    entries = {e.name: e for e in read_entries(FOLDER / "plugins")}
    folders = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    own = {name for name, e in entries.items() if e.tier == "first-party"}
    assert own == folders == FIRST_PARTY
    for name in own:
        project = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
        assert entries[name].summary == project["description"]
        assert entries[name].repository == f"plugins/{name}"


def test_the_schema_knows_the_kinds_and_the_fields() -> None:
    schema = json.loads((FOLDER / "schema.json").read_text())
    assert set(schema["properties"]) == set(Entry.model_fields)
    assert set(schema["properties"]["provides"]["propertyNames"]["enum"]) == set(KINDS)
    assert set(schema["properties"]["tier"]["enum"]) == set(registry.TIERS)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("A method.", "two\\nlines"), "expected one line of printable text"),
        (("A method.", "\\u001b[31mred"), "expected one line of printable text"),
        (("A method.", "FILL IN"), "still to be filled in"),
        (("https://example.org/x", "http://example.org/x"), "repository: String should match"),
        (("https://example.org/x", "https://me:secret@example.org/x"), "repository: String should"),
        (('["Ada"]', "[]"), "maintainers: Tuple should have at least 1 item"),
        (('"listed"', '"trusted"'), "tier: Input should be 'first-party', 'verified', 'listed' or"),
        (("method =", "methods ="), "provides.methods"),
        (("x/mine", "mine"), "provides.method.0: String should match pattern"),
        (('tier = "listed"', 'teir = "listed"'), "Did you mean 'tier'?"),
        (('"rib-plugin-x"', '"Rib_Plugin_X"'), "name: String should match"),
        (('"rib-plugin-x"', '"rib-plugin-y"'), "name: expected 'rib-plugin-x', got 'rib-plugin-y'"),
        (("name =", "name"), "is not valid TOML"),
        (
            ("example.org/x", "example.org/x\\u001b[31m"),
            "repository: Value error, expected one line",
        ),
        (('"x/mine"', '"x/mine", "x/mine"'), "provides: Value error, the method 'x/mine' is named"),
        (('"listed"', '"first-party"'), "a plugin of this repository is first-party and has the"),
        (
            ("https://example.org/x", "plugins/rib-plugin-x"),
            "any other has another tier and an URL",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_bad_entry_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "rib-plugin-x.toml").write_text(ENTRY.replace(*change))
    with pytest.raises(RegistryError, match=re.escape(said)) as error:
        read_entries(tmp_path)
    assert "rib-plugin-x.toml" in str(error.value)


def test_all_problems_are_told_at_once_and_one_plugin_name_has_one_owner(tmp_path: Path) -> None:
    (tmp_path / "rib-plugin-x.toml").write_text(ENTRY)
    assert [e.name for e in read_entries(tmp_path)] == ["rib-plugin-x"]
    (tmp_path / "rib-plugin-y.toml").write_text(ENTRY.replace("plugin-x", "plugin-y"))
    (tmp_path / "rib-plugin-z.toml").write_text("name = 1")
    with pytest.raises(RegistryError) as error:
        read_entries(tmp_path)
    text = str(error.value)
    assert "rib-plugin-y.toml: the plugin name 'x' is taken by rib-plugin-x." in text
    assert text.count("rib-plugin-z.toml") == 5


OWN = ENTRY.replace("https://example.org", "plugins").replace("listed", "first-party")


@pytest.mark.parametrize(
    ("folder", "name", "said"),
    [
        ("rib-plugin-x", "rib-plugin-x", ""),
        ("rib-plugin-x", "rib-plugin-y", "plugins/rib-plugin-x holds no distribution 'rib-plugin-"),
        ("elsewhere", "rib-plugin-x", "plugins/rib-plugin-x holds no distribution 'rib-plugin-x'"),
        ("x", "rib-plugin-x", "expected the repository 'plugins/rib-plugin-x'"),
    ],
)
def test_first_party_is_what_lies_in_this_repository(
    folder: str, name: str, said: str, tmp_path: Path
) -> None:
    entries, project = tmp_path / "registry" / "plugins", tmp_path / "plugins" / folder
    for one in (entries, project):
        one.mkdir(parents=True)
    (project / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    place = "plugins/x" if folder == "x" else "plugins/rib-plugin-x"
    (entries / "rib-plugin-x.toml").write_text(OWN.replace("plugins/x", place))
    if said:
        with pytest.raises(RegistryError, match=re.escape(said)):
            read_entries(entries)
    else:
        assert [e.tier for e in read_entries(entries)] == ["first-party"]


@pytest.mark.parametrize(
    ("kind", "tier", "said"),
    [
        ("method", "listed", "rib-plugin-a.toml: the method name 'mine' is taken by rib-plugin-x."),
        ("method", "verified", "rib-plugin-a.toml: the method name 'mine' is taken by rib-plugin"),
        ("method", "archived", ""),
        ("metric", "listed", ""),
    ],
)
def test_a_short_name_that_another_entry_has_is_refused(
    kind: str, tier: str, said: str, tmp_path: Path
) -> None:
    """With the second one installed, `--method mine` of today would stop."""
    (tmp_path / "rib-plugin-x.toml").write_text(ENTRY.replace("listed", "archived"))
    other = (
        ENTRY.replace("plugin-x", "plugin-a").replace("x/mine", "a/mine").replace("method", kind)
    )
    (tmp_path / "rib-plugin-a.toml").write_text(other.replace("listed", tier))
    if said:
        with pytest.raises(RegistryError, match=re.escape(said)):
            read_entries(tmp_path)
    else:
        assert len(read_entries(tmp_path)) == 2


def test_a_plugin_without_components_is_called_after_its_distribution() -> None:
    assert entry(provides={}).plugins == ("x",)
    assert load_registry().get("runlog").name == "rib-plugin-runlog"


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    for text in ("{", "[]", '{"format": "rib-harness.registry/9", "plugins": []}'):
        path.write_text(text)
        registry._read.cache_clear()
        with pytest.raises(RegistryError, match=r"index\.json"):
            load_registry(path)


def test_all_but_the_registrys_own_verb_goes_on_with_a_damaged_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "index.json"
    path.write_text("{")
    monkeypatch.setattr(registry, "_index", lambda: path)
    registry._read.cache_clear()
    registry._warn.cache_clear()
    out, _ = call(capsys, "list-plugins", "--json")
    assert {one["registry"] for one in json.loads(out)} == {None}
    call(capsys, "describe-plugin", "digits")
    call(capsys, "plugins", "uninstall", "digits", expect=1)  # there is no terminal to ask on
    call(capsys, "plugins", "install", "rib-plugin-x", expect=1)
    (told,) = caplog.records
    assert f"index {path} cannot be read" in told.getMessage()
    assert told.getMessage().endswith("No plugin counts as known.") and told.exc_info is None
    for arguments in (["list"], ["search", "x"], ["show", "timm"]):
        _, err = call(capsys, "registry", *arguments, expect=1)
        assert "cannot be read" in err


def test_reading_it_imports_no_plugin() -> None:
    code = (
        "import sys; from rib_harness.cli import _code\n"
        "assert _code(['registry', 'list']) == 0\n"
        "assert not [m for m in sys.modules if m.startswith('rib_plugin_')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# What is asked of it


def test_search_wants_every_word_somewhere() -> None:
    known = Registry([entry(), entry("rib-plugin-y", summary="Another Thing.", provides={})])
    assert [e.name for e in known.search("method MINE")] == ["rib-plugin-x"]
    assert [e.name for e in known.search("rib-plugin")] == ["rib-plugin-x", "rib-plugin-y"]
    assert known.search("method thing") == []


def test_an_entry_is_found_by_distribution_or_plugin() -> None:
    known = Registry([entry()])
    for name in ("rib-plugin-x", "rib_plugin_X", "x"):
        assert known.get(name) == entry()
    with pytest.raises(RibError, match="Did you mean 'rib-plugin-x'"):
        known.get("rib-plugin-xx")
    for name in ("rib-plugin-digits", "digits"):
        with pytest.raises(RibError, match=r"rib-plugin-digits .* is installed, and not in the"):
            known.get(name)


@pytest.mark.parametrize("name", ["lwf", "cl-methods/lwf"])
def test_a_known_component_that_is_not_installed_ends_in_the_install_line(name: str) -> None:
    line = "It is provided by rib-plugin-cl-methods, which is not installed: "
    with pytest.raises(UnknownComponentError) as error:
        Catalog().bind("method", f"{name}:alpha=2")
    assert str(error.value).endswith(line + "pip install rib-plugin-cl-methods")
    with pytest.raises(UnknownComponentError) as error:
        Catalog().get("metric", name)  # another kind
    assert "install" not in str(error.value)


@pytest.mark.parametrize("name", ["lwf", "cl-methods/lwf"])
def test_show_ends_in_the_install_line_too(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rib_harness.catalog.load_catalog", lambda **_: Catalog())
    _, err = call(capsys, "show", name, expect=1)
    assert err.endswith("which is not installed: pip install rib-plugin-cl-methods\n")


def test_where_it_is_installed_there_is_no_install_line() -> None:
    """It is blocked here, and that is what is said."""
    catalog = load_catalog(environ={"RIB_PLUGINS": "digits"})
    with pytest.raises(UnknownComponentError) as error:
        catalog.get("method", "lwf")
    assert "cl-methods (blocked: not in RIB_PLUGINS)" in str(error.value)
    assert "pip install" not in str(error.value)


def test_several_providers_are_all_named() -> None:
    known = Registry([entry(), entry("rib-plugin-y", provides={"method": ["y/mine"]})])
    assert known.install_hint("method", "mine", []) == (
        "provided by rib-plugin-x and by rib-plugin-y, of which none is installed: pip install ONE"
    )
    assert "rib-plugin-y, which is not" in known.install_hint("method", "mine", ["rib_plugin_x"])
    assert known.install_hint("method", "other", []) == ""


# The verbs


def test_list_and_search_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(call(capsys, "registry", "list", "--json")[0])
    assert {one["name"] for one in listed} >= FIRST_PARTY
    digits = next(one for one in listed if one["name"] == "rib-plugin-digits")
    assert digits["installed"] == "0.1.0"
    out, _ = call(capsys, "registry", "search", "flyp", "soups")
    assert "rib-plugin-cl-methods" in out and "rib-plugin-timm" not in out
    out, err = call(capsys, "registry", "search", "no-such-word")
    assert (out, "No known plugin speaks of 'no-such-word'" in err) == ("", True)
    out, _ = call(capsys, "registry", "show", "timm")
    assert "timm/timm" in out and "first-party: of this repository" in out
    assert max(map(len, out.splitlines())) <= 80
    _, err = call(capsys, "registry", "show", "tim", expect=1)
    assert "Did you mean 'timm'" in err
    _, err = call(capsys, "registry", "lst", expect=2)
    assert "Did you mean 'list'?" in err


def test_a_table_goes_nowhere_where_stdout_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: Python's documentation of sys.stdout, which may be None."""
    monkeypatch.setattr(sys, "stdout", None)
    assert cli._code(["registry", "list"]) == 0


def test_a_reader_that_has_gone_is_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich would exit with 1."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(BrokenPipeError):
        console().print("A line.")
    monkeypatch.undo()
    with suppress(BrokenPipeError):
        stdout.close()


def test_describe_plugin_prints_the_entry_of_a_first_party_plugin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The installed metadata may be of an older checkout, so its summary is not compared."""
    for plugin in load_catalog().plugins:
        if plugin.distribution in FIRST_PARTY:
            out, err = call(capsys, "describe-plugin", plugin.name, "--toml")
            file = FOLDER / "plugins" / f"{plugin.distribution}.toml"
            wanted = tomllib.loads(file.read_text(encoding="utf-8"))
            made = tomllib.loads(out)
            assert {**made, "summary": ""} == {**wanted, "summary": ""}
            assert list(made) == list(wanted)
            assert err == ""


def somebodys(folder: Path, metadata: str, source: str = "RIB_PLUGIN_API = 1\n") -> None:
    """Install a distribution into a folder, without an installer."""
    info = folder / "rib_plugin_some-2.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fake_some.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rib-plugin-some\n{metadata}")
    (info / "entry_points.txt").write_text("[rib_harness]\nsome = fake_some\n")


@pytest.mark.parametrize(
    ("said", "repository", "maintainers"),
    [
        ("Project-URL: Source, https://example.org/s\nAuthor-email: Ada <a@example.org>\n",
         "https://example.org/s", ["Ada"]),
        ("Home-page: https://example.org/h\nAuthor: Ada, Eve\nMaintainer: Joe\n",
         "https://example.org/h", ["Joe"]),
        ("Project-URL: Docs, https://example.org/d\n"
         "Project-URL: Homepage, https://example.org/h\n"
         "Project-URL: Repository, https://example.org/r\nAuthor-email: a@example.org\n",
         "https://example.org/r", ["a@example.org"]),
        ("", "FILL IN", ["FILL IN"]),
    ],
)  # fmt: skip
def test_describe_plugin_reads_what_a_package_says_of_itself(
    said: str, repository: str, maintainers: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    somebodys(tmp_path / "site", f"Version: 2.0\nSummary: Something.\n{said}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out, err = call(capsys, "describe-plugin", "rib-plugin-some", "--toml")
    sys.modules.pop("fake_some", None)
    assert tomllib.loads(out) == {
        "name": "rib-plugin-some", "summary": "Something.", "repository": repository,
        "maintainers": maintainers, "tier": "listed", "provides": {},
    }  # fmt: skip
    assert ("[project.urls]" in err) == (repository == "FILL IN")


def test_what_a_package_says_is_printed_without_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = 'raise ValueError("\\x1b]0;title\\x07\\u202e red")\n'
    somebodys(tmp_path / "site", "Version: 2.0\n", source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("COLUMNS", "200")
    out, _ = call(capsys, "list-plugins")
    assert "ValueError: \ufffd]0;title\ufffd\ufffd red" in out
    _, err = call(capsys, "describe-plugin", "some", expect=1)
    assert "\ufffd]0;title\ufffd\ufffd red" in err
    assert not {"\x1b", "\x07", "\u202e"} & {*out, *err}


def test_another_distribution_of_a_first_party_name_is_not_described_as_it() -> None:
    """The name of an installed one, and a plugin that it does not have."""
    mine = Plugin("digits", "rib-plugin-digits", "0.1.0", "ok")
    assert describe((mine,))["tier"] == "first-party"
    other = describe((replace(mine, name="true"),))
    assert other["tier"] == "listed" and other["repository"] != "plugins/rib-plugin-digits"


def test_describe_plugin_needs_one_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    somebodys(tmp_path / "site", "Version: 2.0\n", "1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    _, err = call(capsys, "describe-plugin", "some", "--toml", expect=1)
    assert "(rib-plugin-some 2.0) is broken: ZeroDivisionError" in err
    _, err = call(capsys, "describe-plugin", "som", expect=1)
    assert "No installed plugin is called 'som'. Did you mean 'some'" in err


@pytest.mark.slow
def test_the_wheel_carries_the_index(tmp_path: Path) -> None:
    """Built by the build backend itself, without isolation."""
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.read("rib_harness/registry.json").decode()
    assert inside == (FOLDER / "index.json").read_text(encoding="utf-8")
