"""The metrics: worked by hand, and against scikit-learn and the published numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rib_plugin_metrics.matrix import forgetting, gain, mean_ood_accuracy, mri, ri
from rib_plugin_metrics.scores import top1
from sklearn.metrics import accuracy_score

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, Scores
from rib_harness.scores import SCORES

MATRIX_METRICS: list[Callable[[Matrix], Any]] = [ri, mri, mean_ood_accuracy, gain, forgetting]


def cells(**top1: float) -> dict[str, Cell]:
    return {name: Cell(value, round(value), 100) for name, value in top1.items()}


def by_hand() -> Matrix:
    """Three members and two references, in round numbers."""
    return Matrix(
        members=("a", "b", "c"),
        references=("r", "s"),
        sources=("a", "b", "c"),
        pre=cells(a=50, b=60, c=70, r=80, s=90),
        post={
            "a": cells(a=90, b=55, c=60, r=70, s=88),
            "b": cells(a=52, b=95, c=74, r=78, s=91),
            "c": cells(a=40, b=66, c=99, r=50, s=75),
        },
    )


def random_matrix(seed: int, n: int = 8) -> tuple[Matrix, Any, Any]:
    """A whole matrix without references, and its numbers as arrays: pre (n,), post (n, n)."""
    rng = np.random.default_rng(seed)
    pre, post = rng.uniform(0, 100, n), rng.uniform(0, 100, (n, n))
    return matrix_of(pre, post), pre, post


def matrix_of(pre: Any, post: Any) -> Matrix:
    names = tuple(f"d{j}" for j in range(len(pre)))
    rows = [cells(**dict(zip(names, map(float, row), strict=True))) for row in (pre, *post)]
    return Matrix(names, (), names, rows[0], dict(zip(names, rows[1:], strict=True)))


def test_ri_is_the_mean_change_on_the_others() -> None:
    """Source: by hand: (−5 − 10)/2, (2 + 4)/2, (−10 + 6)/2; what a source gains is left out."""
    assert ri(by_hand()) == {"a": -7.5, "b": 3.0, "c": -2.0}


def test_mri_is_the_mean_of_ri() -> None:
    """Source: by hand: (−7.5 + 3 − 2)/3."""
    assert mri(by_hand()) == pytest.approx(-6.5 / 3)


def test_mean_ood_accuracy_is_the_mean_on_the_others() -> None:
    """Source: by hand: ((55 + 60)/2 + (52 + 74)/2 + (40 + 66)/2)/3."""
    assert mean_ood_accuracy(by_hand()) == pytest.approx((57.5 + 63 + 53) / 3)


def test_gain_is_the_mean_change_on_the_source_itself() -> None:
    """Source: by hand: (40 + 35 + 29)/3."""
    assert gain(by_hand()) == pytest.approx(104 / 3)


def test_forgetting_is_the_mean_loss_on_the_references() -> None:
    """Source: by hand: 10, 2 and 30 points on r, 2, −1 and 15 on s."""
    assert forgetting(by_hand()) == pytest.approx((10 + 2 + 30 + 2 - 1 + 15) / 6)


def test_only_sources_count_where_not_every_member_is_one() -> None:
    """Source: by hand, without the row of c; its column stays."""
    some = replace(by_hand(), sources=("a", "b"))
    assert ri(some) == {"a": -7.5, "b": 3.0}
    assert mri(some) == pytest.approx(-2.25)
    assert mean_ood_accuracy(some) == pytest.approx(-2.25 + (50 + 60 + 70) / 3)
    assert gain(some) == pytest.approx(37.5)
    assert forgetting(some) == pytest.approx((10 + 2 + 2 - 1) / 4)


def test_an_untouched_matrix_changes_by_nothing() -> None:
    """Source: the definition: all cells after are the cells before."""
    matrix = by_hand()
    same = replace(matrix, post=dict.fromkeys(matrix.sources, matrix.pre))
    assert ri(same) == {"a": 0, "b": 0, "c": 0}
    assert mri(same) == gain(same) == forgetting(same) == 0
    assert mean_ood_accuracy(same) == pytest.approx(60)


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_of_a_random_matrix(seed: int) -> None:
    """Source: numpy over the 56 cells beside the diagonal of an 8 × 8 matrix."""
    matrix, pre, post = random_matrix(seed)
    beside = ~np.eye(8, dtype=bool)
    change = post - pre
    assert mri(matrix) == pytest.approx(change[beside].mean())
    assert mean_ood_accuracy(matrix) == pytest.approx(post[beside].mean())
    assert mean_ood_accuracy(matrix) == pytest.approx(mri(matrix) + pre.mean())
    assert gain(matrix) == pytest.approx(change.diagonal().mean())
    rows = change[beside].reshape(8, 7).mean(1)
    assert list(ri(matrix).values()) == pytest.approx(list(rows))


@pytest.mark.parametrize(
    ("pretraining", "before", "after", "published"),
    [
        ("IN-1K + AugReg", 42.72, 44.01, 1.30),
        ("IN-1K + SAM", 42.88, 45.40, 2.52),
        ("IN-21K", 50.10, 49.99, -0.11),
        ("IN-21K-P", 53.32, 52.85, -0.47),
        ("IN-21K + AugReg", 57.78, 52.27, -5.51),
        ("OpenAI", 60.64, 22.61, -38.03),
        ("LAION-2B", 61.49, 23.40, -38.10),
    ],
)
def test_the_published_arithmetic(
    pretraining: str, before: float, after: float, published: float
) -> None:
    """Source: the published results of arXiv:2410.21582, precise to about 0.01.

    Eight members with that mean before, and 56 cells with that mean after; where they lie about
    it does not matter, nor what is on the diagonal.
    """
    rng, beside = np.random.default_rng(7), ~np.eye(8, dtype=bool)
    pre, post = rng.uniform(-20, 20, 8), rng.uniform(-20, 20, (8, 8))
    matrix = matrix_of(pre - pre.mean() + before, post - post[beside].mean() + after)
    assert mean_ood_accuracy(matrix) == pytest.approx(after)
    assert mri(matrix) == pytest.approx(published, abs=0.015)


def without(matrix: Matrix, source: str | None, dataset: str) -> Matrix:
    """One cell less: after fine-tuning on `source`, or before."""

    def rest(row: Any) -> dict[str, Cell]:
        return {name: cell for name, cell in row.items() if name != dataset}

    if source is None:
        return replace(matrix, pre=rest(matrix.pre))
    return replace(matrix, post={**matrix.post, source: rest(matrix.post[source])})


BESIDE = [("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")]
DIAGONAL = [("a", "a"), ("b", "b"), ("c", "c")]
ON_REFERENCES = [(i, j) for i in "abc" for j in "rs"]
MEMBERS_BEFORE = [(None, "a"), (None, "b"), (None, "c")]
REFERENCES_BEFORE = [(None, "r"), (None, "s")]


@pytest.mark.parametrize(
    ("metric", "gone"),
    [
        *((metric, cell) for metric in (ri, mri, mean_ood_accuracy) for cell in BESIDE),
        *((metric, cell) for metric in (ri, mri, mean_ood_accuracy) for cell in MEMBERS_BEFORE),
        *((gain, cell) for cell in DIAGONAL + MEMBERS_BEFORE),
        *((forgetting, cell) for cell in ON_REFERENCES + REFERENCES_BEFORE),
    ],
)
def test_a_missing_cell_is_never_averaged_over(
    metric: Callable[[Matrix], Any], gone: tuple[str | None, str]
) -> None:
    """Source: the definitions: each metric in turn without each cell that it is made from."""
    metric(by_hand())
    with pytest.raises(IncompleteError, match=f"→ {gone[1]} has no number yet"):
        metric(without(by_hand(), *gone))


@pytest.mark.parametrize("metric", MATRIX_METRICS)
def test_a_source_that_was_not_fine_tuned_on_is_missing(metric: Callable[[Matrix], Any]) -> None:
    """Source: the whole row of c is gone; two of three would be a mean of what is there."""
    matrix = by_hand()
    post = {source: row for source, row in matrix.post.items() if source != "c"}
    with pytest.raises(IncompleteError, match="c → "):
        metric(replace(matrix, post=post))


@pytest.mark.parametrize("metric", [mri, mean_ood_accuracy, gain, forgetting])
def test_without_sources_there_is_nothing_to_average(metric: Callable[[Matrix], Any]) -> None:
    """Source: a mean of no numbers is none."""
    with pytest.raises(IncompleteError):
        metric(replace(by_hand(), sources=(), post={}))


def test_without_references_there_is_nothing_to_forget() -> None:
    """Source: a mean of no numbers is none; the others need no reference. Nothing is missing."""
    alone = replace(by_hand(), references=())
    with pytest.raises(InapplicableError, match="needs a reference set"):
        forgetting(alone)
    assert mri(alone) == mri(by_hand())


def scores(label: Any, prediction: Any, group: list[str] | None = None) -> Scores:
    """A scores table; the columns that accuracy is not made from are arbitrary."""
    n = len(label)
    columns = {
        "index": np.arange(n),
        "label": label,
        "prediction": prediction,
        "top5": np.ones(n, dtype=bool),
        "confidence": np.full(n, 0.5),
        "nll": np.ones(n),
        "brier": np.ones(n),
        "group": group or [""] * n,
        "source": [f"photo-{i}" for i in range(n)],
    }
    return Scores(pa.table([pa.array(columns[f.name], f.type) for f in SCORES], schema=SCORES))


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (37, 2), (500, 10), (1000, 200)])
def test_top1_is_accuracy(n: int, classes: int) -> None:
    """Source: `sklearn.metrics.accuracy_score`."""
    rng = np.random.default_rng(n)
    label, prediction = rng.integers(0, classes, (2, n))
    prediction = np.where(rng.random(n) < 0.4, label, prediction)
    expected = 100 * accuracy_score(label, prediction)
    assert top1(scores(label, prediction)) == pytest.approx(expected)


def test_top1_over_groups_is_worked_by_hand() -> None:
    """Source: by hand: fog (1/2 + 3/4)/2 = 62.5 %, blur 1/5 = 20 %; their mean is 41.25 %.

    The mean over images would be 5/11 = 45.5 %, the mean over groups 48.3 %.
    """
    group = ["fog/1"] * 2 + ["fog/2"] * 4 + ["blur/1"] * 5
    right = np.array([1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0])
    order = np.random.default_rng(0).permutation(11)  # images of a group need not be neighbours
    table = scores(np.ones(11, int), right[order], [group[i] for i in order])
    assert top1(table) == pytest.approx(41.25)


def test_top1_over_random_groups() -> None:
    """Source: scikit-learn for each group, numpy's means over severities, then corruptions."""
    rng = np.random.default_rng(1)
    label, prediction = rng.integers(0, 3, (2, 400))
    names = ["fog/1", "fog/2", "fog/5", "blur/1", "blur/3", "snow/4"]
    group = rng.choice(names, 400, p=[0.3, 0.1, 0.2, 0.05, 0.3, 0.05])
    of_group = {
        name: accuracy_score(label[group == name], prediction[group == name]) for name in names
    }
    families = [
        np.mean([value for name, value in of_group.items() if name.startswith(family)])
        for family in ("fog", "blur", "snow")
    ]
    expected = 100 * np.mean(families)
    assert top1(scores(label, prediction, list(group))) == pytest.approx(expected)
    assert expected != pytest.approx(100 * accuracy_score(label, prediction))


def test_gain_is_on_held_out_images_where_there_are_some() -> None:
    """Source: by hand: (20 + 35 + 29)/3: of a the held-out images, of b and c all."""
    some = replace(by_hand(), held_out={"a": (Cell(60, 6, 10), Cell(80, 8, 10))})
    assert gain(some) == pytest.approx(84 / 3)
    assert mri(some) == mri(by_hand())
