"""The command line as a user meets it: output, exit codes, stdout and stderr."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import namedtuple
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch

from rib_harness import DatasetSpec, LabelSpace, cli
from rib_harness.catalog import load_catalog
from rib_harness.cli.tables import print_results
from rib_harness.config import Recipe
from rib_harness.results import Results, collect
from rib_harness.store import Store
from rib_harness.study import load_studies
from rib_harness.testing import catalog_with

SMALL = ["-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "2",
         "--set", "recipe.epochs=1", "--store", "store"]  # fmt: skip


def call(*arguments: str, expect: int = 0) -> None:
    """In this process; stdout and stderr go to capsys."""
    assert cli._code(list(arguments)) == expect


def child(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    code = "from rib_harness.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two methods."""
    folder = tmp_path_factory.mktemp("run") / "store"
    arguments = [*SMALL[:-1], str(folder), "-m", "ft", "-m", "wise-ft:alpha=0.25"]
    assert cli._code(["run", *arguments]) == 0
    return folder


def test_the_table_fits_80_columns_and_has_no_colour_without_a_terminal(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    call("results", "--store", str(store))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert re.search(r"digits-a +\d+ +\d+\.\d\d +[+-]\d+\.\d\d", out)
    assert re.search(r"mean / mRI +\d+\.\d\d +[+-]\d+\.\d\d +[+-]\d+\.\d\d", out)
    assert "2 of 8" in out


def written(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program where both have this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", streams[0])
        patched.setattr("sys.stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
    for stream in streams:
        stream.flush()
    out, err = (cast("io.BytesIO", one.buffer).getvalue().decode(encoding) for one in streams)
    return int(cast("int", ended.value.code)), out, err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_encode_is_written_as_it_can(
    store: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--store", str(store))
    verbs: list[tuple[str, ...]] = [
        ("results", *at), ("results", "--format", "csv", *at), ("results", "--format", "md", *at),
        ("results", "--format", "latex", *at), ("results", "--format", "model-card", "-m", "ft",
        *at), ("compare", "ft", "wise-ft:alpha=0.25", *at), ("list", "methods"),
        ("show", "feature-distill"), ("list-plugins",), ("plan", "-m", "ft"), ("study", "list"),
    ]  # fmt: skip
    for verb in verbs:
        code, out, err = written(monkeypatch, encoding, *verb)
        assert (code, err) == (0, ""), verb
        assert not re.search(r"\\u[0-9a-f]{4}", out), verb
        assert verb[0] != "compare" or "B - A [95 %]" in out


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("ascii", r"\xe9->"), ("latin-1", "é->"), ("cp437", "é->"), ("cp932", r"\xe9→")],
)
def test_an_error_is_told_in_every_encoding(
    encoding: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = written(monkeypatch, encoding, "results", "--store", "nowhere-é→\udce9")
    assert code == 1
    assert f"nowhere-{told}\\udce9" in err


def test_json_is_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "Größe → 大"
    study = load_studies()["sizes"].model_copy(update={"title": title})
    monkeypatch.setattr("rib_harness.study.load_studies", lambda: {"sizes": study})
    for encoding in ("ascii", "cp437", "utf-8"):
        _, out, _ = written(monkeypatch, encoding, "study", "list", "--json")
        assert json.loads(out)[0]["title"] == title
        _, out, _ = written(monkeypatch, encoding, "show", "feature-distill", "--json")
        assert "‖" in str(json.loads(out))


def test_a_narrow_terminal_cuts_no_column(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut would be a number; lines that are too long a terminal breaks by itself."""
    at = ("--store", str(store))
    for arguments in (("results", *at), ("compare", "ft", "wise-ft:alpha=0.25", "--cells", *at),
                      ("list-plugins",), ("plan", "-m", "ft"), ("list", "methods")):  # fmt: skip
        wide = written(monkeypatch, "utf-8", *arguments)[1]
        monkeypatch.setenv("COLUMNS", "20")
        narrow = written(monkeypatch, "utf-8", *arguments)[1]
        monkeypatch.delenv("COLUMNS")
        assert "…" not in narrow
        words = re.compile(r"[+-]\d+\.\d\d|\b[0-9a-f]{8}\b|forgot|gained|updates|summary|offers")
        assert set(words.findall(narrow)) == set(words.findall(wide)) != set()


def test_a_suite_without_a_reference_has_nothing_to_forget_and_is_complete(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = collect(Store(store))
    alone = [
        dataclasses.replace(run, matrix=dataclasses.replace(run.matrix, references=()))
        for run in results
    ]
    print_results(Results(alone, results.store), load_catalog())
    out = capsys.readouterr().out
    assert "INCOMPLETE" not in out
    assert re.search(r"^ ft .* – $", out, re.MULTILINE)


def test_every_form_of_the_results_has_the_same_numbers(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    call("results", "--store", str(store), "--format", "json")
    runs = json.loads(capsys.readouterr().out)
    assert [run["method"] for run in runs] == ["ft", "wise-ft:alpha=0.25"]
    wanted = {"suite", "backbone", "method", "options", "seed", "preset", "pre", "post", "ri",
              "mri", "sources", "complete", "provenance", "format"}  # fmt: skip
    assert wanted <= set(runs[0])
    call("results", "--store", str(store), "--format", "md")
    interval = runs[0]["interval"]
    shown = f"{runs[0]['mri']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"
    assert f"**{shown}**" in capsys.readouterr().out
    call("results", "--store", str(store), "--format", "csv", "--method", "ft")
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + 3 + 2 * 3
    steps = [json.loads(path.read_text()) for path in store.glob("steps/*/done.json")]
    assert {step["provenance"]["threads"] for step in steps} == {1}  # see conftest.py


def test_results_of_nothing_and_of_a_missing_cell_exit_with_1(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("results", "--store", "nowhere", expect=1)
    assert "There is no store nowhere" in capsys.readouterr().err
    call("results", "--store", str(store), "--method", "lfw", expect=1)
    assert "No results" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    record = json.loads(next(damaged.glob("runs/*.json")).read_text())
    key = record["cells"]["post"]["digits-a"]["digits-r"]
    (damaged / "steps" / key / "done.json").unlink()
    call("results", "--store", str(damaged), expect=1)
    captured = capsys.readouterr()
    assert "INCOMPLETE" in captured.err
    assert re.search(r"mean / mRI .*INCOMPLETE", captured.out)
    assert "1 cells are missing, e.g. digits-a → digits-r" in captured.out
    call("results", "--store", str(damaged), "--format", "json", expect=1)
    runs = json.loads(capsys.readouterr().out)
    assert sorted((run["complete"], run["mri"] is None) for run in runs) == [
        (False, True),
        (True, False),
    ]


def test_a_second_run_computes_nothing_and_prints_the_same_table(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = [*SMALL[:-1], str(store), "-m", "ft", "-m", "wise-ft:alpha=0.25"]
    call("run", *arguments)
    once = capsys.readouterr()
    assert "left: 0 updates, 0 images to score" in once.err
    call("results", "--store", str(store))
    assert capsys.readouterr().out == once.out


def test_why_explains_a_key_and_what_differs(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = [*SMALL[:-1], str(store), "-m", "ft"]
    call("plan", *arguments, "--json")
    step = next(s for s in json.loads(capsys.readouterr().out)["steps"] if s["kind"] == "finetune")
    call("why", step["key"][:10], "--store", str(store))
    out = capsys.readouterr().out
    assert "recipe.lr" in out
    assert "It differs in:" in out
    call("why", step["id"], "--store", str(store), "--json")
    assert [one["key"] for one in json.loads(capsys.readouterr().out)] == [step["key"]]
    call("why", "finetune/digits-conv/ft/digits-b/seed0", "--store", str(store), expect=1)
    assert "Did you mean 'finetune/digits-conv/ft/digits-" in capsys.readouterr().err


def test_plan_and_dry_run_compute_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    call("plan", *SMALL, "-m", "ft", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["totals"] == {
        "steps": 11,
        "done": 0,
        "images": sum(step["images"] for step in plan["steps"]),
        "updates": sum(step["updates"] for step in plan["steps"]),
    }
    assert {"kind", "id", "key", "done"} <= set(plan["steps"][0])
    call("run", *SMALL, "-m", "ft", "--dry-run")
    assert "11 steps, 0 done" in capsys.readouterr().out
    assert not Path("store").exists()


def test_the_plan_says_how_much_disk_is_needed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the files that the run wrote."""
    arguments = [*SMALL[:-1], "empty", "-m", "ft", "-m", "wise-ft:alpha=0.25"]
    call("plan", *arguments, "--json")
    disk = json.loads(capsys.readouterr().out)["disk"]
    written = sum(path.stat().st_size for path in store.glob("steps/*/model.safetensors"))
    assert disk["checkpoints"] == pytest.approx(written, rel=0.05)
    assert 2 * written / 4 < disk["fits"] < 2 * written  # one fit, twice, with its momentum
    assert disk["packs"] == 3 * 32**2 * (10 + 14 + 22)
    assert disk["scores"] > 0
    call("plan", *arguments)
    assert (
        "disk: about 2.4 MB in the store (checkpoints 1.2 MB, fits 1.2 MB, scores 7.4 kB)"
        in capsys.readouterr().out
    )
    call("plan", *arguments[:-5], str(store), *arguments[-4:], "--json")
    assert set(json.loads(capsys.readouterr().out)["disk"].values()) == {0}


def test_a_run_that_does_not_fit_says_so_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 54_000)
    with monkeypatch.context() as patched:
        patched.setattr("rib_harness.runner._Walk.pixels", lambda *_: pytest.fail("it started"))
        call("run", *SMALL, "-m", "ft", expect=1)
    err = capsys.readouterr().err
    assert re.search(r"still needs about 1\.\d MB in the store store \(checkpoints 5\d\d", err)
    assert "its disk has 54.0 kB free" in err
    assert list(Path("store/steps").iterdir()) == []


def test_a_run_that_fits_no_more_once_its_pictures_are_decoded_trains_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 10**12, 54_000)
    call("run", *SMALL, "-m", "ft", expect=1)
    assert "its disk has 54.0 kB free" in capsys.readouterr().err
    assert list(Path("store/steps").iterdir()) == []


def free(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """Bytes that are free on every disk when it is asked for; the last ones from then on."""
    usage, left = namedtuple("usage", "total used free"), list(sizes)
    monkeypatch.setattr(
        "rib_harness.disk.shutil.disk_usage",
        lambda _: usage(9, 9, left.pop(0) if len(left) > 1 else left[0]),
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["rum"], 2, "No verb 'rum'. Did you mean 'run'?"),
        (["run"], 2, "Name a method, e.g. --method lwf"),
        (["run", "-m", "lfw"], 1, "No method is called 'lfw'. Did you mean 'lwf'"),
        (["run", "-m", "lwf:alfa=1"], 1, "has no option 'alfa'. Did you mean 'alpha'?"),
        (["run", "-m", "lwf:alpha=x"], 1, "option alpha=x: Input should be a valid number"),
        (["plan", "-m", "wise-ft:alpha=2"], 1, "expected alpha in 0 … 1, got 2.0"),
        (["run", "-m", "ft", "--suite", "digit-rib"], 1, "Did you mean 'digits-rib'"),
        (["run", "-m", "ft", "-b", "digits-vti"], 1, "Did you mean 'digits-vit'"),
        (["run", "-m", "ft", "-d", "digits-q"], 1, "has no member 'digits-q'"),
        (["run", "-m", "ft", "-d", "imagenet-a"], 1, "It is a member of imagenet-rib"),
        (["run", "-m", "ft", "-d", "digits-train"], 1, "It is a dataset with the role 'train'"),
        (["run", "-m", "ft", "-d", "digits-a"], 1, "name at least two members"),
        (["run", "-m", "ft", "--set", "lr=1"], 2, "--set: expected recipe.KEY=VALUE, got 'lr=1'"),
        (["run", "-m", "ft", "--set", "recipe.precision=fp8"], 1, "fp32', 'bf16' or 'fp16'"),
        (["run", "-m", "ft", "--set", "recipe.lrr=1"], 1, "Did you mean 'recipe.lr'"),
        (["plan", "-m", "ft", "--set", "recipe.optimizer=sdg"], 1, "Did you mean 'sgd'"),
        (
            ["plan", "-m", "ft", "--set", "recipe.schedule=cosin"],
            1,
            "Choose one of: cosine, linear",
        ),
        (["plan", "-m", "ft", "--set", "recipe.schedule=Cosine"], 1, "'Cosine' is not known"),
        (["evaluate", "--dry-run", "--device", "gpu"], 1, "expected cpu, cuda or mps, got 'gpu'"),
        (["plan", "-m", "ft", "--device", "gpu"], 1, "expected cpu, cuda or mps, got 'gpu'"),
        (["run", "-m", "ft", "--config", "none.toml"], 1, "none.toml does not exist"),
        (["run", "-m", "ft", "--suite", "imagenet-rib"], 1, "use --data-root DIR"),
        (["run", "-m", "ft", "-b", "timm:resnet18"], 1, "the suite digits-rib is over digits-11"),
        (["run", "-m", "ft", "--no-plugin", "cl-methods"], 1, "cl-methods (blocked"),
        (["run", "-m", "cl-methods/ft", "--no-plugin", "cl-methods"], 1, "which is blocked"),
        (["run", "-m", "ft", "--requires", "rib-plugin-x>=0.3"], 1, "pip install 'rib-plugin-x"),
        (["list", "planets"], 2, "planets"),
        (["show", "lwff"], 1, "Did you mean 'lwf'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_without_a_traceback(
    arguments: Sequence[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*arguments, expect=code)
    captured = capsys.readouterr()
    assert text in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_planning_tells_all_that_a_run_would_refuse_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    absent = "cuda" if torch.backends.mps.is_available() else "mps"
    tracker = next(t for t in ("wandb", "mlflow", "trackio") if find_spec(t) is None)
    call("plan", *SMALL, "-m", "ft", "-m", "lwf:alpha=-1", "--device", absent, "--tracker", tracker,
         "--set", "recipe.optimizer=lbfgs", "--set", "recipe.schedule=cosin", expect=1)  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    for text in ("recipe.optimizer=lbfgs", "recipe.schedule: 'cosin'", f"{absent} is not there",
                 f"--tracker {tracker}: its package", "expected alpha ≥ 0"):  # fmt: skip
        assert text in said
    assert not Path("store").exists()


def test_the_help_names_every_key_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    call("run", "--help")
    out = " ".join(capsys.readouterr().out.split())
    listed = out.split("Keys: ")[1].split(".")[0]
    assert listed.split(", ") == list(Recipe.model_fields)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rib_harness.catalog.load_catalog", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli._code(["list-plugins"])


def test_a_newer_store_is_refused_with_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    Path("store").mkdir()
    Path("store/store.json").write_text('{"format": 3}')
    call("run", *SMALL, "-m", "ft", expect=1)
    assert "has format 3" in capsys.readouterr().err
    assert list(Path("store").iterdir()) == [Path("store/store.json")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_exits_with_130_says_what_is_kept_and_goes_on(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", *SMALL[:-4], "--set", "recipe.epochs=100", "--store", "store", "-m", "ft"]
    running = child(*arguments, RIB_SAVE_EVERY="0")
    deadline = time.monotonic() + 120
    while not list(Path("store").glob("work/*/*/state-0.safetensors")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert re.search(r"Stopped\. \d+ of 11 steps are kept in store; the same command", err)
    assert re.search(r"^digits-conv/ft/digits-[ar]/seed0: stopped; loss ", err, re.MULTILINE)
    assert "Traceback" not in err
    assert list(Path("store").glob("work/*/*/state-0.safetensors"))
    call(*arguments)
    again = capsys.readouterr()
    assert re.search(r"goes on at step [1-9]\d* of 100", again.err)
    assert "INCOMPLETE" not in again.out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_run_whose_terminal_is_closed_saves_and_ends_with_the_same_weights() -> None:
    arguments = ["run", *SMALL[:-4], "--set", "recipe.epochs=60", "-m", "ft", "--store"]
    assert cli._code([*arguments, "calm"]) == 0
    code = "from rib_harness.cli import main; main()"
    ours, theirs = os.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "store", "--save-every", "1000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # The leader of a session whose terminal this is: it gets SIGHUP when that is closed.
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
    )
    os.close(theirs)
    shown = b""
    while b"loss" not in shown:  # beside the bar of a fit
        shown += os.read(ours, 4096)
    os.close(ours)
    assert running.wait(60) == 130, shown.decode()
    assert list(Path("store").glob("work/*/*/state-0.safetensors"))
    assert cli._code([*arguments, "store"]) == 0
    weights = list(Path("calm").glob("steps/*/model.safetensors"))
    assert len(weights) == 2
    for path in weights:
        assert (Path("store") / path.relative_to("calm")).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_processes_on_one_store_do_not_disturb_each_other() -> None:
    both = [child("run", *SMALL, "-m", "ft", "-m", "lwf") for _ in range(2)]
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert cli._code(["run", *SMALL[:-1], "alone", "-m", "ft", "-m", "lwf"]) == 0
    for path in Path("alone/steps").glob("*/scores.parquet"):
        shared = Path("store") / path.relative_to("alone")
        assert pq.read_table(shared).equals(pq.read_table(path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_is_a_clear_error_and_the_store_stays_whole() -> None:
    Path("disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", "disk"]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a file system here")
    try:
        arguments = ["run", *SMALL[:-1], "disk/store", "-m", "ft"]
        _, err = child(*arguments).communicate(timeout=300)
        assert "still needs about" in err and "kB free" in err
        running = child(*arguments, "--allow-full-disk", RIB_SAVE_EVERY="1000")
        _, err = running.communicate(timeout=300)
        assert running.returncode == 1, err
        assert "is full" in err
        assert "Traceback" not in err
        subprocess.run(["mount", "-o", "remount,size=20m", "disk"], check=True)
        assert cli._code(arguments) == 0
    finally:
        subprocess.run(["umount", "disk"], check=False)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rib_harness", "plan", "--help"], capture_output=True, text=True
    )
    assert done.stdout.startswith("Usage: rib-harness plan [OPTIONS]"), done.stderr


def test_what_is_printed_at_exit_is_not_among_the_results() -> None:
    code = "import atexit; atexit.register(print, 'late'); from rib_harness.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "list-plugins", "--json"], capture_output=True, text=True
    )
    assert (done.returncode, "late" in done.stderr) == (0, True)
    json.loads(done.stdout)


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"])
def test_a_stdout_that_takes_nothing_is_no_traceback(stdout: str) -> None:
    code = "from rib_harness.cli import main; main()"
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -c '{code}' list-plugins --json {stdout}"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in stdout else 0)


def test_the_program_called_from_python_leaves_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    capfd.readouterr()
    os.write(1, b"mine")
    assert capfd.readouterr() == ("mine", "")


@pytest.mark.parametrize("asked", ["list methods", "list-plugins --json"])
def test_a_reader_that_has_gone_is_no_failure(asked: str) -> None:
    code = "from rib_harness.cli import main; main()"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"'{sys.executable}' -c '{code}' {asked} | true"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Failing:
    """A dataset whose code has mistakes of its own."""

    def locate(self, root: Path | None) -> str:
        raise KeyError("folder")

    def open(self, root: Path | None) -> Any:
        raise FileNotFoundError("labels.csv")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["data", "list"], 0, "'testing/failing' failed: KeyError: 'folder'"),
        (["data", "info", "failing"], 0, "'testing/failing' failed: KeyError: 'folder'"),
        (["data", "path", "failing"], 1, "'testing/failing' failed: KeyError: 'folder'"),
        (["data", "verify", "failing"], 1, "failed: FileNotFoundError: labels.csv"),
        (["data", "prepare", "failing", "--data-root", "d"], 1, "failed: KeyError: 'folder'"),
        (["data", "make", "failing", "--data-root", "d"], 1, "failing cannot be made here"),
    ],
)
def test_a_dataset_whose_code_fails_is_one_message_in_every_verb_of_data(
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    spec = DatasetSpec(name="failing", target="", summary="", label_space=LabelSpace("tens", 10))
    catalog = catalog_with((spec, Failing))
    monkeypatch.setattr("rib_harness.catalog.load_catalog", lambda **_: catalog)
    monkeypatch.chdir(tmp_path)
    assert cli._code(arguments) == code
    told = capsys.readouterr()
    assert said in " ".join(told.err.split())
    assert code or "digits-a" in told.out or "testing/failing" in told.out


def test_a_metrics_inputs_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._code(["show", "ece"]) == 0
    assert "Scores" not in capsys.readouterr().out
    assert cli._code(["show", "ece", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"] == []
