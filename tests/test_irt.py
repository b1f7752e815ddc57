"""Item response theory over test sets: known parameters, other code's likelihood, and the verb."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from rib_harness import InapplicableError, irt
from rib_harness.cli import cli
from rib_harness.irt import SPREAD, Answers, Curves, fit, log_likelihood
from rib_harness.scores import SCORES, Scores
from rib_harness.store import RUN_FORMAT, Store, key_of

Bools = NDArray[np.bool_]


def drawn(
    rng: np.random.Generator, abilities: NDArray[Any], n: int, curves: Sequence[float]
) -> Bools:
    """(n, M): answers of models to images, by the model itself: μ, σ, λ."""
    mean, spread, log_slope = curves
    easiness = rng.normal(mean, spread, (n, 1))
    slope = np.exp(rng.normal(log_slope, 0.3, (n, 1)))
    right: Bools = rng.random((n, len(abilities))) < 1 / (1 + np.exp(-slope * abilities - easiness))
    return right


TRUE = {"sharp": (1.0, 2.0, 0.4), "usual": (-1.0, 1.5, -0.4), "blunt": (0.5, 2.0, -1.2),
        "easy": (3.0, 2.0, -0.4)}  # fmt: skip


def spread_out(models: int, seed: int = 0) -> NDArray[Any]:
    raw = np.random.default_rng(seed).normal(size=models)
    found: NDArray[Any] = (raw - raw.mean()) / raw.std()
    return found


# The fit


@pytest.mark.parametrize("models", [6, 24])
def test_known_parameters_are_recovered(models: int) -> None:
    """Source: the parameters that the answers are drawn from. Tolerances: four standard errors."""
    rng, abilities = np.random.default_rng(1), spread_out(models)
    answers = [
        Answers(drawn(rng, abilities, 2000, one), np.arange(models)) for one in TRUE.values()
    ]
    found, curves = fit(answers)
    assert found.mean() == pytest.approx(0) and found.std() == pytest.approx(1)
    assert np.abs(found - abilities).max() < 0.12
    for one, (mean, spread, log_slope) in zip(curves, TRUE.values(), strict=True):
        assert abs(one.log_slope - log_slope) < 4 * one.error and one.error < 0.2
        assert one.easiness == pytest.approx(mean, abs=0.3)
        assert one.spread == pytest.approx(spread, rel=0.15)
        assert one.discrimination.low < one.discrimination.estimate < one.discrimination.high
    told = dict(zip(TRUE, (one.discrimination.estimate for one in curves), strict=True))
    assert max(told, key=told.__getitem__) == "sharp" and min(told, key=told.__getitem__) == "blunt"


def test_models_that_did_not_answer_everything_have_an_ability_too() -> None:
    """Source: the abilities that the answers are drawn from."""
    rng, abilities = np.random.default_rng(2), spread_out(12)
    answers = []
    for k, one in enumerate(TRUE.values()):
        asked = np.delete(np.arange(12), [k, k + 4])
        answers.append(Answers(drawn(rng, abilities[asked], 1500, one), asked))
    assert np.abs(fit(answers)[0] - abilities).max() < 0.15


def test_the_standard_error_is_the_spread_over_samples() -> None:
    """Source: the standard deviation of 40 fits; a sample of 40 has it to ± 11 %."""
    abilities = spread_out(10)
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        answers = [
            Answers(drawn(rng, abilities, 600, one), np.arange(10))
            for one in (TRUE["sharp"], TRUE["usual"])
        ]
        found.append([(one.log_slope, one.error) for one in fit(answers)[1]])
    slopes, errors = np.moveaxis(np.array(found), 2, 0)
    for seen, told in zip(slopes.std(0, ddof=1), errors.mean(0), strict=True):
        assert 0.65 < told / seen < 1.4


@pytest.mark.parametrize("curves", [(0.5, 0.4, -0.3), (-2.0, 1.2, 0.7)])
def test_the_likelihood_is_the_integral(curves: Sequence[float]) -> None:
    """Source: scipy's quadrature in two dimensions, of the densities of `scipy.stats`."""
    from scipy import integrate, stats

    abilities = np.array([-1.2, 0.1, 0.4, 1.7])
    pattern = np.array([0.0, 1.0, 1.0, 0.0])

    def density(z: float, c: float) -> float:
        slope = np.exp(curves[2] + 0.3 * z)
        p = 1 / (1 + np.exp(-(slope * abilities + c)))
        each = np.where(pattern == 1, p, 1 - p).prod()
        return float(each * stats.norm.pdf(c, curves[0], np.exp(curves[1])) * stats.norm.pdf(z))

    low, high = (curves[0] + k * 7 * np.exp(curves[1]) for k in (-1, 1))
    expected, _ = integrate.dblquad(density, low, high, -7, 7)
    value, _, _ = log_likelihood(
        np.array(curves), abilities, pattern[None], np.array([3.0]), irt._grid(4)
    )
    assert value == pytest.approx(3 * np.log(expected), rel=1e-4)


def test_the_gradient_is_that_of_torch() -> None:
    """Source: autograd through Bernoulli's log-probabilities, image by image."""
    rng = np.random.default_rng(3)
    right = rng.random((7, 5)) < 0.6
    times, grid = rng.integers(1, 4, 7).astype(float), irt._grid(5)
    curves, abilities = np.array([0.3, 0.5, -0.2]), rng.normal(size=5)
    leaves = [torch.tensor(x, requires_grad=True) for x in (curves, abilities)]
    x, y, log_weight = map(torch.tensor, grid)
    total = torch.zeros((), dtype=torch.float64)
    for row, count in zip(right, times, strict=True):
        logits = (
            leaves[0][0] + leaves[0][1].exp() * x
            + leaves[1][:, None] * (leaves[0][2] + SPREAD * y).exp()
        )  # fmt: skip
        answer = torch.tensor(row, dtype=torch.float64)[:, None].expand_as(logits)
        of_nodes = torch.distributions.Bernoulli(logits=logits).log_prob(answer).sum(0)
        total = total + count * torch.logsumexp(of_nodes + log_weight, 0)
    total.backward()  # type: ignore[no-untyped-call]
    value, of_abilities, of_curves = log_likelihood(
        curves, abilities, right.astype(float), times, grid
    )
    assert value == pytest.approx(total.item())
    assert leaves[0].grad is not None and leaves[1].grad is not None
    assert of_curves == pytest.approx(leaves[0].grad.numpy())
    assert of_abilities == pytest.approx(leaves[1].grad.numpy())


def test_information_and_headroom_are_means_over_images() -> None:
    """Source: a million images drawn from the curves; Fisher's information as the variance of the
    score, and the slope as a difference of the chance to be right."""
    rng, abilities = np.random.default_rng(4), np.array([-1.0, 0.2, 1.4])
    curves = Curves(0.7, 1.5, -0.4, 0.1)
    easiness = rng.normal(0.7, 1.5, 1_000_000)
    slope = np.exp(rng.normal(-0.4, 0.3, 1_000_000))
    informed = []
    for ability in abilities:
        p = 1 / (1 + np.exp(-(slope * ability + easiness)))
        right = rng.random(len(p)) < p
        informed.append(np.mean((slope * (right - p)) ** 2))
    assert curves.information(abilities) == pytest.approx(np.mean(informed), rel=0.01)
    chance = [np.mean(1 / (1 + np.exp(-(slope * (1.4 + h) + easiness)))) for h in (-0.01, 0.01)]
    assert curves.slope_at(1.4) == pytest.approx((chance[1] - chance[0]) / 0.02, rel=0.01)
    assert curves.discrimination.estimate == pytest.approx(slope.mean(), rel=0.01)


def test_too_few_or_equal_models_are_refused() -> None:
    few = Answers(np.random.default_rng(0).random((50, 5)) < 0.5, np.arange(5))
    with pytest.raises(InapplicableError, match=r"at least 6 models .* here are 5: run more"):
        fit([few])
    same = Answers(np.ones((50, 8), dtype=bool), np.arange(8))
    with pytest.raises(InapplicableError, match="right equally often"):
        fit([same])


# The verb

MEMBERS, SIZES = ("a", "b", "c"), {"a": 300, "b": 400, "c": 350, "val": 320}
#: What the datasets are drawn from: `b` tells models apart, `c` hardly does.
DRAWN = {"a": (0.5, 1.5, -0.3), "b": (0.5, 1.5, 0.6), "c": (0.5, 1.5, -1.5), "val": (2, 2, 0.0)}


def write(
    store: Store,
    methods: Sequence[str] = ("ft", "lwf", "ewc"),
    *,
    versions: int = 1,
    ruined: tuple[str, str] = ("", ""),
    limit: int | None = None,
) -> dict[str, Bools]:
    """Runs as the harness leaves them; the answers by key."""
    store.prepare()
    said: dict[str, Bools] = {}

    def step(who: list[Any], ability: float, j: str) -> str:
        key = key_of({"who": who, "on": j, "limit": limit})
        if key not in said:
            n = SIZES[j]
            rng = np.random.default_rng(list(j.encode()))  # the same images for all models
            mean, spread, log_slope = DRAWN[j]
            easiness = rng.normal(mean, spread, n)
            slope = np.exp(rng.normal(log_slope, 0.3, n))
            chance = 1 / (1 + np.exp(-(slope * ability + easiness)))
            right = np.random.default_rng(list(key.encode())).random(n) < chance
            said[key] = right
            label = np.arange(n) % 5
            columns = {
                "index": range(n), "label": label, "prediction": np.where(right, label, label + 1),
                "top5": right, "confidence": [0.5] * n, "nll": [1.0] * n, "brier": [1.0] * n,
                "group": [""] * n, "source": [f"{j}/{k // versions}" for k in range(n)],
            }  # fmt: skip
            table = pa.table([pa.array(columns[f.name], f.type) for f in SCORES], schema=SCORES)
            done = {"summary": Scores(table).summary(), "provenance": {}}
            inputs = {"who": who, "dataset": {"id": j, "limit": limit}}
            with store.writing(key, inputs, done) as folder:
                Scores(table).write(folder / "scores.parquet")
        return key

    for m, method in enumerate(methods):
        post = {}
        for s, i in enumerate(MEMBERS):
            ability, own = (0.8 * m - 0.9 * s, 5.0) if (method, i) != ruined else (-8.0, -8.0)
            post[i] = {j: step([method, i], own if i == j else ability, j) for j in SIZES}
        record = {
            "format": RUN_FORMAT, "suite": "simulated", "suite_id": "s/simulated",
            "backbone": "net", "backbone_id": "s/net", "weights": "w", "method": method,
            "method_id": f"s/{method}", "options": {}, "seed": 0, "preset": "default",
            "recipe": {"lr": 0.01}, "limit": limit, "data": {}, "suite_members": list(MEMBERS),
            "members": list(MEMBERS), "references": ["val"], "shares": [["c", "val"]], "notes": [],
            "finetune": {}, "components": [], "sources": list(MEMBERS),
            "cells": {"pre": {j: step(["net"], 1.0, j) for j in SIZES}, "post": post},
        }  # fmt: skip
        store.save_run(record, "", f"2026-01-{len(store.runs()) + 1:02}")
    return said


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files need not outlive a power cut."""
    monkeypatch.setattr("rib_harness.store._sync", lambda path: None)


def compare(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["compare", "--irt", "--store", str(path), *arguments])


def test_the_set_that_was_made_to_tell_models_apart_does(tmp_path: Path) -> None:
    """Source: what the answers are drawn from, and who was asked, by hand."""
    store = Store(tmp_path / "s")
    said = write(store)
    (told,) = json.loads(compare(store.path, "--format", "json").stdout)
    assert told["format"] == "rib-harness.irt/1" and len(told["models"]) == 10
    assert [one["dataset"] for one in told["members"]][::3] == ["b", "c"]
    rows = {one["dataset"]: one for one in told["members"]}
    # Neither the fine-tuning set nor what shares its photographs: 3 of each 9 have it so.
    assert {j: row["models"] for j, row in rows.items()} == {"a": 7, "b": 7, "c": 7, "val": 7}
    assert {row["role"] for row in rows.values()} == {"ood", "reference"}
    # Who is good on what it was trained on is not thought good: that is left out.
    best, *_, worst = told["models"]
    assert (best["method"], best["source"]) == ("ewc", "a")
    assert (worst["method"], worst["source"]) == ("ft", "c")
    pre = store.runs()[0]["cells"]
    asked = [pre["pre"]["a"], *(run["cells"]["post"][i]["a"] for run in store.runs() for i in "bc")]
    assert rows["a"]["right"] == pytest.approx(100 * np.mean([said[key] for key in asked]))
    error = (rows["a"]["photographs"] * rows["a"]["information"]) ** -0.5
    assert rows["a"]["error"] == pytest.approx(error) and rows["a"]["photographs"] == 300
    table = list(csv.DictReader(io.StringIO(compare(store.path, "--format", "csv").stdout)))
    assert [row["dataset"] for row in table] == [one["dataset"] for one in told["members"]]
    assert float(table[0]["discrimination"]) == pytest.approx(told["members"][0]["discrimination"])
    text = compare(store.path).stdout
    assert "simulated · 10 models" in text and "(ewc on a)" in text and "val (ref)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_image_of_a_photograph_is_read_and_no_more_than_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the numbers of photographs, by hand."""
    store = Store(tmp_path / "s")
    write(store, versions=4)
    monkeypatch.setattr(irt, "IMAGES", 80)
    (told,) = json.loads(compare(store.path, "--format", "json").stdout)
    counts = {one["dataset"]: (one["photographs"], one["read"]) for one in told["members"]}
    assert counts == {"a": (75, 75), "b": (100, 80), "c": (88, 80), "val": (80, 80)}
    rows = irt._drawn("x", np.arange(1000) // 4)
    assert len(set(rows // 4)) == len(rows) == 80 and len(set(rows % 4)) == 4


def test_models_of_other_images_stand_apart_and_ruined_ones_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    write(store)
    write(store, limit=7)
    told = json.loads(compare(store.path, "--format", "json").stdout)
    assert [one["setting"] for one in told] == ["simulated", "simulated · limit 7 a class"]
    ruined = Store(tmp_path / "r")
    write(ruined, ruined=("ft", "a"))
    (one,) = json.loads(compare(ruined.path, "--format", "json").stdout)
    assert one["notes"] == ["left out, ruined: ft on a"]
    assert ("ft", "a") not in {(m["method"], m["source"]) for m in one["models"]}
    assert len(one["models"]) == 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ft"], "at least 6 models that answered the same images; here are 4"),
        (["lfw"], "has no method 'lfw'. Did you mean 'lwf'?"),
        (["--format", "md"], "the formats table, json and csv"),
        (["--at-equal-gain"], "Give --irt or --at-equal-gain"),
        (["--backbone", "other"], "nothing to compare"),
    ],
)
def test_what_cannot_be_fitted_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    write(Store(tmp_path / "s"))
    done = compare(tmp_path / "s", *arguments)
    assert done.exit_code != 0 and said in f"{done.output} {done.exception}"
