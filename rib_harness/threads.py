"""How the threads of torch wait, and how many there are. No torch here until a step runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rib_harness.engine.classifier import Classifier

#: A net of fewer parameters is small: several threads of it mostly wait for each other.
SMALL = 1_000_000


def wait_passively() -> None:
    """Let threads sleep while they wait for each other: to be called before torch is imported.

    They spin otherwise, which beside other work costs a small net several times its time
    (`benchmarks/busy_machine.py`). What the user has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def number_for(classifier: Classifier, asked: int | None = None) -> int:
    """How many threads of torch work on a classifier, on a CPU.

    The last bits of sums depend on it, so it depends on nothing else in the run; and a small net
    has one, so that its weights are the same on machines with one core and with many.

    Args:
        classifier: what is trained or scored.
        asked: how many; None is one for a small net, for others torch's own number
            (`OMP_NUM_THREADS`, or one a core).
    """
    import torch

    if asked is not None:
        return asked
    small = sum(one.numel() for one in classifier.parameters()) < SMALL
    return 1 if small else torch.get_num_threads()


@contextmanager
def working(threads: int) -> Iterator[None]:
    """While the block runs, torch has this many threads on a CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
