"""Gaussians of samples, and the transport distance between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rib_harness import Features, InapplicableError
from rib_plugin_metrics.samples import exact, squared_distances

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The Gaussian with the mean and covariance of a sample.

    Args:
        mean: (D,).
        root: (r, D) with rootᵀ root the covariance, r ≤ D. Kept instead of the covariance, which
            is singular wherever there are fewer images than dimensions; nothing here needs its
            inverse or its square root, so nothing is shrunk.
    """

    mean: Floats
    root: Floats

    @classmethod
    def of(cls, sample: Floats, ddof: int = 0) -> "Gaussian":
        """From (n, D).

        Args:
            sample: n > ddof rows.
            ddof: the covariance divides by n − ddof; with 0, one row is a point mass.
        """
        mean = sample.mean(0)
        root = (sample - mean) / np.sqrt(len(sample) - ddof)
        if len(root) > root.shape[1]:
            root = np.linalg.qr(root, mode="r")
        return cls(mean, root)


def squared_wasserstein(first: Sequence[Gaussian], second: Sequence[Gaussian]) -> Floats:
    """W2² between Gaussians: the squared distance of the means, and the squared Bures distance.

        ‖m_p − m_q‖² + tr Σ_p + tr Σ_q − 2 tr (Σ_p^½ Σ_q Σ_p^½)^½

    With Σ_p = PᵀP and Σ_q = QᵀQ the last trace is the sum of the singular values of Q Pᵀ.

    Args:
        first, second: K and K' Gaussians.

    Returns:
        (K, K').

    Source: Dowson & Landau, Journal of Multivariate Analysis 12, 1982.
    """
    overlap = np.empty((len(first), len(second)))
    sizes = np.array([len(q.root) for q in second])
    for size in np.unique(sizes):  # those of one size go together: there may be a million pairs
        columns = np.flatnonzero(sizes == size)
        roots = np.stack([q.root for q in second if len(q.root) == size])
        for row, p in enumerate(first):
            overlap[row, columns] = np.linalg.svd(roots @ p.root.T, compute_uv=False).sum(-1)
    spread = [np.array([(p.root**2).sum() for p in gaussians]) for gaussians in (first, second)]
    bures = spread[0][:, None] + spread[1] - 2 * overlap
    means = [np.stack([p.mean for p in gaussians]) for gaussians in (first, second)]
    distances: Floats = squared_distances(*means) + np.maximum(bures, 0)  # < 0 by rounding only
    return distances


def frechet(a: Features, b: Features) -> float:
    """Fréchet distance between the Gaussians of two sets' features (squared, as FID is).

        ‖m_a − m_b‖² + tr ( Σ_a + Σ_b − 2 (Σ_a Σ_b)^½ )

    Covariances divide by n − 1. They need not be regular, but the estimate is biased upwards
    where images are few: compare sets of equal sample size.

    Args:
        a, b: features under the same, untouched backbone.

    Raises:
        InapplicableError: a set has fewer than two images.

    Source: arXiv:1706.08500.
    """
    if min(len(a), len(b)) < 2:
        raise InapplicableError("The Fréchet distance needs at least two images of each set.")
    first, second = (Gaussian.of(exact(one.features), ddof=1) for one in (a, b))
    return float(squared_wasserstein([first], [second])[0, 0])
