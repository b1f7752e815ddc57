"""Plan and run on two members of the embedded suite, a few images a class."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rib_harness
from rib_harness import (
    Classifier,
    ConfigError,
    Identity,
    Location,
    MethodSpec,
    PartialFailureError,
    Preprocess,
    RibError,
    StoreError,
    Task,
)
from rib_harness.catalog import Catalog, Component, load_catalog
from rib_harness.config import RunConfig, make_config
from rib_harness.errors import InterruptedRun
from rib_harness.identify import identity_of
from rib_harness.matrix import IncompleteError
from rib_harness.plan import Plan, make_plan
from rib_harness.results import collect
from rib_harness.runner import execute, open_session
from rib_harness.specs import BackboneSpec, DatasetSpec, LabelSpace, SuiteSpec
from rib_harness.store import Store
from rib_harness.testing import catalog_with, tiny_images
from rib_harness.threads import working

SMALL: dict[str, Any] = {
    "backbone": "digits-conv",
    "dataset": ["digits-a", "digits-r"],
    "limit": 2,
    "recipe": {"epochs": 1},
}


def settings(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "store": Path("store"), "method": "ft", **changes}


def planned(**changes: Any) -> Plan:
    config = make_config(settings(**changes))
    return make_plan(config, load_catalog(), Store(config.store))


def times(store: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in store.glob("steps/*/done.json")}


def test_the_same_run_again_does_no_step_and_another_method_only_its_own() -> None:
    first = rib_harness.run(**settings())
    before = times(Path("store"))
    assert len(before) == 2 + 3 + 2 * 3  # checkpoints, A_pre, A_i
    again = rib_harness.run(**settings())
    assert times(Path("store")) == before
    assert again.to_json() == first.to_json()
    rib_harness.run(**settings(method=["ft", "lwf"]))
    after = times(Path("store"))
    assert {key: after[key] for key in before} == before
    added = [Store("store").done(key) for key in after if key not in before]
    assert len(added) == 2 + 2 * 3
    assert all("/lwf/" in done["id"] for done in added if done)


def test_numbers_equal_a_loop_in_plain_torch() -> None:
    """A_pre of the conv net on the set with two ids for one class, image by image."""
    results = rib_harness.evaluate(
        backbone="digits-conv", dataset=["digits-object"], store=Path("store")
    )
    catalog = load_catalog()
    model = catalog.bind("backbone", "digits-conv").build().build()
    images = catalog.bind("dataset", "digits-object").build().open(None)
    correct = 0
    for i in range(len(images)):
        x = torch.from_numpy(np.asarray(images.image(i)).copy()).permute(2, 0, 1) / 255
        with torch.no_grad():
            z = model(((x - 0.5) / 0.5)[None])[0].numpy()
        scores = [max(z[j] for j in ids) for ids in images.class_map]
        correct += int(np.argmax(scores) == images.labels[i])
    cell = results.matrix.pre["digits-object"]
    assert (cell.correct, cell.n) == (correct, 140)


def test_results_equal_the_definitions() -> None:
    results = rib_harness.run(**settings())
    document = results.to_json()[0]
    pre, post = document["pre"], document["post"]
    ri_a = post["digits-a"]["digits-r"]["top1"] - pre["digits-r"]["top1"]
    ri_r = post["digits-r"]["digits-a"]["top1"] - pre["digits-a"]["top1"]
    assert document["ri"] == {"digits-a": pytest.approx(ri_a), "digits-r": pytest.approx(ri_r)}
    assert document["mri"] == pytest.approx((ri_a + ri_r) / 2)
    assert results.mri == document["mri"]
    assert document["sources"] == {"used": 2, "of": 8}
    assert document["complete"] is True
    cell = post["digits-a"]["digits-test"]
    assert cell["top1"] == pytest.approx(100 * cell["correct"] / cell["n"])
    frame = results.to_pandas()
    assert len(frame) == 3 + 2 * 3
    row = frame[(frame.source == "digits-a") & (frame.dataset == "digits-r")].iloc[0]
    assert row.change == pytest.approx(ri_a)
    packages = next(iter(document["provenance"]["steps"].values()))["packages"]
    assert packages["torch"] == torch.__version__.split("+")[0]
    assert {c["distribution"] for c in document["provenance"]["components"]} == {
        "rib-plugin-digits",
        "rib-plugin-cl-methods",
    }


#: What changes a number, and so a key. Every field of the recipe is here.
CHANGES: list[dict[str, Any]] = [
    {"method": "lwf"},
    {"method": "l2-sp:alpha=0.2"},
    {"backbone": "digits-vit"},
    {"backbone": "digits-conv:pretrained=false"},
    {"seed": 1},
    {"limit": 3},
    {"preset": "paper", "method": "lwf"},
    {"method": "l2-sp", "sweep": ("alpha=0.2,0.3",)},
    {"method": "l2-sp", "search": ("alpha=0.2,0.3",)},
    {"trials": 2},
    {"probe_every": 2},
    *(
        {"recipe": {"epochs": 1, name: value, **({"keep": 0.5} if name == "keep_by" else {})}}
        for name, value in {
            "optimizer": "adamw",
            "lr": 0.02,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "schedule": "linear",
            "warmup_steps": 3,
            "batch_size": 16,
            "micro_batch": 4,
            "epochs": 2,
            "max_steps": 1,
            "clip_grad": 1.0,
            "precision": "bf16",
            "augment": "flip",
            "per_class": 2,
            "held_out": 0.3,
            "keep": 0.5,
            "keep_by": "loss",
        }.items()
    ),
]

#: What changes no number.
SAME: list[dict[str, Any]] = [
    {"workers": 1},
    {"eval_batch_size": 3},
    {"device": "cpu"},
    {"save_every": 1.0},
    {"probe_images": 3},  # without probe_every there is no probe
    {"tracker": "tensorboard"},
    {"data_root": Path("elsewhere")},
    {"store": Path("other")},
    {"expect": {"digits-r": "50"}},
    {"allow_mismatch": True},
    {"offline": True},
    {"rerun": ("ft",)},
    {"threads": 1},
    {"allow_full_disk": True},
]


def checkpoints(plan: Plan) -> set[str]:
    return {step.key for step in plan.steps if step.kind == "finetune"}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_changes_a_number_changes_the_key(change: dict[str, Any]) -> None:
    assert not checkpoints(planned()) & checkpoints(planned(**change))


@pytest.mark.parametrize("change", SAME, ids=str)
def test_what_changes_no_number_leaves_the_key(change: dict[str, Any]) -> None:
    one, two = planned(), planned(**change)
    assert [step.key for step in one.steps] == [step.key for step in two.steps]


def test_sets_of_crops_are_not_resized_again_but_by_the_paper_preset() -> None:
    base = load_catalog()
    suite, kinds = base.get("suite", "digits-rib"), ("backbone", "dataset", "method", "metric")

    class Resizing:
        def identity(self) -> Any:
            from rib_harness.protocols import Identity

            return Identity("w", rib_harness.Preprocess(size=32, resize=37), 11)

    class Crops:
        def open(self, root: Path | None) -> Any:
            return replace(tiny_images(), cropped=32)

    space = suite.spec.label_space  # type: ignore[attr-defined]
    members = ("digits-a", "crops")
    catalog = catalog_with(
        (BackboneSpec(name="b", target="", summary="", label_space=space, light=True), Resizing),
        (DatasetSpec(name="crops", target="", summary="", label_space=space), Crops),
        base=Catalog(
            base.plugins,
            [
                *(c for kind in kinds for c in base.list(kind)),
                Component(replace(suite.spec, name="x-rib", members=members), suite.plugin),
            ],
        ),
    )
    resized = {}
    for preset in ("default", "paper"):
        config = RunConfig(suite="x-rib", backbone=("b",), method=("ft",), preset=preset)  # type: ignore[arg-type]
        for step in make_plan(config, catalog, Store("store")).steps:
            resized[preset, step.dataset.name, step.kind] = step.preprocess.resize
            assert step.inputs["preprocess"]["resize"] == step.preprocess.resize
    assert resized["default", "crops", "evaluate"] is None
    assert resized["default", "crops", "finetune"] is None
    assert resized["paper", "crops", "evaluate"] == 37
    assert resized["default", "digits-a", "finetune"] == 37


def test_every_field_of_the_recipe_is_tested() -> None:
    from rib_harness.config import Recipe

    seen = {name for change in CHANGES for name in change.get("recipe", {})}
    assert seen == set(Recipe.model_fields)


def test_every_field_of_a_run_is_tested_or_makes_other_steps() -> None:
    """A new setting must be put into one of the two lists above."""
    listed = {name for change in [*CHANGES, *SAME] for name in change}
    others = {"suite", "dataset", "data", "accept_license", "no_plugin", "requires", "features"}
    assert listed | others == set(RunConfig.model_fields)


def test_versions_weights_pixels_and_class_maps_are_in_the_key() -> None:
    """Each is changed alone, through components that differ in nothing else."""
    space = LabelSpace("tiny", 10)

    @dataclass
    class Tiny:
        weights: str = "one"

        def identity(self) -> Any:
            from rib_harness.protocols import Identity
            from rib_harness.testing import TINY

            return Identity(f"sha256:{WEIGHTS}", replace(TINY, size=SIZE), 10)

    class Images:
        def __init__(self, part: int):
            self.part = part

        def open(self, root: Path | None) -> Any:
            return tiny_images(**{"seed": self.part, **(DATA if self.part == 1 else {})})

    def keys(
        backbone_version: int = 1,
        data_version: int = 1,
        method_version: int = 1,
        kind: str = "finetune",
    ) -> set[str]:
        catalog = catalog_with(
            (BackboneSpec(name="tiny", target="", summary="", label_space=space, light=True,
                          version=backbone_version), Tiny),
            *((DatasetSpec(name=f"tiny-{i}", target="", summary="", label_space=space,
                           arguments={"part": i}, version=data_version), Images) for i in (1, 2)),
            (MethodSpec(name="m", target="", summary="", version=method_version), Plain),
            (SuiteSpec(name="tiny-rib", summary="", label_space=space,
                       members=("tiny-1", "tiny-2"), backbone="tiny"), None),
        )  # fmt: skip
        config = RunConfig(suite="tiny-rib", method=("m",))
        plan = make_plan(config, catalog, Store("store"))
        return {step.key for step in plan.steps if step.kind == kind}

    WEIGHTS, SIZE = "a", 8  # noqa: N806
    DATA: dict[str, Any] = {}  # noqa: N806
    base = keys()
    assert keys() == base
    assert not keys(backbone_version=2) & base
    assert not keys(data_version=2) & base
    assert not keys(method_version=2) & base
    WEIGHTS = "b"  # noqa: N806
    assert not keys() & base
    WEIGHTS, SIZE = "a", 9  # noqa: N806
    assert not keys() & base
    SIZE = 8  # noqa: N806
    for changed in ({"seed": 7}, {"class_map": [(9 - k,) for k in range(10)]}, {"n": 30},
                    {"groups": ("fog/1",)}):  # fmt: skip
        DATA = changed  # noqa: N806
        assert len(keys() & base) == 1, changed  # of the other member only
    DATA = {}  # noqa: N806
    assert keys() == base

    # Of the scores before and after fine-tuning: 2 and 4.
    scores = keys(kind="evaluate")
    assert len(scores) == 6
    assert not keys(kind="evaluate", backbone_version=2) & scores
    assert not keys(kind="evaluate", data_version=2) & scores
    assert len(keys(kind="evaluate", method_version=2) & scores) == 2
    WEIGHTS = "b"  # noqa: N806
    assert not keys(kind="evaluate") & scores
    WEIGHTS, SIZE = "a", 9  # noqa: N806
    assert not keys(kind="evaluate") & scores
    SIZE, DATA = 8, {"seed": 7}  # noqa: N806
    assert len(keys(kind="evaluate") & scores) == 2  # the other one before, and after itself


@dataclass(frozen=True)
class Plain:
    """A method like ft."""

    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained.copy())


def test_what_several_methods_need_is_made_once() -> None:
    plan = planned(method=["ft", "lp-ft", "wise-ft", "soup", "wise-ft:alpha=0.2"])
    made = [step.id for step in plan.steps if step.kind == "finetune" and "digits-a" in step.id]
    methods = [one.split("/")[2] for one in made]
    assert sorted(methods) == [
        "ewc", "ft", "lp", "lp-ft", "lwf", "soup", "wise-ft", "wise-ft:alpha=0.2"
    ]  # fmt: skip
    order = {one: i for i, one in enumerate(methods)}
    assert order["ft"] < order["wise-ft"]
    assert order["lp"] < order["lp-ft"]
    results = rib_harness.run(**settings(method=["lp-ft", "wise-ft", "soup"]))
    assert [run.complete for run in results] == [True] * 3


def test_a_cycle_and_a_member_that_cannot_be_averaged_are_refused_when_planning() -> None:
    @dataclass
    class Snake:
        base: str = "snake"

    @dataclass
    class Odd:
        pass

    catalog = catalog_with(
        (MethodSpec(name="snake", target="", summary="", needs=("{base}",)), Snake),
        (MethodSpec(name="odd", target="", summary="", mergeable=False), Odd),
    )
    store = Store("store")
    with pytest.raises(ConfigError, match=r"A cycle of methods: testing/snake → testing/snake"):
        make_plan(make_config(settings(method="snake")), catalog, store)
    with pytest.raises(
        ConfigError, match="cannot start from odd or average it: it is not mergeable"
    ):
        make_plan(make_config(settings(method="wise-ft:base=odd")), catalog, store)


def test_one_step_that_fails_takes_only_those_that_need_it() -> None:
    class Fails:
        def finetune(self, task: Task) -> Classifier:
            if "digits-a" in task.label:
                raise RuntimeError("a bug in a plugin")
            return task.fit(task.pretrained.copy())

    catalog = catalog_with((MethodSpec(name="fails", target="", summary=""), Fails))
    session = open_session(make_config(settings(method=["fails", "ft"])), catalog=catalog)
    with pytest.raises(PartialFailureError) as caught:
        execute(session)
    failures = caught.value.failures
    assert list(failures) == ["finetune/digits-conv/fails/digits-a/seed0"]
    said = next(iter(failures.values()))
    assert said.startswith("method 'testing/fails' failed: RuntimeError: a bug in a plugin (trace")
    log = next(Path("store/work").glob("*/error.log")).read_text()
    assert "Traceback" in log
    fails, ft = caught.value.results
    assert ft.complete
    assert not fails.complete
    assert fails.to_json()["mri"] is None
    assert fails.to_json()["ri"]["digits-r"] is not None
    with pytest.raises(IncompleteError):
        _ = fails.mri


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_asks_a_run_to_end_is_heard_outside_of_a_fit_too(number: int) -> None:
    class Told:
        def finetune(self, task: Task) -> Classifier:
            os.kill(os.getpid(), number)
            return task.fit(task.pretrained.copy())

    catalog = catalog_with((MethodSpec(name="told", target="", summary=""), Told))
    before = signal.signal(number, lambda *_: None)  # what was not heard would end the tests
    try:
        with pytest.raises(InterruptedRun):
            execute(open_session(make_config(settings(method="told")), catalog=catalog))
    finally:
        signal.signal(number, before)
    done = [done["kind"] for _, _, done in Store("store").steps()]
    assert done == ["evaluate"] * 3  # of before: they are kept


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_run_whichever_step_meets_it(code: int) -> None:
    class Writes:
        def finetune(self, task: Task) -> Classifier:
            raise OSError(code, os.strerror(code))

    catalog = catalog_with((MethodSpec(name="writes", target="", summary=""), Writes))
    with pytest.raises(StoreError, match=r"The disk of store is full.* Finished steps are whole"):
        execute(open_session(make_config(settings(method="writes")), catalog=catalog))


@pytest.mark.parametrize(("asked", "number"), [(None, 1), (3, 3)])
def test_a_step_has_its_threads_and_says_how_many(asked: int | None, number: int) -> None:
    with working(5):
        rib_harness.evaluate(**{**SMALL, "threads": asked, "store": "store"})
        assert torch.get_num_threads() == 5
    used = [done["provenance"]["threads"] for _, _, done in Store("store").steps()]
    assert used == [number] * 3


def test_a_method_that_diverges_is_never_scored() -> None:
    config = make_config(settings(recipe={"epochs": 3, "lr": 1e30}))
    with pytest.raises(PartialFailureError, match=r"finite|the loss is"):
        execute(open_session(config))
    matrix = collect(Store("store"))[0].matrix
    assert matrix.post == {"digits-a": {}, "digits-r": {}}


def test_what_a_method_gives_is_looked_at_before_it_is_kept() -> None:
    """No classifier, an architecture that nobody can rebuild, weights that are not finite."""

    class Gives:
        def __init__(self, what: str = "nothing"):
            self.what = what

        def finetune(self, task: Task) -> Any:
            model = task.fit(task.pretrained.copy())
            if self.what == "a wider head":
                old = model.head
                model.head = torch.nn.Linear(old.in_features, old.out_features + 1)
            elif self.what == "nan":
                next(model.parameters()).data.fill_(float("nan"))
            return None if self.what == "nothing" else model

    catalog = catalog_with((MethodSpec(name="gives", target="", summary=""), Gives))
    said = {
        "nothing": "gave NoneType, no Classifier",
        "a wider head": "another architecture",
        "nan": "DIVERGED, .* is not finite",
    }
    for what, text in said.items():
        config = make_config(settings(method=f"gives:what={what}"))
        with pytest.raises(PartialFailureError, match=text) as caught:
            execute(open_session(config, catalog=catalog))
        kinds = {key.partition("/")[0] for key in caught.value.failures}
        assert kinds == {"finetune"}, what
        assert caught.value.results[0].matrix.post == {"digits-a": {}, "digits-r": {}}


def test_a_method_that_changes_the_pretrained_model_is_refused() -> None:
    class Vandal:
        def finetune(self, task: Task) -> Classifier:
            with torch.no_grad():
                next(task.pretrained.parameters()).add_(1)
            return task.fit(task.pretrained.copy())

    catalog = catalog_with((MethodSpec(name="vandal", target="", summary=""), Vandal))
    session = open_session(make_config(settings(method=["vandal", "ft"])), catalog=catalog)
    with pytest.raises(PartialFailureError, match="changed the pretrained classifier") as caught:
        execute(session)
    alone = rib_harness.run(**settings(store=Path("other")))
    assert caught.value.results[1].to_json()["post"] == alone.to_json()[0]["post"]


def test_a_set_that_may_not_be_tuned_on_is_no_source_and_the_table_says_so() -> None:
    base = load_catalog()
    dataset, suite = base.get("dataset", "digits-r"), base.get("suite", "digits-rib")
    members = ("digits-a", "digits-x", "digits-v2")
    changed = [
        Component(replace(dataset.spec, name="digits-x", may_train=False), dataset.plugin),
        Component(replace(suite.spec, name="x-rib", members=members), suite.plugin),
    ]
    kinds = ("backbone", "dataset", "method", "metric")
    catalog = Catalog(base.plugins, [*(c for k in kinds for c in base.list(k)), *changed])
    config = make_config({**settings(suite="x-rib"), "dataset": []})
    session = open_session(config, catalog=catalog)
    assert any("digits-x is not a source: its licence" in note for note in session.plan.notes)
    document = execute(session).to_json()[0]
    assert list(document["post"]) == ["digits-a", "digits-v2"]
    assert document["sources"] == {"used": 2, "of": 3}
    assert set(document["post"]["digits-a"]) == {"digits-a", "digits-x", "digits-v2", "digits-test"}


def test_a_deleted_cell_makes_the_matrix_incomplete_and_is_computed_again() -> None:
    first = rib_harness.run(**settings())
    record = Store("store").runs()[0]
    key = record["cells"]["post"]["digits-a"]["digits-r"]
    (Path("store/steps") / key / "done.json").unlink()
    results = collect(Store("store"))
    assert results[0].matrix.missing == ["digits-a → digits-r"]
    with pytest.raises(IncompleteError, match="digits-a → digits-r has no number yet"):
        _ = results.mri
    assert rib_harness.run(**settings()).mri == first.mri


def test_the_saved_configuration_runs_again_from_anywhere_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = rib_harness.run(**settings(method=["ft", "lwf:alpha=0.5"], seed=[0, 1]))
    before = times(Path("store"))
    files = list(Path("store/configs").absolute().glob("*.toml"))
    assert len(files) == len(first) == 4
    monkeypatch.chdir("/")
    again = rib_harness.run(files[0])
    assert again.to_json() == first.to_json()
    assert times(files[0].parents[1]) == before


def test_a_broken_image_is_told_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from rib_plugin_digits.data import _Reader

    def read(self: Any, index: int) -> Image.Image:
        if self.crop:  # digits-object
            raise OSError("truncated")
        return Image.fromarray(self.pictures[index])

    monkeypatch.setattr(_Reader, "__call__", read)
    monkeypatch.setenv("RIB_CACHE", str(Path("fresh-cache").absolute()))
    with pytest.raises(rib_harness.DataError, match=r"digits-object\[0\]: this image cannot be"):
        rib_harness.run(**settings(dataset=["digits-a", "digits-object"]))
    assert times(Path("store")) == {}


def test_the_identity_of_a_heavy_backbone_is_asked_once_and_again_when_its_file_changes() -> None:
    asked = []

    class Heavy:
        def identity(self) -> Any:
            from rib_harness.protocols import Identity
            from rib_harness.testing import TINY

            asked.append(1)
            return Identity("x", TINY, 10, (str(Path("weights").absolute()),))

    spec = BackboneSpec(name="heavy", target="", summary="", label_space=LabelSpace("t", 10))
    Path("weights").write_text("one")
    bound = catalog_with((spec, Heavy)).bind("backbone", "heavy")
    assert identity_of(bound).weights == identity_of(bound).weights == "x"
    assert len(asked) == 1
    Path("weights").write_text("another")
    identity_of(bound)
    assert len(asked) == 2


def test_a_run_without_arguments_that_exist_is_told() -> None:
    with pytest.raises(TypeError, match=r"no argument 'methods'. Did you mean 'method'"):
        rib_harness.run(methods="lwf")


def test_results_of_several_runs_ask_for_one() -> None:
    results = rib_harness.run(**settings(method=["ft", "lp"]))
    with pytest.raises(rib_harness.RibError, match=r"mri is of one run; these are 2 .*ft, .*lp"):
        _ = results.mri
    assert json.loads(results.dumps("json")) == results.to_json()
    assert results.dumps("csv").count("\n") == 1 + 2 * (3 + 6)
    assert results.dumps("md").count("**mRI** (2 of 8 sources)") == 2


class Noisy:
    """Draws from every global generator, before and in its fit, as third parties do."""

    def finetune(self, task: Task) -> Classifier:
        model = task.pretrained.copy()
        with torch.no_grad():
            model.head.bias.add_(torch.randn_like(model.head.bias))

        def loss(model: Classifier, batch: Any) -> torch.Tensor:
            return task.cross_entropy(model, batch) * float(np.random.rand() + random.random())

        return task.fit(model, loss)


def test_a_method_that_draws_from_global_generators_is_repeatable_whatever_else_runs() -> None:
    catalog = catalog_with((MethodSpec(name="noisy", target="", summary=""), Noisy))
    torch.manual_seed(1)
    one = execute(open_session(make_config(settings(method="noisy")), catalog=catalog))
    torch.manual_seed(2)
    np.random.seed(2)
    other = settings(method=["ft", "noisy"], store=Path("other"))
    two = execute(open_session(make_config(other), catalog=catalog))
    assert one[0].record["finetune"] == two[1].record["finetune"]
    assert one[0].to_json()["post"] == two[1].to_json()["post"]
    for key in one[0].record["finetune"].values():
        files = [Path(s) / "steps" / key / "model.safetensors" for s in ("store", "other")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3)])
def test_a_method_that_raises_or_exits_is_one_message_and_the_others_go_on(
    error: BaseException,
) -> None:
    class Quits:
        def finetune(self, task: Task) -> Classifier:
            raise error

    catalog = catalog_with((MethodSpec(name="quits", target="", summary=""), Quits))
    session = open_session(make_config(settings(method=["quits", "ft"])), catalog=catalog)
    with pytest.raises(PartialFailureError) as caught:
        execute(session)
    assert caught.value.results[1].complete


def test_a_component_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("a bug")

    catalog = catalog_with((MethodSpec(name="broken", target="", summary=""), Broken))
    with pytest.raises(
        rib_harness.PluginError, match=r"'testing/broken' failed: ValueError: a bug"
    ):
        execute(open_session(make_config(settings(method="broken")), catalog=catalog))
    monkeypatch.setenv("RIB_STRICT_PLUGINS", "1")
    with pytest.raises(ValueError, match="a bug"):
        execute(open_session(make_config(settings(method="broken")), catalog=catalog))


class Flat(torch.nn.Module):
    """Mean colours, as (N, 3) or (N, 3, 1, 1)."""

    def __init__(self, keep: bool = False):
        super().__init__()
        self.keep = keep

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3), keepdim=self.keep)


class Pair(Flat):
    """As of a library whose encoders give more than the features."""

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images), images


PREPROCESS = Preprocess(size=8)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (torch.nn.Flatten(), r"build\(\) gave Flatten: return a rib_harness.Classifier"),
        (Classifier(Flat(keep=True), torch.nn.Linear(3, 11), PREPROCESS),
         r"its encoder gave \(1, 3, 1, 1\), expected a tensor \(N, D\)"),
        (Classifier(Pair(), torch.nn.Linear(3, 11), PREPROCESS),
         r"its encoder gave tuple, expected a tensor \(N, D\)"),
        (Classifier(Flat(), torch.nn.Linear(3, 10), PREPROCESS),
         r"its head gave \(1, 10\), expected \(N, 11\), as its identity\(\) says"),
    ],
)  # fmt: skip
def test_a_backbone_that_is_no_encoder_and_head_is_told(built: torch.nn.Module, said: str) -> None:
    class Odd:
        def identity(self) -> Identity:
            return Identity("seed:0", PREPROCESS, 11)

        def build(self) -> Any:
            return built

    base = load_catalog()
    space = base.get("suite", "digits-rib").spec.label_space  # type: ignore[attr-defined]
    spec = BackboneSpec(name="odd", target="", summary="", label_space=space, light=True)
    session = open_session(make_config(settings(backbone="odd", method=[])),
                           catalog=catalog_with((spec, Odd)))  # fmt: skip
    with pytest.raises(rib_harness.PluginError, match=said):
        execute(session)


def test_weights_that_are_others_now_are_never_scored_under_the_kept_digest() -> None:
    """As on the Hub: the file that was read is still there, and a newer one has its name."""
    old, newest = Path("old.bin").absolute(), Path("newest").absolute()
    old.touch()
    newest.write_text("a")

    class Published:
        def identity(self) -> Identity:
            return Identity(f"sha256:{newest.read_text()}", PREPROCESS, 11, files=(str(old),))

        def build(self) -> Classifier:
            return Classifier(Flat(), torch.nn.Linear(3, 11), PREPROCESS)

    base = load_catalog()
    space = base.get("suite", "digits-rib").spec.label_space  # type: ignore[attr-defined]
    catalog = catalog_with(
        (BackboneSpec(name="published", target="", summary="", label_space=space), Published)
    )

    def session() -> Any:
        config = make_config(settings(backbone="published", method=[]))
        return open_session(config, catalog=catalog)

    first = session()
    newest.write_text("b")
    with pytest.raises(RibError, match=r"planned, sha256:b instead of sha256:a\. The same command"):
        execute(first)
    assert execute(session())[0].record["weights"] == "sha256:b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": ("digits-a",)}, "digits-a is both a member and a reference"),
        ({"members": ("digits-a", "digits/digits-a", "digits-r")}, "digits-a is named twice"),
        ({"members": ("digits-a", "digits-r", "digits-a")}, "digits-a is named twice"),
        ({"members": ("digits-a", "tens")},
         r"tens: it is over tens \(10 classes\), the suite x-rib over digits-11 \(11 classes\)"),
    ],
)  # fmt: skip
def test_a_suite_that_counts_twice_or_mixes_classes_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    class Unread:
        def open(self, root: Path | None) -> Any:
            raise AssertionError("classes are compared before images are looked for")

    base = load_catalog()
    good: Any = base.get("suite", "digits-rib").spec
    spec = replace(good, **{"name": "x-rib", "shares": (), **changes})
    tens = DatasetSpec(name="tens", target="", summary="", label_space=LabelSpace("tens", 10))
    catalog = catalog_with((tens, Unread), (spec, None), base=base)
    config = make_config({"suite": "x-rib", "method": "ft", "limit": 2})
    with pytest.raises(RibError, match=said):
        make_plan(config, catalog, Store("store"))


def test_a_member_that_is_not_here_is_only_missed_where_it_is_chosen() -> None:
    base = load_catalog()
    good: Any = base.get("suite", "digits-rib").spec
    spec = replace(good, name="x-rib", members=("digits-a", "digits-r", "not-here"))
    catalog = catalog_with((spec, None), base=base)
    asked: dict[str, Any] = {"suite": "x-rib", "method": "ft", "limit": 2}
    chosen = make_config({**asked, "dataset": ["digits-a", "digits-r"]})
    assert make_plan(chosen, catalog, Store("store")).steps
    with pytest.raises(RibError, match="No dataset is called 'not-here'"):
        make_plan(make_config(asked), catalog, Store("store"))


def test_pictures_that_are_read_otherwise_than_before_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers that the store has already are of the earlier ones."""
    from rib_harness.cli.show_progress import RichProgress

    dark: list[int] = []

    class Changing:
        def open(self, root: Path | None) -> Any:
            made = tiny_images(24)
            other = lambda i: Image.eval(made.image(i), lambda x: 255 - x)  # noqa: E731
            return replace(made, fingerprint="the-same", read=other if dark else made.read)

    base = load_catalog()
    good: Any = base.get("suite", "digits-rib").spec
    data = DatasetSpec(name="changing", target="", summary="", label_space=good.label_space)
    spec = replace(good, name="x-rib", members=("digits-a", "changing"), references=())
    catalog = catalog_with((data, Changing), (spec, None), base=base)

    def said(store: str) -> str:
        config = make_config({"suite": "x-rib", "limit": 2, "store": store,
                              "backbone": "digits-conv"})  # fmt: skip
        with RichProgress() as progress:
            execute(open_session(config, catalog=catalog, progress=progress))
        return capsys.readouterr().err

    assert "read otherwise" not in said("one")
    dark.append(1)
    assert "changing: its pictures are read otherwise than when they were last" in said("two")
    assert "read otherwise" not in said("three")


def test_a_store_whose_first_process_was_killed_at_its_start_is_a_store() -> None:
    Path("store/steps").mkdir(parents=True)
    Path("store/.store.json-x").touch()
    assert rib_harness.run(**settings()).complete


def test_why_explains_a_step_that_is_not_done_and_what_lies_behind_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rib_harness import cli

    rib_harness.run(**settings())
    options = ["-b", "digits-conv", "-d", "digits-a", "-d", "digits-r", "--limit", "2",
               "-m", "ft", "--set", "recipe.epochs=1", "--set", "recipe.lr=0.5"]  # fmt: skip
    capsys.readouterr()
    step = "evaluate/digits-conv/ft/digits-a/seed0/digits-r"
    assert cli._code(["why", step, "--store", "store", "--json"]) == 0
    (done,) = json.loads(capsys.readouterr().out)
    assert done["done"]
    new = planned(recipe={"epochs": 1, "lr": 0.5}).steps[-1]
    for name in (new.key, new.id):  # the id with the options of a run is that run's step
        assert cli._code(["why", name, "--store", "store", "--json", *options]) == 0
        (document,) = json.loads(capsys.readouterr().out)
        assert (document["key"], document["done"]) == (new.key, False)
        assert document["differs"] == ["checkpoint.recipe.lr"]


def test_a_plugin_is_left_out_by_its_distributions_name_too() -> None:
    session = open_session(make_config(settings(no_plugin=["rib-plugin-runlog"])))
    fates = {plugin.name: plugin.status for plugin in session.catalog.plugins}
    assert fates["runlog"] == "blocked"


def test_the_code_of_a_notebook_has_a_digest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from rib_harness.provenance import code_digest

    monkeypatch.setitem(sys.modules, "notebook_cells", type(sys)("notebook_cells"))  # no spec
    assert code_digest("notebook_cells") == code_digest("no_such_package")
    assert code_digest("notebook_cells") != code_digest("rib_harness")


class Another:
    def finetune(self, task: Any) -> Any:
        return task.fit(task.pretrained.copy())


class Rebuilt(Another):
    def rebuild(self, pretrained: Any) -> Any:
        return pretrained.copy()


class Unbuilt(Rebuilt):
    rebuild = None


class Careless:
    def finetune(self, task: Any) -> Any:
        return task.fit(task.pretrained)


@pytest.mark.parametrize(
    ("target", "mergeable", "said"),
    [
        (Another, False, "says mergeable=False, and Another has no `rebuild"),
        (Rebuilt, True, "say mergeable=False in its spec"),
        (Unbuilt, False, "says mergeable=False, and Unbuilt has no `rebuild"),
        (Careless, True, "task.fit was given task.pretrained, which stays untouched: fit a copy"),
    ],
)
def test_a_method_at_fault_is_told_before_it_trains(
    target: type, mergeable: bool, said: str
) -> None:
    spec = MethodSpec(name="odd", target="", summary="", mergeable=mergeable)
    catalog = catalog_with((spec, target))
    with pytest.raises(RibError, match=said):
        execute(open_session(make_config(settings(method="odd")), catalog=catalog))
    assert not list(Path("store").glob("work/*/*/stage-*"))


def test_the_api_refuses_what_it_would_ignore() -> None:
    with pytest.raises(TypeError, match="evaluate\\(\\) takes no method"):
        rib_harness.evaluate(method="ft")
    with pytest.raises(ConfigError, match=r"no plugin is called 'digit'. Did you mean 'digits'"):
        rib_harness.run(**settings(no_plugin=["digit"]))
    for seed in (-1, 2**40):
        with pytest.raises(ConfigError, match="seed"):
            rib_harness.run(**settings(seed=seed))
    for method in ("lwf:alpha=nan", "lwf:temperature=inf"):
        with pytest.raises(ConfigError, match="not JSON compliant"):
            rib_harness.run(**settings(method=method))


def test_a_licence_that_forbids_tuning_is_kept_unless_it_is_accepted() -> None:
    """On a suite of the embedded sets in which one may not be trained on."""
    base = load_catalog()
    component = base.get("dataset", "digits-r")
    forbidden = replace(component, spec=replace(component.spec, may_train=False))  # type: ignore[arg-type]
    catalog = catalog_with(base=base)
    catalog._components["dataset"][component.id] = forbidden
    seen = {}
    for accepted in ((), ("digits-r",)):
        config = make_config(settings(accept_license=accepted, dataset=["digits-a", "digits-r"]))
        plan = make_plan(config, catalog, Store("store"))
        (record,) = plan.records
        seen[accepted] = record["sources"]
        assert record["accepted_licenses"] == list(accepted)
        (note,) = [note for note in plan.notes if "licence" in note]
        assert ("is not a source" in note) == (not accepted)
        assert ("its licence was accepted" in note) == bool(accepted)
    assert seen == {(): ["digits-a"], ("digits-r",): ["digits-a", "digits-r"]}
    for name, message in (("digits-b", "no member 'digits-b'. Did you mean"),
                          ("digits-a", "digits-a may be trained on anyway")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make_plan(make_config(settings(accept_license=[name])), catalog, Store("store"))


def test_options_of_a_dataset_are_in_the_key_and_told_and_its_place_is_neither() -> None:
    @dataclass
    class Placed:
        at: Location | None = None
        variant: str = "one"

        def open(self, root: Path | None) -> Any:
            return tiny_images()

    base = load_catalog()
    space = base.get("suite", "digits-rib").spec.label_space  # type: ignore[attr-defined]
    suite = SuiteSpec(name="x-rib", summary="", label_space=space, members=("placed", "digits-a"),
                      backbone="digits-conv")  # fmt: skip
    catalog = catalog_with(
        (DatasetSpec(name="placed", target="", summary="", label_space=space), Placed),
        (suite, None),
        base=base,
    )

    def plan_of(*data: str) -> Plan:
        config = make_config({"suite": "x-rib", "method": "ft", "data": data})
        return make_plan(config, catalog, Store("store"))

    plain, placed = plan_of(), plan_of("placed:at=some/where")
    assert checkpoints(plain) == checkpoints(placed)
    assert not any("some/where" in note for note in placed.notes)
    assert placed.resolved["data"] == (f"placed:at={Path('some/where').absolute()}",)
    hub = plan_of("placed:at=hf:owner/name")
    assert hub.resolved["data"] == ("placed:at=hf:owner/name",)
    other = plan_of("placed:variant=two")
    assert len(checkpoints(plain) & checkpoints(other)) == 1  # that of digits-a
    assert "placed: variant=two" in other.notes
    for data, message in (
        (["plced:variant=x"], "no dataset 'plced'. Did you mean 'placed'"),
        (["placed:variant=x", "placed:at=y"], "given twice"),
        (["placed:varant=x"], "no option 'varant'. Did you mean 'variant'"),
    ):
        with pytest.raises(RibError, match=message):
            plan_of(*data)
