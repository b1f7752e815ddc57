"""Weights files: safetensors, or torch files that hold nothing but tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rib_harness import DataError


def read_weights(file: Path) -> dict[str, Tensor]:
    """Name → tensor. Code in a torch file is never run.

    Raises:
        DataError: damaged, or a torch file that holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"{file} cannot be read as safetensors: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{file} is no torch file of tensors only, and code in it is not run: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{file} holds no state dict: expected names and tensors.")
    return state
