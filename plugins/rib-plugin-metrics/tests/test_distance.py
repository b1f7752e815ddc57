"""Fréchet distance, class means and MMD against SciPy, scikit-learn and plain loops."""

from typing import Any

import numpy as np
import pytest
from rib_plugin_metrics.distance import mmd, nearest_class_mean
from rib_plugin_metrics.gaussians import Gaussian, frechet, squared_wasserstein
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestCentroid

from rib_harness import DivergedError, Features, InapplicableError


def features(x: Any, labels: Any = None, ids: Any = ((0,), (1,))) -> Features:
    n = len(x)
    labels = np.zeros(n, np.int64) if labels is None else np.asarray(labels)
    logits = np.zeros((n, len(ids)), np.float32)
    return Features(np.asarray(x, np.float32), logits, labels, np.arange(n), tuple(ids))


def by_scipy(x: Any, y: Any, ddof: int) -> float:
    p, q = np.cov(x.T, ddof=ddof), np.cov(y.T, ddof=ddof)
    root = np.real(sqrtm(p))
    cross = np.real(sqrtm(root @ q @ root))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(p + q - 2 * cross))


@pytest.mark.parametrize(("n", "m", "d"), [(50, 60, 4), (500, 30, 10), (12, 40, 11)])
def test_frechet_is_the_formula_with_scipys_square_roots(n: int, m: int, d: int) -> None:
    """Source: `scipy.linalg.sqrtm`."""
    rng = np.random.default_rng(d)
    x = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(np.float32).astype(float)
    y = (rng.normal(size=(m, d)) * rng.uniform(1, 3, d) + 1).astype(np.float32).astype(float)
    assert frechet(features(x), features(y)) == pytest.approx(by_scipy(x, y, 1), rel=1e-6)


def test_frechet_with_fewer_images_than_dimensions() -> None:
    """Source: the same sample turned into as many dimensions as it has: nothing is lost.

    Its covariance is singular in 50 dimensions, where SciPy's square root is inexact.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(8, 3)) + 1
    turn = np.linalg.qr(rng.normal(size=(50, 50)))[0][:3]
    expected = by_scipy(x, y, 1)
    assert frechet(features(x @ turn), features(y @ turn)) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_shifts_and_of_equal_sets() -> None:
    """Source: by hand: a shift by (3, 4) is 25; twice the spread of (±1, 0) is (√2·2 − √2)² = 2."""
    x = np.random.default_rng(0).normal(size=(20, 2))
    assert frechet(features(x), features(x)) == pytest.approx(0, abs=1e-9)
    assert frechet(features(x), features(x + np.array([3, 4]))) == pytest.approx(25, rel=1e-5)
    line = np.array([[1.0, 0], [-1, 0]])
    assert frechet(features(line), features(2 * line)) == pytest.approx(2)
    with pytest.raises(InapplicableError, match="at least two images"):
        frechet(features(x), features(x[:1]))


def test_many_pairs_of_gaussians_of_mixed_sizes() -> None:
    """Source: POT's `bures_wasserstein_distance` on regular covariances, pair by pair."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(n, 3)) * rng.uniform(0.5, 2) for n in (30, 6, 30, 7, 9)]
    of = [Gaussian.of(sample) for sample in samples]
    found = squared_wasserstein(of[:2], of)
    assert found.shape == (2, 5)
    for i in range(2):
        for j, y in enumerate(samples):
            x = samples[i]
            expected = ot.gaussian.bures_wasserstein_distance(
                x.mean(0), y.mean(0), np.cov(x.T, ddof=0), np.cov(y.T, ddof=0)
            )
            assert found[i, j] == pytest.approx(expected**2, abs=1e-9)


def test_nearest_class_mean_is_that_of_scikit_learn() -> None:
    """Source: scikit-learn's NearestCentroid, where both sets have the same classes."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6, 8))
    la, lb = rng.integers(0, 6, 300), rng.integers(0, 6, 200)
    x, y = means[la] + rng.normal(size=(300, 8)), means[lb] + 0.3 + rng.normal(size=(200, 8))
    ids = tuple((10 * k,) for k in range(6))
    expected = 100 * NearestCentroid().fit(x, la).score(y, lb)
    found = nearest_class_mean(features(x, la, ids), features(y, lb, ids))
    assert found == pytest.approx(expected)
    assert 20 < found < 100
    order = [3, 1, 5, 0, 2, 4]  # b numbers its classes in another order
    other = features(y, np.argsort(order)[lb], tuple(ids[k] for k in order))
    assert nearest_class_mean(features(x, la, ids), other) == pytest.approx(expected)


def test_classes_that_are_not_shared_neither_score_nor_attract() -> None:
    """Source: by hand, on a line. a: id 1 at 0, id 2 at 10, id 9 at 4 (b has none of it);
    id 3 without images. b: id 1 at 3 (right, though 9 is nearer), id 2 at 4 (wrong),
    id 3 at 0 and id 7 at 10 (not scored)."""
    a = features([[-1], [1], [10], [4]], [0, 0, 1, 2], [(1,), (2,), (9,), (3,)])
    b = features([[3], [4], [0], [10]], [0, 1, 2, 3], [(1,), (2,), (3,), (7,)])
    assert nearest_class_mean(a, b) == 50


def test_a_class_of_several_ids_is_right_for_each() -> None:
    """Source: by hand: a has (1, 2) at 0, (3,) at 10; b has 1 at 1, 2 at −1 and 9, 3 at 9."""
    a = features([[0], [10]], [0, 1], [(1, 2), (3,)])
    b = features([[1], [-1], [9], [9]], [0, 1, 1, 2], [(1,), (2,), (3,)])
    assert nearest_class_mean(a, b) == 75
    assert nearest_class_mean(b, a) == 100


def test_without_a_shared_class_it_does_not_apply() -> None:
    """Source: the definition; a class without images is not shared."""
    a = features([[0.0]], [0], [(1,), (2,)])
    for b in (features([[0.0]], [0], [(3,)]), features([[0.0]], [1], [(1,), (2,)])):
        with pytest.raises(InapplicableError, match="they share none"):
            nearest_class_mean(a, b)


def mmd_by_loops(x: Any, y: Any) -> float:
    both = [*x, *y]
    distances = [np.linalg.norm(both[i] - both[j]) for i in range(len(both)) for j in range(i)]
    sigma = np.median(distances)

    def mean(first: Any, second: Any, apart: bool) -> Any:
        return np.mean([
            np.exp(-np.sum((p - q) ** 2) / (2 * sigma**2))
            for i, p in enumerate(first) for j, q in enumerate(second) if not (apart and i == j)
        ])  # fmt: skip

    return float(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


@pytest.mark.parametrize(("n", "m", "shift"), [(2, 2, 0.0), (9, 14, 1.0), (30, 21, 0.0)])
def test_mmd_is_the_double_loop(n: int, m: int, shift: float) -> None:
    """Source: plain loops."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 3)).astype(np.float32).astype(float)
    y = (rng.normal(size=(m, 3)) + shift).astype(np.float32).astype(float)
    assert mmd(features(x), features(y)) == pytest.approx(mmd_by_loops(x, y), abs=1e-9)


def test_mmd_is_about_nothing_for_one_distribution_and_symmetric() -> None:
    """Source: unbiasedness: over 40 draws the mean is within 4 standard errors of 0."""
    draws = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        draws.append(mmd(features(rng.normal(size=(30, 4))), features(rng.normal(size=(40, 4)))))
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(40)
    assert min(draws) < 0
    rng = np.random.default_rng(0)
    a, b = features(rng.normal(size=(30, 4))), features(rng.normal(size=(20, 4)) + 3)
    assert mmd(a, b) == pytest.approx(mmd(b, a))
    assert mmd(a, b) > 0.5


def test_mmd_of_a_larger_set_is_that_of_a_fixed_draw() -> None:
    """Source: NumPy's generator: the rows that it draws, given by hand."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(20, 4))
    rows = np.sort(np.random.default_rng(7).choice(50, 25, replace=False))
    found = mmd(features(x), features(y), samples=25, seed=7)
    assert found == mmd(features(x[rows]), features(y))
    assert found != mmd(features(x), features(y), samples=25, seed=8)


def test_mmd_says_where_it_does_not_apply() -> None:
    """Source: the definition."""
    x = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(InapplicableError, match="at least two images"):
        mmd(features(x), features(x[:1]))
    with pytest.raises(InapplicableError, match="features that vary"):
        mmd(features(np.ones((5, 2))), features(np.ones((5, 2))))


@pytest.mark.parametrize("metric", [frechet, nearest_class_mean, mmd])
def test_features_that_are_not_finite_make_no_number(metric: Any) -> None:
    """Source: the definition."""
    x = np.random.default_rng(0).normal(size=(10, 3))
    for bad in (np.nan, np.inf):
        with pytest.raises(DivergedError, match="finite features"):
            metric(features(x), features(np.where(x == x[2], bad, x)))


@pytest.mark.parametrize("metric", [frechet, nearest_class_mean, mmd])
def test_a_distance_is_a_plain_float(metric: Any) -> None:
    """Source: the type."""
    x = np.random.default_rng(0).normal(size=(10, 3))
    assert type(metric(features(x), features(x + 1))) is float
