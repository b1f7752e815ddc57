"""What a plugin can do wrong, by name. What is done is said by FAULT_READ and its like."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch

#: What no result may hold.
NOISE = "noise of a plugin"


class OwnError(BaseException):
    """Nobody expects it."""


def _raise(error: BaseException) -> NoReturn:
    raise error


def _hang() -> None:
    while True:
        time.sleep(0.05)


def _close_stdout() -> None:
    os.close(1)


def _replace_stdout() -> None:
    sys.stdout = None  # type: ignore[assignment]


def _threads_that_stay() -> None:
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()


def _hook(module: Any, inputs: Any, output: Any) -> Any:
    return output * 0


#: How a plugin can stop.
RAISES: dict[str, Callable[[], Any]] = {
    "Exception": lambda: _raise(Exception("of the plugin")),
    "ValueError": lambda: _raise(ValueError("of the plugin")),
    "OSError": lambda: _raise(OSError(5, "Input/output error")),
    "MemoryError": lambda: _raise(MemoryError("of the plugin")),
    "StopIteration": lambda: _raise(StopIteration()),
    "SystemExit-0": lambda: sys.exit(0),
    "SystemExit-1": lambda: sys.exit(1),
    "SystemExit-text": lambda: sys.exit("of the plugin"),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "CancelledError": lambda: _raise(asyncio.CancelledError()),
    "OwnError": lambda: _raise(OwnError("of the plugin")),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
}

#: What a plugin can leave behind, to be put back or to do no harm.
LEAVES: dict[str, Callable[[], Any]] = {
    "print": lambda: sys.stdout.write(NOISE + "\n"),
    "write-1": lambda: os.write(1, (NOISE + "\n").encode()),
    "close-1": _close_stdout,
    "no-stdout": _replace_stdout,
    "default-dtype": lambda: torch.set_default_dtype(torch.float64),
    "default-device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(2),
    "matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "no-grad": lambda: torch.set_grad_enabled(False),
    "cudnn": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "cudnn-benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "torch-seed": lambda: torch.manual_seed(1),
    "numpy-errors": lambda: np.seterr(all="raise"),
    "numpy-seed": lambda: np.random.seed(1),
    "random-seed": lambda: random.seed(1),
    "print-options": lambda: np.set_printoptions(precision=1),
    "chdir": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(RIB_PACK_LIMIT="nonsense", RIB_CACHE="/dev/null/x"),
    "no-environment": lambda: os.environ.clear(),
    "warnings": lambda: warnings.simplefilter("error"),
    "umask": lambda: os.umask(0o777),
    "gc": gc.disable,
    "logging": lambda: logging.disable(logging.CRITICAL),
    "recursion": lambda: sys.setrecursionlimit(200),
    "socket": lambda: socket.setdefaulttimeout(0.001),
    "signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "thread": _threads_that_stay,
    "module-hook": lambda: torch.nn.modules.module.register_module_forward_hook(_hook),
}

ACTS: dict[str, Callable[[], Any]] = {
    **RAISES,
    **LEAVES,
    "hang": _hang,
    "os-exit": lambda: os._exit(0),
    "nothing": lambda: None,
}


def perform(act: str) -> None:
    """Do it, here: `signal.signal` in another thread than the main one is nobody's fault."""
    try:
        ACTS[act]()
    except ValueError:
        if act != "signals":
            raise


def told(variable: str, place: str, index: int = 0) -> str:
    """The act for this place: `FAULT_READ=made:3:Exception` from its picture 3 on."""
    wanted, at, act = (os.environ.get(variable, "") + "::").split(":")[:3]
    return act if act and wanted == place and index >= int(at or 0) else ""
