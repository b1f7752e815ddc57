"""What metrics are tried on: tiny, random, in another order, extreme, spoiled, empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rib_harness.features import Features
from rib_harness.matrix import Cell, Matrix
from rib_harness.scores import Scores
from rib_harness.testing.arrays import matrix_of, scores_of, tiny_features, tiny_scores

Inputs = tuple[Any, ...]


def inputs(level: str, seed: int = 0) -> Inputs:
    """Random tiny inputs of a metric of this level."""
    if level == "scores":
        return (tiny_scores(seed=seed),)
    if level == "matrix":
        rng = np.random.default_rng(seed)
        names = ["a", "b", "c", "val"]
        row = lambda: dict(zip(names, rng.uniform(1, 99, 4).round(1), strict=True))  # noqa: E731
        return (matrix_of(row(), {i: row() for i in names[:3]}, references=["val"]),)
    # Drift is of the same images before and after; a distance is of two datasets.
    n = 30 if level == "drift" else 20
    return (tiny_features(seed=seed), tiny_features(n, seed=seed + 100, shift=0.5))


def tied(level: str, given: Inputs) -> Inputs:
    """The same, with confidences that several images share, right ones and wrong ones."""
    if level != "scores":
        return given
    (scores,) = given
    columns = {name: scores.column(name).tolist() for name in scores.table.column_names}
    columns["confidence"] = [round(one, 1) for one in columns["confidence"]]
    return (scores_of(**columns),)


def permuted(level: str, given: Inputs) -> Inputs:
    """The same inputs in another order: of two datasets each in an order of its own."""
    if level == "matrix":
        (matrix,) = given
        turned = {n: dict(reversed(row.items())) for n, row in reversed(matrix.post.items())}
        return (
            replace(
                matrix,
                members=matrix.members[::-1],
                sources=matrix.sources[::-1],
                pre=dict(reversed(matrix.pre.items())),
                post=turned,
            ),
        )
    if level == "scores":
        (scores,) = given
        order = np.random.default_rng(0).permutation(len(scores))
        return (Scores(scores.table.take(order)),)
    orders = [
        np.random.default_rng(side if level == "distance" else 0).permutation(len(one))
        for side, one in enumerate(given)
    ]
    return tuple(_rows(one, order) for one, order in zip(given, orders, strict=True))


def pieces(given: Inputs) -> Inputs:
    """The same images, read in three pieces: as of a file with several row groups."""
    (scores,) = given
    third = len(scores) // 3
    parts = [scores.table.slice(k, third or None) for k in (0, third)]
    return (Scores(pa.concat_tables([*parts, scores.table.slice(2 * third)])),)


def _rows(one: Features, order: Sequence[int] | np.ndarray[Any, Any]) -> Features:
    """These rows of features, as if they had been taken in this order."""
    return replace(
        one,
        features=one.features[order],
        logits=one.logits[order],
        labels=one.labels[order],
        index=np.arange(len(order)),
    )


def extremes(level: str) -> tuple[Inputs, Inputs]:
    """All is well, and all is wrong."""
    if level == "scores":
        label, n = [0, 1, 2, 3], 4
        wrong = scores_of(
            label=label, prediction=[1, 2, 3, 0], top5=[False] * n, nll=[20.0] * n, brier=[2.0] * n
        )
        return (scores_of(label=label),), (wrong,)
    if level == "matrix":
        names = ["a", "b", "c", "val"]
        pre = dict.fromkeys(names, 50)

        def after(accuracy: float) -> Inputs:
            post = {i: dict.fromkeys(names, accuracy) for i in names[:3]}
            return (matrix_of(pre, post, references=["val"]),)

        return after(100), after(0)
    start = tiny_features()
    return (start, start), (start, tiny_features(seed=1, shift=3.0))


def spoiled(level: str, given: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The inputs with one NaN, and where it is."""
    if level == "scores":
        (scores,) = given
        for name in ("confidence", "nll", "brier"):
            values = scores.column(name)
            for image in (values.argmin(), values.argmax()):  # a threshold may pass one by
                columns = {c: scores.column(c).tolist() for c in scores.table.column_names}
                columns[name][image] = math.nan
                yield f"the {name} of one image", (scores_of(**columns),)
    elif level == "matrix":
        (matrix,) = given
        nothing = Cell(math.nan, 0, 100)
        for j in matrix.pre:
            yield f"A_pre of {j}", (replace(matrix, pre={**matrix.pre, j: nothing}),)
            for i in matrix.post:
                post = {**matrix.post, i: {**matrix.post[i], j: nothing}}
                yield f"the cell {i} → {j}", (replace(matrix, post=post),)
    else:
        for which in (0, 1):
            for name in ("features", "logits"):
                array = getattr(given[which], name).copy()
                array[3, 0] = math.nan
                changed = [*given]
                changed[which] = replace(given[which], **{name: array})
                yield f"the {name} of one image", tuple(changed)


def empty(level: str) -> Inputs:
    """No image, or no dataset."""
    if level == "scores":
        return (scores_of(label=[]),)
    if level == "matrix":
        return (Matrix((), (), (), {}, {}),)
    return tuple(replace(_rows(one, []), moved={}) for one in inputs(level))
