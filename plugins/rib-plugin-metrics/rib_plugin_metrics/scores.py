"""Numbers from one checkpoint on one dataset: accuracy, calibration, proper scores."""

import numpy as np
from numpy.typing import NDArray

from rib_harness import Scores
from rib_harness.scores import summarise

#: Equal-width bins of the calibration error.
BINS = 15


def top1(scores: Scores) -> float:
    """Top-1 accuracy in %: micro-averaged over images.

    Where the set has groups `corruption/severity`, the mean over corruptions of the mean over
    severities, as ImageNet-C is scored.

    Source: arXiv:1409.0575; for groups arXiv:1903.12261.
    """
    return float(scores.summary()["top1"])


def top5(scores: Scores) -> float:
    """Top-5 accuracy in %: the label is among the five highest logits. Averaged as `top1`.

    Source: arXiv:1409.0575.
    """
    return float(summarise(scores.column("top5"), scores.column("group"))["top1"])


def ece(scores: Scores) -> float:
    """Expected calibration error of the top label, in [0, 1].

        ECE = Σ_b n_b / n · | accuracy of bin b − mean confidence of bin b |

    15 equal-width bins [k/15, (k+1)/15); a confidence of exactly 1 has a bin of its own, as in
    torchmetrics. Over all images, whatever their group.

    Source: Naeini et al., AAAI 2015; arXiv:1706.04599.
    """
    confidence = scores.column("confidence")
    bins = np.digitize(confidence, _edges()) - 1
    right = np.bincount(bins, scores.correct, BINS + 1)
    confident = np.bincount(bins, confidence, BINS + 1)
    return float(np.abs(right - confident).sum() / len(scores))


def nll(scores: Scores) -> float:
    """Mean negative log-likelihood of the label, in nats, over all images.

    Source: arXiv:1706.04599.
    """
    return float(scores.column("nll").mean(dtype=np.float64))


def brier(scores: Scores) -> float:
    """Mean Brier score Σ_k (p_k − y_k)², summed over classes, in [0, 2], over all images.

    Source: Brier, Monthly Weather Review 78, 1950.
    """
    return float(scores.column("brier").mean(dtype=np.float64))


def _edges() -> NDArray[np.float32]:
    """k/15 for k = 0 … 15, rounded as `torch.linspace` does: a float32 step, from both ends.

    Confidences are float32, and one that lies on an edge must fall into the bin that the rest
    of the field puts it into.
    """
    steps = np.arange(BINS + 1) * float(np.float32(1 / BINS))
    half = (BINS + 1) // 2
    edges = np.concatenate([steps[:half], 1 - steps[: BINS + 1 - half][::-1]])
    return edges.astype(np.float32)
