"""Effective robustness: accuracy under shift beyond what the accuracy on ImageNet predicts."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, RibError

#: Accuracies are kept this far from 0 and 100 %, where the logit is infinite: half of one of
#: ImageNet's 50 000 images, in %.
CLIP = 0.001

#: Names the table of models for `effective_robustness_multi_id`.
MODELS = "RIB_BASELINE_MODELS"

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
#: images of R's classes, which is in `BASELINES_ON_OWN_CLASSES`: the two are not to be mixed.
BASELINES = {
    "imagenet-v2": Baseline((0.9232,), -0.4977, 0.996),
    "imagenet-sketch": Baseline((1.0709,), -2.3701, 0.869),
    "imagenet-r": Baseline((0.9116,), -1.5999, 0.877),
}

#: Likewise, but as functions of the accuracy on ImageNet val's images of the shifted set's own
#: classes, logits restricted to these. No matrix holds that number, nor do scores, which say what
#: is predicted among all 1000: see `effective_robustness_at`. imagenet-r is imagenet-testbed's own
#: line, over the same 80 models as that over all of val. imagenet-a is a poor fit: its images were
#: filtered against a ResNet-50.
BASELINES_ON_OWN_CLASSES = {
    "imagenet-r": Baseline((0.6368,), -2.1077, 0.889),
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


def effective_robustness_multi_id(matrix: Matrix) -> dict[str, dict[str, float]]:
    """Effective robustness beyond what all references of the run predict, in points.

        A_OOD − 100 · logit⁻¹( Σ_k a_k · logit(A_ID,k) + b )

    For each source and each other member, as `effective_robustness`, for models of different
    pretraining data: a model that was trained on LAION is not more robust for being weaker on
    ImageNet than on LAION. The in-distribution sets are the references, two or more. There is no
    published table of models on the sets of a matrix, so the baseline is fitted on the user's: the
    variable `RIB_BASELINE_MODELS` names a CSV file with a row a model and a column a dataset,
    accuracies in %, among them models that were trained on either distribution and had no
    robustness intervention. Members without a column are left out.

    Raises:
        InapplicableError: fewer than two references, no table, no pair that it has columns for, or
            models that do not determine a baseline.
        RibError: the table cannot be read, or lacks a reference.
        IncompleteError: a cell is missing.

    Source: arXiv:2302.01381.
    """
    if len(matrix.references) < 2:
        raise InapplicableError(
            "Effective robustness over several in-distribution sets needs two references or more; "
            f"this run's: {', '.join(matrix.references) or 'none'}."
        )
    file = os.environ.get(MODELS)
    if not file:
        raise InapplicableError(
            f"It needs accuracies of models to fit its baseline on: name a CSV file in {MODELS}, a "
            "row a model, a column a dataset."
        )
    table = read_models(Path(file).expanduser(), matrix.references)
    fitted: dict[str, Baseline] = {}
    found = {}
    for i, others in matrix.pairs.items():
        known = [j for j in others if _short(j) in table]
        for j in known:
            if j not in fitted:
                fitted[j] = _fit_where_known(table, matrix.references, j)
        if known:
            row = _whole(matrix.post.get(i, {}), (*matrix.references, *known), i)
            at = [row[r] for r in matrix.references]
            found[i] = {j: multi_id_effective_robustness(row[j], at, fitted[j]) for j in known}
    if not found:
        raise InapplicableError(
            f"{file} has no column for a member of this run that is not the source: it has "
            f"{', '.join(table) or 'none'}."
        )
    return found


def read_models(file: Path, references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Dataset → (M,) accuracies of models in %, NaN where a cell is empty.

    Columns that hold no numbers, as the models' names, are left out.

    Raises:
        RibError: the file cannot be read, lacks a reference, or has a number that is no
            percentage.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RibError(f"{MODELS}={file} cannot be read as CSV: {error}") from None
    table = {}
    for name in rows[0] if rows else ():
        try:
            column = np.array([float(row[name] or "nan") for row in rows])
        except (TypeError, ValueError):
            continue
        table[_short(str(name))] = column
    if lacking := [name for name in references if _short(name) not in table]:
        raise RibError(
            f"{MODELS}={file} has no column of numbers for {', '.join(lacking)}; it has "
            f"{', '.join(table) or 'none'}."
        )
    for name in table:
        if ((table[name] < 0) | (table[name] > 100)).any():
            raise RibError(f"{MODELS}={file}: {name} has a number that is no accuracy in %.")
    return table


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


def _of_row(row: Mapping[str, Cell], datasets: list[str], name: str) -> dict[str, float]:
    top1 = _whole(row, (REFERENCE, *datasets), name)
    at = top1[REFERENCE]
    return {j: effective_robustness_at(top1[j], at, b) for j in datasets if (b := _baseline(j))}


def _whole(row: Mapping[str, Cell], datasets: Sequence[str], name: str) -> dict[str, float]:
    """Dataset → top-1 in %.

    Raises:
        IncompleteError: one is missing.
    """
    for j in datasets:
        if j not in row:
            raise IncompleteError(
                f"The cell {name} → {j} has no number yet: run the same command again."
            )
    return {j: row[j].top1 for j in datasets}


def _fit_where_known(
    table: Mapping[str, NDArray[np.float64]], references: Sequence[str], dataset: str
) -> Baseline:
    """On the models that have a number on each of these."""
    x = np.column_stack([table[_short(name)] for name in references])
    y = table[_short(dataset)]
    known = ~np.isnan(np.column_stack([x, y])).any(1)
    return fit_baseline(x[known], y[known])


def _check(matrix: Matrix) -> None:
    if REFERENCE not in matrix.references:
        raise InapplicableError(
            f"Effective robustness needs the accuracy on the reference {REFERENCE!r}; this run's "
            f"references: {', '.join(matrix.references) or 'none'}."
        )


def _baseline(dataset: str) -> Baseline | None:
    return BASELINES.get(_short(dataset))


def _short(dataset: str) -> str:
    return dataset.removeprefix("imagenet-ood/")


def _logit(percent: ArrayLike) -> NDArray[np.float64]:
    from scipy.special import logit

    clipped = np.clip(np.asarray(percent, dtype=np.float64), CLIP, 100 - CLIP)
    return np.asarray(logit(clipped / 100))
