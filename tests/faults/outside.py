"""Faults from outside: signals, a second run, disks, terminals, configurations."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from judge import OtherError, SkippedError, check_clear, check_whole, heal, tail, verdict
from world import LONG, READERS, RUN, World, results_of


def kill(world: World, variant: str, rng: random.Random) -> str:
    """A signal at a random moment, the same command again, perhaps several times."""
    number = getattr(signal, variant)
    world.fresh()
    if rng.random() < 0.5:
        world.without("packs", "indices", "identities")
    whole = True
    for _ in range(rng.choice([1, 1, 2, 3])):
        # Of a run's steps, more often than of a time: machines are of any speed.
        after, seconds_ = rng.randrange(0, 34), rng.uniform(0, 2)
        by_steps = rng.random() < 0.7
        sent: list[float] = []

        def meanwhile(
            pid: int,
            seconds: float,
            after: int = after,
            wait: float = seconds_,
            by_steps: bool = by_steps,
            sent: list[float] = sent,
        ) -> None:
            there = len(list(world.store.glob("steps/*"))) if by_steps else 0
            if not sent and (there >= after if by_steps else seconds > wait):
                with suppress(ProcessLookupError):  # it has no group of its own yet
                    os.killpg(pid, number)
                    sent.append(seconds)  # once: a second one stops at once, wherever it comes

        said = world.run(meanwhile=meanwhile)
        if said.code == 0:
            break
        if said.code not in (-number, 130):
            check_clear(said, [str(world.folder)])
            raise OtherError(f"{variant} ends with {said.code}: {tail(said.err)}")
        if "Traceback (most recent call last)" in said.text:
            raise OtherError(f"{variant} ends in a traceback: {tail(said.err)}")
        whole = False
    if not heal(world, [], []):
        raise OtherError("the same command did not end well at once")
    return verdict(whole)


def stop_fit(world: World, variant: str, rng: random.Random) -> str:
    """A signal in a fit: the weights are the undisturbed."""
    number = getattr(signal, variant)
    store = world.folder / "fit"
    saves = rng.randint(0, 40)
    seen: set[int] = set()

    def meanwhile(pid: int, seconds: float) -> None:
        for path in _states(store):
            try:
                seen.add(path.stat().st_ino)
            except OSError:
                continue
        if len(seen) > saves:
            os.killpg(pid, number)

    said = world.command(*LONG, store=store, meanwhile=meanwhile)
    if said.code not in (0, -number, 130):
        raise OtherError(f"{variant} ends with {said.code}: {tail(said.err)}")
    again = world.command(*LONG, store=store)
    if again.code != 0:
        raise OtherError(f"the same command again ends with {again.code}: {tail(again.err)}")
    if results_of(world.command(*READERS["results"], store=store).out) != world.expected["long"]:
        raise OtherError("other numbers than undisturbed")
    return verdict(said.code == 0)


def _states(store: Path) -> list[Path]:
    try:
        return list(store.glob("work/*/*/st*.safetensors"))
    except OSError:  # folders come and go
        return []


def concurrent(world: World, variant: str, rng: random.Random) -> str:
    """Several runs on one store at once; one of them may be killed."""
    world.fresh()
    world.without("packs", "indices")
    how, _, many = variant.partition(" ")
    started = []
    for i in range(int(many)):
        arms = {"same": ("ft", "wise-ft"), "other": (("ft",), ("wise-ft",), ("lwf",))[i % 3]}
        chosen = arms.get(how, arms["same"])
        started.append(world.start(*RUN, *(f"--method={arm}" for arm in chosen)))
    if how == "killed":
        first = started.pop(0)
        after = rng.uniform(0.1, 2)

        def end(pid: int, seconds: float) -> None:
            if seconds > after:
                os.killpg(pid, signal.SIGKILL)

        world.wait(*first, meanwhile=end)
    for one in started:
        said = world.wait(*one)
        if said.code != 0:
            check_clear(said, [str(world.folder)])
            raise OtherError(f"one of {many} ends with {said.code}: {tail(said.err)}")
    said = world.run()
    if said.code:
        raise OtherError(f"afterwards: {tail(said.err)}")
    if how != "other":
        check_whole(world)
        return verdict(True)
    runs = results_of(world.command(*READERS["results"]).out)
    if [r for r in runs if r["method"] != "lwf"] != world.expected["results"]:
        raise OtherError("other numbers than undisturbed")
    return verdict(True)


@contextmanager
def mounted(folder: Path, size: int, *, read_only: bool = False) -> Iterator[None]:
    """A small file system there.

    Raises:
        SkippedError: this user may not mount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    options = f"size={size}".encode()
    if not hasattr(libc, "mount") or libc.mount(b"none", bytes(folder), b"tmpfs", 0, options):
        raise SkippedError(f"no mount here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(bytes(folder), 2)


def full(world: World, variant: str, rng: random.Random) -> str:
    """A disk that is full at a random moment; then there is room, and the same command."""
    place, _, how = variant.partition(" by ")
    world.fresh()
    world.without("packs", "indices", "identities")
    folder = world.store if place == "store" else world.cache
    names = [str(world.folder), "disk", "space"]
    if how == "mount":
        size = rng.choice([4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]) * 4096
        kept = world.folder / "kept"
        with mounted(folder, size):
            said = world.run()
            shutil.copytree(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(kept, folder)
    else:
        after = rng.randint(0, 60) if how == "sync" else rng.choice([3000, 5000, 7000, 9000])
        said = world.run(before=_limited(after) if how == "size" else _full_after(after))
    if said.code != 0:
        check_clear(said, names)
    else:
        check_whole(world)
    heal(world, names, [])
    return verdict(said.code == 0)


def _limited(size: int) -> Callable[[], None]:
    """No file may be larger (`ulimit -f`): EFBIG. What the program says is in files, too."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def _full_after(syncs: int) -> Callable[[], None]:
    """After so many syncs the disk is full."""

    def before() -> None:
        real, count = os.fsync, [0]

        def fsync(handle: int) -> None:
            count[0] += 1
            if count[0] > syncs:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        os.fsync = fsync

    return before


def read_only(world: World, variant: str, rng: random.Random) -> str:
    """A store, or a cache, that this user may not write."""
    if os.getuid() != 0:
        raise SkippedError("needs root, to become another user")
    for path in world.folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    outer = world.folder
    while outer != outer.parent:  # so that another user gets here
        if not outer.stat().st_mode & 1:
            raise SkippedError(f"another user cannot enter {outer}")
        outer = outer.parent
    whole = world.folder / "store"
    what, _, command = variant.partition(" / ")
    if what == "store":
        (world.cache).chmod(0o777)
        for path in world.cache.rglob("*"):
            path.chmod(0o777)
    else:
        whole.chmod(0o777)
        for path in whole.rglob("*"):
            path.chmod(0o777)

    def before() -> None:
        os.setgid(65534)
        os.setuid(65534)

    names = [str(world.folder)]
    if command == "read":
        reader = rng.choice(list(READERS))
        said = world.command(*READERS[reader], before=before)
        if said.code:
            raise OtherError(f"a store that is only read: {tail(said.err)}")
        return verdict(True)
    if command == "run another":
        said = world.command(*RUN, "--method=lwf", before=before)
    else:
        said = world.run(before=before)
    if said.code != 0:
        check_clear(said, names)
    heal(world, names, [])
    return verdict(said.code == 0)


#: How a terminal may take text.
ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "cp932", "koi8-r", "utf-16", "utf-8-sig")

SHOWN: dict[str, tuple[str, ...]] = {
    "results": ("results",),
    "md": ("results", "--format", "md"),
    "json": ("results", "--format", "json"),
    "csv": ("results", "--format", "csv"),
    "latex": ("results", "--format", "latex"),
    "card": ("results", "--format", "model-card", "-m", "ft"),
    "compare": ("compare", "ft", "wise-ft"),
    "list": ("list", "methods"),
    "show": ("show", "faulty"),
    "run": (*RUN, "-m", "ft", "-m", "wise-ft"),
    "plan": ("plan", *RUN[1:], "-m", "ft"),
}


def terminal(world: World, variant: str, rng: random.Random) -> str:
    """A stdout that takes only some characters, or none."""
    verb, _, what = variant.partition(" on ")

    def before() -> None:
        os.environ["COLUMNS"] = str(rng.choice([20, 40, 80, 200]))
        if what in ENCODINGS:
            for n, name in ((1, "stdout"), (2, "stderr")):
                raw = io.FileIO(n, "w", closefd=False)
                setattr(sys, name, io.TextIOWrapper(raw, what, "strict", write_through=n == 2))
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        elif what == "a full disk":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        elif what == "nothing":
            os.close(1)
            sys.stdout = sys.__stdout__ = None  # type: ignore[misc, assignment]
        elif what == "a closed pipe":
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, 1)

    said = world.command(*SHOWN[verb], before=before)
    if said.code == 0:
        if "Traceback (most recent call last)" in said.text:
            raise OtherError(f"a traceback: {tail(said.err)}")
        if what in ENCODINGS and what != "utf-16" and not said.out.strip():
            raise OtherError("it ended with 0 and wrote nothing")
        return verdict(True)
    if what == "utf-16":
        said = type(said)(
            said.arguments, said.code, said.out, said.err.replace("\0", "").replace("\ufffd", ""), 0
        )
    check_clear(said, ["output", "written", "encode"])
    return verdict(False)


#: Text of a configuration file → what a message must name; None: it is right.
CONFIGS: dict[str, tuple[bytes, tuple[str, ...] | None]] = {
    "nothing": (b"", ("method",)),
    "no TOML": (b"method = ft", ("config.toml",)),
    "half": (b"[recipe\nlr = ", ("config.toml",)),
    "JSON": (b'{"method": "ft"}', ("config.toml",)),
    "latin-1": ('# gr\xfc\xdfe\nmethod = "ft"'.encode("latin-1"), ("config.toml",)),
    "UTF-16": ('method = "ft"'.encode("utf-16"), ("config.toml",)),
    "a BOM": (b'\xef\xbb\xbfmethod = "ft"\n', None),
    "NUL": (b'method = "ft\x00"', ("config.toml",)),
    "Windows": (b'method = "ft"\r\nlimit = 2\r\n', None),
    "an unknown key": (b'method = "ft"\nmetod = 1', ("metod",)),
    "an unknown key below": (b'method = "ft"\n[recipe]\nlearning = 1', ("learning",)),
    "no seed": (b'method = "ft"\nseed = []', ("seed",)),
    "true as seed": (b'method = "ft"\nseed = true', ("seed",)),
    "true as limit": (b'method = "ft"\nlimit = true', ("limit",)),
    "true as epochs": (b'method = "ft"\n[recipe]\nepochs = true', ("epochs",)),
    "true as option": (b'method = "wise-ft:alpha=true"', ("alpha",)),
    "text as limit": (b'method = "ft"\nlimit = "many"', ("limit",)),
    "a negative limit": (b'method = "ft"\nlimit = -1', ("limit",)),
    "nan": (b'method = "ft"\n[recipe]\nlr = nan', ("lr",)),
    "inf": (b'method = "ft"\n[recipe]\nlr = inf', ("lr",)),
    "a huge seed": (b'method = "ft"\nseed = 99999999999999999999', ("seed",)),
    "a huge number": (b"method = 'ft'\nlimit = " + b"9" * 5000, ("limit", "config.toml")),
    "a huge epoch": (b"method = 'ft'\n[recipe]\nepochs = " + b"9" * 400, ("epochs",)),
    "deep": (b"x = " + b"[" * 5000 + b"]" * 5000, ("config.toml", "x")),
    "a table as method": (b"[method]\nname = 'ft'", ("method",)),
    "a number as method": (b"method = 3", ("method",)),
    "an unknown method": (b'method = "fft"', ("fft",)),
    "an unknown option": (b'method = "ft:x=1"', ("x",)),
    "an unknown optimizer": (b'method = "ft"\n[recipe]\noptimizer = "sdg"', ("sdg",)),
    "an unknown schedule": (b'method = "ft"\n[recipe]\nschedule = "cosin"', ("cosin",)),
    "an unknown device": (b'method = "ft"\ndevice = "gpu"', ("gpu",)),
    "an unknown dataset": (b'method = "ft"\ndataset = "fld"', ("fld",)),
    "a date": (b'method = "ft"\nlimit = 2020-01-01', ("limit",)),
    "twice": (b'method = "ft"\nmethod = "lwf"', ("config.toml",)),
    "a recipe that is a list": (b'method = "ft"\nrecipe = [1]', ("recipe",)),
    "no requirement": (b'method = "ft"\nrequires = "torch >>> 1"', ("torch",)),
}  # fmt: skip


def config(world: World, variant: str, rng: random.Random) -> str:
    """A configuration file; `run` and `plan` agree."""
    text, names = CONFIGS[variant]
    file = world.folder / "config.toml"
    file.write_bytes(text)
    verb = rng.choice(["run", "plan"]) if text else "run"  # of an untouched backbone `plan` has one
    new = world.folder / "new"
    said = world.command(verb, "--suite", "faulty", "-c", str(file), store=new)
    if names is None:
        if said.code:
            raise OtherError(f"refused: {tail(said.err)}")
        return verdict(True)
    if said.code == 0:
        raise OtherError(f"`{verb}` accepted it")
    check_clear(said, names)
    if (new / "steps").exists() and list((new / "steps").iterdir()):
        raise OtherError("refused when steps were done already")
    return verdict(False)


#: Arguments → what a message must name.
ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a config that is a folder": (("run", "-c", "/"), ("/",)),
    "a config that is not there": (("run", "-c", "/nowhere.toml"), ("nowhere",)),
    "a sweep of nothing": (("run", "-m", "ft", "--sweep", "x="), ("sweep", "x")),
    "a search of nothing": (("run", "-m", "ft", "--search", "x=1,2"), ("x",)),
    "a set without a value": (("run", "-m", "ft", "--set", "recipe.lr"), ("--set",)),
    "an empty method": (("run", "-m", ""), ("method", "''")),
    "a method of spaces": (("run", "-m", "  "), ("method", "'  '")),
    "an unknown verb's option": (("run", "--metod", "ft"), ("--metod",)),
    "an unknown metric": (("results", "--metric", "eec"), ("eec",)),
    "an unknown arm": (("compare", "ft", "lwff"), ("lwff",)),
    "no such step": (("why", "0123"), ("0123",)),
}


def arguments(world: World, variant: str, rng: random.Random) -> str:
    """Arguments that cannot be meant."""
    given, names = ARGUMENTS[variant]
    if given[0] == "run":
        given = (*given, "--suite", "faulty")
    said = world.command(*given)
    if said.code == 0:
        raise OtherError(f"accepted: {tail(said.text)}")
    check_clear(said, names)
    return verdict(False)


def processes(world: World, variant: str, rng: random.Random) -> str:
    """The program itself, in a process of its own: how it is started, and how it ends."""
    environ: dict[str, Any] = {
        **os.environ,
        "RIB_CACHE": str(world.cache),
        "FAULT_WEIGHTS": str(world.data / "small.safetensors"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    end = ["--store", str(world.folder / "new"), "--data-root", str(world.data)]
    start = [sys.executable, "-c", "from rib_harness.cli import main; main()"]
    run = [*RUN, "-m", "ft", *end]
    if variant == "python -m":
        start = [sys.executable, "-m", "rib_harness"]
    elif variant == "a thread that stays":
        run = [*RUN, "-m", "faulty:act=thread", *end]
    elif variant == "a timm.py here":
        for name in ("timm", "torch", "numpy", "json"):
            (world.folder / f"{name}.py").write_text("import os\nos._exit(7)\n")
        world.without("identities")
        start = [str(Path(sys.executable).with_name("rib-harness"))]
        if not Path(start[0]).exists():
            raise SkippedError("rib-harness is not installed")
    elif variant == "no HOME":
        for name in ("HOME", "USER", "LOGNAME", "RIB_CACHE"):
            environ.pop(name, None)
    elif variant == "LC_ALL=C":
        environ.update(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    try:
        done = subprocess.run(
            [*start, *run], env=environ, cwd=world.folder, capture_output=True, timeout=90
        )
    except subprocess.TimeoutExpired:
        raise OtherError("hangs") from None
    err = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        raise OtherError(f"ends with {done.returncode}: {tail(err)}")
    if "Traceback (most recent call last)" in err:
        raise OtherError(f"a traceback: {tail(err)}")
    return verdict(True)


PROCESSES = ("python -m", "a thread that stays", "a timm.py here", "no HOME", "LC_ALL=C")
