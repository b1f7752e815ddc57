"""Starting is light: listing and planning import no torch. And every option has its variable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from rib_harness.cli import VERBS, _code, cli
from rib_harness.cli.options import run_options
from rib_harness.config import RunConfig
from rib_harness.loading import HEAVY

#: What planning needs of these: scikit-learn draws the embedded digits once, into the cache.
MAY_PLAN_WITH = {"sklearn", "scipy", "pandas"}


def heavy_after(code: str, path: Path | None = None) -> set[str]:
    """The heavy packages that a fresh process has imported after some code."""
    report = (
        f"\nimport json, sys\nprint('\\n' + json.dumps(sorted({set(HEAVY)!r} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def running(*arguments: str) -> str:
    return f"from rib_harness.cli import _code\nassert _code({list(arguments)!r}) == 0"


# No torch


@pytest.mark.parametrize(
    "code",
    [
        "import rib_harness",
        "from rib_harness import load_catalog; load_catalog()",
        "from rib_harness import RunResult, Results, run, evaluate, Matrix, Cell",
        "import rib_harness.plan, rib_harness.runner, rib_harness.results, rib_harness.config",
    ],
)
def test_importing_is_light(code: str) -> None:
    assert heavy_after(code) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list-plugins"],
        ["list-plugins", "--json"],
        ["list", "methods"],
        ["list", "backbones"],
        ["list", "datasets"],
        ["list", "metrics"],
        ["list", "suites", "--json"],
        ["show", "lwf"],
        ["show", "timm", "--json"],
        ["show", "digits-rib"],
        ["study", "list"],
        *([verb, "--help"] for verb in VERBS),
    ],
    ids=" ".join,
)
def test_looking_is_light(arguments: list[str]) -> None:
    assert heavy_after(running(*arguments)) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--method", "lwf"],
        ["plan", "--method", "soup", "--json"],
        ["run", "--method", "lwf", "--dry-run"],
        ["evaluate", "--dry-run"],
    ],
    ids=" ".join,
)
def test_planning_needs_no_torch(arguments: list[str]) -> None:
    assert heavy_after(running(*arguments)) <= MAY_PLAN_WITH


def test_the_check_sees_an_import() -> None:
    assert "torch" in heavy_after("import torch")
    assert "torch" in heavy_after("from rib_harness import Classifier")


def test_the_check_sees_an_import_below_a_verb(tmp_path: Path) -> None:
    (tmp_path / "fake_heavy.py").write_text("import torch\nRIB_PLUGIN_API = 1\n")
    info = tmp_path / "fake_heavy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-heavy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rib_harness]\nheavy = fake_heavy\n")
    assert "torch" in heavy_after(running("list", "methods"), tmp_path)
    assert heavy_after(running("list", "methods", "--no-plugin", "heavy"), tmp_path) == set()


# Variables

#: Option of `run` → what its variable may say, the field of the configuration, and its value.
VARIABLES: dict[str, tuple[str, str, Any]] = {
    "suite": ("imagenet-rib", "suite", "imagenet-rib"),
    "backbone": ("digits-vit digits-conv", "backbone", ("digits-vit", "digits-conv")),
    "dataset": ("digits-r digits-a", "dataset", ("digits-r", "digits-a")),
    "data": (
        "objectnet:at=x imagenet-c:extra=true",
        "data",
        ("objectnet:at=x", "imagenet-c:extra=true"),
    ),
    "limit": ("3", "limit", 3),
    "expect": ("imagenet=78.5 imagenet-a=3/9", "expect", {"imagenet": "78.5", "imagenet-a": "3/9"}),
    "allow-mismatch": ("1", "allow_mismatch", True),
    "allow-full-disk": ("1", "allow_full_disk", True),
    "offline": ("1", "offline", True),
    "accept-license": ("objectnet", "accept_license", ("objectnet",)),
    "store": ("results", "store", Path("results")),
    "data-root": ("data", "data_root", Path("data")),
    "config": ("some.toml", "workers", 7),
    "requires": ("rib-harness>=0.1", "requires", ("rib-harness>=0.1",)),
    "device": ("cpu", "device", "cpu"),
    "workers": ("2", "workers", 2),
    "threads": ("2", "threads", 2),
    "eval-batch-size": ("8", "eval_batch_size", 8),
    "no-plugin": ("timm metrics", "no_plugin", ("timm", "metrics")),
    "method": ("lwf:alpha=0.5 ft", "method", ("lwf:alpha=0.5", "ft")),
    "seed": ("0 3", "seed", (0, 3)),
    "set": ("recipe.lr=0.5 recipe.max_steps=none", "recipe", {"lr": "0.5", "max_steps": "none"}),
    "preset": ("paper", "preset", "paper"),
    "search": ("alpha=0,1 lwf:alpha=2,3", "search", ("alpha=0,1", "lwf:alpha=2,3")),
    "trials": ("8", "trials", 8),
    "sweep": ("alpha=0,1", "sweep", ("alpha=0,1",)),
    "save-every": ("1.5", "save_every", 1.5),
    "probe-every": ("5", "probe_every", 5),
    "probe-images": ("6", "probe_images", 6),
    "features": ("7", "features", 7),
    "tracker": ("wandb tensorboard", "tracker", ("wandb", "tensorboard")),
    "rerun": ("lwf digits-r", "rerun", ("lwf", "digits-r")),
}


def configured(*arguments: str) -> RunConfig:
    """The configuration that `run` would make."""
    made: list[RunConfig] = []

    @click.command()
    @run_options(train=True)
    def probe(config: RunConfig) -> None:
        made.append(config)

    done = CliRunner().invoke(probe, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return made[0]


@pytest.mark.parametrize("name", VARIABLES)
def test_every_option_has_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, field, value = VARIABLES[name]
    Path("some.toml").write_text("workers = 7\n")
    assert getattr(configured(), field) != value
    monkeypatch.setenv("RIB_" + name.replace("-", "_").upper(), text)
    assert getattr(configured(), field) == value


def options(verb: str) -> dict[str, click.Option]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    found = [p for p in command.params if isinstance(p, click.Option) and p.name != "help"]
    return {p.opts[0].removeprefix("--"): p for p in found}


@pytest.mark.parametrize("verb", VERBS)
def test_every_variable_is_named_after_its_option(verb: str) -> None:
    for name, option in options(verb).items():
        assert option.envvar == "RIB_" + name.replace("-", "_").upper()
        assert option.show_envvar


def test_no_option_and_no_setting_was_forgotten_here() -> None:
    assert set(options("run")) == {*VARIABLES, "dry-run", "reproduce"}
    fields = {field.replace("_", "-") for field in RunConfig.model_fields}
    assert fields - {"recipe"} == set(VARIABLES) - {"set", "config"}


def test_later_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOML, then environment, then command line."""
    Path("run.toml").write_text(
        'seed = 1\nmethod = "ft"\nlimit = 1\n[recipe]\nlr = 1.0\nepochs = 1'
    )
    assert configured("-c", "run.toml").seed == (1,)
    monkeypatch.setenv("RIB_SEED", "2")
    monkeypatch.setenv("RIB_LIMIT", "2")
    monkeypatch.setenv("RIB_SET", "recipe.lr=2")
    config = configured("-c", "run.toml", "--seed", "3")
    assert (config.method, config.limit, config.seed) == (("ft",), 2, (3,))
    assert config.recipe == {"lr": "2", "epochs": 1}


def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RIB_METHOD", "RIB_SUITE", "RIB_SEED", "RIB_STORE", "RIB_LIMIT"):
        monkeypatch.setenv(name, "")
    assert configured() == RunConfig()


def test_a_plan_follows_the_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {
        "SUITE": "digits-rib",
        "METHOD": "ft lwf",
        "SEED": "3 4",
        "DATASET": "digits-r digits-a",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RIB_{name}", value)
    monkeypatch.setenv("RIB_STORE", str(tmp_path / "kept"))
    assert _code(["plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["suite"] == "digits-rib"
    trained = [step["id"] for step in plan["steps"] if step["kind"] == "finetune"]
    assert trained == [
        f"finetune/digits-vit/{method}/{source}/seed{seed}"
        for method in ("ft", "lwf")
        for seed in (3, 4)
        for source in ("digits-a", "digits-r")
    ]
    assert not (tmp_path / "kept").exists()  # a plan writes nothing
    (tmp_path / "kept").write_text("")
    assert _code(["plan", "--json"]) == 1
    assert capsys.readouterr().err == (
        f"Error: The store {tmp_path / 'kept'} is a file; expected a folder.\n"
    )
    monkeypatch.setenv("RIB_SUITE", "digit-rib")
    monkeypatch.delenv("RIB_STORE")
    assert _code(["plan"]) == 1
    assert "No suite is called 'digit-rib'. Did you mean 'digits-rib'" in capsys.readouterr().err


# Exit codes and messages


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rnu"], 2, "No verb 'rnu'. Did you mean 'run'?"),
        (["run"], 2, "Name a method, e.g. --method lwf; see `rib-harness list methods`."),
        (["run", "--limit", "many"], 2, "Invalid value for '--limit'"),
        (["run", "--set", "lr=1"], 2, "--set: expected recipe.KEY=VALUE, got 'lr=1'."),
        (["list", "things"], 2, "'things' is not one of"),
        (["plan", "-m", "lfw"], 1, "Error: No method is called 'lfw'. Did you mean 'lwf'"),
        (["plan", "-m", "lwf:alfa=1"], 1, "has no option 'alfa'. Did you mean 'alpha'?"),
        (
            ["plan", "--set", "recipe.lrr=1"],
            1,
            "recipe.lrr is no setting. Did you mean 'recipe.lr'",
        ),
        (["plan", "-d", "digits-q"], 1, "has no member 'digits-q'. Did you mean"),
        (["plan", "--requires", "rib-plugin-x>=3"], 1, "pip install 'rib-plugin-x>=3'"),
        (["show", "lfw"], 1, "Error: No component is called 'lfw'. Did you mean 'lwf'"),
        (["plan", "-c", "none.toml"], 1, "The configuration file none.toml does not exist."),
        (["plan", "-m", "lwf", "--no-plugin", "cl-methods"], 1, "cl-methods (blocked: blocked by"),
        (
            ["show", "cl-methods/lwf", "--no-plugin", "cl-methods"],
            1,
            "which is blocked: blocked by",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_and_a_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _code(arguments) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
