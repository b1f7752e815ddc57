"""How far one dataset is from another, without transport: class means, and mean embeddings."""

import numpy as np
from numpy.typing import NDArray

from rib_harness import Features, InapplicableError
from rib_plugin_metrics.samples import exact, squared_distances, subsample


def nearest_class_mean(a: Features, b: Features) -> float:
    """Accuracy on b's images of the nearest class mean of a's features, in %.

    Over the classes that the two share: those whose ids in the suite's label space meet. A class
    may have several ids, and then counts as right for each of them.

    Args:
        a: features that the class means are of.
        b: features that are classified, under the same backbone.

    Raises:
        InapplicableError: no image of b is of a class that a has images of.

    Source: Mensink et al., TPAMI 35, 2013.
    """
    alike: NDArray[np.bool_] = np.zeros((len(a.ids), len(b.ids)), dtype=bool)
    for k, ids in enumerate(a.ids):
        alike[k] = [not {*ids}.isdisjoint(others) for others in b.ids]
    present = np.zeros(len(a.ids), dtype=bool)
    present[a.labels] = True
    candidates = np.flatnonzero(present & alike[:, np.unique(b.labels)].any(axis=1))
    known = np.asarray(alike[candidates].any(axis=0))
    rows = np.flatnonzero(known[b.labels])
    if not len(rows):
        raise InapplicableError(
            "Nearest-class-mean accuracy needs classes that both datasets have images of; they "
            "share none."
        )
    features = exact(a.features)
    means = np.stack([features[a.labels == k].mean(0) for k in candidates])
    nearest = squared_distances(exact(b.features[rows]), means).argmin(1)
    return 100 * float(alike[candidates[nearest], b.labels[rows]].mean())


def mmd(a: Features, b: Features, samples: int = 5_000, seed: int = 0) -> float:
    """Maximum mean discrepancy, squared and unbiased, with a Gaussian kernel.

        mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j)
        k(x, y) = exp( −‖x − y‖² / (2σ²) )

    σ is the median distance between two different images of the two sets together. Around 0, and
    by chance below it, for samples of one distribution.

    Args:
        a, b: features under the same, untouched backbone.
        samples: of a larger set, so many images are drawn.
        seed: of that draw.

    Raises:
        InapplicableError: fewer than two images of a set, or most images are the same point.

    Source: arXiv:0805.2368; the bandwidth: arXiv:1707.07269.
    """
    if min(len(a), len(b)) < 2:
        raise InapplicableError("MMD needs at least two images of each set.")
    drawn = [exact(one.features[subsample(len(one), samples, seed)]) for one in (a, b)]
    n, m = map(len, drawn)
    pooled = np.concatenate(drawn)
    squared = squared_distances(pooled, pooled)
    sigma = float(np.median(np.sqrt(squared[np.triu_indices(n + m, 1)])))
    if sigma == 0:
        raise InapplicableError("MMD needs features that vary; most images have the same ones.")
    kernel = np.exp(squared / (-2 * sigma**2))
    within_a = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_b = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_a + within_b - 2 * kernel[:n, n:].mean())
