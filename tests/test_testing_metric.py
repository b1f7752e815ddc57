"""Every check of a metric: some that pass all, and for each check some that fail it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rib_harness import Features, InapplicableError, Matrix, MetricSpec, Scores
from rib_harness.catalog import Catalog
from rib_harness.errors import ConfigError, PluginError
from rib_harness.testing import (
    Check,
    Golden,
    catalog_with,
    checks_of,
    matrix_of,
    scores_of,
    tiny_features,
    tiny_scores,
)
from rib_harness.testing.metric_checks import METRIC_CHECKS, check_metric_golden
from rib_harness.testing.metric_inputs import inputs, tied

SPEC = MetricSpec(
    name="number", target="", summary="A number.", license="MIT", level="scores", range=(0.0, 100.0)
)


def accuracy(scores: Scores) -> float:
    if not len(scores):
        raise InapplicableError("No image.")
    return 100 * float(scores.correct.mean())


def share_above(scores: Scores, bound: float) -> float:
    if not len(scores):
        raise InapplicableError("No image.")
    confidence = scores.column("confidence")
    right = scores.correct & (confidence > bound)
    return 100 * float(right.mean()) if np.isfinite(confidence).all() else float("nan")


def mean_nll(scores: Scores) -> float:
    return float(scores.column("nll").mean())


def mean_change(matrix: Matrix) -> dict[str, dict[str, float]]:
    return {i: {j: matrix.change(i, j) for j in js} for i, js in matrix.pairs.items()}


def moved(before: Features, after: Features) -> float:
    return float(np.linalg.norm(before.features - after.features, axis=1).mean())


def apart(one: Features, other: Features) -> float:
    return float(np.linalg.norm(one.features.mean(0) - other.features.mean(0)))


LESS: dict[str, Any] = {"higher_is_better": False, "range": (0.0, float("inf"))}
GOOD: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (accuracy, {}),
    (share_above, {"arguments": {"bound": 0.5}}),
    (mean_nll, LESS),
    (mean_change, {"level": "matrix", "range": (-100.0, 100.0)}),
    (moved, {"level": "drift", **LESS}),
    (apart, {"level": "distance", **LESS}),
]


def of_two(scores: Scores, other: Scores) -> float:
    return 0.0


def a_text(scores: Scores) -> str:
    return "good"


def a_truth(scores: Scores) -> bool:
    return True


def an_array(scores: Scores) -> Any:
    return scores.column("confidence")


def of_scores(scores: Scores) -> float:
    return float(scores.column("confidence").mean())


def of_the_surest(scores: Scores) -> float:
    """Among equally sure images those that come first."""
    if not len(scores):
        raise InapplicableError("No image.")
    surest = np.argsort(-scores.column("confidence"), kind="stable")[: len(scores) // 2]
    return 100 * float(scores.correct[surest].mean())


def the_first(scores: Scores) -> float:
    return float(scores.column("confidence")[0])


def the_first_member(matrix: Matrix) -> float:
    return matrix.change(matrix.members[0], matrix.members[1])


def of_the_first_piece(scores: Scores) -> float:
    return float(scores.table["confidence"].chunk(0).to_numpy().mean())


def a_constant(scores: Scores) -> float:
    if not len(scores):
        raise InapplicableError("No image.")
    return 50.0


def a_dict(scores: Scores) -> dict[str, float]:
    return {"a": 50.0}


def of_a_sample(scores: Scores) -> float:
    """Repeatable, and everybody's next draws with it."""
    if not len(scores):
        raise InapplicableError("No image.")
    np.random.seed(0)
    return 100 * float(np.random.permutation(scores.correct)[:10].mean())


def of_nobody(matrix: Matrix) -> dict[str, float]:
    return {"zz": matrix.mri}


def on_nothing(matrix: Matrix) -> dict[str, dict[str, float]]:
    return {i: {"zz": matrix.ri(i)} for i in matrix.sources}


def of_pairs(one: Features, other: Features) -> float:
    return float(np.linalg.norm(one.features - other.features, axis=1).mean())


def of_the_first_pairs(one: Features, other: Features) -> float:
    pairs = zip(one.features, other.features, strict=False)
    return float(np.mean([np.linalg.norm(a - b) for a, b in pairs]))


def spread(matrix: Matrix) -> float:
    if not matrix.sources:
        raise InapplicableError("Nothing was fine-tuned.")
    return float(np.std([matrix.ri(i) for i in matrix.sources]))


def correlation(matrix: Matrix) -> float:
    """Of accuracies before and after; undefined where all are equal."""
    if not matrix.sources:
        raise InapplicableError("Nothing was fine-tuned.")
    before = [matrix.pre[j].top1 for j in matrix.members]
    after = [np.mean([matrix.post[i][j].top1 for i in matrix.sources]) for j in matrix.members]
    return float(np.corrcoef(before, after)[0, 1])


def sometimes_nan(matrix: Matrix) -> float:
    return matrix.mri if matrix.mri < 20 else float("nan")


def leaving_nan_out(scores: Scores) -> float:
    return float(np.nanmean(scores.column("confidence")))


def sure(scores: Scores) -> float:
    """A comparison with NaN is False: it looks like an image that is not sure."""
    return 100 * float((scores.column("confidence") > 0.9).mean())


def zero_for_nan(matrix: Matrix) -> float:
    changes = [matrix.change(i, j) for i, js in matrix.pairs.items() for j in js]
    return float(np.nan_to_num(changes).mean())


def zero_of_nothing(scores: Scores) -> float:
    return 100 * float(scores.correct.sum()) / max(len(scores), 1)


def dividing_by_nothing(scores: Scores) -> float:
    return 100 * int(scores.correct.sum()) / len(scores)


MATRIX: dict[str, Any] = {"level": "matrix", "range": (-100.0, 100.0)}
DISTANCE: dict[str, Any] = {"level": "distance", **LESS}

#: Check, what is broken, its spec's changes, and a part of the message.
BAD: list[tuple[str, Callable[..., Any], dict[str, Any], str]] = [
    ("signature", of_two, {}, "it raises TypeError: of_two() missing 1 required posit"),
    ("signature", of_two, {}, "Of level 'scores' it is given one Scores. Its spec decides; lev"),
    (
        "signature",
        of_scores,
        MATRIX,
        "'Matrix' object has no attribute 'column'. Of level 'matrix'",
    ),
    (
        "signature",
        of_scores,
        MATRIX,
        "Its spec decides; level='scores': one Scores; level='drift': t",
    ),
    (
        "signature",
        of_scores,
        DISTANCE,
        "takes 1 positional argument but 2 were given. Of level 'di",
    ),
    ("signature", an_array, {}, "it gave ndarray of shape (40,): return a float"),
    ("signature", a_text, {}, "it gave 'good': return a float, or a dict of floats"),
    ("signature", a_truth, {}, "it gave True: return a float"),
    ("signature", a_dict, {}, "it gave a dict: of level 'scores' return one float"),
    ("signature", of_a_sample, {}, "it changes the global random state of numpy"),
    ("signature", of_nobody, MATRIX, "for the source 'zz': expected one of matrix.sources, here a"),
    ("signature", on_nothing, MATRIX, "for the dataset 'zz': expected one of matrix.members or"),
    ("signature", of_pairs, DISTANCE, "Here they have 30 and 20 images: rows of two datasets a"),
    ("permutation", of_the_surest, {}, "a value that several share is in no order among these"),
    ("permutation", of_the_first_pairs, DISTANCE, "with its images in another order it gives"),
    ("permutation", the_first, {}, "with its images in another order it gives"),
    ("permutation", the_first_member, MATRIX, "with its datasets in another order it gives"),
    ("split", of_the_first_piece, {}, "of the same images in three pieces it gives"),
    ("range", accuracy, {"range": (0.0, 1.0)}, "its spec says range=(0.0, 1.0): mend one of the"),
    ("range", sometimes_nan, MATRIX, "it gave nan; its spec says range=(-100.0, 100.0)"),
    ("direction", accuracy, {"higher_is_better": False}, "gives 100 where nothing is wrong and 0"),
    ("nan", leaving_nan_out, {}, "with a NaN in the confidence of one image it gives 0."),
    ("nan", leaving_nan_out, {}, "`if np.isnan(values).any(): raise InapplicableError(…)`"),
    ("nan", sure, {}, "with a NaN in the confidence of one image it gives"),
    ("nan", zero_for_nan, MATRIX, "with a NaN in A_pre of a it gives"),
    ("empty", zero_of_nothing, {}, "of nothing it gives [0.0]: raise an InapplicableError"),
    ("empty", dividing_by_nothing, {}, "of nothing it raises ZeroDivisionError"),
]


def checks_on(target: Any, golden: tuple[Golden, ...] = (), **spec: Any) -> dict[str, Check]:
    """Check → itself, for a metric that no package offers."""
    catalog = catalog_with((replace(SPEC, **spec), target), base=Catalog())
    checks = checks_of("testing", catalog, golden=golden)
    return {c.id.rpartition("/")[2]: c for c in checks if c.id.startswith("metric/")}


@pytest.mark.parametrize(("target", "spec"), GOOD)
def test_a_good_one_passes_every_check(target: Any, spec: dict[str, Any]) -> None:
    results = {name: one.outcome()["result"] for name, one in checks_on(target, **spec).items()}
    assert set(results.values()) == {"ok"}
    assert ("split" in results) == (spec.get("level", "scores") == "scores")


@pytest.mark.parametrize(
    ("target", "spec", "given"),
    [
        (spread, {"level": "matrix", **LESS}, "0 where nothing is wrong and 0"),
        (correlation, {"level": "matrix", "range": (-1.0, 1.0)}, "nan where nothing is wrong"),
        (a_constant, {}, "50 where nothing is wrong and 50 where all is"),
    ],
)
def test_where_the_extremes_are_alike_the_direction_is_not_judged(
    target: Any, spec: dict[str, Any], given: str
) -> None:
    """Source: a standard deviation and a correlation of equal numbers."""
    found = {name: one.outcome() for name, one in checks_on(target, **spec).items()}
    assert {name for name, one in found.items() if one["result"] != "ok"} == {"direction"}
    assert found["direction"]["result"] == "skipped"
    assert f"it gives {given}" in found["direction"]["reason"]


@pytest.mark.parametrize(("check", "target", "spec", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(
    check: str, target: Any, spec: dict[str, Any], said: str
) -> None:
    """Source: what was broken here."""
    found = checks_on(target, **spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in METRIC_CHECKS}
    assert names == {check for check, *_ in BAD}


def test_one_that_does_not_apply_is_skipped_with_its_own_words() -> None:
    def never(scores: Scores) -> float:
        raise InapplicableError("It needs the moon.")

    found = {name: check.outcome() for name, check in checks_on(never).items()}
    assert found["range"]["result"] == "skipped"
    assert found["range"]["reason"].endswith("the kit's inputs: It needs the moon.")
    assert found["empty"]["result"] == "ok"


# Golden values

FOUR = scores_of(label=[0, 1, 2, 3], prediction=[0, 1, 2, 0])
TWO = matrix_of({"a": 50, "b": 60}, {"a": {"a": 90, "b": 55}, "b": {"a": 60, "b": 90}})


def test_golden_values() -> None:
    """Source: counted by hand; three of four are right."""
    golden = (Golden("number", (FOUR,), 75), Golden("number", (FOUR,), 74))
    checks = checks_on(accuracy, golden)
    assert checks["golden-0"].outcome()["result"] == "ok"
    assert checks["golden-1"].outcome()["reason"] == "it gives 75; its author says 74."
    assert checks["golden-1"].function is check_metric_golden
    tolerant = checks_on(accuracy, (Golden("number", (FOUR,), 74, tolerance=1),))
    assert tolerant["golden-0"].outcome()["result"] == "ok"


def test_golden_values_by_source_and_dataset() -> None:
    """Source: subtracted by hand."""
    right, wrong = {"a": {"b": -5}, "b": {"a": 10}}, {"a": {"b": -5}, "b": {"a": 9}}
    golden = (Golden("number", (TWO,), right), Golden("number", (TWO,), wrong))
    checks = checks_on(mean_change, golden, **MATRIX)
    assert checks["golden-0"].outcome()["result"] == "ok"
    said = checks["golden-1"].outcome()["reason"]
    assert said == "it gives a → b -5, b → a 10; its author says a → b -5, b → a 9."


def test_a_golden_value_of_another_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"offers no 'numbre'\. Did you mean 'number'"):
        checks_on(accuracy, (Golden("numbre", (FOUR,), 75),))


# Inputs


def test_a_column_that_scores_have_not_is_refused() -> None:
    """Source: the columns of a scores file."""
    with pytest.raises(
        PluginError, match=r"no column 'conf'\. Did you mean 'confidence'\? Columns: i"
    ):
        scores_of(label=[0, 1], conf=[0.9, 0.8])


def test_tied_scores_differ_in_confidence_only() -> None:
    """Source: the scores that they are made from."""
    (plain,), (scores,) = inputs("scores"), tied("scores", inputs("scores"))
    for name in plain.table.column_names:
        same = np.array_equal(plain.column(name), scores.column(name))
        assert same == (name != "confidence")
    shared = [scores.correct[scores.column("confidence") == one] for one in
              np.unique(scores.column("confidence"))]  # fmt: skip
    assert sum(one.any() and not one.all() for one in shared) > 2  # right ones and wrong ones


def test_tiny_scores_are_those_of_a_softmax() -> None:
    """Source: what each column says of the others."""
    scores = tiny_scores(200, classes=4)
    confidence, nll = scores.column("confidence"), scores.column("nll")
    np.testing.assert_allclose(np.exp(-nll[scores.correct]), confidence[scores.correct], rtol=1e-5)
    assert (scores.column("brier") <= 2).all() and 0.3 < scores.correct.mean() < 0.95
    assert scores.column("top5").all()  # of four classes


def test_a_matrix_by_hand_has_the_known_mri() -> None:
    """Source: RI_a = −5, RI_b = 10."""
    assert TWO.mri == 2.5 and TWO.complete


def test_shifted_features_are_elsewhere() -> None:
    """Source: the shift."""
    near, far = tiny_features(seed=1), tiny_features(seed=1, shift=3.0)
    assert moved(tiny_features(), near) < moved(tiny_features(), far)
    assert len(inputs("drift")) == len(inputs("distance")) == 2
