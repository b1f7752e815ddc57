"""Numbers from one checkpoint on one dataset."""

from rib_harness import Scores


def top1(scores: Scores) -> float:
    """Top-1 accuracy in %: micro-averaged over images.

    Where the set has groups `corruption/severity`, the mean over corruptions of the mean over
    severities, as ImageNet-C is scored.

    Source: arXiv:1409.0575; for groups arXiv:1903.12261.
    """
    return float(scores.summary()["top1"])
