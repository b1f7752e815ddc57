"""Accuracy on a small slice of each scoring set while a model trains: diagnostic, nothing more.

No method sees it and no choice is made by it: it shows along the way what the evaluation says at
the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Normalizer, Pixels, in_order, to_device
from rib_harness.engine.labels import ClassMap


def slice_of(n: int, images: int) -> NDArray[np.int64]:
    """Which images of a set stand for it: the same for every model, drawn once, ascending."""
    return np.sort(np.random.default_rng(0).permutation(n)[:images])


@dataclass(frozen=True)
class Probe:
    """Measures a classifier every `every` updates, before the first and after the last.

    Nothing random is drawn and nothing of the model changes, so a fit with probes ends with the
    weights of one without.

    Args:
        slices: dataset → the images that are measured.
        every: updates between two probes.
        device: of the model.
        batch_size: images a forward pass.
    """

    slices: Mapping[str, Pixels]
    every: int
    device: torch.device
    batch_size: int = 64

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` updates."""
        return step % self.every == 0 or step == total

    def __call__(self, model: Classifier) -> dict[str, float]:
        """Dataset → top-1 in %, over all images of its slice alike."""
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad():
                return {name: self.accuracy(model, one) for name, one in self.slices.items()}
        finally:
            for module in training:
                module.training = True

    def accuracy(self, model: Classifier, pixels: Pixels) -> float:
        """Top-1 in % on one slice."""
        classes = ClassMap(pixels.images.class_map).to(self.device)
        normalize = Normalizer(pixels.preprocess).to(self.device)
        order, right = in_order(len(pixels), self.batch_size), 0
        for indices, chunk in zip(order, pixels.batches(order), strict=True):
            logits = classes(model(normalize(to_device(chunk, self.device))), "max")
            labels = torch.from_numpy(pixels.images.labels[indices]).to(self.device)
            right += int((logits.argmax(1) == labels).sum())
        return 100 * right / len(pixels)
