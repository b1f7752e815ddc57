"""Probes, features and trackers: what is kept along the way, and that it changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rib_harness
from rib_harness import ConfigError, Features, Scores, StoreError
from rib_harness.engine import track
from rib_harness.engine.describe import moved
from rib_harness.engine.probe import slice_of
from rib_harness.engine.track import Trackers
from rib_harness.store import Store
from rib_harness.testing import tiny_classifier

SMALL: dict[str, Any] = {
    "backbone": "digits-conv",
    "dataset": ("digits-r", "digits-v2"),
    "limit": 2,
    "recipe": {"epochs": 4, "batch_size": 8},
}


def run(store: Path, **more: Any) -> rib_harness.Results:
    return rib_harness.run(**{"method": "ft", **SMALL, **more}, store=store)


def history(store: Path, result: rib_harness.RunResult, source: str) -> list[dict[str, Any]]:
    path = Store(store).folder(result.record["finetune"][source]) / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(store: Path, result: rib_harness.RunResult, source: str) -> dict[str, torch.Tensor]:
    return load_file(Store(store).folder(result.record["finetune"][source]) / "model.safetensors")


@pytest.mark.parametrize("method", ["ft", "lp", "ema", "lp-ft"])
def test_a_fit_with_probes_ends_with_the_weights_of_one_without(
    method: str, tmp_path: Path
) -> None:
    """Source: the same fit without probes; batch-norm and dropout would show a difference."""
    plain = run(tmp_path / "plain", method=method)[0]
    probed = run(tmp_path / "probed", method=method, probe_every=2, probe_images=7)[0]
    for source in ("digits-r", "digits-v2"):
        one, two = (
            weights(tmp_path / "plain", plain, source),
            weights(tmp_path / "probed", probed, source),
        )
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert probed.record["finetune"] != plain.record["finetune"]  # their histories differ


@pytest.mark.parametrize("method", ["ft", "lp"])
def test_the_first_and_the_last_probe_are_what_the_evaluation_says(
    method: str, tmp_path: Path
) -> None:
    """Source: the stored scores of the same images, before and after; `lp` trains on features."""
    result = run(tmp_path, method=method, probe_every=1, probe_images=9)[0]
    store, cells = Store(tmp_path), result.record["cells"]
    rows = [r for r in history(tmp_path, result, "digits-r") if "probe" in r]
    assert [row["step"] for row in rows] == list(range(rows[-1]["step"] + 1))
    for row, keys in ((rows[0], cells["pre"]), (rows[-1], cells["post"]["digits-r"])):
        assert set(row["probe"]) == {"digits-r", "digits-v2", "digits-test"}
        for name, found in row["probe"].items():
            correct = Scores.read(store.folder(keys[name]) / "scores.parquet").correct
            taken = correct[slice_of(len(correct), 9)]
            assert found == pytest.approx(100 * taken.mean())


def test_probes_come_every_so_many_updates_and_at_the_end(tmp_path: Path) -> None:
    result = run(tmp_path, probe_every=3)[0]
    rows = history(tmp_path, result, "digits-v2")
    last = max(row["step"] for row in rows)
    steps = [row["step"] for row in rows if "probe" in row]
    assert steps == sorted({*range(0, last + 1, 3), last})
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_a_slice_is_fixed_sorted_and_never_larger_than_the_set() -> None:
    assert np.array_equal(slice_of(100, 10), slice_of(100, 10))
    assert len(set(slice_of(100, 10))) == 10
    assert list(slice_of(100, 10)) == sorted(slice_of(100, 10))
    assert list(slice_of(4, 10)) == [0, 1, 2, 3]


def test_features_of_a_finished_run_are_all_that_is_computed(tmp_path: Path) -> None:
    """Source: the keys that are new; and the classifier's own logits behind the stored scores."""
    run(tmp_path)
    before = {key for key, *_ in Store(tmp_path).steps()}
    result = run(tmp_path, features=6)[0]
    new = [done for key, _, done in Store(tmp_path).steps() if key not in before]
    assert {done["kind"] for done in new} == {"features"}
    assert len(new) == 3 + 2 * 3
    store, kept = Store(tmp_path), result.record["features"]
    for source, name, key in [
        (None, "digits-v2", kept["pre"]["digits-v2"]),
        ("digits-r", "digits-v2", kept["post"]["digits-r"]["digits-v2"]),
    ]:
        found = Features.read(store.folder(key) / "features.safetensors")
        cells = result.record["cells"]
        cell = cells["pre"][name] if source is None else cells["post"][source][name]
        scores = Scores.read(store.folder(cell) / "scores.parquet")
        assert len(found) == 6
        assert np.array_equal(found.labels, scores.column("label")[found.index])
        assert np.array_equal(found.logits.argmax(1), scores.column("prediction")[found.index])
        assert bool(found.moved) == (source is not None)
    # A later command without --features does not forget them.
    assert run(tmp_path)[0].record["features"] == kept


def test_a_damaged_features_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "features.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="damaged"):
        Features.read(tmp_path / "features.safetensors")


def test_features_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = Features(
        rng.normal(size=(4, 3)).astype("float32"),
        rng.normal(size=(4, 2)).astype("float32"),
        np.array([0, 1, 1, 0]),
        np.array([2, 5, 6, 9]),
        ((3,), (4, 7)),
        {"head.weight": (0.5, 2.0)},
    )
    made.write(tmp_path / "f.safetensors")
    read = Features.read(tmp_path / "f.safetensors")
    for name in ("features", "logits", "labels", "index"):
        assert np.array_equal(getattr(made, name), getattr(read, name))
    assert (read.ids, dict(read.moved)) == (made.ids, dict(made.moved))


def test_how_far_weights_moved_is_a_norm() -> None:
    """Source: by hand: every weight of one layer moved by 0.5."""
    before = tiny_classifier()
    after = before.copy()
    name, parameter = next(iter(after.named_parameters()))
    parameter.data += 0.5
    distances = moved(before, after)
    n = parameter.numel()
    assert distances[name][0] == pytest.approx(0.5 * n**0.5, rel=1e-6)
    assert all(d[0] == 0 for k, d in distances.items() if k != name)


def test_a_tracker_gets_the_curves(tmp_path: Path) -> None:
    """Source: TensorBoard's own reader, against the history."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, tracker="tensorboard", probe_every=2)[0]
    key = result.record["finetune"]["digits-r"][:12]
    folder = tmp_path / "trackers" / "digits-conv" / "ft" / "digits-r" / "seed0" / key
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    rows = history(tmp_path, result, "digits-r")
    epochs = [row for row in rows if "epoch" in row]
    told = [(e.step, e.value) for e in events.Scalars("epoch/loss")]
    assert told == [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in epochs]
    probes = [(row["step"], row["probe"]["digits-v2"]) for row in rows if "probe" in row]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("probe/digits-v2")] == probes
    assert {"epoch/accuracy", "epoch/lr"} <= set(tags)


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "get_available_trackers", list)
    with pytest.raises(ConfigError, match="pip install wandb"):
        run(tmp_path / "store", tracker="wandb")
    assert not (tmp_path / "store").exists()


def test_a_tracker_that_fails_costs_no_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        name = "tensorboard"
        requires_logging_directory = True

        def __init__(self, *given: Any, **more: Any):
            pass

        def start(self) -> None:
            pass

        store_init_configuration = finish = lambda self, *given: None

        def log(self, *given: Any, **more: Any) -> None:
            raise OSError("the server is away")

    monkeypatch.setattr(track, "get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setitem(track.LOGGER_TYPE_TO_CLASS, "tensorboard", Failing)
    with (
        caplog.at_level(logging.WARNING),
        Trackers(["tensorboard"], tmp_path).step("ft/x", "k", {"lr": 0.1}) as log,
    ):
        log({"loss": 1.0}, 1)
        log({"loss": 0.5}, 2)
    assert [r.getMessage() for r in caplog.records] == [
        "tracker tensorboard is dropped for ft/x: the server is away"
    ]
    assert run(tmp_path / "store", tracker="tensorboard")[0].complete
