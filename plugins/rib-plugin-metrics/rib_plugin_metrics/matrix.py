"""Numbers from a matrix of accuracies before and after fine-tuning.

All raise `IncompleteError` where a cell is missing: nothing is averaged over what happens to be
there.
"""

from rib_harness import InapplicableError, IncompleteError, Matrix


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


def mri_unshared(matrix: Matrix) -> float:
    """mRI without the ordered pairs that are made from the same photographs, in points.

    RI_i is the mean over the members j ≠ i that share no photographs with i; mRI the mean of
    these over the sources. A source that shares with every other member has no RI and is left
    out of that mean. Without shared photographs this is mRI.

    Raises:
        InapplicableError: every source shares photographs with every other member.
        IncompleteError: a cell of a pair that is left is missing.

    Source: arXiv:2410.21582 for mRI.
    """
    if not matrix.sources:
        raise IncompleteError("mRI needs at least one source; nothing was fine-tuned here.")
    rows = []
    for i, others in matrix.pairs.items():
        changes = [matrix.change(i, j) for j in others if not matrix.shared(i, j)]
        if changes:
            rows.append(_mean(changes))
    if not rows:
        raise InapplicableError(
            "mRI without shared photographs needs a source and another member made from other "
            "photographs: every pair here shares them."
        )
    return _mean(rows)


def mean_ood_accuracy(matrix: Matrix) -> float:
    """Mean OOD accuracy after fine-tuning: mRI + the mean of A_pre over the members, in %.

    With every member a source this is the mean of A_i^(j) over j ≠ i.

    Source: arXiv:2410.21582.
    """
    mri = matrix.mri  # raises where a cell is missing
    return mri + _mean([matrix.pre[j].top1 for j in matrix.members])


def gain(matrix: Matrix) -> float:
    """Mean over sources of A_i^(i) − A_pre^(i), in points: on held-out images if there are some.

    The protocol fine-tunes on all images of a member; it is training accuracy then.
    """
    return _mean([matrix.gain(source) for source in matrix.sources])


def forgetting(matrix: Matrix) -> float:
    """Mean over sources and reference sets of A_pre − A_i, in points; positive is forgotten.

    A source made from a reference's own photographs was trained on them with their labels:
    `forgetting_unshared` leaves such pairs out.

    Raises:
        InapplicableError: there is no reference set.
        IncompleteError: a cell is missing, or nothing was fine-tuned.
    """
    _check_references(matrix)
    return _mean(
        [-matrix.change(source, j) for source in matrix.sources for j in matrix.references]
    )


def forgetting_unshared(matrix: Matrix) -> float:
    """Forgetting without the sources made from the reference's own photographs, in points.

    Mean of A_pre − A_i over the pairs of a source and a reference set that share none.

    Raises:
        InapplicableError: there is no reference set, or every source shares photographs with
            every reference.
        IncompleteError: a cell of a pair that is left is missing, or nothing was fine-tuned.
    """
    _check_references(matrix)
    pairs = [(i, j) for i in matrix.sources for j in matrix.references]
    apart = [(i, j) for i, j in pairs if not matrix.shared(i, j)]
    if pairs and not apart:
        raise InapplicableError(
            "Forgetting without shared photographs needs a source that is not made from the "
            f"photographs of {', '.join(matrix.references)}."
        )
    return _mean([-matrix.change(i, j) for i, j in apart])


def relative_robustness(matrix: Matrix) -> dict[str, dict[str, float]]:
    """A_i^(j) − A_pre^(j) for each source i and other member j, in points.

    Its mean over j is RI_i. The diagonal, training accuracy, is `gain`.

    Source: arXiv:2007.00644.
    """
    return {i: {j: matrix.change(i, j) for j in others} for i, others in matrix.pairs.items()}


def _check_references(matrix: Matrix) -> None:
    if not matrix.references:
        raise InapplicableError("Forgetting needs a reference set, and this suite has none.")


def _mean(values: list[float]) -> float:
    if not values:
        raise IncompleteError("Nothing to average: nothing was fine-tuned.")
    return sum(values) / len(values)
