"""What drift and distances share: exact values, fixed draws, squared distances."""

import numpy as np
from numpy.typing import NDArray

from rib_harness import DivergedError

Floats = NDArray[np.float64]


def exact(values: NDArray[np.float32]) -> Floats:
    """In float64: sums over many images and dimensions lose too much in float32.

    Raises:
        DivergedError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise DivergedError(
            "Expected finite features and logits; some are not, so the network that gave them "
            "diverged, and no number is made of them."
        )
    return values.astype(np.float64)


def subsample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` of n rows, drawn without replacement, ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def squared_distances(x: Floats, y: Floats) -> Floats:
    """‖x_i − y_j‖², (N, D) and (M, D) → (N, M).

    By inner products of centered rows, many times faster than pair by pair; exactly 0 on the
    diagonal where both are the same sample.
    """
    center = x.mean(0)
    left, right = x - center, y - center
    squared = left @ right.T
    squared *= -2
    squared += (left**2).sum(1)[:, None]
    squared += (right**2).sum(1)[None]
    np.maximum(squared, 0, out=squared)
    if x is y:
        np.fill_diagonal(squared, 0)
    return squared
