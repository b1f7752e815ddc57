"""Drift of features, logits and weights against torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from rib_plugin_metrics.cka import cka
from rib_plugin_metrics.drift import (
    feature_drift,
    logit_kl,
    weight_drift,
    weight_drift_by_layer,
)
from torch.nn import functional as F

from rib_harness import DivergedError, Features, InapplicableError


def made(seed: int, n: int = 30, d: int = 7, k: int = 5, scale: float = 1.0, **told: Any) -> Any:
    rng = np.random.default_rng(seed)
    given = {
        "features": rng.normal(size=(n, d)).astype(np.float32),
        "logits": (scale * rng.normal(size=(n, k))).astype(np.float32),
        "labels": rng.integers(0, k, n),
        "index": np.arange(n),
        "ids": tuple((i,) for i in range(k)),
        **told,
    }
    return Features(**given)


@pytest.mark.parametrize("seed", range(3))
def test_feature_drift_is_torchs_cosine(seed: int) -> None:
    """Source: `torch.nn.functional.cosine_similarity`; a row of zeros among them."""
    before, after = made(seed), made(seed + 10)
    after.features[3] = 0
    x, y = torch.from_numpy(before.features), torch.from_numpy(after.features)
    expected = float((1 - F.cosine_similarity(x.double(), y.double())).mean())
    assert feature_drift(before, after) == pytest.approx(expected)


def test_feature_drift_by_hand() -> None:
    """Source: by hand: the same direction 0, a right angle 1, the opposite 2; any length."""
    x = np.array([[1, 0], [1, 0], [1, 1]], np.float32)
    y = np.array([[5, 0], [0, 2], [-3, -3]], np.float32)
    before, after = made(0, 3, features=x), made(0, 3, features=y)
    assert feature_drift(before, after) == pytest.approx(1)
    assert feature_drift(before, before) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 60.0])
def test_logit_kl_is_torchs(scale: float) -> None:
    """Source: `torch.nn.functional.kl_div` of log-softmaxes, in doubles; nearly hard ones too."""
    before, after = made(1, scale=scale), made(2, scale=scale)
    p, q = (torch.from_numpy(f.logits).double().log_softmax(1) for f in (before, after))
    expected = float(F.kl_div(q, p, reduction="batchmean", log_target=True))
    assert logit_kl(before, after) == pytest.approx(expected)
    assert logit_kl(after, before) != pytest.approx(expected)


def test_logit_kl_by_hand() -> None:
    """Source: by hand: p = (1/2, 1/2), q = (1/4, 3/4): ½ log 2 + ½ log(2/3); a shift is nothing."""
    before = made(0, 1, logits=np.zeros((1, 2), np.float32))
    after = made(0, 1, logits=np.array([[7, 7 + math.log(3)]], np.float32))
    assert logit_kl(before, after) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    shifted = made(0, 1, logits=np.full((1, 2), 9, np.float32))
    assert logit_kl(before, shifted) == pytest.approx(0)


def test_weight_drift_is_the_norm_of_the_parameters_as_one_vector() -> None:
    """Source: torch: the parameters of a net flattened; each layer likewise."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    end = {name: p + torch.randn_like(p) for name, p in start.items()}
    moved = {n: (float((end[n] - start[n]).norm()), float(start[n].norm())) for n in start}
    after = made(0, moved=moved)

    def drift(names: list[str]) -> float:
        before, now = (torch.cat([at[n].flatten() for n in names]) for at in (start, end))
        return float((now - before).norm() / before.norm())

    assert weight_drift(made(0), after) == pytest.approx(drift(list(start)), rel=1e-5)
    assert weight_drift_by_layer(after) == pytest.approx(
        {"0": drift(["0.weight", "0.bias"]), "1": drift(["1.weight", "1.bias"])}, rel=1e-5
    )


def test_a_layer_that_started_at_zero() -> None:
    """Source: the definition: x/0."""
    moved = {"a.weight": (1.0, 0.0), "b.weight": (0.0, 0.0), "cls_token": (1.0, 4.0)}
    found = weight_drift_by_layer(made(0, moved=moved))
    assert found == {"a": math.inf, "b": 0.0, "cls_token": 0.25}
    with pytest.raises(InapplicableError, match="a start that is not zero: the parameters"):
        weight_drift(made(0), made(0, moved={"a.weight": (1.0, 0.0)}))


def test_what_does_not_apply_says_so() -> None:
    """Source: the definitions."""
    with pytest.raises(InapplicableError, match="how far each parameter moved"):
        weight_drift(made(0), made(0))
    with pytest.raises(InapplicableError, match="how far each parameter moved"):
        weight_drift_by_layer(made(0))
    with pytest.raises(InapplicableError, match="not 7 and 8; CKA"):
        feature_drift(made(0), made(0, d=8))
    with pytest.raises(ValueError, match="the same classes"):
        logit_kl(made(0), made(0, k=6))


@pytest.mark.parametrize("metric", [feature_drift, logit_kl, cka])
def test_values_that_are_not_finite_make_no_number(metric: Any) -> None:
    """Source: the definition."""
    after = made(1)
    after.features[0, 0] = after.logits[0, 0] = np.nan
    with pytest.raises(DivergedError, match="finite features and logits"):
        metric(made(0), after)


@pytest.mark.parametrize("metric", [feature_drift, logit_kl])
def test_other_images_are_refused(metric: Any) -> None:
    """Source: the definition: row by row the same images."""
    with pytest.raises(ValueError, match="the same images"):
        metric(made(0), made(0, index=np.arange(30) + 1))
    with pytest.raises(ValueError, match="30 and 29 rows"):
        metric(made(0), made(0, n=29))
    assert type(metric(made(0), made(1))) is float
