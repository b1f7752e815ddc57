"""How far fine-tuning moved a network: features, logits and weights, on the same images."""

import math
from collections import defaultdict

import numpy as np

from rib_harness import Features, InapplicableError
from rib_plugin_metrics.samples import exact


def feature_drift(before: Features, after: Features) -> float:
    """Mean over images of 1 − cos between the features before and after, in [0, 2].

        mean_n ( 1 − ⟨z_n, z'_n⟩ / (‖z_n‖ ‖z'_n‖) )

    A feature vector of zeros has no direction; its cosine counts as 0.

    Args:
        before, after: the same images, features of equal dimension.

    Raises:
        InapplicableError: the two have features of different dimension.
        ValueError: they are not of the same images.
    """
    check_same_images(before, after)
    x, y = exact(before.features), exact(after.features)
    if x.shape != y.shape:
        raise InapplicableError(
            f"Feature drift needs features of equal dimension, not {x.shape[1]} and {y.shape[1]}; "
            "CKA compares any two."
        )
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = (x * y).sum(1) / np.where(norms > 0, norms, 1)
    return float(np.mean(1 - cosine))


def logit_kl(before: Features, after: Features) -> float:
    """Mean over images of KL(p_before ‖ p_after) over the set's own classes, in nats.

        mean_n Σ_k p_n,k · ( log p_n,k − log q_n,k )

    Args:
        before, after: the same images, logits over the same classes.

    Raises:
        ValueError: they are not of the same images or classes.

    Source: Kullback & Leibler, Annals of Mathematical Statistics 22, 1951.
    """
    from scipy.special import log_softmax

    check_same_images(before, after)
    if before.logits.shape != after.logits.shape:
        raise ValueError(
            f"expected logits over the same classes, got {before.logits.shape} and "
            f"{after.logits.shape}"
        )
    p = log_softmax(exact(before.logits), axis=1)
    q = log_softmax(exact(after.logits), axis=1)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def weight_drift(before: Features, after: Features) -> float:
    """‖θ − θ₀‖ / ‖θ₀‖ over all parameters together.

    Args:
        before: of the untouched backbone; not read.
        after: of the fine-tuned one; its `moved` holds the norms.

    Raises:
        InapplicableError: nothing is known of its parameters, or θ₀ is zero.

    Source: arXiv:1802.01483.
    """
    return _relative(list(_moved(after).values()), "the parameters")


def weight_drift_by_layer(after: Features) -> dict[str, float]:
    """‖θ − θ₀‖ / ‖θ₀‖ of each layer: the parameters whose names differ in the last part only.

    A layer that started at zero has no relative drift: `inf` if it moved, 0 if it did not.

    Args:
        after: of a fine-tuned network.

    Returns:
        layer, e.g. `"encoder.blocks.0.attn.qkv"`, in the order of its parameters → drift.

    Raises:
        InapplicableError: nothing is known of its parameters.

    Example:
        >>> moved = {"head.weight": (3.0, 6.0), "head.bias": (4.0, 8.0)}
        >>> empty = np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), np.zeros(0)
        >>> weight_drift_by_layer(Features(*empty, ids=(), moved=moved))
        {'head': 0.5}
    """
    layers = defaultdict(list)
    for name, norms in _moved(after).items():
        layers[name.rpartition(".")[0] or name].append(norms)
    drift = {}
    for layer, pairs in layers.items():
        if any(start for _, start in pairs):
            drift[layer] = _relative(pairs, layer)
        else:
            drift[layer] = math.inf if any(by for by, _ in pairs) else 0.0
    return drift


def check_same_images(before: Features, after: Features) -> None:
    """Raise `ValueError` unless both are of the same images, row by row."""
    if not np.array_equal(before.index, after.index):
        raise ValueError(
            "expected features of the same images before and after, got "
            f"{len(before)} and {len(after)} rows with different indices"
        )


def _moved(after: Features) -> dict[str, tuple[float, float]]:
    if not after.moved:
        raise InapplicableError(
            "Weight drift needs how far each parameter moved, and nothing is known of this "
            "checkpoint's: the untouched backbone, or parameters that have no start."
        )
    return dict(after.moved)


def _relative(norms: list[tuple[float, float]], what: str) -> float:
    moved, start = (math.hypot(*column) for column in zip(*norms, strict=True))
    if not start:
        raise InapplicableError(f"Relative drift needs a start that is not zero: {what}.")
    return moved / start
