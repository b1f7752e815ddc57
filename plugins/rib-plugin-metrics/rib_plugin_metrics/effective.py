"""Effective robustness: accuracy under shift beyond what the accuracy on ImageNet predicts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rib_harness import InapplicableError, IncompleteError, Matrix

#: Accuracies are kept this far from 0 and 100 %, where the logit is infinite: half of one of
#: ImageNet's 50 000 images, in %.
CLIP = 0.001

#: The reference set whose accuracy the baselines are functions of.
REFERENCE = "imagenet"


@dataclass(frozen=True)
class Baseline:
    """What models without robustness interventions reach under a shift: linear in logits.

        logit(A_OOD) = Σ_k slopes[k] · logit(A_ID,k) + intercept

    Args:
        slopes: one for each in-distribution set.
        intercept: in logits.
        r2: share of the variance of logit(A_OOD) that it explains.
    """

    slopes: tuple[float, ...]
    intercept: float
    r2: float

    def predict(self, id_accuracies: ArrayLike) -> Any:
        """Predicted accuracy under the shift, in %; (..., k) → (...)."""
        from scipy.special import expit

        return 100 * expit(_logit(id_accuracies) @ np.array(self.slopes) + self.intercept)


#: Fitted on the standard models of modestyachts/imagenet-testbed (MIT), as functions of the
#: accuracy on all of ImageNet val. For ImageNet-R imagenet-testbed itself draws the line over val's
#: images of R's classes, logit(R) = .6368 logit(val of R's classes) − 2.1077; no matrix holds that
#: accuracy, and this one is over all of val, so the two are not to be mixed.
BASELINES = {
    "imagenet-v2": Baseline((0.9232,), -0.4977, 0.996),
    "imagenet-sketch": Baseline((1.0709,), -2.3701, 0.869),
    "imagenet-r": Baseline((0.9116,), -1.5999, 0.877),
}

#: Likewise, but as functions of the accuracy on ImageNet val's images of the shifted set's own
#: classes, logits restricted to these. No matrix holds that number: see `effective_robustness_at`.
#: imagenet-a is a poor fit: its images were filtered against a ResNet-50.
BASELINES_ON_OWN_CLASSES = {
    "objectnet": Baseline((0.9809,), -1.9283, 0.953),
    "imagenet-a": Baseline((1.99,), -7.6325, 0.828),
}


def effective_robustness(matrix: Matrix) -> dict[str, dict[str, float]]:
    """Effective robustness after fine-tuning on each source, on each other member, in points.

        A_OOD − 100 · logit⁻¹( a · logit(A_ID) + b )

    A_ID is the accuracy of the same checkpoint on the reference `imagenet`. Members without a
    baseline (see `BASELINES`) are left out, and so is a source for which none remains. ObjectNet
    and ImageNet-A are among these: their baselines are functions of the accuracy on their own
    classes (`BASELINES_ON_OWN_CLASSES`), that of A is a poor fit besides. An A_ID of 0 or 100 %
    is moved inwards by `CLIP`.

    Raises:
        InapplicableError: no reference `imagenet`, or no pair with a baseline.
        IncompleteError: a cell is missing.

    Source: arXiv:2007.00644.
    """
    _check(matrix)
    found = {}
    for i, others in matrix.pairs.items():
        known = [j for j in others if _baseline(j)]
        if known:
            found[i] = _of_row(matrix.post.get(i, {}), known, i)
    if not found:
        raise InapplicableError(
            "Effective robustness needs a source and another member with a baseline: "
            f"{', '.join(BASELINES)}."
        )
    return found


def effective_robustness_before(matrix: Matrix) -> dict[str, float]:
    """The same of the untouched backbone, dataset → points; its change is what fine-tuning did.

    Raises:
        InapplicableError: no reference `imagenet`, or no member with a baseline.
        IncompleteError: a cell is missing.

    Source: arXiv:2007.00644.
    """
    _check(matrix)
    known = [j for j in matrix.members if _baseline(j)]
    if not known:
        raise InapplicableError(
            f"Effective robustness needs a member with a baseline: {', '.join(BASELINES)}."
        )
    return _of_row(matrix.pre, known, "before")


def effective_robustness_at(ood_accuracy: float, id_accuracy: float, baseline: Baseline) -> float:
    """Effective robustness of one model, in points.

    Args:
        ood_accuracy: under the shift, in %.
        id_accuracy: on what the baseline is a function of, in %.
        baseline: e.g. `BASELINES_ON_OWN_CLASSES["objectnet"]`.

    Source: arXiv:2007.00644.
    """
    return multi_id_effective_robustness(ood_accuracy, [id_accuracy], baseline)


def multi_id_effective_robustness(
    ood_accuracy: float, id_accuracies: ArrayLike, baseline: Baseline
) -> float:
    """Effective robustness beyond what several in-distribution sets predict, in points.

    Compares models of different pretraining data, e.g. with ImageNet and a test set of LAION.
    The baseline has to be fitted on models that the user has: `fit_baseline`.

    Args:
        ood_accuracy: under the shift, in %.
        id_accuracies: (k,), in %, in the order of the fit.
        baseline: from `fit_baseline`.

    Source: arXiv:2302.01381.
    """
    given = np.shape(id_accuracies)
    if given != (len(baseline.slopes),):
        raise ValueError(f"expected {len(baseline.slopes)} accuracies, got shape {given}")
    return float(ood_accuracy - baseline.predict(id_accuracies))


def fit_baseline(id_accuracies: ArrayLike, ood_accuracy: ArrayLike) -> Baseline:
    """Least squares in logits: what a set of models reaches under a shift.

    Args:
        id_accuracies: (M, k) of M models on k in-distribution sets, in %.
        ood_accuracy: (M,) of the same models under the shift, in %.

    Raises:
        InapplicableError: fewer than k + 1 models, or their accuracies do not tell k slopes apart.

    Source: arXiv:2007.00644; for k > 1 arXiv:2302.01381.
    """
    x, y = _logit(id_accuracies), _logit(ood_accuracy)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"expected (M, k) and (M,), got {x.shape} and {y.shape}")
    design = np.column_stack([x, np.ones(len(x))])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    if rank < design.shape[1]:
        raise InapplicableError(
            f"A baseline on {x.shape[1]} sets needs at least {design.shape[1]} models of different "
            f"accuracies; {len(x)} were given, which leave it undetermined."
        )
    spread = ((y - y.mean()) ** 2).sum()
    left = ((y - design @ solution) ** 2).sum()
    r2 = 1 - left / spread if spread > 0 else float("nan")
    return Baseline(tuple(map(float, solution[:-1])), float(solution[-1]), float(r2))


def _of_row(row: Any, datasets: list[str], name: str) -> dict[str, float]:
    for j in (REFERENCE, *datasets):
        if j not in row:
            raise IncompleteError(
                f"The cell {name} → {j} has no number yet: run the same command again."
            )
    at = row[REFERENCE].top1
    return {j: effective_robustness_at(row[j].top1, at, b) for j in datasets if (b := _baseline(j))}


def _check(matrix: Matrix) -> None:
    if REFERENCE not in matrix.references:
        raise InapplicableError(
            f"Effective robustness needs the accuracy on the reference {REFERENCE!r}; this run's "
            f"references: {', '.join(matrix.references) or 'none'}."
        )


def _baseline(dataset: str) -> Baseline | None:
    return BASELINES.get(dataset.removeprefix("imagenet-ood/"))


def _logit(percent: ArrayLike) -> NDArray[np.float64]:
    from scipy.special import logit

    clipped = np.clip(np.asarray(percent, dtype=np.float64), CLIP, 100 - CLIP)
    return np.asarray(logit(clipped / 100))
