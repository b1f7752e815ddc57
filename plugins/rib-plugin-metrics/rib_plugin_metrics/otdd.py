"""The optimal transport dataset distance: how far is one labelled dataset from another?"""

import warnings

import numpy as np
from numpy.typing import NDArray

from rib_harness import DivergedError, Features
from rib_plugin_metrics.gaussians import Gaussian, squared_wasserstein
from rib_plugin_metrics.samples import exact, squared_distances, subsample

Floats = NDArray[np.float64]

#: Largest share of the mass that the plan may leave in the wrong place.
TOLERANCE = 1e-5

#: Iterations after which a solve has failed.
ITERATIONS = 10_000

#: exp(−cost / ε) of more than this has no digits left; the solve goes on in logarithms, slower.
UNDERFLOW = 500.0


def otdd(
    a: Features,
    b: Features,
    regularisation: float = 0.1,
    samples: int = 10_000,
    seed: int = 0,
) -> float:
    """Optimal transport dataset distance, debiased; in squared feature units.

        S(a, b) = OT_ε(a, b) − ½ OT_ε(a, a) − ½ OT_ε(b, b)
        OT_ε = min_π ⟨π, C⟩ + ε KL(π ‖ a ⊗ b)
        C = d(z, z')² = ‖x − x'‖² + W2²(α_y, α_y')

    α_y is the Gaussian of the features of class y (divided by n: a class with one image is a
    point), W2 their Bures–Wasserstein distance. Classes are compared by where their images lie,
    so the two sets need none in common. Without entropy S is W2² of the paper's p = 2.

    ε is `regularisation` times the mean of C between the two sets, the same ε for all three
    terms: features of different backbones differ in scale by orders of magnitude, and with an
    absolute ε the number would be of another kind for each. The paper's code takes 0.1 as it is,
    of a cost of half this one.

    S is 0 for equal sets. That it is never below is proven for squared Euclidean costs, not with
    a Bures distance in them, so nothing is clipped. 10 000 images a set take about 4 GB.

    Args:
        a, b: features under the same, untouched backbone, and labels.
        regularisation: relative to the mean ground cost.
        samples: of a larger set, so many images are drawn.
        seed: of that draw.

    Raises:
        DivergedError: a solve did not converge, or features are not finite. It is never a
            distance of 0.

    Source: arXiv:2002.02923; debiased: arXiv:1810.08278.
    """
    if not regularisation > 0:
        raise ValueError(f"expected a regularisation above 0, got {regularisation}")
    rows_a, rows_b = subsample(len(a), samples, seed), subsample(len(b), samples, seed)
    x, y = exact(a.features[rows_a]), exact(b.features[rows_b])
    classes_x, label_x = _classes(x, a.labels[rows_a])
    classes_y, label_y = _classes(y, b.labels[rows_b])

    def cost(first: int, second: int) -> Floats:
        points, gaussians, labels = (x, y), (classes_x, classes_y), (label_x, label_y)
        total = squared_distances(points[first], points[second])
        between = squared_wasserstein(gaussians[first], gaussians[second])
        total += between[np.ix_(labels[first], labels[second])]
        return total

    across = cost(0, 1)
    epsilon = regularisation * float(across.mean())
    if epsilon == 0:
        return 0.0  # every image of both sets is one and the same point
    value = entropic_cost(across, epsilon)
    del across
    return value - (entropic_cost(cost(0, 0), epsilon) + entropic_cost(cost(1, 1), epsilon)) / 2


def entropic_cost(cost: Floats, epsilon: float) -> float:
    """OT_ε between two uniform samples: min_π ⟨π, C⟩ + ε KL(π ‖ a ⊗ b), by Sinkhorn.

    Args:
        cost: (n, m).
        epsilon: in units of the cost.

    Raises:
        DivergedError: it did not converge or is not finite.
    """
    import ot

    a, b = (np.full(n, 1 / n) for n in cost.shape)
    logarithmic = cost.max() > UNDERFLOW * epsilon
    solve = ot.bregman.sinkhorn_log if logarithmic else ot.bregman.sinkhorn_knopp
    tolerance = TOLERANCE * float(np.linalg.norm(b))  # so ‖πᵀ1 − b‖₁ ≤ √m ‖·‖₂ ≤ TOLERANCE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is checked below
        _, log = solve(
            a, b, cost, epsilon, numItermax=ITERATIONS, stopThr=tolerance, warn=False, log=True
        )
    # At the optimum the entropic cost is the sum of the dual potentials.
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (log["log_u"], log["log_v"]) if logarithmic else (np.log(log["u"]), np.log(log["v"]))
    value = epsilon * (float(u.mean() + v.mean()) - float(np.log(a[0]) + np.log(b[0])))
    error = float(log["err"][-1])
    if not (np.isfinite(value) and error <= tolerance):
        raise DivergedError(
            f"OTDD's transport of {cost.shape[0]} to {cost.shape[1]} images did not converge in "
            f"{log['niter'] + 1} iterations: marginals off by {error:.1e}, expected at most "
            f"{tolerance:.1e}. A larger regularisation converges faster."
        )
    return value


def _classes(x: Floats, labels: NDArray[np.int64]) -> tuple[list[Gaussian], NDArray[np.intp]]:
    """The Gaussians of the classes that are there, and for each row which of them is its own."""
    present, which = np.unique(labels, return_inverse=True)
    return [Gaussian.of(x[which == k]) for k in range(len(present))], which
