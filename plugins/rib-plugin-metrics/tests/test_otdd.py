"""OTDD against a worked example, closed forms, POT's exact transport and geomloss."""

from typing import Any

import numpy as np
import pytest
import torch
from rib_plugin_metrics import otdd as module
from rib_plugin_metrics.otdd import entropic_cost, otdd
from scipy.linalg import sqrtm

from rib_harness import DivergedError, Features


def features(x: Any, labels: Any) -> Features:
    n = len(x)
    labels = np.asarray(labels)
    ids = tuple((k,) for k in range(int(labels.max()) + 1))
    logits = np.zeros((n, len(ids)), np.float32)
    return Features(np.asarray(x, np.float32), logits, labels, np.arange(n), ids)


def drawn(seed: int, n: int, k: int = 3, d: int = 4, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    means = 2 * np.random.default_rng(99).normal(size=(k, d))
    return features(means[labels] + rng.normal(size=(n, d)) + shift, labels)


def ground_cost(a: Features, b: Features) -> Any:
    """d², pair by pair, with SciPy's square roots for the Bures distance."""

    def class_of(f: Features, k: int) -> Any:
        x = f.features[f.labels == k].astype(float)
        return x.mean(0), np.atleast_2d(np.cov(x.T, ddof=0))

    bures = {}
    for k in set(a.labels.tolist()):
        for q in set(b.labels.tolist()):
            (m, s), (n, t) = class_of(a, k), class_of(b, q)
            root = np.real(sqrtm(s))
            cross = np.real(sqrtm(root @ t @ root))
            bures[k, q] = ((m - n) ** 2).sum() + np.trace(s + t - 2 * cross)
    return np.array([
        [((x - y) ** 2).sum() + bures[int(k), int(q)] for y, q in zip(b.features.astype(float),
                                                                    b.labels, strict=True)]
        for x, k in zip(a.features.astype(float), a.labels, strict=True)
    ])  # fmt: skip


@pytest.mark.usefixtures("lenient")
def test_worked_by_hand() -> None:
    """Source: by hand, in one dimension. a: class 0 at ±1 (N(0, 1)), class 1 at 9 and 11
    (N(10, 1)). b: class 0 at 1 and 5 (N(3, 4)), class 1 at 11 and 15 (N(13, 4)).

    W2²: of 0 and 0: 3² + (2 − 1)² = 10, also of 1 and 1. Points in order: −1→1 (4), 1→5 (16),
    9→11 (4), 11→15 (16): mean 10. Each goes within its class, so 10 + 10 = 20. With little
    entropy the two debiasing terms are about 0: nothing is nearer to a point than itself.
    """
    a, b = (
        features([[-1], [1], [9], [11]], [0, 0, 1, 1]),
        features([[1], [5], [11], [15]], [0, 0, 1, 1]),
    )
    # What is left of the entropy: ε log 4 in all three terms, which cancels.
    assert otdd(a, b, regularisation=0.002) == pytest.approx(20, abs=1e-3)
    points = features([[0.0], [3.0]], [0, 1]), features([[4.0], [7.0]], [0, 1])
    # A class of one image is a point: 4² for the images, 4² for the labels.
    assert otdd(*points, regularisation=0.01) == pytest.approx(32, abs=1e-3)


@pytest.mark.usefixtures("lenient")
def test_labels_count() -> None:
    """Source: by hand: the same four images, 0, 1, 10, 11, labelled side by side, or in turn.

    Side by side the classes are N(.5, ¼) and N(10.5, ¼), in turn N(5, 25) and N(6, 25). W2² of
    .5 to 5 is 4.5² + (5 − ½)² = 40.5, to 6 it is 50.5; of 10.5 to 5 50.5, to 6 40.5. No image
    gains by moving: (40.5 + 50.5 + 50.5 + 40.5) / 4. Without labels it would be 0.
    """
    x = [[0.0], [1.0], [10.0], [11.0]]
    same, in_turn = features(x, [0, 0, 1, 1]), features(x, [0, 1, 0, 1])
    assert otdd(same, same) == 0
    assert otdd(same, in_turn, regularisation=0.002) == pytest.approx(45.5, rel=1e-3)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little entropy the last digits of the marginals come slowly."""
    monkeypatch.setattr(module, "TOLERANCE", 1e-3)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("seed", range(2))
def test_with_little_entropy_it_is_exact_transport(seed: int) -> None:
    """Source: POT's `emd2` on the ground cost, pair by pair with `scipy.linalg.sqrtm`."""
    ot = pytest.importorskip("ot")
    a, b = drawn(seed, 24), drawn(seed + 10, 30, shift=1.0)
    expected = ot.emd2([], [], ground_cost(a, b))
    assert otdd(a, b, regularisation=0.004) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("regularisation", [0.1, 1.0])
def test_it_is_geomloss_debiased_divergence(regularisation: float) -> None:
    """Source: geomloss' SamplesLoss, debiased, with this ground cost and ε = blur²."""
    geomloss = pytest.importorskip("geomloss")
    a, b = drawn(0, 24), drawn(1, 30, shift=1.0)
    sets = (a, b)
    epsilon = regularisation * float(ground_cost(a, b).mean())

    def cost(x: Any, y: Any) -> Any:  # the points given are indices: set, row
        first, second = sets[int(x[0, 0, 0])], sets[int(y[0, 0, 0])]
        return torch.from_numpy(ground_cost(first, second))[None]

    points = [
        torch.tensor([[s, i] for i in range(len(one))], dtype=torch.float64)
        for s, one in enumerate(sets)
    ]
    loss = geomloss.SamplesLoss(
        "sinkhorn", p=2, blur=epsilon**0.5, scaling=0.999, diameter=50.0, cost=cost,
        debias=True, backend="tensorized",
    )  # fmt: skip
    expected = float(loss(*points))
    assert otdd(a, b, regularisation) == pytest.approx(expected, rel=1e-3)


def test_the_entropic_cost_is_its_definition() -> None:
    """Source: POT's plan: ⟨π, C⟩ + ε Σ π log(π / (ab))."""
    ot = pytest.importorskip("ot")
    cost = np.random.default_rng(0).uniform(0, 3, (6, 9))
    plan = ot.sinkhorn(np.full(6, 1 / 6), np.full(9, 1 / 9), cost, 0.2, stopThr=1e-12)
    expected = (plan * cost).sum() + 0.2 * (plan * np.log(plan * 54)).sum()
    assert entropic_cost(cost, 0.2) == pytest.approx(expected, rel=1e-8)


def test_in_logarithms_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the other way to solve; and at a cost where only this one has digits left."""
    a, b = drawn(0, 24), drawn(1, 30, shift=1.0)
    plain = otdd(a, b)
    monkeypatch.setattr(module, "UNDERFLOW", 0.0)
    assert otdd(a, b) == pytest.approx(plain, rel=1e-6)
    far = np.array([[0.0, 1e5], [1e5, 0.0]])
    assert entropic_cost(far, 1.0) == pytest.approx(np.log(2))  # the plan is diagonal


def test_equal_sets_have_none_and_order_is_no_matter() -> None:
    """Source: the properties of a divergence: 0, symmetric, more for what is farther."""
    a, near, far = drawn(0, 60), drawn(1, 60, shift=0.5), drawn(1, 60, shift=3.0)
    assert otdd(a, a) == pytest.approx(0, abs=1e-9)
    again = features(a.features[::-1], a.labels[::-1])
    assert otdd(a, again) == pytest.approx(0, abs=1e-6)
    assert otdd(a, near) == pytest.approx(otdd(near, a))
    assert 0 < otdd(a, near) < otdd(a, far)
    same = features(np.ones((3, 2)), [0, 0, 1])
    assert otdd(same, same) == 0


def test_scale_of_the_features_is_that_of_the_distance() -> None:
    """Source: ε is relative: 10 times the features, 100 times the squared distance."""
    a, b = drawn(0, 24), drawn(1, 30, shift=1.0)
    tens = [features(10 * one.features, one.labels) for one in (a, b)]
    assert otdd(*tens) == pytest.approx(100 * otdd(a, b), rel=1e-5)


def test_a_larger_set_is_a_fixed_draw_of_it() -> None:
    """Source: NumPy's generator: the rows that it draws, given by hand."""
    a, b = drawn(0, 50), drawn(1, 20, shift=1.0)
    rows = np.sort(np.random.default_rng(7).choice(50, 25, replace=False))
    part = features(a.features[rows], a.labels[rows])
    found = otdd(a, b, samples=25, seed=7)
    assert found == otdd(part, b)
    assert type(found) is float


def test_a_failed_solve_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the definition: never a distance of 0, nor one that is not finite."""
    a, b = drawn(0, 24), drawn(1, 30, shift=1.0)
    broken = features(np.full((5, 4), np.nan), [0, 0, 1, 1, 1])
    with pytest.raises(DivergedError, match="finite features"):
        otdd(a, broken)
    with pytest.raises(ValueError, match="above 0"):
        otdd(a, b, regularisation=0)
    monkeypatch.setattr(module, "ITERATIONS", 2)
    for limit in (500.0, 0.0):
        monkeypatch.setattr(module, "UNDERFLOW", limit)
        with pytest.raises(DivergedError, match=r"24 to 30 images did not converge in 2 iter"):
            otdd(a, b, regularisation=0.02)
