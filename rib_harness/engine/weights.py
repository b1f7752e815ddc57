"""Weights files: where they are, and what is in them. Code in a file is never run."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rib_harness.errors import DataError


def read_weights(file: Path) -> dict[str, Tensor]:
    """Name → tensor, from safetensors or from a torch file that holds nothing but tensors.

    Raises:
        DataError: missing, damaged, or a torch file that holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"{file} cannot be read as safetensors: {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
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


def hub_file(repository: str, names: Sequence[str], what: str) -> Path:
    """A file of a Hugging Face repository: from the local hub cache, else downloaded.

    Args:
        names: file names in the order to try; safetensors come first.
        what: for the message, e.g. `timm:resnet50.a1_in1k`.

    Raises:
        DataError: it is neither in the cache nor could it be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # no network, or told to be offline
            problem = error
        except (EntryNotFoundError, OSError) as error:  # no such file
            problem = error
    raise DataError(
        f"{what}: its weights ({repository}) are neither in the local hub cache nor could "
        f"they be downloaded ({type(problem).__name__}). Download them where there is a network, "
        "or give weights=FILE."
    ) from problem
