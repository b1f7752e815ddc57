"""Which device, and in which precision: Accelerate's choice, checked."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rib_harness.errors import ConfigError


def make_accelerator(device: str | None = None, precision: str = "fp32") -> Accelerator:
    """An Accelerator for this process.

    Args:
        device: `"cpu"`, `"cuda"` or `"mps"`; None is the fastest there is.
        precision: of training: `"fp32"`, `"bf16"` or `"fp16"`.

    Raises:
        ConfigError: the device is not there, or the precision does not work on it.
    """
    if device not in (None, "cpu", "cuda", "mps"):
        raise ConfigError([f"device: expected cpu, cuda or mps, got {device!r}."])
    # Accelerate keeps one state a process; an earlier run may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        made = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu"
        )
    except ValueError as error:
        raise ConfigError([f"recipe.precision={precision} does not work here: {error}"]) from None
    if device is not None and made.device.type != device:
        raise ConfigError([f"device: {device} is not there; found {made.device.type}."])
    # Evaluation is in float32, and TF32 is not: it moves logits by 1e-3.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return made


@contextmanager
def seeded(text: str) -> Iterator[None]:
    """Every global generator (Python, NumPy, torch) seeded from a text; put back afterwards."""
    before = random_state()
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """The state of every global generator, as tensors, numbers and tuples."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)),
                  int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }  # fmt: skip


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
