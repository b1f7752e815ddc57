"""A part of `make faults`: its own code works, and no fault of the part ends in something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults")


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FAULTS, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_each_kind_of_fault_ends_whole_or_in_a_clear_error() -> None:
    done = faults("--count", "30", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_no_flipped_bit_is_silently_different() -> None:
    done = faults("--flips", "50", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_campaign_can_fail() -> None:
    """With the digests of a step's files not looked at, it says what is silently different."""
    code = f"""
import runpy, sys
from rib_harness.store import Store
Store._whole = lambda self, path, said, hashed=True: True
sys.argv = ["faults", "--flips", "20", "--artefact", "model.safetensors", "--jobs", "1"]
runpy.run_path({str(FAULTS)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "silent: model.safetensors" in done.stdout
