"""Effective robustness against statsmodels, scipy and a table worked by hand."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from rib_plugin_metrics.effective import (
    BASELINES,
    BASELINES_ON_OWN_CLASSES,
    CLIP,
    Baseline,
    effective_robustness,
    effective_robustness_at,
    effective_robustness_before,
    fit_baseline,
    multi_id_effective_robustness,
)

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, load_catalog

MEMBERS = ("imagenet-v2", "imagenet-a", "imagenet-ood/imagenet-r", "imagenet-cartoon")


def row(v2: float, r: float, clean: float) -> dict[str, Cell]:
    values = [*zip(MEMBERS, (v2, 20.0, r, 60.0), strict=True), ("imagenet", clean)]
    return {name: Cell(value, round(value), 100) for name, value in values}


def matrix() -> Matrix:
    return Matrix(
        members=MEMBERS,
        references=("imagenet",),
        sources=("imagenet-v2", "imagenet-cartoon"),
        pre=row(74.0, 57.0, 84.5),
        post={"imagenet-v2": row(90.0, 50.0, 80.0), "imagenet-cartoon": row(60.0, 40.0, 73.8)},
    )


def predicted(percent: float, a: float, b: float) -> float:
    return 100 / (1 + exp(-(a * log(percent / (100 - percent)) + b)))


def test_the_matrix_by_the_formula() -> None:
    """Source: the formula with `math`, and the published slopes and intercepts."""
    found = effective_robustness(matrix())
    r = ("imagenet-ood/imagenet-r", 0.9116, -1.5999)
    v2 = ("imagenet-v2", 0.9232, -0.4977)
    assert found["imagenet-v2"] == pytest.approx({r[0]: 50 - predicted(80, *r[1:])})
    assert found["imagenet-cartoon"] == pytest.approx(
        {v2[0]: 60 - predicted(73.8, *v2[1:]), r[0]: 40 - predicted(73.8, *r[1:])}
    )
    assert list(found) == ["imagenet-v2", "imagenet-cartoon"]
    assert effective_robustness_before(matrix()) == pytest.approx(
        {v2[0]: 74 - predicted(84.5, *v2[1:]), r[0]: 57 - predicted(84.5, *r[1:])}
    )


def test_the_baselines_predict_a_known_model() -> None:
    """Source: ResNet-50 of torchvision: 76.13 % on ImageNet; V2 63.2 %, R 36.2 %, Sketch 24.1 %.

    It is an ordinary model, so it lies on the lines to within a few points; logits of another
    base, or percent for shares, would be far off.
    """
    for name, accuracy in (("v2", 63.2), ("r", 36.2), ("sketch", 24.1)):
        assert BASELINES[f"imagenet-{name}"].predict([76.13]) == pytest.approx(accuracy, abs=3)


def test_sets_on_their_own_classes_are_no_function_of_all_of_imagenet() -> None:
    """Source: ImageNet-21k ViT-B/16, 84.5 % on ImageNet: 43 % on A, of which all of ImageNet
    would predict less than 2 %; hence A and ObjectNet are not scored from a matrix."""
    assert set(BASELINES_ON_OWN_CLASSES) == {"imagenet-a", "objectnet"}
    assert not set(BASELINES) & set(BASELINES_ON_OWN_CLASSES)
    assert BASELINES_ON_OWN_CLASSES["imagenet-a"].predict([84.534]) < 2
    value = effective_robustness_at(48.4, 80.0, BASELINES_ON_OWN_CLASSES["objectnet"])
    assert value == pytest.approx(48.4 - predicted(80, 0.9809, -1.9283))


def test_the_names_are_those_of_the_datasets() -> None:
    """Source: the installed datasets."""
    known = {c.spec.name for c in load_catalog().list("dataset")}
    if "imagenet" not in known:
        pytest.skip("the plugin of the datasets is not installed")
    assert {"imagenet", *BASELINES, *BASELINES_ON_OWN_CLASSES} <= known


def test_no_baseline_or_no_reference_is_inapplicable() -> None:
    """Source: the definition."""
    whole = matrix()
    none = replace(whole, members=("imagenet-a", "imagenet-cartoon"), sources=("imagenet-a",))
    with pytest.raises(InapplicableError, match="imagenet-v2, imagenet-sketch, imagenet-r"):
        effective_robustness(none)
    with pytest.raises(InapplicableError, match="a member with a baseline"):
        effective_robustness_before(none)
    for metric in (effective_robustness, effective_robustness_before):
        with pytest.raises(InapplicableError, match="references: digits-test"):
            metric(replace(whole, references=("digits-test",)))


def test_a_source_without_a_pair_is_left_out() -> None:
    """Source: the definition: V2 alone has a baseline, and it is the source."""
    only = replace(matrix(), members=("imagenet-v2", "imagenet-a"),
                   sources=("imagenet-v2", "imagenet-a"),
                   post={**matrix().post, "imagenet-a": row(50.0, 1.0, 70.0)})  # fmt: skip
    assert list(effective_robustness(only)) == ["imagenet-a"]


@pytest.mark.parametrize("gone", ["imagenet", "imagenet-ood/imagenet-r"])
def test_a_missing_cell_is_incomplete(gone: str) -> None:
    """Source: the definition, without each cell in turn."""
    whole = matrix()
    without = {j: c for j, c in whole.post["imagenet-v2"].items() if j != gone}
    with pytest.raises(IncompleteError, match=f"imagenet-v2 → {gone} has no number yet"):
        effective_robustness(replace(whole, post={**whole.post, "imagenet-v2": without}))
    with pytest.raises(IncompleteError, match=f"before → {gone}"):
        effective_robustness_before(replace(whole, pre=without))


@pytest.mark.parametrize("extreme", [0.0, 100.0])
def test_an_accuracy_of_0_or_100_is_moved_inwards(extreme: float) -> None:
    """Source: the formula at the clipped accuracy."""
    baseline = BASELINES["imagenet-v2"]
    at = min(max(extreme, CLIP), 100 - CLIP)
    expected = 50 - predicted(at, baseline.slopes[0], baseline.intercept)
    assert effective_robustness_at(50, extreme, baseline) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_fit_is_ordinary_least_squares_in_logits(k: int) -> None:
    """Source: statsmodels' OLS on scipy's logit; accuracies of 0 and 100 % among them."""
    statsmodels = pytest.importorskip("statsmodels.api")
    from scipy.special import logit

    rng = np.random.default_rng(k)
    x, y = rng.uniform(20, 90, (40, k)), rng.uniform(1, 99, 40)
    y[:2] = 0, 100
    clipped = np.clip(y, CLIP, 100 - CLIP)
    oracle = statsmodels.OLS(
        logit(clipped / 100), statsmodels.add_constant(logit(x / 100), prepend=False)
    ).fit()
    fit = fit_baseline(x, y)
    assert [*fit.slopes, fit.intercept] == pytest.approx(list(oracle.params))
    assert fit.r2 == pytest.approx(oracle.rsquared)
    expected = 100 / (1 + np.exp(-oracle.fittedvalues[5]))
    assert multi_id_effective_robustness(y[5], x[5], fit) == pytest.approx(y[5] - expected)


def test_models_on_a_line_have_none() -> None:
    """Source: the definition: data made from the baseline itself."""
    truth = Baseline((0.9, 0.3), -0.4, 1.0)
    x = np.random.default_rng(0).uniform(30, 80, (12, 2))
    fit = fit_baseline(x, truth.predict(x))
    assert [*fit.slopes, fit.intercept, fit.r2] == pytest.approx([0.9, 0.3, -0.4, 1])
    assert multi_id_effective_robustness(truth.predict(x[0]), x[0], fit) == pytest.approx(0)


def test_a_baseline_that_is_not_determined_is_refused() -> None:
    """Source: linear algebra: two slopes and an intercept need three models that differ."""
    x = np.array([[50.0, 60.0], [70.0, 65.0]])
    with pytest.raises(InapplicableError, match="at least 3 models"):
        fit_baseline(x, [30, 40])
    with pytest.raises(InapplicableError, match="undetermined"):
        fit_baseline(np.full((9, 1), 50.0), np.linspace(10, 50, 9))
    with pytest.raises(ValueError, match="expected \\(M, k\\)"):
        fit_baseline([50.0, 60.0], [30.0, 40.0])
    with pytest.raises(ValueError, match="expected 1 accuracies"):
        multi_id_effective_robustness(50, [1.0, 2.0], BASELINES["imagenet-r"])
