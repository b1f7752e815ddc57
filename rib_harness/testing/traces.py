"""What code leaves behind in its process: variables and random states. Imports no torch."""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from rib_harness.guard import watched

#: A seed that nobody else takes: a block that seeds with 0, as another did before it, is seen.
ODD = 915_731


@dataclass
class Traces:
    """What a block of code changed for everybody.

    Args:
        environment: variables that it set, changed or removed.
        random: libraries whose global generator it seeded or drew from.
    """

    environment: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


@contextmanager
def traced(package: str = "") -> Iterator[Traces]:
    """Compare before and after the block; the answer is filled in when it ends without an error.

    The generators are then put back.

    Args:
        package: only variables that its own code wrote are told, not those of the libraries that
            it imports, several of which set some; empty tells all.
    """
    environment, left, before = dict(os.environ), Traces(), _states()
    random.seed(ODD)
    np.random.seed(ODD)
    if "torch" in before:
        sys.modules["torch"].default_generator.manual_seed(ODD)
    start = _states()
    try:
        with watched(), _writers() as writers:
            yield left
        now = _states()
    finally:
        random.setstate(before["random"])
        np.random.set_state(before["numpy"])
        if "torch" in before:
            torch = sys.modules["torch"]
            torch.set_rng_state(torch.from_numpy(before["torch"]))
    changed = {name for name, _ in environment.items() ^ os.environ.items()}
    own = {name for name in changed if not package or writers.get(name) == package}
    left.environment = sorted(own)
    left.random = [name for name in start if pickle.dumps(now[name]) != pickle.dumps(start[name])]


@contextmanager
def _writers() -> Iterator[dict[str, str]]:
    """Variable → the package whose code last wrote or removed it."""
    writers: dict[str, str] = {}
    kind = type(os.environ)

    def noting(original: Any) -> Any:
        def noted(self: Any, key: str, *value: str) -> None:
            frame = sys._getframe(1)
            # setdefault, update and pop are written in Python, in other modules.
            while frame.f_back and frame.f_globals.get("__name__") in ("os", "collections.abc"):
                frame = frame.f_back
            writers[key] = str(frame.f_globals.get("__name__")).partition(".")[0]
            original(self, key, *value)

        return noted

    with (
        mock.patch.object(kind, "__setitem__", noting(kind.__setitem__)),
        mock.patch.object(kind, "__delitem__", noting(kind.__delitem__)),
    ):
        yield writers


def _states() -> dict[str, Any]:
    states = {"random": random.getstate(), "numpy": np.random.get_state(legacy=True)}
    if sys.modules.get("torch") is not None:  # else nobody has drawn from it
        states["torch"] = sys.modules["torch"].get_rng_state().numpy()
    return states
