"""Somebody else's package: pip install, and its method runs; a bad one is told and harms nobody."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PLUGIN = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1

@hookimpl
def register_methods():
    return [
        MethodSpec(name="mine", target="rib_mine.mine:Mine", summary="Fine-tunes, scaled.",
                   license="MIT", version=3)
    ]
"""

METHOD = '''
from dataclasses import dataclass

from rib_harness import Classifier, Task


@dataclass(frozen=True)
class Mine:
    """Fine-tune with a scaled loss.

        loss = scale · CE(f(x), y)

    Args:
        scale: of the loss.
    """

    scale: float = 0.5

    def finetune(self, task: Task) -> Classifier:
        def loss(model, batch):
            return self.scale * task.cross_entropy(model, batch)

        return task.fit(task.pretrained.copy(), loss)
'''

#: Distribution → name of its entry point, and its files. All but the first are at fault.
PACKAGES: dict[str, tuple[str, dict[str, str]]] = {
    "rib-mine": (
        "mine",
        {"rib_mine/__init__.py": "", "rib_mine/plugin.py": PLUGIN, "rib_mine/mine.py": METHOD},
    ),
    "rib-broken": ("broken", {"rib_broken/plugin.py": "import no_such_package\n"}),
    "rib-misspelled": (
        "misspelled",
        {"rib_misspelled/plugin.py": PLUGIN.replace("register_methods", "register_method")},
    ),
    "rib-clashing": ("digits", {"rib_clashing/plugin.py": PLUGIN}),
    "rib-heavy": ("heavy", {"rib_heavy/plugin.py": "import torch\n" + PLUGIN}),
    "rib-old": ("old", {"rib_old/plugin.py": PLUGIN.replace("API = 1", "API = 0")}),
}


def wheel(folder: Path, distribution: str) -> Path:
    """A wheel is a zip of the package and of what it says of itself."""
    name = distribution.replace("-", "_")
    entry_point, files = PACKAGES[distribution]
    info = f"{name}-1.5.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[rib_harness]\n{entry_point} = {name}.plugin\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        record += f"{path},sha256={digest.rstrip('=')},{len(text.encode())}\n"
    path = folder / f"{name}-1.5-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(inside, text)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which all the packages are installed."""
    # pip runs in a process of its own: importing it here would switch setuptools' distutils off for
    # every later test (peft's BOFT builds a kernel with it).
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet",
               "--disable-pip-version-check", "--target", str(target)]  # fmt: skip
    done = subprocess.run(
        [*command, *(str(wheel(wheels, name)) for name in PACKAGES)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target


def cli(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`rib-harness` in a fresh process that finds what is in the folder."""
    return subprocess.run(
        [sys.executable, "-c", "from rib_harness.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site), **variables},
    )


@pytest.fixture(scope="module")
def listed(site: Path) -> dict[str, dict[str, Any]]:
    """`list-plugins --json`, by distribution."""
    done = cli(site, "list-plugins", "--json")
    assert done.returncode == 0, done.stderr
    return {plugin["distribution"]: plugin for plugin in json.loads(done.stdout)}


def test_an_installed_package_is_listed(listed: dict[str, dict[str, Any]]) -> None:
    plugin = dict(listed["rib-mine"])
    assert isinstance(plugin.pop("seconds"), float)
    assert plugin.pop("url").endswith("/rib_mine-1.5-py3-none-any.whl")
    assert plugin == {
        "name": "mine",
        "distribution": "rib-mine",
        "version": "1.5",
        "status": "ok",
        "reason": "",
        "components": {"method": ["mine/mine"]},
        "heavy": [],
        "source": "local",
        "editable": False,
        "commit": "",
        "registry": None,
    }


@pytest.mark.parametrize(
    ("distribution", "status", "reason"),
    [
        ("rib-broken", "broken", "ModuleNotFoundError: No module named 'no_such_package'"),
        (
            "rib-misspelled",
            "broken",
            "ValueError: 'register_method' is no hook of rib-harness. Did you mean "
            "'register_methods'",
        ),
        ("rib-clashing", "conflict", "the plugin name 'digits' is also claimed by rib-plugin-digi"),
        (
            "rib-old",
            "incompatible",
            "rib_old.plugin is for API 0; this rib-harness speaks API 1",
        ),
    ],
)
def test_a_bad_package_is_listed_with_its_fault(
    distribution: str, status: str, reason: str, listed: dict[str, dict[str, Any]]
) -> None:
    plugin = listed[distribution]
    assert plugin["status"] == status
    assert plugin["reason"].startswith(reason)
    assert plugin["components"] == {}


def test_a_package_that_imports_torch_is_told(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["rib-heavy"]["status"] == "ok"
    assert "torch" in listed["rib-heavy"]["heavy"]
    assert [name for name, plugin in listed.items() if plugin["heavy"]] == ["rib-heavy"]


def test_the_first_party_plugins_are_as_before(listed: dict[str, dict[str, Any]]) -> None:
    for name in ("rib-plugin-cl-methods", "rib-plugin-digits", "rib-plugin-metrics"):
        assert (listed[name]["status"], listed[name]["reason"]) == ("ok", "")


def test_the_table_tells_the_same(site: Path) -> None:
    done = cli(site, "list-plugins", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for said in (
        "rib-mine 1.5 ok method: mine",
        "rib-broken 1.5 broken ModuleNotFoundError: No module named 'no_such_package'",
        "rib-clashing 1.5 conflict the plugin name 'digits' is also claimed by rib-plugin-digits",
        "rib-old 1.5 incompatible",
        "when listed: slow",
    ):
        assert said in text
    assert done.stderr == ""


def test_a_short_name_of_two_packages_needs_its_plugin(site: Path) -> None:
    done = cli(site, "plan", "--method", "mine")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: 2 methods are called 'mine': heavy/mine (rib-heavy 1.5), mine/mine (rib-mine 1.5). "
        "Use the full id.\n"
    )


def test_a_method_of_a_broken_package_fails_with_the_packages_own_error(site: Path) -> None:
    done = cli(site, "plan", "--method", "broken/anything")
    assert done.returncode == 1
    assert "which is broken: ModuleNotFoundError: No module named 'no_such_pac" in done.stderr
    assert "Traceback" not in done.stderr
    done = cli(site, "plan", "--method", "broken/anything", RIB_STRICT_PLUGINS="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "rib_broken" in done.stderr


def test_its_method_runs(site: Path, tmp_path: Path) -> None:
    """Trains, is scored beside a first-party method, and its results say whose code it was."""
    store = tmp_path / "store"
    asked = ["run", "-m", "mine", "-m", "mine:scale=0", "-m", "ft", "--no-plugin", "heavy",
             "-d", "digits-r", "-d", "digits-a", "--limit", "3", "--set", "recipe.epochs=1",
             "--device", "cpu", "--store", str(store)]  # fmt: skip
    done = cli(site, *asked)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

    shown = cli(site, "results", "--store", str(store), "--format", "json")
    assert shown.returncode == 0, shown.stderr
    results = {result["method"]: result for result in json.loads(shown.stdout)}
    assert set(results) == {"mine", "mine:scale=0.0", "ft"}
    mine = results["mine"]
    assert mine["complete"] is True
    assert mine["members"] == ["digits-a", "digits-r"]
    assert mine["options"] == {"scale": 0.5}
    (component,) = [c for c in mine["provenance"]["components"] if c["kind"] == "method"]
    assert len(component.pop("code")) == 64
    assert component == {
        "id": "mine/mine",
        "kind": "method",
        "target": "rib_mine.mine:Mine",
        "plugin": "mine",
        "distribution": "rib-mine",
        "version": "1.5",
        "editable": False,
        "commit": "",
    }

    weights: dict[str, dict[str, bytes]] = {}
    for path in store.glob("steps/*/model.safetensors"):
        _, _, method, source, _ = json.loads((path.parent / "done.json").read_text())["id"].split(
            "/"
        )
        weights.setdefault(method, {})[source] = path.read_bytes()

    # It really trained: otherwise than `ft`, and than a loss of zero does.
    for source in mine["members"]:
        assert len({weights[method][source] for method in results}) == 3
    still = results["mine:scale=0.0"]
    assert still["mri"] == 0.0  # a loss of zero moves nothing
    for source, row in still["post"].items():
        assert row == still["pre"], source

    again = cli(site, *asked)
    assert again.returncode == 0, again.stderr
    assert "left: 0 updates, 0 images to score" in again.stderr


def test_without_its_package_it_is_unknown(site: Path, tmp_path: Path) -> None:
    done = cli(tmp_path, "plan", "--method", "mine")
    assert done.returncode == 1
    assert "Error: No method is called 'mine'." in done.stderr


CRASHING = METHOD.replace(
    "        return task.fit(task.pretrained.copy(), loss)\n",
    "        model = task.fit(task.pretrained.copy(), loss, lr=0.5)\n        return modle\n",
)


def test_a_fit_that_other_code_began_starts_again(tmp_path: Path) -> None:
    """Source: the mended method in a store of its own."""
    folder = tmp_path / "site"
    for path, text in PACKAGES["rib-mine"][1].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / "rib_mine-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rib-mine\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[rib_harness]\nmine = rib_mine.plugin\n")

    def run(store: str) -> subprocess.CompletedProcess[str]:
        asked = ["run", "-m", "mine", "-d", "digits-r", "-d", "digits-a", "--limit", "3",
                 "--set", "recipe.epochs=2", "--store", str(tmp_path / store)]  # fmt: skip
        return cli(folder, *asked)

    (folder / "rib_mine/mine.py").write_text(CRASHING)
    done = run("store")
    assert done.returncode == 1 and "name 'modle' is not defined" in done.stderr
    (folder / "rib_mine/mine.py").write_text(METHOD)
    (folder / "rib_mine/.#mine.py").symlink_to("somebody@somewhere")  # as Emacs leaves one
    mended, fresh = run("store"), run("fresh")
    assert mended.returncode == fresh.returncode == 0
    assert "the code of mine/mine has changed since its fit was begun" in mended.stderr
    assert mended.stdout == fresh.stdout
