"""kill −9 at twenty random moments, each followed by the same command: nothing is different."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rib_harness.cli import main

KILLS = 20

ARGUMENTS = ["run", "-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "3",
             "-m", "lwf", "-m", "wise-ft", "--set", "recipe.epochs=4",
             "--set", "recipe.batch_size=4", "--save-every", "0"]  # fmt: skip

#: A process begins with these imported: they are what takes the time of so short a run.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch._dynamo", "timm", "rib_harness.runner", "pandas"])


def start(store: Path) -> BaseProcess:
    process = FORK.Process(target=command, args=(store,))
    process.start()
    return process


def command(store: Path) -> None:
    """What `rib-harness run` does, in a session of its own."""
    os.setsid()
    with (store.parent / "log").open("ab") as log, Path(os.devnull).open("ab") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = ["rib-harness", *ARGUMENTS, "--store", str(store)]
    main()


def wait_for_begin(store: Path, process: BaseProcess, since: float) -> bool:
    """Until the process has begun its steps: it has written its run again."""
    while process.is_alive():
        configs = list(store.glob("configs/*.toml"))
        if len(configs) == 2 and max(p.stat().st_mtime for p in configs) >= since:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_twenty_kills_leave_the_weights_and_numbers_of_an_undisturbed_run(tmp_path: Path) -> None:
    calm, rng = tmp_path / "calm", random.Random(0)
    process = start(calm)
    assert wait_for_begin(calm, process, 0)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    length = time.monotonic() - begun

    kills, trial, interrupted = 0, 0, 0
    while kills < KILLS:
        trial += 1
        store = tmp_path / f"store-{trial}"
        while True:
            since = time.time()
            process = start(store)
            if kills < KILLS and wait_for_begin(store, process, since):
                process.join(rng.uniform(0, length))
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
                    kills += 1
                    interrupted += bool(list(store.glob("work/*/*/state-*.safetensors")))
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
        same(calm, store)
    assert interrupted, "no kill fell into a fit: the test shows nothing"


def same(calm: Path, store: Path) -> None:
    """The same steps, weights to the bit, scores to the bit, and nothing left over."""
    keys = {path.parent.name for path in calm.glob("steps/*/done.json")}
    assert {path.parent.name for path in store.glob("steps/*/done.json")} == keys
    for key in keys:
        one, two = calm / "steps" / key, store / "steps" / key
        assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
        if (one / "model.safetensors").exists():
            weights = (one / "model.safetensors").read_bytes()
            assert weights == (two / "model.safetensors").read_bytes(), key
            assert rows(one) == rows(two)
        else:
            tables = [pq.read_table(folder / "scores.parquet") for folder in (one, two)]
            assert tables[0].equals(tables[1])
            assert summary(one) == summary(two)
    assert list((store / "work").iterdir()) == []


def rows(step: Path) -> list[dict[str, float]]:
    text = (step / "history.jsonl").read_text().splitlines()
    return [{**json.loads(line), "images_per_second": None} for line in text]


def summary(step: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((step / "done.json").read_text())["summary"]
    return found
