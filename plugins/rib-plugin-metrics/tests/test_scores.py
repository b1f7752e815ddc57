"""Top-5, calibration, likelihood and Brier score, from a table of scores."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rib_plugin_metrics.scores import brier, ece, nll, top1, top5
from sklearn.metrics import log_loss
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from rib_harness import Scores
from rib_harness.engine.evaluate import score
from rib_harness.scores import SCORES


def scores(group: list[str] | None = None, **columns: Any) -> Scores:
    """A scores table with these columns; what is not given is arbitrary."""
    n = len(next(iter(columns.values())))
    filled = {
        "index": np.arange(n),
        "label": np.zeros(n, int),
        "prediction": np.zeros(n, int),
        "top5": np.ones(n, bool),
        "confidence": np.full(n, 0.5),
        "nll": np.ones(n),
        "brier": np.ones(n),
        "group": group or [""] * n,
        "source": [f"photo-{i}" for i in range(n)],
        **columns,
    }
    return Scores(pa.table([pa.array(filled[f.name], f.type) for f in SCORES], schema=SCORES))


def of_logits(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    columns = {name: values.numpy() for name, values in score(logits, labels).items()}
    return scores(label=labels.numpy(), **columns)


def drawn(seed: int, n: int, k: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


CASES = [(0, 1, 3, 1.0), (1, 7, 2, 0.1), (2, 500, 10, 3.0), (3, 3000, 200, 2.0), (4, 500, 5, 50.0)]


@pytest.mark.parametrize("case", CASES)
def test_ece_is_that_of_torchmetrics(case: Any) -> None:
    """Source: torchmetrics' MulticlassCalibrationError on the same probabilities."""
    logits, labels = drawn(*case)
    oracle = MulticlassCalibrationError(num_classes=case[2], n_bins=15, norm="l1")
    expected = float(oracle(logits.softmax(1), labels))
    assert ece(of_logits(logits, labels)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("nudge", [-1, 0, 1])
def test_ece_puts_a_confidence_on_an_edge_where_torchmetrics_does(nudge: int) -> None:
    """Source: torchmetrics on all edges of its bins, and one float beside them; 1 too.

    A wrong bin would change the sum: right and wrong answers do not cancel in the same way.
    """
    edges = torch.linspace(0, 1, 16)[8:]  # of two classes, the top one has at least 1/2
    away = torch.full_like(edges, 2.0 if nudge > 0 else 0.0)
    on = torch.nextafter(edges, away).clamp(max=1) if nudge else edges
    confidence = torch.cat([on, torch.rand(300, generator=torch.Generator().manual_seed(5))])
    confidence = torch.where(confidence < 0.5, 1 - confidence, confidence)
    right = torch.rand(len(confidence), generator=torch.Generator().manual_seed(6)) < 0.6
    oracle = MulticlassCalibrationError(num_classes=2, n_bins=15, norm="l1")
    expected = float(oracle(torch.stack([confidence, 1 - confidence], 1), (~right).long()))
    table = scores(confidence=confidence.numpy(), label=(~right).long().numpy())
    assert ece(table) == pytest.approx(expected, abs=1e-6)


def test_the_edges_are_those_of_torch() -> None:
    """Source: `torch.linspace` in float32, to the bit."""
    from rib_plugin_metrics.scores import _edges

    assert _edges().dtype == np.float32
    assert np.array_equal(_edges(), torch.linspace(0, 1, 16).numpy())


def test_ece_by_hand() -> None:
    """Source: by hand: .7 (right) and .72 (wrong) share the bin [10/15, 11/15): |1 − 1.42| / 2.

    .95 (right) and 1 (wrong) are apart: (.05 + 1) / 2; in one bin it would be .95 / 2.
    """
    table = scores(confidence=[0.7, 0.72], label=[0, 1], prediction=[0, 0])
    assert ece(table) == pytest.approx(0.42 / 2)
    assert ece(scores(confidence=[0.95, 1.0], label=[0, 1])) == pytest.approx(1.05 / 2)


def test_a_perfect_classifier_is_calibrated() -> None:
    """Source: the definition: confidence 1, always right; and the worst: always wrong."""
    assert ece(scores(confidence=np.ones(5))) == 0
    assert ece(scores(confidence=np.ones(5), label=np.ones(5, int))) == 1


@pytest.mark.parametrize("case", CASES)
def test_likelihood_and_brier_are_the_means_of_their_columns(case: Any) -> None:
    """Source: scikit-learn's log_loss, and Σ_k (p_k − y_k)² in plain NumPy."""
    logits, labels = drawn(*case)
    table, k = of_logits(logits, labels), case[2]
    p = logits.double().softmax(1).numpy()
    if case[3] < 50:  # scikit-learn clips probabilities at the precision of their dtype
        expected = log_loss(labels.numpy(), p, labels=np.arange(k))
        assert nll(table) == pytest.approx(expected, rel=1e-5)
    assert brier(table) == pytest.approx(((p - np.eye(k)[labels]) ** 2).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_accuracies_are_those_of_torchmetrics(case: Any) -> None:
    """Source: torchmetrics' MulticlassAccuracy, micro."""
    logits, labels = drawn(*case)
    table, k = of_logits(logits, labels), case[2]
    for metric, top in ((top1, 1), (top5, min(5, k))):
        oracle = MulticlassAccuracy(num_classes=k, top_k=top, average="micro")
        assert metric(table) == pytest.approx(100 * float(oracle(logits, labels)), rel=1e-6)


def test_top5_over_groups_is_worked_by_hand() -> None:
    """Source: by hand: fog (1/2 + 3/4)/2, blur 1/5; the mean over images would be 5/11."""
    group = ["fog/1"] * 2 + ["fog/2"] * 4 + ["blur/1"] * 5
    found = np.array([1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0], bool)
    assert top5(scores(top5=found, group=group)) == pytest.approx(41.25)
    assert top5(scores(top5=found)) == pytest.approx(500 / 11)


@pytest.mark.parametrize("metric", [top1, top5, ece, nll, brier])
def test_a_score_is_a_plain_float(metric: Any) -> None:
    """Source: the type."""
    assert type(metric(scores(label=[0, 1], group=["a/1", "a/2"]))) is float
