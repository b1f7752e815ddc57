"""CKA against a double loop over the kernel matrices."""

from typing import Any

import numpy as np
import pytest
from rib_plugin_metrics.cka import cka, hsic

from rib_harness import Features, InapplicableError


def features(x: Any) -> Features:
    n = len(x)
    logits, labels = np.zeros((n, 2), np.float32), np.zeros(n, np.int64)
    return Features(np.asarray(x, np.float32), logits, labels, np.arange(n), ((0,), (1,)))


def hsic_by_loops(x: Any, y: Any) -> float:
    """Song et al.'s estimator, term by term: sums over pairs, triples and quadruples apart."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    pairs = sum(k[i, j] * m[i, j] for i in range(n) for j in range(n) if i != j)
    triples = sum(
        k[i, j] * m[i, q]
        for i in range(n) for j in range(n) for q in range(n)
        if len({i, j, q}) == 3
    )  # fmt: skip
    quadruples = sum(
        k[i, j] * m[q, r]
        for i in range(n) for j in range(n) for q in range(n) for r in range(n)
        if len({i, j, q, r}) == 4
    )  # fmt: skip
    two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    return float(pairs / two - 2 * triples / three + quadruples / four)


@pytest.mark.parametrize(("n", "d", "e"), [(4, 2, 3), (5, 1, 1), (9, 4, 12)])
def test_hsic_is_the_mean_over_distinct_images(n: int, d: int, e: int) -> None:
    """Source: U-statistics over pairs, triples and quadruples of distinct images, in loops."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, e))
    assert hsic(x, y) == pytest.approx(hsic_by_loops(x, y))
    assert hsic(x + 3, y) == pytest.approx(hsic_by_loops(x, y))  # a shift changes nothing


@pytest.mark.parametrize("d", [3, 40])
def test_cka_is_the_ratio_of_three_hsic(d: int) -> None:
    """Source: the loops above, on float32 features far from the origin."""
    rng = np.random.default_rng(d)
    x = rng.normal(size=(8, d)).astype(np.float32) + 20
    y = (0.5 * x + rng.normal(size=(8, d)) - 30).astype(np.float32)
    u, v = (one.astype(float) - one.astype(float).mean(0) for one in (x, y))
    expected = hsic_by_loops(u, v) / np.sqrt(hsic_by_loops(u, u) * hsic_by_loops(v, v))
    assert cka(features(x), features(y)) == pytest.approx(expected)


def test_cka_by_batches_sums_each_hsic() -> None:
    """Source: the loops above over the batches of that seed."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(18, 5)), rng.normal(size=(18, 6))
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    order = np.random.default_rng(3).permutation(18)
    parts = np.array_split(order, 3)
    xy, xx, yy = (
        sum(hsic_by_loops(a[p], b[p]) for p in parts) for a, b in ((x, y), (x, x), (y, y))
    )
    expected = xy / np.sqrt(xx * yy)
    assert cka(features(x), features(y), batch=6, seed=3) == pytest.approx(expected)
    assert cka(features(x), features(y), batch=100) == pytest.approx(cka(features(x), features(y)))


def test_rotation_and_scale_are_the_same_and_chance_is_about_nothing() -> None:
    """Source: the properties that Kornblith et al. ask for; unrelated ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 100))
    rotation = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    assert cka(features(x), features(3 * x @ rotation + 5)) == pytest.approx(1, abs=1e-6)
    assert abs(cka(features(x), features(rng.normal(size=(60, 100))))) < 0.1


def test_what_does_not_apply_says_so() -> None:
    """Source: the definition."""
    x = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(InapplicableError, match="at least 4 images"):
        cka(features(x[:3]), features(x[:3]))
    with pytest.raises(InapplicableError, match="at least 4 images"):
        cka(features(x), features(x), batch=3)
    with pytest.raises(InapplicableError, match="features that vary"):
        cka(features(x), features(np.ones((10, 3))))
    with pytest.raises(ValueError, match="the same images"):
        cka(features(x), features(x[:9]))
    assert type(cka(features(x), features(x))) is float
