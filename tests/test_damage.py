"""A store that was damaged, code that changed, steps that vanish: named, done again, never shown.

Expected numbers are those of the undisturbed run, to the bit.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rib_harness
from rib_harness import MethodSpec, cli
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.config import make_config
from rib_harness.errors import ConfigError
from rib_harness.provenance import code_digest
from rib_harness.results import collect
from rib_harness.runner import PartialFailureError, execute, open_session
from rib_harness.store import FEATURES, SCORES, WEIGHTS, Store
from rib_harness.testing import catalog_with

SMALL = ["-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "2", "-m", "ft",
         "--set", "recipe.epochs=1", "--features", "3", "--store", "store"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert cli._code(["run", *SMALL[:-1], str(folder)]) == 0
    return folder


@pytest.fixture
def store(whole: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(whole, "store")
    return Path("store")


def numbers(store: Path) -> Any:
    """All that a store says, with intervals, but for times."""
    results = collect(Store(store))
    said = [{k: v for k, v in one.items() if k != "provenance"} for one in results.to_json()]
    return said, [results.interval(run) for run in results]


def record(store: Path) -> dict[str, Any]:
    (run,) = Store(store).runs()
    return run


def flip(path: Path, bit: int = 1001) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


WHICH: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "scores before": lambda run: (run["cells"]["pre"]["digits-r"], SCORES),
    "scores after": lambda run: (run["cells"]["post"]["digits-a"]["digits-r"], SCORES),
    "features": lambda run: (run["features"]["post"]["digits-a"]["digits-r"], FEATURES),
    "history": lambda run: (run["finetune"]["digits-a"], "history.jsonl"),
    "done": lambda run: (run["cells"]["post"]["digits-a"]["digits-r"], "done.json"),
    "inputs": lambda run: (run["cells"]["pre"]["digits-r"], "step.json"),
}


@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
def test_one_bit_makes_a_step_no_result_and_a_run_does_it_again(
    which: Callable[[dict[str, Any]], tuple[str, str]],
    store: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    key, name = which(record(store))
    flip(store / "steps" / key / name)
    capsys.readouterr()
    if name in (SCORES, "done.json", "step.json"):
        assert cli._code(["results", "--store", "store"]) == 1
        assert "INCOMPLETE" in capsys.readouterr().out
        assert f"{key}/{name} is damaged" in caplog.text
    assert cli._code(["doctor", "--store", "store"]) == 1
    assert f"{key}/{name} is damaged" in capsys.readouterr().out
    caplog.clear()
    assert cli._code(["run", *SMALL]) == 0
    assert f"{key}/{name} is damaged" in caplog.text
    assert numbers(store) == numbers(whole)
    assert cli._code(["doctor", "--store", "store"]) == 0


def test_weights_of_one_bit_more_are_never_scored(store: Path, whole: Path) -> None:
    run = record(store)
    flip(store / "steps" / run["finetune"]["digits-a"] / WEIGHTS, 5003)
    shutil.rmtree(store / "steps" / run["cells"]["post"]["digits-a"]["digits-r"])
    assert cli._code(["run", *SMALL]) == 0
    assert numbers(store) == numbers(whole)


def test_the_scores_of_a_checkpoint_that_became_another_are_made_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training anew on a GPU may end in other bits: all cells of it are of the new one."""
    run = record(store)
    key = run["finetune"]["digits-a"]
    shutil.rmtree(store / "steps" / key)
    from rib_harness.engine.classifier import Classifier

    save = Classifier.save

    def otherwise(self: Classifier, path: Path) -> None:
        next(self.parameters()).data += 1e-3
        save(self, path)

    monkeypatch.setattr(Classifier, "save", otherwise)
    before = scored(store, run)
    assert cli._code(["run", *SMALL]) == 0
    after = scored(store, run)
    assert {name for name in after if after[name] != before[name]} == set(before)
    assert Store(store).whole(key)


def scored(store: Path, run: dict[str, Any]) -> dict[str, int]:
    """When each cell of one source was made."""
    cells = run["cells"]["post"]["digits-a"]
    return {n: (store / "steps" / k / SCORES).stat().st_ino for n, k in cells.items()}


def test_a_checkpoint_that_is_replaced_while_it_is_scored_leaves_no_scores_of_its_own(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, with --rerun: these scores are of the weights before."""
    from rib_harness.runner import _Walk

    run = record(store)
    fitted = run["finetune"]["digits-a"]
    scored = run["cells"]["post"]["digits-a"]["digits-r"]
    shutil.rmtree(store / "steps" / scored)
    tables = _Walk.tables

    def meanwhile(self: _Walk, steps: Any) -> Any:
        made = tables(self, steps)
        inputs, done = self.store.inputs(fitted) or {}, self.store.done(fitted) or {}
        with self.store.writing(fitted, inputs, dict(done)) as folder:
            (folder / WEIGHTS).write_bytes(b"other weights")
        return made

    with monkeypatch.context() as patched:
        patched.setattr(_Walk, "tables", meanwhile)
        assert cli._code(["run", *SMALL]) == 1
    assert Store(store).done(scored) is None


@pytest.mark.slow
def test_no_bit_of_an_artefact_changes_a_number_in_silence(whole: Path, tmp_path: Path) -> None:
    """Ten random bits of every kind of file; `make faults` tries thousands."""
    rng = random.Random(0)
    expected = numbers(whole)
    keys = [(*which(record(whole)),) for which in WHICH.values()]
    run = record(whole)["id"]
    files = [f"steps/{key}/{name}" for key, name in keys] + [f"runs/{run}.json", "store.json"]
    for file in files:
        original = (whole / file).read_bytes()
        for _ in range(10):
            copy = tmp_path / "copy"
            shutil.copytree(whole, copy)
            flip(copy / file, rng.randrange(8 * len(original)))
            try:
                said = numbers(copy)
            except rib_harness.RibError:
                pass  # told
            else:
                opened = Store(copy)
                _ = [opened.done(key) for key in opened.step_keys()], opened.runs()
                assert said == expected or opened.damaged, file
            shutil.rmtree(copy)


def test_a_finished_step_that_vanishes_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rib_harness.runner import _Walk

    everything = _Walk.all

    def and_then_gone(self: _Walk) -> Any:
        missed = everything(self)
        step = next(step for step in self.plan.steps if step.is_baseline)
        shutil.rmtree(self.store.folder(step.key))
        return missed

    monkeypatch.setattr(_Walk, "all", and_then_gone)
    assert cli._code(["run", *SMALL]) == 1
    said = capsys.readouterr()
    assert "its result has gone from store/steps/" in said.err
    assert "INCOMPLETE" in said.out


# Code that changed


METHOD = '''
class Mine:
    """Fine-tune with a scaled loss."""

    def finetune(self, task):
        loss = lambda model, batch: {scale} * task.cross_entropy(model, batch)
        return task.fit(task.pretrained.copy(), loss)
'''

Written = Callable[[float], Catalog]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """Writes the code of a method, as its author does between two commands; see `METHOD`."""
    package = tmp_path / "site" / "rib_changing"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(scale: float) -> Catalog:
        (package / "__init__.py").write_text(METHOD.format(scale=scale))
        code_digest.cache_clear()
        for name in [n for n in sys.modules if n.startswith("rib_changing")]:
            del sys.modules[name]
        spec = MethodSpec(name="mine", target="rib_changing:Mine", summary="Mine.")
        base = catalog_with((spec, None))
        plugins = [replace(p, source="editable") if p.name == "testing" else p
                   for p in base.plugins]  # fmt: skip
        components = [
            replace(c, plugin=plugins[-1]) if c.plugin.name == "testing" else c
            for kind in ("backbone", "dataset", "method", "metric", "suite")
            for c in base.list(kind)
        ]
        return Catalog(plugins, components)

    yield write
    code_digest.cache_clear()


def run_of(catalog: Catalog, **more: Any) -> Any:
    settings = {
        "backbone": "digits-conv", "dataset": ("digits-a", "digits-r"), "limit": 2,
        "method": "mine", "recipe": {"epochs": 1}, "store": "changing", **more,
    }  # fmt: skip
    return execute(open_session(make_config(settings), catalog=catalog))


def test_results_of_code_that_changed_are_told_and_done_again_on_demand(
    written: Written, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from rib_harness.cli.tables import print_results

    first = run_of(written(1.0))
    assert not caplog.text
    catalog = written(50.0)
    same = run_of(catalog)
    assert same.mri == first.mri
    assert "WARNING: 2 finished steps here were made by other code of testing" in caplog.text
    assert "both say version 0, editable): mine" in caplog.text
    assert "--rerun" in caplog.text
    print_results(same, catalog)
    assert "mine *" in capsys.readouterr().out
    caplog.clear()
    again = run_of(catalog, rerun="mine")
    assert again.mri != first.mri
    assert run_of(written(50.0)).mri == again.mri
    assert again.mri == run_of(written(50.0), store="from-scratch").mri
    caplog.clear()
    run_of(written(50.0))
    assert not caplog.text
    print_results(again, written(50.0))
    assert "mine *" not in capsys.readouterr().out


def test_what_is_done_again_stays_until_the_new_is_whole(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_of(written(1.0))
    from rib_harness.engine.classifier import Classifier

    def full(self: Classifier, path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "save", full)
        with pytest.raises(PartialFailureError):
            run_of(written(50.0), rerun="mine")
    assert [run.to_json()["post"] for run in collect(Store("changing"))] == [
        first[0].to_json()["post"]
    ]
    assert run_of(written(50.0)).mri == first.mri


def test_one_step_is_done_again_with_what_rests_on_it(store: Path) -> None:
    config = make_config({"backbone": "digits-conv", "dataset": ("digits-a", "digits-r"),
                          "limit": 2, "method": "ft", "recipe": {"epochs": 1}, "features": 3,
                          "rerun": "finetune/digits-conv/ft/digits-a/seed0",
                          "store": "store"})  # fmt: skip
    plan = open_session(config).plan
    missing = sorted(step.id for step in plan.missing)
    assert len(plan.missing) == 1 + 3 + 3
    assert all("/ft/digits-a/seed0" in one for one in missing)
    before = json.dumps(numbers(store)[0])
    execute(open_session(config))
    assert json.dumps(numbers(store)[0]) == before


def test_what_is_to_be_done_again_must_be_of_the_run(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"rerun: 'lwff' is no method.*Did you mean"):
        open_session(make_config({"method": "lwf", "limit": 2, "rerun": "lwff"}))


def test_the_code_of_every_component_is_kept_with_the_result(whole: Path) -> None:
    opened = Store(whole)
    catalog = load_catalog()
    for key, _, done in opened.steps():
        kinds = {c["kind"]: c for c in done["provenance"]["components"]}
        assert {"backbone", "dataset"} <= set(kinds), key
        assert ("method" in kinds) == (done["kind"] == "finetune")
        for kind, said in kinds.items():
            target = catalog.get(kind, said["id"]).spec.target
            assert said["code"] == code_digest(target.partition(".")[0])


def test_a_note_where_a_version_says_that_the_code_is_another() -> None:
    from rib_harness.provenance import changed_code

    said = {"id": "cl-methods/ft", "kind": "method", "code": "0" * 64, "version": "0.0.1"}
    done = {"provenance": {"components": [said]}}
    (line,) = changed_code([done, done, None], load_catalog())
    assert line.startswith("note: 2 finished steps here were made by other code of rib-plugin-cl")
    assert "version 0.0.1, now 0.1.0" in line
    assert not changed_code([{"provenance": {}}], load_catalog())
