"""Scores, matrices and features for tests of metrics: given by hand, or from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rib_harness.features import Features
from rib_harness.matrix import Cell, Matrix
from rib_harness.scores import SCORES, Scores, check_column


def scores_of(**columns: Sequence[Any]) -> Scores:
    """Scores with these columns; the others are what a sure, right answer would have.

    Raises:
        PluginError: scores have no such column.

    Example:
        >>> scores_of(label=[0, 1], prediction=[0, 0]).correct.tolist()
        [True, False]
    """
    for name in columns:
        check_column(name)
    n = len(next(iter(columns.values())))
    label = list(columns.get("label", [0] * n))
    whole: dict[str, Sequence[Any]] = {
        "index": range(n), "label": label, "prediction": label, "top5": [True] * n,
        "confidence": [1.0] * n, "nll": [0.0] * n, "brier": [0.0] * n, "group": [""] * n,
        "source": [f"photo-{i}" for i in range(n)], **columns,
    }  # fmt: skip
    arrays = {name: list(whole[name]) for name in SCORES.names}
    return Scores(pa.table(arrays, schema=SCORES))


def tiny_scores(
    n: int = 40, classes: int = 8, seed: int = 0, groups: Sequence[str] = ("",)
) -> Scores:
    """The scores of random logits that favour the label a little.

    Args:
        n: images.
        classes: of the dataset.
        seed: of the logits.
        groups: given to the images in turn, e.g. `("fog/1", "fog/2")`.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    logits = rng.normal(0, 2, (n, classes))
    logits[np.arange(n), label] += 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rank = (logits > logits[np.arange(n), label][:, None]).sum(1)
    truth = np.eye(classes)[label]
    return scores_of(
        label=label.tolist(),
        prediction=logits.argmax(1).tolist(),
        top5=(rank < 5).tolist(),
        confidence=p.max(1).tolist(),
        nll=(-np.log(p[np.arange(n), label])).tolist(),
        brier=((p - truth) ** 2).sum(1).tolist(),
        group=[groups[i % len(groups)] for i in range(n)],
    )


def matrix_of(
    pre: Mapping[str, float],
    post: Mapping[str, Mapping[str, float]],
    references: Sequence[str] = (),
) -> Matrix:
    """A matrix of accuracies in %, each over 100 images.

    Args:
        pre: dataset → before.
        post: source → dataset → after.
        references: datasets that are no members.

    Example:
        >>> matrix_of({"a": 50, "b": 60}, {"a": {"a": 90, "b": 55}}).mri
        -5.0
    """

    def cell(top1: float) -> Cell:
        return Cell(float(top1), round(top1) if top1 == top1 else 0, 100)

    return Matrix(
        members=tuple(name for name in pre if name not in references),
        references=tuple(references),
        sources=tuple(post),
        pre={name: cell(value) for name, value in pre.items()},
        post={i: {j: cell(value) for j, value in row.items()} for i, row in post.items()},
    )


def tiny_features(
    n: int = 30, dim: int = 6, classes: int = 3, seed: int = 0, shift: float = 0.0
) -> Features:
    """Features in a cluster a class, and logits that agree.

    Args:
        n: images.
        dim: of the features, at least `classes`.
        classes: of the dataset.
        seed: of the noise.
        shift: 0 leaves the clusters; more moves them all, and to other classes' places.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.eye(classes, dim)[np.roll(np.arange(classes), bool(shift))] * 5
    features = centres[labels] + rng.normal(0, 1, (n, dim)) + shift
    return Features(
        features=features.astype(np.float32),
        logits=(features[:, :classes] - shift).astype(np.float32),
        labels=labels.astype(np.int64),
        index=np.arange(n),
        ids=tuple((k,) for k in range(classes)),
        moved={"encoder.weight": (shift, 4.0), "head.weight": (shift / 2, 2.0)},
    )
