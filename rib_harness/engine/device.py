"""Which device, and in which precision: Accelerate's choice, checked."""

from __future__ import annotations

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
