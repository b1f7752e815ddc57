"""Linear centered kernel alignment: are two representations the same up to rotation and scale?"""

import math

import numpy as np
from numpy.typing import NDArray

from rib_harness import Features, InapplicableError
from rib_plugin_metrics.drift import check_same_images
from rib_plugin_metrics.samples import exact

Floats = NDArray[np.float64]

#: The unbiased estimator divides by n(n − 3).
SMALLEST = 4


def cka(before: Features, after: Features, batch: int = 0, seed: int = 0) -> float:
    """Debiased linear CKA between the features before and after; 1 is alike.

        CKA = HSIC(X, Y) / √( HSIC(X, X) · HSIC(Y, Y) )

    with HSIC's unbiased estimator (Song et al., JMLR 2012) and kernels K = X Xᵀ, so that it does
    not grow with the dimension as the plain estimate does; about 0 for unrelated features, and a
    little below 0 by chance.

    Args:
        before, after: (N, D) and (N, D') features of the same images.
        batch: 0 for all images at once; otherwise each HSIC is summed over batches of about
            this many, as for sets whose features come batch by batch.
        seed: of the order in which images form batches; neighbours may be of one class.

    Raises:
        InapplicableError: fewer than 4 images (in a batch), or features that do not vary.
        ValueError: they are not of the same images.

    Source: arXiv:1905.00414; debiased, by batches: arXiv:2010.15327.
    """
    check_same_images(before, after)
    n = len(before)
    if batch:
        order = np.random.default_rng(seed).permutation(n)
        batches = np.array_split(order, max(1, round(n / batch)))
    else:
        batches = [np.arange(n)]
    if min(map(len, batches)) < SMALLEST:
        raise InapplicableError(f"Debiased CKA needs at least {SMALLEST} images (in a batch).")
    # A shift changes no HSIC, and centered numbers lose fewer digits.
    x, y = _centered(before.features), _centered(after.features)
    xy, xx, yy = (
        sum(hsic(u[rows], v[rows]) for rows in batches) for u, v in ((x, y), (x, x), (y, y))
    )
    if min(xx, yy) <= 0:
        raise InapplicableError("CKA needs features that vary; all images have the same ones.")
    return xy / math.sqrt(xx * yy)


def hsic(x: Floats, y: Floats) -> float:
    """Unbiased estimate of the Hilbert–Schmidt independence criterion, linear kernels.

    With K̃, L̃ the kernel matrices without their diagonals:

        ( tr K̃L̃ + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1 ) / (n(n−3))

    Computed from XᵀY, so that memory grows with D², not n².

    Args:
        x, y: (n, D) and (n, D'), n ≥ 4.

    Source: Song et al., JMLR 13, 2012.
    """
    n = len(x)
    norm_x, norm_y = (x * x).sum(1), (y * y).sum(1)
    row_x, row_y = x @ x.sum(0) - norm_x, y @ y.sum(0) - norm_y  # K̃1 and L̃1
    trace = ((x.T @ y) ** 2).sum() - norm_x @ norm_y
    sums = row_x.sum() * row_y.sum() / ((n - 1) * (n - 2))
    return float((trace + sums - 2 / (n - 2) * (row_x @ row_y)) / (n * (n - 3)))


def _centered(features: NDArray[np.float32]) -> Floats:
    values = exact(features)
    centered: Floats = values - values.mean(0)
    return centered
