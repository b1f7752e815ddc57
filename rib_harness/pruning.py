"""Which images of a fine-tuning set are trained on: held-out parts, subsets, pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rib_harness.config import Recipe


def is_pruned(recipe: Recipe) -> bool:
    """Whether the recipe leaves images out."""
    return recipe.keep < 1 or recipe.per_class is not None


def needs_scores(recipe: Recipe) -> bool:
    """Whether the choice rests on the pretrained backbone's scores."""
    return recipe.keep < 1 and recipe.keep_by != "random"


def held_out(
    labels: NDArray[np.int64], source: NDArray[Any], share: float, seed: int
) -> NDArray[np.int64]:
    """Indices of the images that are not trained on, ascending: about the share of each class.

    Whole photographs are held out, with all their versions: of a set with fifteen corruptions of
    each, another corruption would have been trained on. Drawn by the seed, systematically: also
    where most classes have a photograph or two, the whole part has its share (one at least), and
    no class gives much more than its own.

    Args:
        labels: (N,).
        source: (N,), which photograph each image is a version of.
        share: of the set, 0 … 1; 0 is none.
    """
    if not share:
        return np.empty(0, np.int64)
    _, first, photograph = np.unique(source, return_index=True, return_inverse=True)
    kinds = labels[first]
    rng = np.random.default_rng([seed, 0x68656C64])  # a stream of its own
    order = rng.permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    quantile = np.empty(len(kinds))
    for members in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):
        quantile[members] = (np.arange(len(members)) + rng.random()) / len(members)
    count = min(max(1, round(share * len(kinds))), len(kinds) - 1)
    apart = np.argsort(quantile, kind="stable")[:count]
    return np.flatnonzero(np.isin(photograph, apart))


def kept_count(labels: NDArray[np.int64], recipe: Recipe) -> int:
    """How many images are kept: of each class its share, and one at least."""
    return sum(_share(int(n), recipe) for n in np.unique(labels, return_counts=True)[1])


def kept(
    labels: NDArray[np.int64],
    recipe: Recipe,
    seed: int,
    scores: Mapping[str, NDArray[np.float64]] | None = None,
) -> NDArray[np.int64]:
    """Indices of the images to train on, ascending.

    First at most `per_class` images of each class are drawn by the seed, then the share `keep` of
    what is left in each class is kept: drawn, or the hardest (or easiest) ones. Within a class,
    since a share of the whole set would drop easy classes altogether.

    EL2N (arXiv:2107.07075) is the norm ‖softmax(z) − y‖₂, here of the pretrained backbone: the
    root of the Brier score.

    Args:
        labels: (N,).
        scores: `nll` and `brier` of the untouched backbone, (N,) each; needed unless random.
    """
    rng = np.random.default_rng([seed, 0x6B657074])  # a stream of its own
    order = rng.permutation(len(labels))
    rank = np.zeros(len(labels))
    if needs_scores(recipe):
        if scores is None:
            raise TypeError("keep_by needs the scores of the pretrained backbone")
        hardness = scores["nll"] if recipe.keep_by.startswith("loss") else scores["brier"] ** 0.5
        rank = hardness if recipe.keep_by.endswith("-easy") else -hardness
    chosen: list[NDArray[np.int64]] = []
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, drawn within
    for everyone in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        members = everyone[: recipe.per_class]
        best = members[np.argsort(rank[members], kind="stable")]
        chosen.append(best[: _share(len(everyone), recipe)])
    return np.sort(np.concatenate(chosen))


def _share(n: int, recipe: Recipe) -> int:
    n = min(n, recipe.per_class or n)
    return max(1, round(recipe.keep * n))
