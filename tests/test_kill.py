"""kill −9 at twenty random moments, each followed by the same command: nothing is different."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

KILLS = 20

ARGUMENTS = ["run", "-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "3",
             "-m", "lwf", "-m", "wise-ft", "--set", "recipe.epochs=8",
             "--set", "recipe.batch_size=4", "--save-every", "0"]  # fmt: skip


def start(store: Path) -> subprocess.Popen[bytes]:
    code = "from rib_harness.cli import main; main()"
    with (store.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *ARGUMENTS, "--store", str(store)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def wait_for_begin(store: Path, process: subprocess.Popen[bytes], since: float) -> bool:
    """Until the process has begun its steps: it has written its run again."""
    while process.poll() is None:
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
    assert process.wait() == 0
    length = time.monotonic() - begun

    kills, trial, interrupted = 0, 0, 0
    while kills < KILLS:
        trial += 1
        store = tmp_path / f"store-{trial}"
        while True:
            since = time.time()
            process = start(store)
            if kills < KILLS and wait_for_begin(store, process, since):
                try:
                    process.wait(rng.uniform(0, length))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    kills += 1
                    interrupted += bool(list(store.glob("work/*/*/state-*.safetensors")))
            if process.wait() == 0:
                break
            assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
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
