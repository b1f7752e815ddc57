"""Many checkpoints, one pass over the data; one row an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Normalizer, Pixels, in_order, to_device
from rib_harness.engine.labels import ClassMap
from rib_harness.errors import DataError, DivergedError
from rib_harness.images import ImageSet
from rib_harness.scores import SCORES

Rows = dict[str, Tensor]


def evaluate(
    classifiers: Mapping[str, Classifier],
    pixels: Pixels,
    *,
    device: torch.device,
    batch_size: int = 256,
    advance: Callable[[int], None] | None = None,
) -> tuple[dict[str, pa.Table], dict[str, DivergedError]]:
    """Score any number of checkpoints that share a preprocessing.

    Each image is read once. Where checkpoints share an encoder to the bit, its features serve
    every head. Out of memory, the batch is halved; no number depends on it.

    Args:
        classifiers: name → classifier; its preprocessing is that of `pixels`.
        pixels: the dataset.
        device: where to compute, in float32.
        batch_size: images a forward pass.
        advance: told how many more images were scored.

    Returns:
        name → a table with the columns of `scores.SCORES`, and name → what went wrong for the
        classifiers whose logits were not finite.

    Raises:
        DataError: an image was scored twice or never.
    """
    images = pixels.images
    classes = ClassMap(images.class_map).to(device)
    normalize = Normalizer(pixels.preprocess).to(device)
    labels = torch.tensor(images.labels)
    groups = _by_encoder(classifiers, device)
    rows: dict[str, list[Rows]] = {name: [] for name in classifiers}
    failed: dict[str, DivergedError] = {}

    order = in_order(len(pixels), batch_size)
    with torch.inference_mode():
        for indices, chunk in zip(order, pixels.batches(order), strict=True):
            index = torch.from_numpy(indices)
            batch = normalize(to_device(chunk, device))
            target = labels[index].to(device)
            if not int(index[0]):
                groups = _that_agree(groups, classifiers, batch)
            for group in groups:
                names = [name for name in group if name not in failed]
                outputs = _halving([classifiers[name] for name in names], batch)
                for name, logits in zip(names, outputs, strict=True):
                    if not torch.isfinite(logits).all():
                        failed[name] = DivergedError(
                            f"{name}: DIVERGED, the logits are not finite on "
                            f"{images.names[int(index[0])]} or near it."
                        )
                        continue
                    row = score(classes(logits.float(), "max"), target)
                    rows[name].append({"index": index, "label": target, **row})
            if advance is not None:
                advance(len(indices))
    return {n: _table(rows[n], images) for n in classifiers if n not in failed}, failed


def score(logits: Tensor, labels: Tensor) -> Rows:
    """One row an image, from logits over the set's own classes.

    Args:
        logits: (N, K).
        labels: (N,).

    Returns:
        prediction; top5 (label among the five highest); confidence (probability of the
        prediction); nll (−log probability of the label); brier (Σ_k (p_k − y_k)², summed over
        classes); each (N,), on probabilities renormalised over the set's classes.
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    nll = -log_p.gather(1, labels[:, None]).squeeze(1)
    of_label = p.gather(1, labels[:, None]).squeeze(1)
    confidence = p.amax(1)
    top5 = logits.topk(min(5, logits.shape[1]), 1).indices
    return {
        # Of the logits: probabilities may tie where logits do not.
        "prediction": logits.argmax(1),
        "top5": (top5 == labels[:, None]).any(1),
        "confidence": confidence,
        "nll": nll,
        "brier": p.square().sum(1) - 2 * of_label + 1,
    }


def _by_encoder(classifiers: Mapping[str, Classifier], device: torch.device) -> list[list[str]]:
    """Names of the classifiers whose encoders have equal weights, to the bit."""
    groups: dict[str, list[str]] = {}
    for name, classifier in classifiers.items():
        classifier.to(device).eval()
        encoder = Classifier(classifier.encoder, torch.nn.Identity(), classifier.preprocess)
        kind = f"{type(classifier.encoder).__qualname__} {encoder.fingerprint()}"
        groups.setdefault(kind, []).append(name)
    return list(groups.values())


def _that_agree(
    groups: list[list[str]], classifiers: Mapping[str, Classifier], batch: Tensor
) -> list[list[str]]:
    """The groups, without the classifiers whose features differ: code may, where weights do not."""
    agreed: list[list[str]] = []
    for first, *rest in groups:
        together, alone = [first], list[str]()
        if rest:
            expected = classifiers[first].features(batch[:4])
            for name in rest:
                same = torch.equal(classifiers[name].features(batch[:4]), expected)
                (together if same else alone).append(name)
        agreed += [together, *([name] for name in alone)]
    return agreed


def _halving(classifiers: list[Classifier], batch: Tensor) -> list[Tensor]:
    """Logits of classifiers with one encoder; half the batch at a time if memory is short."""
    if not classifiers:
        return []
    try:
        features = classifiers[0].features(batch)
        return [classifier.head(features) for classifier in classifiers]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    halves = [_halving(classifiers, half) for half in batch.split((len(batch) + 1) // 2)]
    return [torch.cat(parts) for parts in zip(*halves, strict=True)]


def _table(rows: list[Rows], images: ImageSet) -> pa.Table:
    columns = {name: torch.cat([row[name].cpu() for row in rows]).numpy() for name in rows[0]}
    order = np.argsort(columns["index"], kind="stable")
    if not np.array_equal(columns["index"][order], np.arange(len(images))):
        raise DataError(
            f"expected each of {len(images)} images once, got {len(order)} rows with "
            f"{len(np.unique(columns['index']))} different indices"
        )
    columns = {name: values[order] for name, values in columns.items()}
    return pa.table({**columns, "group": images.group, "source": images.source}, schema=SCORES)
