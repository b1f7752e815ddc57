"""ImageNet-C's own scores: errors relative to AlexNet's on the same corruption."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, Scores

#: AlexNet's error on each corruption, mean over the five severities, in %: the published table
#: that the field divides by (e.g. google-research/augmix).
ALEXNET = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}

#: AlexNet's error on ImageNet's validation set, in %.
ALEXNET_CLEAN = 43.5

#: The reference set that the clean error is measured on.
CLEAN = "imagenet"

SEVERITIES = 5


def mce(scores: Scores) -> float:
    """Mean corruption error, in % of AlexNet's; AlexNet itself has 100.

        mCE = 100 · mean_c ( Σ_s E_{s,c} / Σ_s E^AlexNet_{s,c} )

    Raises:
        InapplicableError: the set's corruptions are not ImageNet-C's 15.
        IncompleteError: a severity is missing.

    Source: arXiv:1903.12261.
    """
    return _mean_ratio(corruption_errors(scores.summary()["groups"]), 0.0, 0.0)


def relative_mce(matrix: Matrix) -> dict[str, float]:
    """Relative mCE after fine-tuning on each source, in % of AlexNet's.

        100 · mean_c ( Σ_s (E_{s,c} − E_clean) / Σ_s (E^AlexNet_{s,c} − E^AlexNet_clean) )

    E_clean is the error of the same checkpoint on the reference `imagenet`; AlexNet's is 43.5 %.
    The set of corruptions itself is left out as a source: it was trained on.

    Raises:
        InapplicableError: no member, or several, with ImageNet-C's 15 corruptions; no reference
            `imagenet`; no source beside the set of corruptions.
        IncompleteError: a cell or a severity is missing.

    Source: arXiv:1903.12261.
    """
    if CLEAN not in matrix.references:
        raise InapplicableError(
            f"Relative mCE subtracts the error on the reference {CLEAN!r}, and AlexNet's there; "
            f"this run's references: {', '.join(matrix.references) or 'none'}."
        )
    corrupted = _corrupted_member(matrix)
    sources = [source for source in matrix.sources if source != corrupted]
    if not sources:
        raise InapplicableError(f"Relative mCE needs a source other than {corrupted}.")
    found = {}
    for source in sources:
        errors = corruption_errors(_after(matrix, source, corrupted).groups)
        clean = 100 - _after(matrix, source, CLEAN).top1
        found[source] = _mean_ratio(errors, clean, ALEXNET_CLEAN)
    return found


def corruption_errors(groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Error on each of the 15 corruptions, mean over the five severities, in %.

    Args:
        groups: `"fog/3"` → [correct, n].

    Raises:
        InapplicableError: the corruptions are not ImageNet-C's 15: AlexNet's errors are known
            for these only.
        IncompleteError: a severity is missing.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for group, (correct, n) in groups.items():
        corruption, _, severity = group.partition("/")
        errors[corruption][severity] = 100 * (1 - correct / n)
    if errors.keys() != ALEXNET.keys():
        lacks = ", ".join(sorted(ALEXNET.keys() - errors.keys())) or "nothing"
        more = ", ".join(sorted(errors.keys() - ALEXNET.keys())) or "nothing"
        raise InapplicableError(
            "mCE needs exactly the 15 corruptions of ImageNet-C, since AlexNet's errors are known "
            f"for these only. Lacking: {lacks}; beyond them: {more}."
        )
    wanted = [f"{c}/{s}" for c in ALEXNET for s in range(1, SEVERITIES + 1)]
    missing = [group for group in wanted if group not in groups]
    if missing:
        raise IncompleteError(
            f"mCE needs all five severities; no images of {', '.join(missing)}: "
            "a mean of what is there would be another number."
        )
    return {c: sum(errors[c].values()) / SEVERITIES for c in ALEXNET}


def _mean_ratio(errors: Mapping[str, float], clean: float, alexnet_clean: float) -> float:
    ratios = [(errors[c] - clean) / (ALEXNET[c] - alexnet_clean) for c in ALEXNET]
    return 100 * sum(ratios) / len(ratios)


def _corrupted_member(matrix: Matrix) -> str:
    """The member with the 15 corruptions, by any of its cells."""
    rows = (matrix.pre, *matrix.post.values())
    cells = {j: [row[j] for row in rows if j in row] for j in matrix.members}
    found = [j for j, of in cells.items() if any(_corruptions(c) == set(ALEXNET) for c in of)]
    if len(found) == 1:
        return found[0]
    unknown = [j for j, of in cells.items() if not of]
    if not found and unknown:
        raise IncompleteError(f"There is no number yet on {', '.join(unknown)}.")
    raise InapplicableError(
        "Relative mCE needs one member with the 15 corruptions of ImageNet-C, and found "
        f"{', '.join(found) or 'none'}."
    )


def _corruptions(cell: Cell) -> set[str]:
    return {group.partition("/")[0] for group in cell.groups}


def _after(matrix: Matrix, source: str, dataset: str) -> Cell:
    try:
        return matrix.post[source][dataset]
    except KeyError:
        raise IncompleteError(
            f"The cell {source} → {dataset} has no number yet: run the same command again."
        ) from None
