"""`rib-harness plugins`: shows what it will run, asks, runs the environment's own installer."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import rib_harness
from rib_harness import cli
from rib_harness.catalog import Plugin
from rib_harness.cli import plugins_
from rib_harness.errors import RibError
from rib_harness.registry import Entry, Registry, load_registry

#: The installer that the project's own development group brings.
UV = Path(sysconfig.get_path("scripts")) / "uv"

PLUGIN = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1

@hookimpl
def register_methods():
    return [MethodSpec(name="mine", target="rib_x.mine:Mine", summary="A method.")]
"""


def wheel(
    folder: Path, version: str, name: str = "rib-plugin-x", entry: str = "x", source: str = PLUGIN
) -> Path:
    """A wheel is a zip of the package and of what it says of itself."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    if entry:
        files[f"{info}/entry_points.txt"] = f"[rib_harness]\n{entry} = {module}\n"
    record = f"{info}/RECORD,,\n"
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        record += f"{path},sha256={digest.rstrip('=')},{len(text.encode())}\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(inside, text)
    return path


# What a NAME means


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("rib-plugin-x", "rib-plugin-x"),
        ("RIB_plugin.x==0.3", "rib-plugin-x"),
        ("rib-plugin-x[extra]>=1,<2", "rib-plugin-x"),
        ("rib-plugin-x @ git+https://example.org/x@v1", "rib-plugin-x"),
        ("known-elsewhere", "known-elsewhere"),
        ("git+https://example.org/x", ""),
        ("https://example.org/x.whl", ""),
        ("https://example.org/rib_plugin_x-1.0-py3-none-any.whl#sha256=5e", "rib-plugin-x"),
        ("rib-plugin-x @ https://example.org/a/other-1.0-py3-none-any.whl", "rib-plugin-x"),
        ("./rib_plugin_x-1.0-py3-none-any.whl", "rib-plugin-x"),
        ("rib_plugin_x-1.0-py3-none-any.whl", "rib-plugin-x"),
        ("./rib_plugin_z-1.0.tar.gz", "rib-plugin-z"),
        ("./odd.tar.gz", ""),
        ("./folder", ""),
        ("folder", ""),
        ("./project", "rib-plugin-here"),
        ("rib-plugin-folder", "rib-plugin-folder"),
        ("..", ""),
    ],
)
def test_a_name_a_path_or_an_url(text: str, distribution: str) -> None:
    wheel(Path(), "1.0")
    for folder in ("folder", "project", "rib-plugin-folder"):
        Path(folder).mkdir()
    for file in ("rib_plugin_z-1.0.tar.gz", "odd.tar.gz"):
        Path(file).touch()
    Path("project/pyproject.toml").write_text('[project]\nname = "rib_plugin.Here"\n')
    fields: dict[str, Any] = {"summary": "s", "repository": "https://example.org/x",
                              "maintainers": ("Ada",), "tier": "listed"}  # fmt: skip
    registry = Registry([Entry(name="known-elsewhere", **fields)])
    found = plugins_.wanted(text, registry)
    assert found.distribution == distribution
    by_name = text.startswith(("rib-plugin", "RIB", "known")) and "@" not in text
    assert bool(found.url) is not by_name


def test_a_folder_is_a_path_and_the_installer_is_told_so() -> None:
    """Source: pip's rule, by which a bare name is a path only if it has a / or a first dot."""
    Path("mine").mkdir()
    Path("pyproject.toml").write_text('[project]\nname = "rib-plugin-here"\n')
    here = plugins_.wanted(".", Registry())
    assert (here.text, here.distribution) == (".", "rib-plugin-here")
    assert here.url == Path().resolve().as_uri()
    assert plugins_.wanted("..", Registry()).url == Path("..").resolve().as_uri()
    assert plugins_.wanted("mine", Registry()).text == "./mine"


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("git+https://me:secret@example.org/a@b/x", "https://example.org/a"),
        ("git+https://example.org/x@feature/y#subdirectory=z", "https://example.org/x"),
        ("git+ssh://git@example.org/x", "ssh://example.org/x"),
        ("https://example.org/a@b/x-1+cpu.whl#sha256=5e", "https://example.org/a@b/x-1+cpu.whl"),
        ("file:///a@b/x", "file:///a@b/x"),
    ],
)
def test_an_url_as_the_installer_records_it(url: str, recorded: str) -> None:
    """Source: PEP 610 and PEP 440's direct references."""
    assert plugins_._bare(url) == recorded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("numpy", "'numpy' is not known as a plugin: its name does not begin with 'rib-plugin-'"),
        ("timm", "Did you mean 'rib-plugin-timm'"),
        ("--index-url=x", "Expected the name of a plugin, got the option"),
        ("./no-such-folder", "There is no file or folder ./no-such-folder."),
        ("no-such-1.0-py3-none-any.whl", "There is no file or folder no-such-1.0-py3-none-any.whl"),
        ("rib plugin x", "Expected a distribution such as rib-plugin-x"),
        ("", "Expected a distribution such as rib-plugin-x"),
        ("odd.whl", "odd.whl is no wheel: "),
        ("x" * 5000, "is not known as a plugin"),
        ("./" + "x" * 5000, "There is no file or folder"),
    ],
)
def test_what_is_no_plugin_is_refused(text: str, said: str) -> None:
    Path("odd.whl").touch()
    with pytest.raises(RibError) as error:
        plugins_.wanted(text, load_registry())
    assert said in str(error.value)


def test_only_installed_plugins_are_touched() -> None:
    assert plugins_.installed("digits") == "rib-plugin-digits"
    assert plugins_.installed("rib_plugin_digits") == "rib-plugin-digits"
    for name in ("numpy", "rib-harness", "rib-plugin-nope"):
        with pytest.raises(RibError, match=f"No installed plugin is called '{name}'"):
            plugins_.installed(name)


# Which installer


def environment(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\n{line}\n")
    monkeypatch.setattr(sys, "prefix", str(folder))


@pytest.mark.parametrize(
    ("line", "on_path", "uv"),
    [("uv = 0.5.1", True, True), ("uv = 0.5.1", False, False), ("uvx = 1", True, False)],
)
def test_uv_where_uv_made_the_environment_else_pip(
    line: str, on_path: bool, uv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(tmp_path, line, monkeypatch)
    monkeypatch.setattr(plugins_.shutil, "which", lambda name: f"bin/{name}" if on_path else None)
    install = plugins_.installer_command(["install", "rib-plugin-x"])
    uninstall = plugins_.installer_command(["uninstall", "rib-plugin-x"])
    if uv:
        assert install == ["uv", "pip", "install", "--python", sys.executable, "rib-plugin-x"]
        assert uninstall == ["uv", "pip", "uninstall", "--python", sys.executable, "rib-plugin-x"]
    else:
        pip = [sys.executable, "-P", "-m", "pip"]
        assert install == [*pip, "install", "rib-plugin-x"]
        assert uninstall == [*pip, "uninstall", "--yes", "rib-plugin-x"]


def test_without_any_installer_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path, "", monkeypatch)
    monkeypatch.setattr(plugins_.metadata, "distributions", lambda **_: iter(()))
    with pytest.raises(RibError, match="has no pip, and uv did not make it"):
        plugins_.installer()


def test_looking_for_the_installer_leaves_setuptools_as_it_was() -> None:
    """`find_spec("pip")` makes setuptools take the process for pip, and refuse to be imported."""
    code = (
        "from rib_harness.cli.plugins_ import installer; installer(); import torch; "
        "from torch.utils import cpp_extension"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Never silently


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; nothing is."""
    commands: list[list[str]] = []
    run = subprocess.run

    def only_looking(command: list[str], **settings: Any) -> Any:
        if "list-plugins" in command:
            return run(command, **settings)
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(plugins_.subprocess, "run", only_looking)
    return commands


def plugin(distribution: str, name: str, url: str = "", version: str = "1.0") -> Plugin:
    return Plugin(
        name, distribution, version, "blocked", url=url, source="local" if url else "index"
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int) -> tuple[str, str]:
    assert cli._code(["plugins", *arguments]) == expect
    told = capsys.readouterr()
    return told.out, told.err


def test_without_a_terminal_and_without_yes_nothing_is_done(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIB_YES", "1")  # no variable says yes
    for verb, name in (("install", "rib-plugin-x"), ("upgrade", "timm"), ("uninstall", "timm")):
        out, err = call(capsys, verb, name, expect=1)
        assert "Nothing was done: there is no terminal to ask on. Add --yes." in err
        assert out.startswith("Will run: ")
    assert ran == []


def test_it_shows_what_it_will_run_and_what_the_registry_says(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = call(capsys, "install", "rib-plugin-x", expect=1)
    assert "The registry does not know it: look at its sources." in out
    out, _ = call(capsys, "install", "rib-plugin-timm", "--", "--pre", "-c=a b", expect=1)
    assert " -m pip install --pre '-c=a b' rib-plugin-timm\n" in out
    assert "Installed now: rib-plugin-timm 0.1.0, " in out
    assert "The registry knows the name rib-plugin-timm: timm's pretrained" in out
    assert "first-party: of this repository, tested with it" in out
    assert "provides timm/timm" in out
    _, err = call(capsys, "install", "rib-plugin-x", "rib-plugin-y", expect=2)
    assert "One plugin at a time, got also 'rib-plugin-y'" in err


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("rib-plugin-timm @ git+https://evil.example/t#egg=x", "https://evil.example/t"),
        ("./rib_plugin_timm-9.9-py3-none-any.whl", "/rib_plugin_timm-9.9-py3-none-any.whl"),
        (".", ""),
    ],
)
def test_the_registry_says_nothing_of_a_path_or_an_url(
    text: str, url: str, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Any wheel may bear the name of a first-party plugin."""
    wheel(Path(), "9.9", name="rib-plugin-timm", entry="true")
    Path("pyproject.toml").write_text('[project]\nname = "rib-plugin-timm"\n')
    out, _ = call(capsys, "install", text, expect=1)
    assert "first-party" not in out and "tested with it" not in out
    place = url if "//" in url else Path().resolve().as_uri() + url
    assert (
        "The registry knows a plugin of this name, from plugins/rib-plugin-timm; this one comes "
        f"from {place}, and the registry says nothing of it"
    ) in out


def test_a_folder_of_a_plugins_name_is_not_it(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rib-plugin-timm").mkdir()
    out, _ = call(capsys, "install", "rib-plugin-timm", expect=1)
    assert "The folder rib-plugin-timm here is not it: that would be ./rib-plugin-timm" in out


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("uninstall", ["-y", "torch"]),
        ("uninstall", ["torch"]),
        *(
            # What is refused is the same for both verbs: a few of one on each run.
            pytest.param(verb, options, marks=() if verb == "install" else pytest.mark.slow)
            for verb in ("install", "uninstall")
            for options in (["-r", "FILE"], ["-r"], ["-rFILE"], ["-qr"], ["-yrFILE"],
                            ["--requirement=FILE"], ["--requirement"], ["--requirem=FILE"],
                            ["--requirements=FILE"], ["-e./x"], ["--editable=./x"], ["--edit=./x"],
                            ["--group=dev"], ["--exact"], ["--upgrade-package=torch"],
                            ["--upgrade-package"], ["-Ptorch"], ["-UPtorch"],
                            ["--upgrade-group=dev"], ["--reinstall-package=torch"],
                            ["--target=x"], ["--targ=x"], ["-t"], ["-tx"], ["-qtx"],
                            ["--prefix=x"], ["--prefi=x"], ["--root=x"], ["--root"],
                            ["--python=x"], ["--python"], ["-px"], ["-p"], ["--system"])
        ),
    ],
)  # fmt: skip
def test_other_packages_are_not_touched(
    verb: str, options: list[str], ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = call(capsys, verb, "rib-plugin-digits", "--yes", "--", *options, expect=2)
    assert (
        "One plugin at a time, got also" in err
        or "would change other packages than the plugin, or another environment than this" in err
    )
    assert ran == []


def test_options_of_the_installer_go_on(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pre", "-e", "--no-deps", "-U", "--report=x", "--require-hashes", "-vvv",
               "--upgrade-strategy=eager", "--reinstall", "--root-user-action=ignore",
               "--python-version=3.12", "--system-certs", "--prefer-binary", "--trusted-host=x",
               "-Ceditable_mode=strict"]  # fmt: skip
    call(capsys, "install", "rib-plugin-digits", "--yes", "--", *options, expect=0)
    assert ran == [[sys.executable, "-P", "-m", "pip", "install", *options, "rib-plugin-digits"]]


# What came of it


def test_nothing_changed_is_not_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that leaves all as it was, of a folder that does not tell its name."""
    there = (plugin("Rib_Plugin.x", "x", "file:///w/x"), plugin("rib-plugin-y", "y"))
    monkeypatch.setattr(plugins_, "here", lambda: there)
    for wanted in (
        plugins_.Wanted("./x", "rib-plugin-x", "file:///w/x"),
        plugins_.Wanted("./x", "", "file:///w/x"),
    ):
        assert plugins_._came(wanted, there) == [there[0]]
    assert plugins_._came(plugins_.Wanted("./z"), there[:1]) == [there[1]]
    with pytest.raises(RibError, match="no plugin came of it"):
        plugins_._came(plugins_.Wanted("./z", "", "file:///w/z"), there)


@pytest.mark.parametrize(
    ("code", "stdout", "said"),
    [
        (7, "", "rib-harness does not start with it: exit code 7; the last line"),
        (0, "HELLO\n[]", "it writes to stdout while it is loaded, which is for results: 'HELLO"),
    ],
)
def test_a_plugin_that_breaks_loading_is_told_with_the_way_back(
    code: int, stdout: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = subprocess.CompletedProcess([], code, stdout, "first\nthe last line\n")
    monkeypatch.setattr(plugins_.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(RibError) as error:
        plugins_._show([plugin("Rib_Plugin_x", "x")])
    text = str(error.value)
    assert text.startswith(f"rib-plugin-x is installed, but {said}")
    assert text.endswith("To take it away again: rib-harness plugins uninstall rib-plugin-x")


def test_only_what_was_installed_is_loaded_and_what_is_blocked_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses = {one["name"]: one["status"] for one in plugins_.load_apart(["digits"])}
    assert statuses.pop("digits") == "ok" and set(statuses.values()) == {"blocked"}
    monkeypatch.setenv("RIB_PLUGINS", "timm, Rib_Plugin_Metrics")
    statuses = {one["name"]: one["status"] for one in plugins_.load_apart(["digits", "metrics"])}
    assert (statuses["digits"], statuses["metrics"]) == ("blocked", "ok")


def test_what_is_installed_is_read_without_loading_it() -> None:
    code = (
        "import sys; from rib_harness.cli.plugins_ import installed\n"
        "assert installed('digits') == 'rib-plugin-digits'\n"
        "assert not [m for m in sys.modules if m.startswith('rib_plugin_')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# A terminal


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(
    answer: str, done: bool, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No is the default."""
    import io

    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli._code(["plugins", "upgrade", "digits"]) == 0
    wanted = [sys.executable, "-P", "-m", "pip", "install", "--upgrade", "rib-plugin-digits"]
    assert ran == ([wanted] if done else [])


# In an environment of its own


class Scratch:
    """A virtual environment that finds this rib-harness and its dependencies, and wheels here.

    Args:
        folder: an empty one.
        tool: what makes the environment, and so installs into it: pip or uv.
    """

    def __init__(self, folder: Path, tool: str = "pip"):
        if tool == "pip":
            venv.create(folder / "venv", with_pip=True)
        else:
            made = [UV, "venv", "--quiet", "--offline", "--python", sys.executable]
            subprocess.run([*made, folder / "venv"], check=True)
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.python = folder / "venv" / "bin" / "python"
        roots = [Path(rib_harness.__file__).parents[1], sysconfig.get_path("purelib")]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "RIB_"))},
            "PATH": os.pathsep.join([str(UV.parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "UV_NO_CONFIG": "1",
            "UV_NO_INDEX": "1",
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(self.wheels),
            "UV_CACHE_DIR": str(folder / "cache"),
        }

    def __call__(self, *arguments: str, expect: int | None = 0) -> str:
        done = subprocess.run(
            [self.python, "-P", "-c", "from rib_harness.cli import main; main()", *arguments],
            capture_output=True, text=True, env=self.environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert expect in (None, done.returncode), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's python lies elsewhere")
@pytest.mark.parametrize(
    ("tool", "command"), [("pip", " -m pip install"), ("uv", "uv pip install")]
)
def test_install_upgrade_uninstall(tool: str, command: str, tmp_path: Path) -> None:
    """From wheels made here; the network is never asked."""
    rib = Scratch(tmp_path, tool)
    first = wheel(rib.wheels, "1.0")

    assert "Nothing was done" in rib("plugins", "install", "rib-plugin-x", expect=1)
    assert "'x'" in rib("plugins", "uninstall", "x", "--yes", expect=1)

    out = rib("plugins", "install", "rib-plugin-x==1.0", "--yes")
    assert re.search(rf"Will run: .*{command} .*rib-plugin-x==1\.0\n", out)
    assert "x (rib-plugin-x 1.0): ok; offers x/mine" in out

    wheel(rib.wheels, "1.1")
    out = rib("plugins", "upgrade", "x", "--yes")
    assert "Installed now: rib-plugin-x 1.0, index" in out
    assert "x (rib-plugin-x 1.1): ok" in out

    # An option of the installer, behind --; and once more, with nothing to do.
    for options in (["--", "--force-reinstall", "--no-deps"], []):
        out = rib("plugins", "install", str(first), "--yes", *options)
        assert "x (rib-plugin-x 1.0): ok" in out
    assert '"source": "local"' in rib("list-plugins", "--json")

    out = rib("plugins", "install", "rib-plugin-nope", "--yes", expect=1)
    assert "The installer failed with exit code 1; see above." in out

    nothing = wheel(rib.wheels, "1.0", name="rib-plugin-empty", entry="")
    out = rib("plugins", "install", str(nothing), "--yes", expect=1)
    assert "no plugin came of it" in out

    out = rib("plugins", "uninstall", "x", "--yes")
    assert "rib-plugin-x is gone." in out
    assert "rib-plugin-x" not in rib("list-plugins", "--json")


BREAKS = {
    "import os\nos._exit(7)\n": "rib-harness does not start with it: exit code 7",
    "class Odd(BaseException):\n    pass\nraise Odd('mine')\n": "Odd: mine",
    "import os\nos.write(1, b'HELLO')\n": "",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's python lies elsewhere")
def test_a_plugin_that_breaks_loading_can_be_taken_away_again(tmp_path: Path) -> None:
    """And another can be installed beside it."""
    rib = Scratch(tmp_path)
    wheel(rib.wheels, "1.0")
    for i, (source, said) in enumerate(BREAKS.items()):
        wheel(rib.wheels, f"1.{i}", name="rib-plugin-bad", entry="bad", source=source + PLUGIN)
        out = rib("plugins", "install", f"rib-plugin-bad==1.{i}", "--yes", expect=None)
        assert said in out
        assert "rib-harness plugins uninstall rib-plugin-bad" in out or not said
        out = rib("plugins", "install", "rib-plugin-x", "--yes")
        assert "x (rib-plugin-x 1.0): ok; offers x/mine" in out
        assert "rib-plugin-bad is gone." in rib("plugins", "uninstall", "bad", "--yes")
