"""Why an untouched backbone misses a known answer: the usual causes, each tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Normalizer, Pixels, in_order, to_device
from rib_harness.engine.labels import ClassMap
from rib_harness.images import ImageSet, Preprocess
from rib_harness.known_answers import Expected, Miss
from rib_harness.scores import summarise

#: Images on which each cause is tried.
SAMPLE = 2000

#: Name → mean and std that published models use.
NORMALISATIONS = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "CLIP's mean and std": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "mean 0 and std 1": ((0.0,) * 3, (1.0,) * 3),
}


def explain(
    miss: Miss,
    classifier: Classifier,
    images: ImageSet,
    preprocess: Preprocess,
    *,
    device: torch.device,
    batch_size: int,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Miss:
    """The same miss, with the causes that would explain it, the best first.

    Each cause is tried on a sample of the images, and explains the miss if it changes the accuracy
    there by what is missing: to the known answer's tolerance or, on a sample, within three
    standard errors of the paired difference, and by more than these. If none does, those that make
    up at least half of a loss are named as a part of it.

    Args:
        preprocess: with which the miss was measured.
        advance: told how many more images went through the model.
    """
    expected, cell = miss.expected, miss.cell
    missing = _missing(images, expected, cell.n)
    needed = expected.percent - cell.top1
    if missing and abs(needed) <= Expected(expected.percent).tolerance(cell.n):
        return replace(miss, causes=(missing,))  # the images that are there score as they should
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), SAMPLE)).astype(np.int64))
    sample = images.taken(chosen)
    trial = _Trial(classifier.to(device).eval(), sample, device, batch_size, workers, advance)
    own = trial.logits(preprocess)
    before = trial.right(own)
    explained: dict[str, float] = {}
    partly: dict[str, float] = {}
    for cause, after in _tried(trial, own, preprocess):
        change = summarise(after, sample.group)["top1"] - summarise(before, sample.group)["top1"]
        error = 3 * 100 * float((after != before).sum()) ** 0.5 / len(sample)
        off = abs(needed - change)
        counts = f"{int(after.sum()):,} of {len(sample):,} instead of {int(before.sum()):,}"
        if off < abs(needed):
            whole = len(sample) == len(images)
            if off <= expected.tolerance(cell.n) if whole else off <= error < abs(change):
                explained[f"{cause}: {counts}"] = off
            elif off <= needed / 2 and abs(change) > error:
                partly[f"a part of it: {cause}: {counts}"] = off
    causes = sorted(explained or partly, key=lambda cause: (explained or partly)[cause])
    return replace(miss, causes=((missing,) if missing else ()) + tuple(causes))


def _missing(images: ImageSet, expected: Expected, n: int) -> str:
    """Files that are not there: counted, not tried."""
    wanted = expected.images or images.expected
    if images.limit is not None or wanted is None or n >= wanted:
        return ""
    classes = len(images.classes) - len(np.unique(images.labels))
    empty = f", {classes} of {len(images.classes)} classes have none" if classes else ""
    return f"missing files: {n:,} images of {wanted:,}{empty}"


def _tried(
    trial: _Trial, own: NDArray[np.float32], preprocess: Preprocess
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    images = trial.images
    k = len(images.classes)
    names = [re.sub(r"^(\d+ )?(n\d{8} )?", "", one).lower() for one in images.classes]
    orders = {
        "as text (0, 1, 10, 100, …)": sorted(range(k), key=str),
        "by their names": sorted(range(k), key=lambda i: names[i]),
    }
    for how, order in orders.items():
        for relabel in (np.array(order), np.argsort(order)):
            yield (
                f"wrong class order: with the labels as of classes sorted {how}",
                trial.right(own, relabel[images.labels]),
            )
    columns = np.array(sorted(range(own.shape[1]), key=str))
    for back in (columns, np.argsort(columns)):
        yield (
            "wrong class order: with the backbone's logits as of classes sorted as text",
            trial.right(np.ascontiguousarray(own[:, back])),
        )
    if images.others is not None:
        alone = own.copy()
        alone[:, list(images.class_map[images.others])] = -np.inf
        yield "1000-way instead of the subset: over its own classes only", trial.right(alone)
    elif sum(map(len, images.class_map)) < own.shape[1]:
        yield (
            f"1000-way instead of the subset: with all {own.shape[1]} classes competing",
            trial.right(own, subset=False),
        )
    for name, (mean, std) in NORMALISATIONS.items():
        if (mean, std) != (preprocess.mean, preprocess.std):
            other = replace(preprocess, mean=mean, std=std)
            yield f"wrong mean/std: with {name}", trial.right(trial.logits(other))
    base = trial.classifier.preprocess
    if preprocess.resize is not None:
        # Only where the pictures look like somebody's crops.
        if all(len(set(images.image(i).size)) == 1 for i in range(min(len(images), 16))):
            cropped = replace(preprocess, resize=None)
            what = "a second resize: with the centre crop only, for pictures that are crops already"
            yield what, trial.right(trial.logits(cropped))
    elif base.resize is not None:
        again = replace(preprocess, resize=base.resize)
        what = "no resize where there should be one: with a resize before the crop"
        yield what, trial.right(trial.logits(again))
    for filter_ in ("bilinear", "bicubic"):
        if filter_ != preprocess.interpolation and preprocess.resize is not None:
            other = replace(preprocess, interpolation=filter_)
            yield (
                f"another interpolation: with {filter_}",
                trial.right(trial.logits(other)),
            )


class _Trial:
    """One classifier on one sample under any preprocessing."""

    def __init__(
        self,
        classifier: Classifier,
        images: ImageSet,
        device: torch.device,
        batch_size: int,
        workers: int | None,
        advance: Callable[[int], None],
    ):
        self._pixels: tuple[object, list[NDArray[np.uint8]]] = (None, [])
        self.advance = advance
        self.classifier, self.images, self.device = classifier, images, device
        self.batch_size, self.workers = batch_size, workers
        self.classes = ClassMap(images.class_map)

    def logits(self, preprocess: Preprocess) -> NDArray[np.float32]:
        """(N, label space)."""
        if self._pixels[0] != preprocess.pixel_fields():  # mean and std need no other pixels
            pixels = Pixels(self.images, preprocess, workers=self.workers, pack=False)
            order = in_order(len(self.images), self.batch_size)
            self._pixels = (preprocess.pixel_fields(), list(pixels.batches(order)))
        normalize = Normalizer(preprocess).to(self.device)
        parts = []
        with torch.inference_mode():
            for chunk in self._pixels[1]:
                parts.append(
                    self.classifier(normalize(to_device(chunk, self.device))).float().cpu()
                )
                self.advance(len(chunk))
        return torch.cat(parts).numpy()

    def right(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64] | None = None,
        *,
        subset: bool = True,
    ) -> NDArray[np.bool_]:
        """(N,) which predictions are right, over the set's own classes or the whole label space."""
        labels = self.images.labels if labels is None else labels
        if subset:
            prediction = self.classes(torch.from_numpy(logits), "max").argmax(1).numpy()
            right = prediction == labels
        else:
            best = logits.argmax(1)
            right = np.array(
                [b in self.images.class_map[y] for b, y in zip(best, labels, strict=True)]
            )
        return right
