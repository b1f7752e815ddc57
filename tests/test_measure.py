"""Metrics of finished runs from the store, and what a matrix with missing cells allows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import rib_harness
from rib_harness import InapplicableError, PluginError, cli
from rib_harness.arms import Arm, arms_of
from rib_harness.catalog import Catalog, Component, load_catalog
from rib_harness.features import Features
from rib_harness.matrix import Cell, IncompleteError, Matrix
from rib_harness.measure import MissingFeaturesError, Value, measure
from rib_harness.results import RunResult, collect
from rib_harness.scores import Scores
from rib_harness.specs import MetricSpec
from rib_harness.store import Store
from rib_harness.testing import catalog_with

SETS = ("digits-a", "digits-c", "digits-test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two sets and the reference; with features of the first method, not the second."""
    made = tmp_path_factory.mktemp("measure") / "store"
    settings: dict[str, Any] = {"backbone": "digits-conv", "dataset": ["digits-a", "digits-c"],
                                "limit": 2, "recipe": {"epochs": 1}, "store": made}  # fmt: skip
    rib_harness.run(method="ft", features=20, **settings)
    rib_harness.run(method="lwf", **settings)
    return made


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder)


def run_of(store: Store, method: str) -> RunResult:
    (found,) = [run for run in collect(store) if run.method == method]
    return found


def metric(level: Any, compute: Callable[..., Any], name: str = "probe") -> Component:
    spec = MetricSpec(name=name, target="x:y", summary="A test's.", level=level)
    return catalog_with((spec, compute), base=Catalog([], [])).get("metric", name)


def values(found: list[Value]) -> dict[tuple[str | None, str | None], float]:
    return {(one.source, one.dataset): one.value for one in found}


# Each level


def test_a_metric_of_scores_is_given_each_cell(store: Store) -> None:
    """Source: pyarrow, reading the files that the record names."""
    run = run_of(store, "lwf")
    found = measure(run, store, metric("scores", lambda s: s.column("confidence").mean()))
    cells = run.record["cells"]
    keys = {(None, j): key for j, key in cells["pre"].items()}
    keys |= {(i, j): key for i, row in cells["post"].items() for j, key in row.items()}
    assert len(found) == len(keys) == 3 + 2 * 3
    for place, value in values(found).items():
        table = pq.read_table(store.folder(keys[place]) / "scores.parquet")
        assert value == pytest.approx(float(np.mean(table["confidence"].to_numpy())), rel=1e-6)


def test_a_metric_of_a_matrix_is_given_it_once(store: Store) -> None:
    """Source: the matrix; a number, one a source, or one a cell."""
    run, seen = run_of(store, "lwf"), []

    def whole(matrix: Matrix) -> float:
        seen.append(matrix)
        return matrix.mri

    assert values(measure(run, store, metric("matrix", whole))) == {(None, None): run.mri}
    assert seen == [run.matrix]
    by_source = measure(run, store, metric("matrix", lambda m: {i: m.ri(i) for i in m.sources}))
    assert values(by_source) == {(i, None): run.matrix.ri(i) for i in run.matrix.sources}

    def cells(m: Matrix) -> dict[str, dict[str, float]]:
        return {i: {j: m.change(i, j) for j in SETS} for i in m.sources}

    by_cell = values(measure(run, store, metric("matrix", cells)))
    assert by_cell == {(i, j): run.matrix.change(i, j) for i in SETS[:2] for j in SETS}


def test_a_metric_of_drift_is_given_before_and_after(store: Store) -> None:
    """Source: the features files that the record names."""
    run = run_of(store, "ft")
    known = run.record["features"]

    def drift(before: Features, after: Features) -> float:
        assert not before.moved and after.moved
        assert (before.index == after.index).all()
        return float(np.abs(after.features - before.features).mean())

    found = values(measure(run, store, metric("drift", drift)))
    assert set(found) == {(i, j) for i in SETS[:2] for j in SETS}
    for (i, j), value in found.items():
        assert i is not None and j is not None
        before, after = (
            Features.read(store.folder(key) / "features.safetensors").features
            for key in (known["pre"][j], known["post"][i][j])
        )
        assert value == float(np.abs(after - before).mean())
        assert value > 0


def test_a_metric_of_distance_is_given_the_fine_tuning_set_first(store: Store) -> None:
    """Source: the features files of the untouched backbone that the record names."""
    run = run_of(store, "ft")
    known = run.record["features"]["pre"]

    def distance(tuned: Features, other: Features) -> float:
        assert not tuned.moved and not other.moved
        return float(tuned.features.sum() - 2 * other.features.sum())

    found = values(measure(run, store, metric("distance", distance)))
    assert set(found) == {(i, j) for i in SETS[:2] for j in SETS if i != j}
    sums = {j: float(Features.read(store.folder(known[j]) / "features.safetensors").features.sum())
            for j in SETS}  # fmt: skip
    for (i, j), value in found.items():
        assert value == pytest.approx(sums[str(i)] - 2 * sums[str(j)], rel=1e-4)


# What does not apply


def test_features_that_were_not_kept_are_asked_for(store: Store) -> None:
    """Source: the house rule for errors."""
    for level in ("drift", "distance"):
        with pytest.raises(
            MissingFeaturesError,
            match="needs features, which this run did not keep: give its command again with --feat",
        ):
            measure(run_of(store, "lwf"), store, metric(level, lambda a, b: 0.0))


def test_features_that_are_gone_are_asked_for(folder: Path, tmp_path: Path) -> None:
    """Source: the house rule for errors."""
    shutil.copytree(folder, tmp_path / "copy")
    store = Store(tmp_path / "copy")
    run = run_of(store, "ft")
    shutil.rmtree(store.folder(run.record["features"]["post"]["digits-a"]["digits-c"]))
    with pytest.raises(MissingFeaturesError, match="features are missing: give the command with"):
        measure(run, store, metric("drift", lambda a, b: 0.0))
    # A distance needs those of the untouched backbone only.
    assert len(measure(run, store, metric("distance", lambda a, b: 0.0))) == 4


def test_cells_to_which_it_does_not_apply_are_left_out(store: Store) -> None:
    """Source: the contract of `InapplicableError`."""
    run = run_of(store, "ft")

    def corruptions(scores: Scores) -> float:
        if not scores.summary()["groups"]:
            raise InapplicableError("It needs corruptions.")
        return 1.0

    found = values(measure(run, store, metric("scores", corruptions)))
    assert set(found) == {(i, "digits-c") for i in (None, *SETS[:2])}

    def never(*given: Any) -> float:
        raise InapplicableError("It needs the moon.")

    for level in ("scores", "matrix", "drift", "distance"):
        with pytest.raises(InapplicableError, match="It needs the moon"):
            measure(run, store, metric(level, never))

    def far(one: Features, other: Features) -> float:
        if len(other) == len(one):
            raise InapplicableError("It needs other sizes.")
        return 2.0

    with pytest.raises(InapplicableError, match="other sizes"):
        measure(run, store, metric("drift", far))


def test_a_cell_without_scores_is_left_out(folder: Path, tmp_path: Path) -> None:
    """Source: the promise that what is there is shown, and what is not is no number."""
    shutil.copytree(folder, tmp_path / "copy")
    store = Store(tmp_path / "copy")
    run = run_of(store, "lwf")
    shutil.rmtree(store.folder(run.record["cells"]["post"]["digits-a"]["digits-c"]))
    run = run_of(store, "lwf")
    found = values(measure(run, store, metric("scores", lambda s: len(s))))
    assert len(found) == 8 and ("digits-a", "digits-c") not in found
    with pytest.raises(IncompleteError, match="digits-a → digits-c has no number yet"):
        measure(run, store, metric("matrix", lambda m: m.mri))
    for key in [p.name for p in (store.path / "steps").iterdir()]:
        shutil.rmtree(store.folder(key))
    with pytest.raises(IncompleteError, match="No cell has scores yet: run the same command again"):
        measure(run_of(store, "lwf"), store, metric("scores", lambda s: len(s)))


# What a plugin may give


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), np.int64(2), 2, Fraction(1, 2), np.float16(0.5)]
)
def test_numbers_of_any_kind_become_floats(number: Any, store: Store) -> None:
    """Source: Python's `float`."""
    run = run_of(store, "ft")
    for level in ("scores", "matrix", "drift", "distance"):
        found = measure(run, store, metric(level, lambda *given: number))
        assert {type(one.value) for one in found} == {float}
        assert {one.value for one in found} == {float(number)}


@pytest.mark.parametrize(
    "garbage", [None, "0.5", True, np.True_, [0.5], np.array([0.5, 1.0]), 1j, {}.keys()]
)
def test_anything_else_is_the_plugins_mistake(garbage: Any, store: Store) -> None:
    """Source: the contract of `PluginError`: it names the metric and what it gave."""
    run = run_of(store, "ft")
    for level in ("scores", "matrix", "drift", "distance"):
        with pytest.raises(PluginError, match=r"metric.*probe.* gave .*; expected a number"):
            measure(run, store, metric(level, lambda *given: garbage))
    with pytest.raises(PluginError, match="expected a number"):
        measure(run, store, metric("matrix", lambda m: {"digits-a": garbage}))
    with pytest.raises(PluginError, match="expected a number"):
        measure(run, store, metric("matrix", lambda m: {"digits-a": {"digits-c": garbage}}))


def test_a_number_that_is_none_is_the_plugins_mistake(store: Store) -> None:
    """Source: RFC 8259: JSON has no NaN and no infinity, and no table may show one as a result."""
    run = run_of(store, "ft")
    for value in (float("nan"), np.float32("inf")):
        with pytest.raises(PluginError, match="expected a number"):
            measure(run, store, metric("scores", lambda s, value=value: value))


def test_a_number_outside_the_range_of_the_spec_is_the_plugins_mistake(store: Store) -> None:
    """Source: the contract of `MetricSpec.range`; sums may be off by their rounding."""
    run = run_of(store, "ft")
    for value, fits in ((1.0, True), (1 + 1e-9, True), (-1e-9, True), (6.868, False), (-1, False)):
        one = metric("scores", lambda s, value=value: value)
        one = replace(one, spec=replace(one.spec, range=(0.0, 1.0)))
        if fits:
            assert measure(run, store, one)
        else:
            with pytest.raises(PluginError, match=rf"gave {value}; its spec says range 0 … 1"):
                measure(run, store, one)


def test_the_arguments_of_its_spec_are_given_to_it(store: Store) -> None:
    one = metric("matrix", lambda matrix, times: times * matrix.mri)
    one = replace(one, spec=replace(one.spec, arguments={"times": 2}))
    run = run_of(store, "ft")
    assert [found.value for found in measure(run, store, one)] == [2 * run.mri]


def test_a_column_that_there_is_not_is_named(store: Store) -> None:
    run = run_of(store, "ft")
    with pytest.raises(PluginError, match=r"no column 'conf'\. Did you mean 'confidence'"):
        measure(run, store, metric("scores", lambda s: s.column("conf").mean()))


def test_a_metric_that_raises_names_itself(store: Store) -> None:
    """Source: the contract of `PluginError`."""

    def broken(*given: Any) -> float:
        raise KeyError("logits")

    for level in ("scores", "matrix", "drift", "distance"):
        with pytest.raises(PluginError, match=r"probe.* failed: KeyError: 'logits'"):
            measure(run_of(store, "ft"), store, metric(level, broken))


# The command


def call(*arguments: str, expect: int = 0) -> None:
    assert cli._code(["results", *arguments]) == expect


def test_ece_by_every_form(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the calibration error by numpy, from the scores files."""
    call("--store", str(store.path), "--metric", "ece", "--format", "json")
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * (3 + 2 * 3)
    runs = {run.id: run for run in collect(store)}
    for row in rows:
        cells = runs[row["run"]].record["cells"]
        keys = cells["pre"] if row["source"] is None else cells["post"][row["source"]]
        scores = Scores.read(store.folder(keys[row["dataset"]]) / "scores.parquet")
        confidence = scores.column("confidence").astype(float)
        place = np.minimum((np.ceil(confidence * 15) - 1).astype(int), 14)
        gaps = [abs((scores.correct[place == k] - confidence[place == k]).sum()) for k in range(15)]
        assert row["value"] == pytest.approx(sum(gaps) / len(confidence), abs=1e-6)
        assert row["metric"] == "metrics/ece"
    call("--store", str(store.path), "--metric", "ece", "--format", "csv")
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
    assert [row["source"] or None for row in table] == [row["source"] for row in rows]
    call("--store", str(store.path), "--metric", "ece", "--method", "lwf")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for row in rows:
        if row["method"] == "lwf":
            assert f"{row['value']:.4g}" in out


def test_all_metrics_say_what_is_left_out(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Source: the list of metrics: each has a value or is told on stderr."""
    call("--store", str(store.path), "--metric", "all", "--method", "lwf", "--format", "json")
    said = capsys.readouterr()
    rows = json.loads(said.out)
    shown = {row["metric"] for row in rows}
    for component in load_catalog().list("metric"):
        assert (component.id in shown) != (f"left out: {component.spec.name}:" in said.err)
    assert {"metrics/ece", "metrics/nll", "metrics/mri"} <= shown
    assert "needs features, which this run did not keep" in said.err
    (mri,) = [row for row in rows if row["metric"] == "metrics/mri"]
    assert mri["value"] == run_of(store, "lwf").mri
    assert (mri["source"], mri["dataset"]) == (None, None)


def test_of_all_metrics_one_that_fails_is_no_metric_that_does_not_apply(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the house rule: exit code 1, the reason on stderr, what applies on stdout."""
    spec = MetricSpec(name="probe", target="", summary="A test's.", level="scores")
    catalog = catalog_with((spec, lambda scores: float("nan")))
    monkeypatch.setattr("rib_harness.catalog.load_catalog", lambda **_: catalog)
    arguments = ("--metric", "all", "--method", "lwf", "--format", "json")
    call("--store", str(store.path), *arguments, expect=1)
    said = capsys.readouterr()
    assert "left out: probe" not in said.err
    assert re.search(r"^Error: probe: .* gave nan; expected a number", said.err, re.MULTILINE)
    assert "metrics/ece" in {row["metric"] for row in json.loads(said.out)}


def test_a_metric_asked_for_by_name_that_does_not_apply_fails(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source: the house rule: exit code 1, the reason on stderr, what applies on stdout."""
    name = next(c.spec.name for c in load_catalog().list("metric") if c.spec.level == "drift")
    arguments = ("--store", str(store.path), "--metric", name, "--format", "json")
    call(*arguments, "--method", "lwf", expect=1)
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{name}: It needs features" in said.err
    call(*arguments, "--metric", "ece", expect=1)
    said = capsys.readouterr()
    assert {row["metric"] for row in json.loads(said.out)} == {f"metrics/{name}", "metrics/ece"}
    assert said.err.count("It needs features") == 1


def test_a_metric_that_does_not_apply_to_one_run_names_it_and_shows_the_others(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mCE where one run of the store is of a suite without ImageNet-C."""

    def compute(matrix: Matrix) -> float:
        if matrix.mri == run_of(store, "lwf").mri:
            raise InapplicableError("it needs the corruptions")
        return -1e-9

    spec = MetricSpec(name="probe", target="", summary="A test's.", level="matrix")
    catalog = catalog_with((spec, compute))
    monkeypatch.setattr("rib_harness.catalog.load_catalog", lambda **_: catalog)
    call("--store", str(store.path), "--metric", "probe")
    said = capsys.readouterr()
    assert said.err == "left out: probe: it needs the corruptions (digits-conv · lwf · seed 0)\n"
    assert "probe · digits-conv · ft · seed 0" in said.out
    call("--store", str(store.path), "--metric", "probe", "--method", "lwf", expect=1)
    assert capsys.readouterr().err == "Error: probe: it needs the corruptions\n"


def test_unknown_metrics_and_forms_are_refused(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    call("--store", str(store.path), "--metric", "eze", expect=1)
    assert "Did you mean 'ece'?" in capsys.readouterr().err
    call("--store", str(store.path), "--metric", "ece", "--format", "md", expect=2)
    assert "--metric is shown as table, csv or json" in capsys.readouterr().err


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "asked", [["nll", "mri", "ece"], pytest.param(["all"], marks=pytest.mark.slow)]
)
def test_measuring_runs_no_model_and_changes_no_file(asked: list[str], store: Store) -> None:
    """Source: the modules that the process has loaded, and the digest of every file.

    OTDD's library loads torch by itself, but the engine, without which no model runs, is absent.
    """
    before = digests(store.path)
    program = (
        "import sys; from rib_harness import cli; code = cli._code(sys.argv[1:]); "
        "print(code, *({'torch', 'rib_harness.engine'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["results", "--store", str(store.path), "--format", "csv"]
    arguments += [part for name in asked for part in ("--metric", name)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    code, *loaded = done.stderr.splitlines()[-1].split()
    assert code == "0" and "rib_harness.engine" not in loaded
    assert "torch" not in loaded or asked == ["all"]
    assert len(done.stdout.splitlines()) > 2
    assert digests(store.path) == before


# What missing cells allow


def matrices(seed: int) -> Iterator[tuple[Matrix, list[tuple[str | None, str]]]]:
    """Random matrices without some cells, and which."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        members = tuple("abcde"[: rng.integers(2, 5)])
        sources = tuple(i for i in members if rng.random() < 0.8) or members[:1]
        rows: list[str | None] = [None, *sources]
        wanted = [(i, j) for i in rows for j in (*members, "val")]
        missing = [place for place in wanted if rng.random() < 0.25][:9]
        cells: dict[str | None, dict[str, Cell]] = {i: {} for i in rows}
        for i, j in wanted:
            if (i, j) not in missing:
                cells[i][j] = Cell(float(rng.uniform(0, 100)), 0, 1)
        pre = cells.pop(None)
        yield Matrix(members, ("val",), sources, pre, cells), missing  # type: ignore[arg-type]


def filled(matrix: Matrix, numbers: dict[tuple[str | None, str], float]) -> Matrix:
    pre = {**matrix.pre, **{j: Cell(x, 0, 1) for (i, j), x in numbers.items() if i is None}}
    post = {
        i: {**matrix.post[i], **{j: Cell(x, 0, 1) for (k, j), x in numbers.items() if k == i}}
        for i in matrix.sources
    }
    return Matrix(matrix.members, matrix.references, matrix.sources, pre, post)


def test_bounds_are_those_of_all_corners() -> None:
    """Source: mRI of every matrix with 0 or 100 % in each missing cell: it is linear in them."""
    checked = 0
    for matrix, missing in matrices(0):
        found = [
            filled(matrix, dict(zip(missing, corner, strict=True))).mri
            for corner in product((0.0, 100.0), repeat=len(missing))
        ]
        assert matrix.mri_bounds == pytest.approx((min(found), max(found)), abs=1e-9)
        checked += any(i is None for i, _ in missing) and any(i is not None for i, _ in missing)
        if matrix.complete:
            assert matrix.mri_bounds == pytest.approx((matrix.mri,) * 2)
        elif min(found) < max(found):
            with pytest.raises(IncompleteError):
                _ = matrix.mri
    assert checked > 15


def test_bounds_hold_whatever_the_missing_cells_are() -> None:
    """Source: random accuracies in the missing cells."""
    rng = np.random.default_rng(1)
    for matrix, missing in matrices(2):
        low, high = matrix.mri_bounds
        for _ in range(20):
            numbers = {place: float(rng.uniform(0, 100)) for place in missing}
            assert low - 1e-9 <= filled(matrix, numbers).mri <= high + 1e-9


def test_a_missing_baseline_is_one_unknown() -> None:
    """Source: by hand: A_pre[c] is subtracted for a and for b, with a fourth each: 50 points."""
    half = Cell(50.0, 1, 2)
    row = {"a": half, "b": half, "c": half}
    matrix = Matrix(("a", "b", "c"), (), ("a", "b"), {"a": half, "b": half}, {"a": row, "b": row})
    assert matrix.mri_bounds == pytest.approx((-25, 25))
    # Of a source that has nothing at all nothing is known.
    matrix = Matrix(("a", "b", "c"), (), ("a", "b"), row, {"a": row})
    assert matrix.mri_bounds == pytest.approx((-25, 25))
    assert matrix.pairs == {"a": ("b", "c"), "b": ("a", "c")}


def test_bounds_of_an_arm_are_means_over_seeds(store: Store) -> None:
    """Source: by hand."""
    (arm,) = [arm for arm in arms_of(collect(store)) if arm.method == "ft"]
    (run,) = arm.runs
    empty = Matrix(run.matrix.members, (), run.matrix.sources, run.matrix.pre, {})
    both = Arm((run, RunResult({**run.record, "seed": 1}, empty, {})))
    low, high = empty.mri_bounds
    assert both.mri_bounds == pytest.approx(((run.mri + low) / 2, (run.mri + high) / 2))
    assert high - low == pytest.approx(100)
    assert not both.complete
    with pytest.raises(IncompleteError):
        _ = both.mri
