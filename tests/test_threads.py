"""Small nets have one thread; threads sleep while they wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from rib_harness import Classifier, Preprocess
from rib_harness.threads import number_for, wait_passively, working


def net(width: int) -> Classifier:
    return Classifier(nn.Linear(width, width), nn.Linear(width, 2), Preprocess(8))


def test_a_small_net_has_one_thread_everywhere_and_another_as_many_as_torch() -> None:
    with working(5):
        assert number_for(net(8)) == 1
        assert number_for(net(1000)) == 5
        assert number_for(net(8), 3) == number_for(net(1000), 3) == 3


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), working(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_of_waiting_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    wait_passively()
    assert dict(os.environ) == before
    monkeypatch.delenv(name)
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.mark.parametrize("code", ["rib_harness.engine.fit", "rib_harness.engine.device"])
def test_threads_are_told_how_to_wait_before_torch_is_there(code: str) -> None:
    check = (
        "import builtins, os, sys; plain = builtins.__import__\n"
        "def told(name, *rest):\n"
        "    if name == 'torch' and 'torch' not in sys.modules:\n"
        "        print(os.environ.get('OMP_WAIT_POLICY')); os._exit(0)\n"
        "    return plain(name, *rest)\n"
        f"builtins.__import__ = told; sys.stdout.reconfigure(write_through=True); import {code}"
    )
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", check], env=kept, capture_output=True, text=True, check=True
    )
    assert done.stdout == "PASSIVE\n"


def test_how_threads_wait_is_no_doing_of_the_plugin_that_brings_torch() -> None:
    check = (
        "import os; from rib_harness.options import load_target\n"
        "load_target('rib_plugin_cl_methods.ft:FineTuning', 'it')\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", check], env=kept, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("PASSIVE\n", "")
