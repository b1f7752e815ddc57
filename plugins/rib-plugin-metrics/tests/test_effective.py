"""Effective robustness against statsmodels, scipy and a table worked by hand."""

from dataclasses import replace
from math import exp, log
from pathlib import Path

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
    effective_robustness_multi_id,
    fit_baseline,
    multi_id_effective_robustness,
)

from rib_harness import Cell, InapplicableError, IncompleteError, Matrix, RibError, load_catalog

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
    assert set(BASELINES_ON_OWN_CLASSES) == {"imagenet-a", "imagenet-r", "objectnet"}
    assert set(BASELINES) & set(BASELINES_ON_OWN_CLASSES) == {"imagenet-r"}
    assert BASELINES_ON_OWN_CLASSES["imagenet-a"].predict([84.534]) < 2
    value = effective_robustness_at(48.4, 80.0, BASELINES_ON_OWN_CLASSES["objectnet"])
    assert value == pytest.approx(48.4 - predicted(80, 0.9809, -1.9283))


def test_the_two_lines_of_r_are_over_two_accuracies() -> None:
    """Source: ResNet-50 of torchvision in imagenet-testbed's table: 76.13 % on all of val, 92.12 %
    on R's classes of it, logits restricted to these; 36.17 % on R."""
    own = BASELINES_ON_OWN_CLASSES["imagenet-r"].predict([92.12])
    assert own == pytest.approx(36.17, abs=3)
    assert BASELINES["imagenet-r"].predict([76.13]) == pytest.approx(own, abs=1)
    assert abs(BASELINES_ON_OWN_CLASSES["imagenet-r"].predict([76.13]) - own) > 10


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


# Several in-distribution sets


def two_references() -> Matrix:
    whole = matrix()
    rows = {name: {**row, "laion": Cell(c, 1, 100)}
            for (name, row), c in zip(whole.post.items(), (55.0, 61.0), strict=True)}  # fmt: skip
    return replace(whole, references=("imagenet", "laion"), post=rows)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty models, of which one has no number on R."""
    rng = np.random.default_rng(7)
    table = rng.uniform(5, 90, (40, 4)).round(2)
    lines = ["model,imagenet,laion,imagenet-r,imagenet-v2"]
    lines += [f"m{k}," + ",".join(map(str, row)) for k, row in enumerate(table.tolist())]
    lines[4] = lines[4].replace(f",{table[3, 2]},", ",,")
    file = tmp_path / "models.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("RIB_BASELINE_MODELS", str(file))
    return file


def test_several_references_by_the_models_of_a_table(models: Path) -> None:
    """Source: statsmodels' OLS on scipy's logit, of the table as pandas reads it."""
    sm, pd = pytest.importorskip("statsmodels.api"), pytest.importorskip("pandas")
    from scipy.special import expit, logit

    table, expected = pd.read_csv(models), {}
    after = {"imagenet-v2": (80.0, 55.0), "imagenet-cartoon": (73.8, 61.0)}
    r = "imagenet-ood/imagenet-r"
    measured = {"imagenet-v2": {r: 50.0}, "imagenet-cartoon": {"imagenet-v2": 60.0, r: 40.0}}
    for i, row in measured.items():
        for j, value in row.items():
            known = table[["imagenet", "laion", j.rpartition("/")[2]]].dropna()
            x, y = logit(known.to_numpy() / 100)[:, :2], logit(known.to_numpy() / 100)[:, 2]
            fit = sm.OLS(y, sm.add_constant(x)).fit()
            at = logit(np.array(after[i]) / 100)
            expected[i, j] = value - 100 * expit(fit.params[0] + fit.params[1:] @ at)
            assert len(known) == (39 if "-r" in j else 40)
    found = effective_robustness_multi_id(two_references())
    assert {(i, j): v for i, row in found.items() for j, v in row.items()} == pytest.approx(
        expected
    )


def test_what_a_table_lacks_is_said(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the definition."""
    whole = two_references()
    with pytest.raises(InapplicableError, match="two references or more; this run's: imagenet"):
        effective_robustness_multi_id(matrix())
    with pytest.raises(IncompleteError, match="imagenet-v2 → laion has no number yet"):
        row = {k: v for k, v in whole.post["imagenet-v2"].items() if k != "laion"}
        effective_robustness_multi_id(replace(whole, post={**whole.post, "imagenet-v2": row}))
    with pytest.raises(RibError, match="no column of numbers for yfcc; it has imagenet, laion"):
        effective_robustness_multi_id(replace(whole, references=("imagenet", "yfcc")))
    with pytest.raises(InapplicableError, match="no column for a member"):
        effective_robustness_multi_id(
            replace(whole, members=("imagenet-a", "imagenet-v2"), sources=("imagenet-v2",))
        )
    text = models.read_text(encoding="utf-8")
    models.write_text("\n".join(text.splitlines()[:3]), encoding="utf-8")
    with pytest.raises(InapplicableError, match="at least 3 models"):
        effective_robustness_multi_id(whole)
    models.write_text(text.replace("m0,", "m0,1").replace("m1,", "m1,9"), encoding="utf-8")
    with pytest.raises(RibError, match="imagenet has a number that is no accuracy"):
        effective_robustness_multi_id(whole)
    models.unlink()
    with pytest.raises(RibError, match="cannot be read as CSV"):
        effective_robustness_multi_id(whole)
    monkeypatch.delenv("RIB_BASELINE_MODELS")
    with pytest.raises(InapplicableError, match="name a CSV file in RIB_BASELINE_MODELS"):
        effective_robustness_multi_id(whole)
