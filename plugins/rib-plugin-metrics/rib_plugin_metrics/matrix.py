"""Numbers from a matrix of accuracies before and after fine-tuning.

All raise `IncompleteError` where a cell is missing: nothing is averaged over what happens to be
there.
"""

from rib_harness import IncompleteError, Matrix


def ri(matrix: Matrix) -> dict[str, float]:
    """RI_i of each source i: mean over j ≠ i of A_i^(j) − A_pre^(j), in points.

    Source: arXiv:2410.21582.
    """
    return {source: matrix.ri(source) for source in matrix.sources}


def mri(matrix: Matrix) -> float:
    """mRI: mean of RI_i over the sources, in points.

    Source: arXiv:2410.21582.
    """
    return matrix.mri


def mean_ood_accuracy(matrix: Matrix) -> float:
    """Mean over sources of the mean accuracy on the other members after fine-tuning, in %.

    With every member a source this is mRI plus the mean of A_pre over the members.

    Source: arXiv:2410.21582.
    """
    rows = []
    for source in matrix.sources:
        rows.append(_mean([_after(matrix, source, j) for j in matrix.members if j != source]))
    return _mean(rows)


def gain(matrix: Matrix) -> float:
    """Mean over sources of A_i^(i) − A_pre^(i), in points.

    The protocol fine-tunes on all images of a member, so this is training accuracy.
    """
    return _mean([matrix.change(source, source) for source in matrix.sources])


def forgetting(matrix: Matrix) -> float:
    """Mean over sources and reference sets of A_pre − A_i, in points; positive is forgotten."""
    return _mean(
        [-matrix.change(source, j) for source in matrix.sources for j in matrix.references]
    )


def _after(matrix: Matrix, source: str, dataset: str) -> float:
    matrix.change(source, dataset)  # raises where it is missing
    return matrix.post[source][dataset].top1


def _mean(values: list[float]) -> float:
    if not values:
        raise IncompleteError("Nothing to average: no source, or no reference set.")
    return sum(values) / len(values)
