"""Features and logits of classifiers on a sample of a dataset, for drift and distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Normalizer, Pixels, in_order, to_device
from rib_harness.engine.labels import ClassMap
from rib_harness.errors import DivergedError
from rib_harness.features import Features


def describe(
    classifier: Classifier,
    pixels: Pixels,
    index: NDArray[np.int64],
    *,
    untouched: Classifier | None = None,
    device: torch.device,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> Features:
    """What a classifier's encoder and head say of some images.

    Args:
        classifier: in float32.
        pixels: the whole dataset.
        index: (N,), which of its images.
        untouched: what it was before it was fine-tuned, to say how far its weights have moved.
        device: where to compute.
        batch_size: images a forward pass.
        advance: told how many more images were seen.

    Raises:
        DivergedError: a feature or a logit is not finite.
    """
    sample = pixels.taken(index)
    classes = ClassMap(sample.images.class_map).to(device)
    normalize = Normalizer(sample.preprocess).to(device)
    classifier.to(device).eval()
    features, logits = [], []
    order = in_order(len(sample), batch_size)
    with torch.inference_mode():
        for indices, chunk in zip(order, sample.batches(order), strict=True):
            found = classifier.features(normalize(to_device(chunk, device))).float()
            features.append(found.flatten(1).cpu().numpy())
            logits.append(classes(classifier.head(found).float(), "max").cpu().numpy())
            if advance is not None:
                advance(len(indices))
    made = Features(
        np.concatenate(features),
        np.concatenate(logits),
        sample.images.labels.astype(np.int64),
        index.astype(np.int64),
        tuple(tuple(ids) for ids in sample.images.class_map),
        {} if untouched is None else moved(untouched, classifier),
    )
    if not (np.isfinite(made.features).all() and np.isfinite(made.logits).all()):
        raise DivergedError("DIVERGED, a feature or a logit is not finite.")
    return made


def moved(before: Classifier, after: Classifier) -> dict[str, tuple[float, float]]:
    """Parameter → (‖θ − θ₀‖, ‖θ₀‖), of the parameters that both have."""
    start = dict(before.named_parameters())
    distances = {}
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            origin = start.get(name)
            if origin is not None and origin.shape == parameter.shape:
                there, here = parameter.double().cpu(), origin.double().cpu()
                distances[name] = (float((there - here).norm()), float(here.norm()))
    return distances
