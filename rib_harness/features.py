"""Features and logits of one classifier on a sample of one dataset: what drift and distance need.

No torch: a metric reads arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rib_harness.errors import StoreError
from rib_harness.store import AGAIN


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder and a head say of some images of a dataset.

    Args:
        features: (N, D), what the head is given, float32.
        logits: (N, K) over the dataset's own classes, float32.
        labels: (N,), indices into the dataset's classes.
        index: (N,), which images of the dataset these are, ascending.
        ids: for each of the dataset's K classes, its ids in the suite's label space.
        moved: parameter → [‖θ − θ₀‖, ‖θ₀‖]; empty for the untouched backbone.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    ids: tuple[tuple[int, ...], ...]
    moved: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Features:
        """Read a features file.

        Raises:
            StoreError: it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in _ARRAYS}
                told = json.loads(file.metadata()["told"])
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}). {AGAIN}") from None
        ids = tuple(tuple(one) for one in told["ids"])
        return cls(**arrays, ids=ids, moved={k: tuple(v) for k, v in told["moved"].items()})

    def write(self, path: Path) -> None:
        """Write a features file (safetensors)."""
        from safetensors.numpy import save_file

        told = json.dumps({"ids": self.ids, "moved": dict(self.moved)})
        save_file({name: getattr(self, name) for name in _ARRAYS}, path, metadata={"told": told})

    def __len__(self) -> int:
        return len(self.labels)


_ARRAYS = ("features", "logits", "labels", "index")
