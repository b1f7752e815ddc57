"""A tiny store, its data and its caches, and commands in processes that cost little.

torch is imported once: each command runs in a forked child of a process that has it, and that
has computed nothing. What the child does is what the program does: arguments, exit code, both
streams, signals.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

HERE = Path(__file__).parent

#: Seconds after which a command hangs; a whole run takes about one.
LIMIT = 90.0

#: The arms of an undisturbed store.
ARMS = ("ft", "wise-ft")

#: Two sources, a reference, features.
RUN = ("run", "--suite", "faulty", "--device", "cpu", "--workers", "2", "--features", "6")

#: A fit of two stages, long enough to be stopped; saved at each update.
LONG = (
    "run", "--suite", "faulty", "--device", "cpu", "--workers", "2", "-d", "fold", "-d", "tarred",
    "-m", "faulty:stages=2", "--set", "recipe.epochs=6", "--save-every", "0",
)  # fmt: skip

#: The embedded suite, for what it keeps in the cache.
DIGITS = ("evaluate", "-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "1",
          "--device", "cpu")  # fmt: skip

#: Plugins that a command loads; others cost time.
PLUGINS = "faulty,cl-methods,metrics,digits"

#: Of scores, of matrices and of features.
METRICS = ("ece", "nll", "brier", "top-5", "gain", "ri", "cka", "frechet", "logit-kl")

#: What says a result again without computing steps.
READERS: dict[str, tuple[str, ...]] = {
    "results": ("results", "--format", "json"),
    "metrics": (
        "results",
        *(f"--metric={name}" for name in METRICS),
        "--format",
        "csv",
    ),
    "compare": ("compare", *ARMS, "--format", "json"),
}


@dataclass(frozen=True)
class Said:
    """What a command left. A code of None: it did not end."""

    arguments: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err


Meanwhile = Callable[[int, float], None]


@dataclass
class World:
    """A folder of one's own for one fault.

    Args:
        folder: holds data, cache and stores.
        expected: what an undisturbed store says.
        environ: variables of all its commands.
    """

    folder: Path
    expected: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The store that commands use unless they are told of another."""
        return self.folder / "store"

    @property
    def cache(self) -> Path:
        """Packs, indices, identities."""
        return self.folder / "cache"

    @property
    def data(self) -> Path:
        """Datasets and weights."""
        return self.folder / "data"

    def command(
        self,
        *arguments: str,
        store: Path | None = None,
        environ: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        meanwhile: Meanwhile | None = None,
        limit: float = LIMIT,
    ) -> Said:
        """A verb with its arguments; the store is added.

        Args:
            arguments: as for the program.
            store: another one than the world's.
            environ: more variables.
            before: called in the child first.
            meanwhile: called here again and again, with the child's id and the seconds so far.
            limit: seconds after which it is killed.
        """
        pid, files = self.start(*arguments, store=store, environ=environ, before=before)
        return self.wait(pid, files, arguments, meanwhile=meanwhile, limit=limit)

    def start(
        self,
        *arguments: str,
        store: Path | None = None,
        environ: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> tuple[int, tuple[Path, Path]]:
        """Start it; returns its process id, and where its streams go."""
        name = f"{time.monotonic_ns():x}"
        files = (self.folder / f"{name}.out", self.folder / f"{name}.err")
        with_store = arguments[0] not in ("list", "show", "list-plugins")
        whole = (*arguments, "--store", str(store or self.store)) if with_store else arguments
        if arguments[0] in ("run", "evaluate", "plan"):
            whole += ("--data-root", str(self.data))
        variables = {
            "RIB_CACHE": str(self.cache),
            "FAULT_WEIGHTS": str(self.data / "small.safetensors"),
            **self.environ,
            **(environ or {}),
        }
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _child(whole, files, variables, self.folder, before)
        return pid, files

    def wait(
        self,
        pid: int,
        files: tuple[Path, Path],
        arguments: tuple[str, ...] = (),
        *,
        meanwhile: Meanwhile | None = None,
        limit: float = LIMIT,
    ) -> Said:
        """Until it ends, or the limit kills it and all that it started."""
        begun, code = time.monotonic(), None
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            elapsed = time.monotonic() - begun
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            if elapsed > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            if meanwhile is not None:
                meanwhile(pid, elapsed)
            time.sleep(0.003)
        for file in files:
            file.touch()  # it may have been killed before it opened them
        out, err = (file.read_text("utf-8", "replace") for file in files)
        for file in files:
            file.unlink()
        return Said(arguments, code, out, err, time.monotonic() - begun)

    def run(self, *arms: str, **how: Any) -> Said:
        """The command that made the undisturbed store, or with other arms."""
        return self.command(*RUN, *(f"--method={arm}" for arm in arms or ARMS), **how)

    def fresh(self) -> None:
        """No store: the next run computes everything."""
        shutil.rmtree(self.store, ignore_errors=True)

    def without(self, *caches: str) -> None:
        """Empty these parts of the cache."""
        for name in caches:
            shutil.rmtree(self.cache / name, ignore_errors=True)

    def steps(self, file: str = "done.json") -> list[Path]:
        """Folders of the finished steps that hold such a file, in a stable order."""
        return sorted(path.parent for path in self.store.glob(f"steps/*/{file}"))


def _child(
    arguments: Sequence[str],
    files: tuple[Path, Path],
    variables: Mapping[str, str],
    folder: Path,
    before: Callable[[], None] | None,
) -> NoReturn:
    """Be the program, from its arguments to its exit code; never comes back."""
    code = 70
    try:
        os.setsid()
        for number, file in enumerate(files, 1):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(n, "w", closefd=False), "utf-8", write_through=n == 2)
            for n in (1, 2)
        )
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.environ.update(variables)
        os.chdir(folder)
        sys.argv = ["rib-harness", *arguments]
        if before is not None:
            before()
        from rib_harness.cli import main

        try:
            main()
            code = 0
        except SystemExit as error:
            code = _code(error)
        except BaseException:
            traceback.print_exc()
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]  # a thread that stays keeps us
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            code = 120
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


def make_data(folder: Path) -> None:
    """A folder and a tar of pictures that can be learned, and a net's weights."""
    from safetensors.torch import save_file

    from rib_harness.testing import tiny_classifier

    rng = np.random.default_rng(0)
    for name in ("fold", "tarred"):
        for k in range(4):
            for i in range(6):
                file = folder / name / str(k) / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture(rng, k).save(file)
    with tarfile.open(folder / "tarred.tar", "w") as archive:
        for file in sorted((folder / "tarred").rglob("*.png")):
            archive.add(file, str(file.relative_to(folder / "tarred")))
    shutil.rmtree(folder / "tarred")
    save_file(dict(tiny_classifier(4).state_dict()), folder / "small.safetensors")


def picture(rng: np.random.Generator, k: int) -> Image.Image:
    """A picture of class k: noise, and a bright channel or none."""
    pixels = rng.integers(0, 160, (8, 8, 3))
    if k < 3:
        pixels[:, :, k] += 90
    return Image.fromarray(pixels.astype(np.uint8))


def install(folder: Path) -> None:
    """Have this process find the faulty plugin beside this file, as if it were installed."""
    info = folder / "rib_plugin_faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rib-plugin-faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rib_harness]\nfaulty = rib_plugin_faulty.plugin\n")
    sys.path.insert(0, str(folder))
    os.environ["RIB_PLUGINS"] = PLUGINS


def warm() -> None:
    """Import what commands import, and compute nothing: threads do not survive a fork."""
    import accelerate  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo  # by the first optimizer

    torch.set_num_threads(1)
    from rib_harness.catalog import load_catalog
    from rib_harness.cli import VERBS, cli
    from rib_harness.options import load_target

    for verb in VERBS:
        cli.get_command(None, verb)  # type: ignore[arg-type]
    for name in ("device", "fit", "task", "evaluate", "describe", "data", "probe"):
        importlib.import_module(f"rib_harness.engine.{name}")
    catalog = load_catalog()
    for kind in ("method", "metric"):
        for component in catalog.list(kind):
            load_target(component.spec.target, component.what)


def results_of(text: str) -> list[dict[str, Any]]:
    """The numbers of `results --format json`, without when and where they were made."""
    runs = json.loads(text)
    for run in runs:
        run.pop("provenance")
    return sorted(runs, key=lambda run: str(run["method"]))
