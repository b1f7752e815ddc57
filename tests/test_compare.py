"""`rib-harness compare` on simulated stores, against counts in plain numpy and other libraries."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests

from rib_harness import cli
from rib_harness.arms import arms_of
from rib_harness.compare import Comparison, Side, compare, find_side
from rib_harness.config import Recipe
from rib_harness.errors import RibError
from rib_harness.results import Results, collect
from rib_harness.scores import SCORES, Scores
from rib_harness.store import RUN_FORMAT, Store, key_of

Bools = NDArray[np.bool_]
Rows = dict[str | None, dict[str, Bools]]

#: Images of each dataset; `val` is a reference.
SIZES = {"a": 60, "b": 80, "c": 70, "val": 50}


def rows_of(seed: int, sources: Sequence[str] = ("a", "b", "c"), lost: float = 0.2,
            sizes: Mapping[str, int] = SIZES) -> Rows:  # fmt: skip
    """Right before; after fine-tuning some are lost and a few gained. Before is always the same."""
    before = np.random.default_rng(0)
    pre = {j: before.random(n) < 0.7 for j, n in sizes.items()}
    rng = np.random.default_rng(100 + seed)
    after: Rows = {None: pre}
    for i in sources:
        after[i] = {j: (right & (rng.random(len(right)) > lost)) | (rng.random(len(right)) < 0.05)
                    for j, right in pre.items()}  # fmt: skip
    return after


def write(store: Store, rows: Rows, *, method: str = "ft", seed: int = 0, photographs: str = "p",
          missing: Sequence[tuple[str | None, str]] = (), recipe: Mapping[str, Any] | None = None,
          sizes: Mapping[str, int] = SIZES, **changes: Any) -> str:  # fmt: skip
    """A run as the harness leaves it; its id."""
    store.prepare()
    backbone = changes.get("backbone", "net")
    tuned = {"lr": 0.01, **(recipe or {})}

    def step(row: str | None, dataset: str, right: Bools) -> str:
        who = [backbone] if row is None else [backbone, method, row, seed, tuned]
        inputs = {"who": who, "dataset": {"id": dataset, "fingerprint": photographs}}
        key, n = key_of(inputs), len(right)
        label = np.arange(n) % 5
        columns = {
            "index": range(n), "label": label, "prediction": np.where(right, label, label + 1),
            "top5": right, "confidence": [0.5] * n, "nll": [1.0] * n, "brier": [1.0] * n,
            "group": [""] * n, "source": [f"{photographs}/{dataset}/{k}" for k in range(n)],
        }  # fmt: skip
        table = pa.table([pa.array(columns[f.name], f.type) for f in SCORES], schema=SCORES)
        if (row, dataset) not in missing and store.done(key) is None:
            done = {"summary": Scores(table).summary(), "provenance": {}}
            with store.writing(key, inputs, done) as folder:
                Scores(table).write(folder / "scores.parquet")
        return key

    members = [j for j in sizes if j != "val"]
    record = {
        "format": RUN_FORMAT, "suite": "simulated", "suite_id": "s/simulated",
        "backbone": backbone, "backbone_id": f"s/{backbone}", "weights": backbone,
        "method": method, "method_id": f"s/{method}", "options": {}, "seed": seed,
        "preset": "default", "recipe": {**Recipe().model_dump(mode="json"), **tuned},
        "limit": None, "data": {}, "suite_members": members, "members": members,
        "references": ["val"], "shares": [], "notes": [], "finetune": {}, "components": [],
        "sources": [i for i in rows if i is not None],
        "cells": {
            "pre": {j: step(None, j, right) for j, right in rows[None].items()},
            "post": {i: {j: step(i, j, right) for j, right in row.items()}
                     for i, row in rows.items() if i is not None},
        },
        **changes,
    }  # fmt: skip
    return str(store.save_run(record, "", f"2026-01-{len(store.runs()) + 1:02}")["id"])


def call(*arguments: str, expect: int = 0) -> None:
    """In this process; stdout and stderr go to capsys."""
    assert cli._code(["compare", *arguments]) == expect


def sides(store: Store, *texts: str) -> list[Comparison]:
    first, *others = (find_side(text, store) for text in texts)
    return compare(first, *others)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files need not outlive a power cut."""
    monkeypatch.setattr("rib_harness.store._sync", lambda path: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two methods, one seed."""
    made = Store(tmp_path / "s")
    write(made, rows_of(1), method="ft")
    write(made, rows_of(2, lost=0.05), method="lwf")
    return made


def change(rows: Rows, i: str, j: str) -> float:
    """In points."""
    return 100 * float(rows[i][j].mean() - rows[None][j].mean())


# Numbers


def test_every_number_equals_a_count(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: numpy for changes and counts; statsmodels for McNemar and Holm; scipy for flips."""
    ft, lwf = rows_of(1), rows_of(2, lost=0.05)
    call("ft", "lwf", "--store", str(store.path), "--format", "json")
    (found,) = json.loads(capsys.readouterr().out)
    members = ["a", "b", "c"]
    p_values = []
    assert [(c["source"], c["dataset"]) for c in found["cells"]] == [
        (i, j) for i in members for j in SIZES
    ]
    for cell in found["cells"]:
        i, j = cell["source"], cell["dataset"]
        assert cell["role"] == ("own" if i == j else "reference" if j == "val" else "ood")
        assert cell["a"] == pytest.approx(change(ft, i, j))
        assert cell["b"] == pytest.approx(change(lwf, i, j))
        assert cell["difference"] == pytest.approx(change(lwf, i, j) - change(ft, i, j))
        assert cell["low"] < cell["difference"] < cell["high"]
        a, b = ft[i][j], lwf[i][j]
        counts = [(b & ~a).sum(), (a & ~b).sum(), (a & b).sum(), (~a & ~b).sum()]
        assert [cell[k] for k in ("gained", "lost", "kept", "wrong")] == counts
        table = [[counts[2], counts[1]], [counts[0], counts[3]]]
        p_values.append(peer_mcnemar(table, exact=True).pvalue)
        assert cell["p_mcnemar"] == pytest.approx(p_values[-1])
    adjusted = multipletests(p_values, method="holm")[1]
    assert [cell["p_holm"] for cell in found["cells"]] == pytest.approx(adjusted)

    def ri(rows: Rows, i: str) -> float:
        return float(np.mean([change(rows, i, j) for j in members if j != i]))

    for i in members:
        row = found["ri"][i]
        assert (row["a"], row["b"]) == pytest.approx((ri(ft, i), ri(lwf, i)))
        assert row["difference"] == pytest.approx(ri(lwf, i) - ri(ft, i))
        assert row["low"] < row["difference"] < row["high"]
    mri = [float(np.mean([ri(rows, i) for i in members])) for rows in (ft, lwf)]
    assert (found["a"]["mri"], found["b"]["mri"]) == pytest.approx(mri)
    assert found["mri_difference"]["difference"] == pytest.approx(mri[1] - mri[0])
    assert 0 < found["mri_difference"]["p"] == found["mri_difference"]["p_holm"] <= 1
    assert found["about"] == "these trainings"
    assert {cell["about"] for cell in found["cells"]} == {"these trainings"}
    assert (found["complete"], found["sources"]) == (True, members)
    assert found["format"] == "rib-harness.compare/2"
    assert (found["a"]["method"], found["b"]["method"]) == ("ft", "lwf")
    assert found["a"]["bounds"] is found["a"]["sd_over_seeds"] is None


def test_b_against_a_is_a_against_b_turned_round(store: Store) -> None:
    """Source: symmetry; draws are the same either way."""
    (one,), (other,) = sides(store, "ft", "lwf"), sides(store, "lwf", "ft")
    assert one.difference is not None and other.difference is not None
    assert one.difference.estimate == pytest.approx(-other.difference.estimate)
    assert (one.difference.low, one.difference.high) == pytest.approx(
        (-other.difference.high, -other.difference.low)
    )
    assert one.difference.p == other.difference.p
    for mine, theirs in zip(one.cells, other.cells, strict=True):
        assert (mine.flips.gained, mine.flips.lost) == (theirs.flips.lost, theirs.flips.gained)
        assert mine.p == theirs.p


def test_p_is_adjusted_over_all_that_are_compared_with_one(tmp_path: Path) -> None:
    """Source: statsmodels, `multipletests(method="holm")`."""
    members = "abcdef"
    sizes = {**dict.fromkeys(members, 60), "val": 20}
    made = Store(tmp_path / "s")
    for k, (method, lost) in enumerate({"ft": 0.3, "lwf": 0.0, "ewc": 0.28, "l2": 0.22}.items()):
        write(made, rows_of(k, members, lost, sizes), method=method, sizes=sizes)
    found = sides(made, "ft", "lwf", "ewc", "l2")
    plain = [one.difference.p for one in found if one.difference is not None]
    assert len(plain) == 3
    assert [one.p for one in found] == pytest.approx(multipletests(plain, method="holm")[1])
    assert [one.p for one in found] != plain
    # One alone has nothing to be adjusted for.
    assert [one.p for one in sides(made, "ft", "ewc")] == plain[1:2]


def test_seeds_are_one_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: numpy: means and standard deviation over the seeds."""
    made = Store(tmp_path / "s")
    mri = []
    for seed in range(3):
        rows = rows_of(10 + seed)
        write(made, rows, seed=seed)
        changes = [change(rows, i, j) for i in "abc" for j in "abc" if i != j]
        mri.append(float(np.mean(changes)))
    write(made, rows_of(2), method="lwf")
    call("ft", "lwf", "--store", str(made.path), "--format", "json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["a"]["seeds"] == [0, 1, 2]
    assert len(found["a"]["runs"]) == 3
    assert found["a"]["mri"] == pytest.approx(np.mean(mri))
    assert found["a"]["sd_over_seeds"] == pytest.approx(np.std(mri, ddof=1))
    assert found["b"]["sd_over_seeds"] is None
    assert found["mri_difference"]["covers"] == "images and seeds of A"
    text = " ".join(found["notes"])
    assert "B has 1 seed: intervals and p are over images of these trainings" in text
    assert "A has" not in text
    call("ft", "lwf", "--store", str(made.path))
    out = capsys.readouterr().out
    assert f"A: standard deviation of mRI over seeds {np.std(mri, ddof=1):.2f}" in out


def test_seeds_of_two_versions_of_a_method_are_not_mixed(tmp_path: Path) -> None:
    """Source: the promise of `arms_of`: runs of another version of a plugin are no further seeds.

    Seed 0 was run with one version, seeds 0 to 2 with the next.
    """
    made = Store(tmp_path / "s")
    old, new = ({"engine": 1, "method": v} for v in (1, 2))
    first = write(made, rows_of(1), versions=old, finetune={"a": "a0"})
    others = [write(made, rows_of(1 + k), seed=k, versions=new, finetune={"a": f"b{k}"})
              for k in range(3)]  # fmt: skip
    found = [{run.id for run in arm.runs} for arm in arms_of(collect(made))]
    assert sorted(found, key=len) == [{first}, set(others)]


# Sides


def test_sides_are_methods_backbones_runs_or_stores(tmp_path: Path) -> None:
    """Source: the record of each run."""
    made = Store(tmp_path / "s")
    first = write(made, rows_of(1))
    second = write(made, rows_of(2), method="lwf")
    third = write(made, rows_of(3), backbone="deep", backbone_id="s/deep", weights="deep")
    fourth = write(made, rows_of(4), method="lwf", backbone="deep", backbone_id="s/deep",
                   weights="deep")  # fmt: skip

    def ids(found: Sequence[Comparison]) -> list[tuple[str, str]]:
        return [(one.a.runs[0].id, one.b.runs[0].id) for one in found]

    assert ids(sides(made, "ft", "lwf")) == [(first, second), (third, fourth)]
    assert ids(sides(made, "net", "deep")) == [(first, third), (second, fourth)]
    assert ids(sides(made, first, fourth)) == [(first, fourth)]
    assert ids(sides(made, first[:6], third[:6])) == [(first, third)]
    # A run is compared with a method on its own backbone, where that was run.
    assert ids(sides(made, first, "lwf")) == [(first, second)]
    kinds = [find_side(text, made).kind for text in ("ft", "deep", first)]
    assert kinds == ["method", "backbone", "run"]
    assert find_side(str(made.path), None).kind == "store"


def test_two_stores_are_compared_arm_by_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the same scores in both differ by exactly nothing."""
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for made in (one, two):
        write(made, rows_of(1))
        write(made, rows_of(2), method="lwf")
    write(two, rows_of(3), method="ewc")
    call(str(one.path), str(two.path), "--format", "json")
    found = json.loads(capsys.readouterr().out)
    assert [(c["a"]["method"], c["b"]["method"]) for c in found] == [("ft", "ft"), ("lwf", "lwf")]
    for comparison in found:
        whole = comparison["mri_difference"]
        assert (whole["difference"], whole["low"], whole["high"]) == (0, 0, 0)
        for cell in comparison["cells"]:
            assert (cell["low"], cell["high"], cell["gained"], cell["p_mcnemar"]) == (0, 0, 0, 1)
        assert comparison["mri_difference"]["p"] == 1.0
    # A run of the other store is found by its folder only.
    call(str(one.path), str(two.path), "--method", "lwf", "--format", "json")
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_a_pair_shares_the_recipe_if_it_can(tmp_path: Path) -> None:
    """Source: the promise of `WISHED`."""
    made = Store(tmp_path / "s")
    write(made, rows_of(1))
    write(made, rows_of(2), recipe={"lr": 0.5})
    same = write(made, rows_of(3), method="lwf")
    other = write(made, rows_of(4), method="lwf", recipe={"lr": 0.5})
    assert [one.b.runs[0].id for one in sides(made, "ft", "lwf")] == [same, other]
    # Where no recipe is the same they are compared, and it is told.
    lone = Store(tmp_path / "t")
    write(lone, rows_of(1))
    write(lone, rows_of(3), method="lwf", recipe={"lr": 0.5})
    (one,) = sides(lone, "ft", "lwf")
    assert "they differ in recipe: lr 0.01 and 0.5" in one.notes


def test_other_weights_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weights file that was written again under its name."""
    made = Store(tmp_path / "s")
    for seed, weights in ((1, "sha256:aaaa000011112222"), (2, "sha256:bbbb000011112222")):
        write(made, rows_of(seed), weights=weights)
    one, two = (run.id for run in collect(made))
    (compared,) = compare(find_side(one, made), find_side(two, made))
    assert any(note.startswith("they differ in weights: ") for note in compared.notes)
    for form in ("table", "md"):
        assert cli._code(["results", "--store", str(made.path), "--format", form]) == 0
        out = capsys.readouterr().out
        for line in ("net · weights sha256:aaaa0000", "net · weights sha256:bbbb0000"):
            assert re.search(rf"{line}(\n| ·)", out)
    assert "weights" not in Results(collect(made)[:1]).to_markdown()


def test_a_pair_of_backbones_shares_the_recipe_if_it_can(tmp_path: Path) -> None:
    """Source: the promise of `WISHED`; two backbones never have the same weights."""
    made, ids = Store(tmp_path / "s"), {}
    for backbone in ("net", "deep"):
        for k, lr in enumerate((0.01, 0.5)):
            ids[backbone, lr] = write(
                made, rows_of(k), recipe={"lr": lr}, backbone=backbone, weights=backbone
            )
    found = [(one.a.runs[0].id, one.b.runs[0].id) for one in sides(made, "net", "deep")]
    assert found == [(ids["net", lr], ids["deep", lr]) for lr in (0.01, 0.5)]


def test_filters_leave_out_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the record of each run."""
    made = Store(tmp_path / "s")
    for backbone in ("net", "deep"):
        for k, method in enumerate(("ft", "lwf")):
            write(made, rows_of(k), method=method, backbone=backbone, weights=backbone)
    call("ft", "lwf", "--store", str(made.path), "--backbone", "deep", "--format", "json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["a"]["backbone"] == found["b"]["backbone"] == "deep"
    call("ft", "lwf", "--store", str(made.path), "--suite", "other", expect=1)
    assert "no method, backbone or run of that name" in capsys.readouterr().err


# Errors


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    capsys.readouterr()
    call(*arguments, expect=code)
    said = capsys.readouterr()
    assert said.out == ""
    return " ".join(said.err.split())


def test_an_unknown_side_offers_the_nearest(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule for errors."""
    said = fails(capsys, "ft", "lfw", "--store", str(store.path))
    assert "'lfw' is no store, and" in said
    assert "Did you mean 'lwf'? It has: ft, lwf, net." in said
    # Three letters of an id are too few.
    said = fails(capsys, "ft", store.runs()[0]["id"][:3], "--store", str(store.path))
    assert "no method, backbone or run of that name" in said


def test_a_side_needs_a_store(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule for errors."""
    assert "no store to look for a method" in fails(capsys, "ft", "lwf")
    assert "There is no store nowhere." in fails(capsys, "ft", "lwf", "--store", "nowhere")
    said = fails(capsys, "ft", "--store", str(store.path), code=2)
    assert "Name two things to compare" in said
    empty = Store(tmp_path / "empty")
    empty.prepare()
    said = fails(capsys, str(store.path), str(empty.path))
    assert f"{empty.path} has no such results." in said


def test_a_method_is_not_compared_with_a_backbone(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule for errors."""
    said = fails(capsys, "ft", "net", "--store", str(store.path))
    assert "'ft' is a method and 'net' a backbone: compare two of a kind." in said


def test_what_does_not_belong_together_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule for errors; a limited run is another number."""
    made = Store(tmp_path / "s")
    write(made, rows_of(1))
    write(made, rows_of(2), method="lwf", limit=10)
    said = fails(capsys, "ft", "lwf", "--store", str(made.path))
    assert "No results of 'ft' and 'lwf' belong together." in said
    assert re.search(r"simulated · net · ft · .*: the nearest differs in limit$", said)


def test_more_than_one_that_fits_are_listed_by_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule for errors."""
    made = Store(tmp_path / "s")
    write(made, rows_of(1))
    ids = [write(made, rows_of(k), method="lwf", recipe={"lr": lr})
           for k, lr in ((2, 0.5), (3, 0.25))]  # fmt: skip
    said = fails(capsys, "ft", "lwf", "--store", str(made.path))
    assert "may be compared with more than one of 'lwf'; name a run by its id" in said
    assert all(one in said for one in ids)
    assert "lr 0.5" in said and "lr 0.25" in said
    call("ft", ids[1], "--store", str(made.path))


def test_other_images_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: metrics.md: before and after are compared on the same images."""
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    write(one, rows_of(1))
    write(two, rows_of(1), photographs="q")
    said = fails(capsys, str(one.path), str(two.path))
    assert "were not measured on the same images: a, b, c, val differ." in said
    assert "Run both again on the same data." in said


def test_a_run_is_not_compared_with_itself(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the error's text; a difference that is zero by construction says nothing."""
    said = fails(capsys, "ft", "ft", "--store", str(store.path))
    assert "nothing: it is the same arm" in said


def test_runs_without_a_common_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the house rule: what a user can get wrong is one message without a traceback."""
    made = Store(tmp_path / "s")
    write(made, rows_of(1, ("a", "b")))
    write(made, rows_of(2, ("c",)), method="lwf")
    said = fails(capsys, "ft", "lwf", "--store", str(made.path))
    assert "source" in said


def test_more_than_twenty_sources_have_no_exact_test(tmp_path: Path) -> None:
    """Source: 2^n flips are too many to try; all else is told."""
    members = [f"m{k}" for k in range(21)]
    sizes = {**dict.fromkeys(members, 4), "val": 4}
    made = Store(tmp_path / "s")
    rows = rows_of(1, members[:1], sizes=sizes)
    rows |= dict.fromkeys(members, rows[members[0]])
    write(made, rows, sizes=sizes)
    write(made, {**rows, "m0": rows[None]}, method="lwf", sizes=sizes)
    (one,) = sides(made, "ft", "lwf")
    assert one.to_json()["mri_difference"]["difference"] is not None


# Incomplete matrices, and those over other sources


@pytest.mark.parametrize("form", ["table", "json", "csv", "md", "latex"])
def test_an_incomplete_matrix_is_shown_with_bounds(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: by hand: one missing of six cells may be 0 or 100 %."""
    made = Store(tmp_path / "s")
    ft = rows_of(1)
    write(made, ft, missing=[("a", "c")])
    write(made, rows_of(2), method="lwf")
    call("ft", "lwf", "--store", str(made.path), "--format", form, expect=1)
    said = capsys.readouterr()
    assert "INCOMPLETE: cells are missing" in said.err
    pairs = [(i, j) for i in "abc" for j in "abc" if i != j and (i, j) != ("a", "c")]
    known = sum(change(ft, i, j) for i, j in pairs) - 100 * ft[None]["c"].mean()
    low, high = known / 6, (known + 100) / 6
    if form == "json":
        (found,) = json.loads(said.out)
        assert found["complete"] is False
        assert found["a"]["mri"] is found["mri_difference"]["p"] is found["ri"]["a"] is None
        assert found["a"]["bounds"] == pytest.approx([low, high])
        assert found["b"]["bounds"] is None and found["b"]["mri"] is not None
        assert set(found["mri_difference"].values()) == {None}
        assert found["ri"]["b"]["difference"] is not None
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert len(rows) == 3 * 4 - 1
        assert ("a", "c") not in [(row["source"], row["dataset"]) for row in rows]
    if form in ("table", "md", "latex"):
        text = said.out.replace("$", "")
        assert f"INCOMPLETE, {low:+.2f} to {high:+.2f}" in text
        assert text.count("INCOMPLETE") >= 3
        assert "mRI of B less" not in text


def test_stores_of_the_same_images_stay_paired_where_a_reference_is_missing(
    tmp_path: Path,
) -> None:
    """Source: the same scores differ by exactly nothing; else no interval is shown."""
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    write(one, rows_of(1), shares=[["c", "val"]])
    write(two, rows_of(1), shares=[["c", "val"]], missing=[(None, "val")])
    (found,) = sides(one, str(one.path), str(two.path))
    for row in found.ri.values():
        assert row is None or (row[2].low, row[2].high) == (0, 0)
    for cell in found.cells:
        assert (cell.difference.low, cell.difference.high) == (0, 0)


def test_another_number_of_sources_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: numpy: the difference is over the common sources, each mRI over its own."""
    made = Store(tmp_path / "s")
    ft, lwf = rows_of(1), rows_of(2, ("a", "b"))
    write(made, ft)
    write(made, lwf, method="lwf")
    call("ft", "lwf", "--store", str(made.path), "--format", "json")
    (found,) = json.loads(capsys.readouterr().out)
    assert "B runs over 2 of 3 sources" in found["notes"]
    assert found["b"]["sources"] == {"used": 2, "of": 3}
    assert found["sources"] == ["a", "b"]

    def mean(rows: Rows, sources: str) -> float:
        return float(np.mean([change(rows, i, j) for i in sources for j in "abc" if j != i]))

    assert found["a"]["mri"] == pytest.approx(mean(ft, "abc"))
    assert found["b"]["mri"] == pytest.approx(mean(lwf, "ab"))
    expected = mean(lwf, "ab") - mean(ft, "ab")
    assert found["mri_difference"]["difference"] == pytest.approx(expected)
    call("ft", "lwf", "--store", str(made.path))
    assert "B runs over 2 of 3 sources" in capsys.readouterr().out


# Forms


def test_the_text_fits_80_columns(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the house rule for tables."""
    call("ft", "lwf", "--store", str(store.path), "--cells")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out and "…" not in out
    (one,) = sides(store, "ft", "lwf")
    assert str(one.difference) in out
    for i, row in one.ri.items():
        assert row is not None
        line = rf"{i} +{re.escape(f'{row[0]:+.2f}')} +{re.escape(f'{row[1]:+.2f}')} +"
        assert re.search(line + re.escape(str(row[2])), out)
    blocks = out.split("fine-tuned on ")
    for cell in one.cells:
        (block,) = (text for text in blocks if text.startswith(f"{cell.source}:"))
        line = rf"{cell.dataset} +{re.escape(str(cell.difference))}"
        assert re.search(rf"{line} +{cell.flips.gained:.0f} +{cell.flips.lost:.0f} +\d", block)


def test_long_names_and_counts_fit_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the names and the counts of the full suite: ImageNet-C has 3 750 000 images."""
    sizes = {"imagenet-cartoon": 9, "imagenet-drawing": 9, "objectnet": 9, "val": 9}
    made = Store(tmp_path / "s")
    for k, method in enumerate(("ft", "wise-ft:alpha=0.25")):
        rows = rows_of(k, list(sizes)[:3], 0.9 * k, sizes)
        write(made, rows, method=method, sizes=sizes)
    call("ft", "wise-ft:alpha=0.25", "--store", str(made.path), "--cells")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_csv_has_a_row_a_cell_and_the_numbers_of_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the JSON form."""
    made = Store(tmp_path / "s")
    for k, method in enumerate(("ft", "lwf", "ewc")):
        write(made, rows_of(k), method=method)
    call("ft", "lwf", "ewc", "--store", str(made.path), "--format", "json")
    found = json.loads(capsys.readouterr().out)
    call("ft", "lwf", "ewc", "--store", str(made.path), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    cells = [(one, cell) for one in found for cell in one["cells"]]
    assert len(rows) == len(cells) == 2 * 3 * 4
    for row, (one, cell) in zip(rows, cells, strict=True):
        assert (row["method_a"], row["method_b"]) == (one["a"]["method"], one["b"]["method"])
        assert (row["a_run"], row["b_run"]) == (one["a"]["runs"][0], one["b"]["runs"][0])
        for name, value in cell.items():
            assert row[name] == value if isinstance(value, str) else float(row[name]) == value


@pytest.mark.parametrize("form", ["md", "latex"])
def test_tables_for_papers(form: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the numbers of the comparison, by their rows."""
    call("ft", "lwf", "--store", str(store.path), "--format", form)
    out = capsys.readouterr().out
    (one,) = sides(store, "ft", "lwf")
    plain = re.sub(r"[|&]", " ", out.replace("$", ""))
    for i, row in one.ri.items():
        assert row is not None
        cells = [i, f"{row[0]:+.2f}", f"{row[1]:+.2f}", str(row[2])]
        pattern = r" +".join(re.escape(cell).replace(r"\ ", " +") for cell in cells)
        assert re.search(pattern, plain), pattern
    if form == "latex":
        assert out.count(r"\begin") == out.count(r"\end") == 2
        assert not re.search(r"(?<!\\)[%_#]", out)
    else:
        (head, *body) = [line for line in out.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in (head, *body)} == {5}
        assert len(body) == 1 + 3 + 1


def test_cells_that_differ_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: by hand: two of six cells are lost altogether, one is gained."""
    made = Store(tmp_path / "s")
    ft: Rows = {i: {j: np.arange(n) < n // 2 for j, n in SIZES.items()}
                for i in (None, "a", "b", "c")}  # fmt: skip
    lwf = {i: dict(row) for i, row in ft.items()}
    lwf["a"]["b"] = lwf["a"]["c"] = np.zeros(1, dtype=bool)
    lwf["a"]["b"], lwf["a"]["c"] = np.zeros(80, dtype=bool), np.zeros(70, dtype=bool)
    lwf["b"]["a"] = np.ones(60, dtype=bool)
    lwf["c"]["c"] = np.ones(70, dtype=bool)  # the fine-tuning set itself is not counted
    write(made, ft)
    write(made, lwf, method="lwf")
    call("ft", "lwf", "--store", str(made.path))
    out = " ".join(capsys.readouterr().out.split())
    assert "B is right on more images than A in 1 and on fewer in 2 of 6 cells" in out


def test_a_side_made_by_hand(store: Store) -> None:
    """Source: the same through `find_side`."""
    side = find_side("ft", store)
    assert isinstance(side, Side)
    with pytest.raises(RibError, match="the same arm"):
        compare(side, replace(side, text="again"))
    assert [run.method for run in collect(store)] == ["ft", "lwf"]
