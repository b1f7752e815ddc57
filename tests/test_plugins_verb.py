"""`rib-harness plugins`: shows what it will run, asks, runs the environment's own installer."""

from __future__ import annotations

import base64
import hashlib
import os
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
from rib_harness.cli import plugins_
from rib_harness.errors import RibError
from rib_harness.registry import Entry, Registry, load_registry

PLUGIN = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1

@hookimpl
def register_methods():
    return [MethodSpec(name="mine", target="rib_x.mine:Mine", summary="A method.")]
"""


def wheel(folder: Path, version: str, name: str = "rib-plugin-x", entry: str = "x") -> Path:
    """A wheel is a zip of the package and of what it says of itself."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": PLUGIN,
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
        ("./rib_plugin_x-1.0-py3-none-any.whl", "rib-plugin-x"),
        ("./folder", ""),
    ],
)
def test_a_name_a_path_or_an_url(text: str, distribution: str) -> None:
    wheel(Path(), "1.0")
    Path("folder").mkdir()
    fields: dict[str, Any] = {"summary": "s", "repository": "https://example.org/x",
                              "maintainers": ("Ada",), "tier": "listed"}  # fmt: skip
    registry = Registry([Entry(name="known-elsewhere", **fields)])
    assert plugins_.wanted(text, registry) == distribution


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
        assert install == [sys.executable, "-m", "pip", "install", "rib-plugin-x"]
        assert uninstall == [sys.executable, "-m", "pip", "uninstall", "--yes", "rib-plugin-x"]


def test_without_any_installer_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path, "", monkeypatch)
    monkeypatch.setattr(plugins_, "find_spec", lambda name: None)
    with pytest.raises(RibError, match="has no pip, and uv did not make it"):
        plugins_.installer()


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
    out, _ = call(capsys, "install", "rib-plugin-timm", "--", "--pre", "-c", "a b", expect=1)
    assert " -m pip install --pre -c 'a b' rib-plugin-timm\n" in out
    assert "Installed now: rib-plugin-timm 0.1.0, " in out
    assert "The registry knows the name rib-plugin-timm: timm's pretrained" in out
    assert "first-party: of this repository, tested with it" in out
    assert "provides timm/timm" in out
    _, err = call(capsys, "install", "rib-plugin-x", "rib-plugin-y", expect=2)
    assert "One plugin at a time, got also 'rib-plugin-y'" in err


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
    wanted = [sys.executable, "-m", "pip", "install", "--upgrade", "rib-plugin-digits"]
    assert ran == ([wanted] if done else [])


# In an environment of its own


class Scratch:
    """A virtual environment that finds this rib-harness and its dependencies, and wheels here."""

    def __init__(self, folder: Path):
        venv.create(folder / "venv", with_pip=True)
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.python = folder / "venv" / "bin" / "python"
        roots = [Path(rib_harness.__file__).parents[1], sysconfig.get_path("purelib")]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RIB_"))},
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [self.python, "-P", "-c", "from rib_harness.cli import main; main()", *arguments],
            capture_output=True, text=True, env=self.environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's python lies elsewhere")
def test_install_upgrade_uninstall(tmp_path: Path) -> None:
    """From wheels made here; the network is never asked."""
    rib = Scratch(tmp_path)
    first = wheel(rib.wheels, "1.0")

    assert "Nothing was done" in rib("plugins", "install", "rib-plugin-x", expect=1)
    assert "'x'" in rib("plugins", "uninstall", "x", "--yes", expect=1)

    out = rib("plugins", "install", "rib-plugin-x==1.0", "--yes")
    assert "Will run: " in out and " -m pip install rib-plugin-x==1.0" in out
    assert "x (rib-plugin-x 1.0): ok; offers x/mine" in out

    wheel(rib.wheels, "1.1")
    out = rib("plugins", "upgrade", "x", "--yes")
    assert "Installed now: rib-plugin-x 1.0, index" in out
    assert "x (rib-plugin-x 1.1): ok" in out

    # An option of the installer, behind --.
    out = rib("plugins", "install", str(first), "--yes", "--", "--force-reinstall", "--no-deps")
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
