"""Known answers: a run stops where its base is wrong, and names the cause.

Expected accuracies come from the untouched backbone's own, right measurement.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rib_harness
from rib_harness import BackboneSpec, ConfigError, DatasetSpec, MismatchError, SuiteSpec
from rib_harness.catalog import load_catalog
from rib_harness.config import make_config
from rib_harness.known_answers import Expected
from rib_harness.matrix import Cell
from rib_harness.runner import execute, open_session
from rib_harness.testing import catalog_with

SMALL: dict[str, Any] = {"backbone": "digits-conv", "dataset": ["digits-a", "digits-v2"]}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    """What the untouched backbone scores."""
    store = tmp_path_factory.mktemp("right") / "store"
    return dict(rib_harness.evaluate(**SMALL, store=store).matrix.pre)


def test_a_percentage_agrees_within_three_standard_errors() -> None:
    """Closed form: √(p(1−p)/n), for p = 0.8 and n = 400: 2 points."""
    answer = Expected.parse("80")
    assert answer.tolerance(400) == pytest.approx(6.0)
    assert answer.agrees(Cell(74.1, 0, 400)) and not answer.agrees(Cell(73.9, 0, 400))
    assert not answer.agrees(Cell(78.9, 0, 50_000))  # 3 · 0.179
    assert Expected.parse("0").tolerance(100) > 0
    assert Expected.parse("100%").percent == 100


def test_a_count_is_of_the_same_images_but_for_near_ties() -> None:
    answer = Expected.parse("314/400")
    assert answer.agrees(Cell(78.5, 314, 400)) and answer.agrees(Cell(79.0, 316, 400))
    assert not answer.agrees(Cell(79.25, 317, 400))
    assert not answer.agrees(Cell(78.5, 157, 200))


@pytest.mark.parametrize("text", ["", "x", "-1", "101", "5/4", "0/0", "3/", "nan"])
def test_what_is_no_accuracy_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="expect"):
        make_config({"expect": {"digits-a": text}})


def test_a_met_answer_is_shown_and_the_run_goes_on(right: dict[str, Cell]) -> None:
    expect = {name: f"{cell.correct}/{cell.n}" for name, cell in right.items()}
    results = rib_harness.evaluate(**SMALL, expect=expect, store=Path("store"))
    answers = results[0].known_answers
    assert set(answers) == set(right)
    assert all(answer["agrees"] for answer in answers.values())
    assert results[0].to_json()["known_answers"] == answers


def test_a_missed_answer_stops_before_any_training_and_again(right: dict[str, Cell]) -> None:
    settings = {**SMALL, "method": "ft", "expect": {"digits-a": "1/3"}, "store": Path("store")}
    for _ in range(2):  # the second time nothing is missing but the training
        with pytest.raises(MismatchError, match=r"digits-a: .* expected 33.33 % of 3") as caught:
            rib_harness.run(**settings)
    assert not list(Path("store/work").glob("*"))
    assert not list(Path("store/steps").glob("*/model.safetensors"))
    assert caught.value.results.matrix.pre["digits-a"] == right["digits-a"]
    recipe = {"max_steps": 1}
    results = rib_harness.run(**settings, recipe=recipe, allow_mismatch=True)
    assert results.complete
    assert results[0].known_answers["digits-a"]["agrees"] is False


def test_an_answer_for_no_dataset_of_the_run_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no dataset 'digits-b'. Did you mean 'digits-a'"):
        rib_harness.evaluate(**SMALL, expect={"digits-b": "5"}, store=Path("store"))


def run_with(
    change: Any = None, preprocess: Any = None, accuracy: dict[str, float] | None = None,
    **settings: Any,
) -> Any:  # fmt: skip
    """The conv net on digits-v2 and digits-a, with data or preprocessing changed on the way."""
    base = load_catalog()
    dataset: Any = base.get("dataset", "digits-v2")
    backbone: Any = base.get("backbone", "digits-conv")

    class Changed:
        def open(self, root: Path | None) -> Any:
            images = base.bind("dataset", "digits-v2").build().open(root)
            return change(images) if change else images

    class Bent:
        def identity(self) -> Any:
            identity = base.bind("backbone", "digits-conv").build().identity()
            return replace(identity, preprocess=self.bend(identity.preprocess))

        def build(self) -> Any:
            classifier = base.bind("backbone", "digits-conv").build().build()
            classifier.preprocess = self.bend(classifier.preprocess)
            return classifier

        def bend(self, fields: Any) -> Any:
            return preprocess(fields) if preprocess else fields

    suite: Any = base.get("suite", "digits-rib")
    members = ("changed", "digits-a")
    spec = suite.spec
    catalog = catalog_with(
        (DatasetSpec(name="changed", target="", summary="", label_space=spec.label_space), Changed),
        (
            BackboneSpec(
                name="bent", target="", summary="", label_space=spec.label_space, light=True,
                accuracy=accuracy or {}, accuracy_source="a paper",
            ),
            Bent,
        ),
        (SuiteSpec(name="bent-rib", summary="", label_space=spec.label_space, members=members,
                   references=("digits-test",), backbone="bent"), None),
        base=base,
    )  # fmt: skip
    assert dataset and backbone
    made = make_config({"suite": "bent-rib", "store": Path("store"), **settings})
    return execute(open_session(made, catalog=catalog))


def causes_of(**arguments: Any) -> str:
    with pytest.raises(MismatchError) as caught:
        run_with(**arguments)
    (miss,) = caught.value.misses
    assert miss.dataset == "changed"
    return miss.causes[0] if miss.causes else ""


def test_a_wrong_class_order_is_named(right: dict[str, Cell]) -> None:
    """Eleven classes, numbered as if their folders had been sorted as text: 0, 1, 10, 2 …"""
    order = np.array(sorted(range(11), key=str))

    def as_text(images: Any) -> Any:
        return replace(images, labels=np.argsort(order)[images.labels], fingerprint="as text")

    cell = right["digits-v2"]
    cause = causes_of(change=as_text, expect={"changed": f"{cell.correct}/{cell.n}"})
    assert "wrong class order: with the labels as of classes sorted as text" in cause
    assert f"{cell.correct} of {cell.n}" in cause


def test_a_wrong_mean_is_named(right: dict[str, Cell]) -> None:
    cell = right["digits-v2"]
    cause = causes_of(
        preprocess=lambda fields: replace(fields, mean=(0.0,) * 3, std=(1.0,) * 3),
        expect={"changed": f"{cell.correct}/{cell.n}"},
    )
    assert cause.startswith("wrong mean/std: with mean 0.5 and std 0.5: ")


def test_a_second_resize_is_named(right: dict[str, Cell]) -> None:
    cell = right["digits-v2"]
    cause = causes_of(
        preprocess=lambda fields: replace(fields, resize=64),
        expect={"changed": f"{cell.correct}/{cell.n}"},
    )
    assert cause.startswith("a second resize: with the centre crop only")


def test_a_missing_tenth_is_named(right: dict[str, Cell]) -> None:
    cell = right["digits-v2"]

    def without(images: Any) -> Any:
        there = np.flatnonzero(np.arange(len(images)) % 10 != 3)
        return replace(images.taken(there), fingerprint="some are missing")

    cause = causes_of(change=without, expect={"changed": f"{cell.correct}/{cell.n}"})
    assert cause == f"missing files: {cell.n - cell.n // 10} images of {cell.n}"


def test_a_published_accuracy_counts_only_on_the_whole_set(right: dict[str, Cell]) -> None:
    """Also where the images that are there score as they should."""
    percent = right["digits-v2"].top1

    def half(images: Any) -> Any:
        there = np.arange(0, len(images), 2)
        return replace(images.taken(there), expected=180, fingerprint="half")

    cause = causes_of(change=half, accuracy={"changed": percent})
    assert cause.startswith("missing files: 90 images of 180")
    # A limit was asked for: nothing is missing.
    results = run_with(accuracy={"changed": percent}, limit=8)
    assert results[0].known_answers["changed"]["agrees"]
    assert results[0].known_answers["changed"]["source"] == "a paper"


def test_a_1000_way_answer_is_named() -> None:
    """digits-a has 5 of the 11 classes: an answer over all of them is another number."""
    from rib_harness.engine.labels import ClassMap

    catalog = load_catalog()
    images = catalog.bind("dataset", "digits-a").build().open(None)
    assert len(images.classes) < 11
    assert ClassMap(images.class_map).single
    import torch

    model = catalog.bind("backbone", "digits-conv").build().build()
    correct = 0
    for i in range(len(images)):
        pixels = torch.from_numpy(model.preprocess.pixels(images.image(i)))[None] / 255
        mean = torch.tensor(model.preprocess.mean).view(1, 3, 1, 1)
        std = torch.tensor(model.preprocess.std).view(1, 3, 1, 1)
        with torch.no_grad():
            best = int(model((pixels - mean) / std).argmax())
        correct += best in images.class_map[images.labels[i]]
    with pytest.raises(MismatchError) as caught:
        rib_harness.evaluate(
            **SMALL, expect={"digits-a": f"{correct}/{len(images)}"}, store=Path("store")
        )
    assert any(
        "1000-way instead of the subset: with all 11 classes competing" in cause
        for cause in caught.value.misses[0].causes
    )


def test_nothing_is_blamed_where_nothing_explains_it() -> None:
    with pytest.raises(MismatchError, match="no usual cause explains it"):
        rib_harness.evaluate(**SMALL, expect={"digits-v2": "90/180"}, store=Path("store"))


def test_random_weights_have_no_published_accuracy() -> None:
    """What a family publishes is of its pretrained weights, and of the dataset as published."""
    from rib_harness.plan import make_plan
    from rib_harness.store import Store

    accuracy = {"digits-a": 99.0, "digits-v2": 98.0}
    base = load_catalog()
    component: Any = base.get("backbone", "digits-conv")
    told = replace(component, spec=replace(component.spec, accuracy=accuracy))
    catalog = catalog_with(base=base)
    catalog._components["backbone"][component.id] = told
    for reference, expected in (("digits-conv", 2), ("digits-conv:pretrained=false", 0)):
        config = make_config({**SMALL, "backbone": reference})
        plan = make_plan(config, catalog, Store("store"))
        (answers,) = plan.expected.values()
        assert len(answers) == expected


def test_the_accuracy_over_the_own_classes_is_recognised_where_all_compete() -> None:
    """As with `over=all`: the expected count is that over the set's own classes."""
    own = rib_harness.evaluate(**SMALL, store=Path("store")).matrix.pre["digits-a"]

    def over_all(images: Any) -> Any:
        catalog = load_catalog()
        images = catalog.bind("dataset", "digits-a").build().open(None)
        ids = {i for one in images.class_map for i in one}
        rest = tuple(i for i in range(11) if i not in ids)
        return replace(
            images, classes=(*images.classes, "other"), class_map=(*images.class_map, rest)
        )

    assert over_all(None).others == len(over_all(None).classes) - 1
    with pytest.raises(MismatchError) as caught:
        run_with(change=over_all, expect={"changed": f"{own.correct}/{own.n}"})
    (miss,) = caught.value.misses
    assert any("over its own classes only" in cause for cause in miss.causes)


def test_the_other_backbone_goes_on_and_the_miss_names_its_own(right: dict[str, Cell]) -> None:
    expect = {name: f"{cell.correct}/{cell.n}" for name, cell in right.items()}
    settings = {**SMALL, "backbone": ["digits-conv", "digits-vit"], "method": "ft",
                "recipe": {"max_steps": 1}}  # fmt: skip
    with pytest.raises(MismatchError, match="digits-vit on digits-") as caught:
        rib_harness.run(**settings, expect=expect, store=Path("store"))
    assert {miss.backbone for miss in caught.value.misses} == {"digits-vit"}
    complete = {run.record["backbone"]: run.complete for run in caught.value.results}
    assert complete == {"digits-conv": True, "digits-vit": False}


def test_what_goes_wrong_in_the_diagnosis_hides_no_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("too little")

    monkeypatch.setattr("rib_harness.engine.diagnose.explain", fails)
    with pytest.raises(MismatchError, match=r"not known: they could not be tried .*too little"):
        rib_harness.evaluate(**SMALL, expect={"digits-a": "1/3"}, store=Path("store"))


def test_a_base_that_could_not_be_measured_is_not_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rib_harness import PartialFailureError
    from rib_harness.engine import evaluate as module

    original = module.evaluate

    def broken(classifiers: Any, pixels: Any, **options: Any) -> Any:
        if len(pixels) == 180:  # digits-v2
            raise ValueError("it cannot be scored")
        return original(classifiers, pixels, **options)

    monkeypatch.setattr(module, "evaluate", broken)
    settings = {**SMALL, "method": "ft", "store": Path("store")}
    with pytest.raises(PartialFailureError, match="it cannot be scored"):
        rib_harness.run(**settings, expect={"digits-v2": "50"})
    assert not list(Path("store/steps").glob("*/model.safetensors"))


def test_expected_answers_of_the_command_line_join_those_of_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[expect]\ndigits-a = 50\ndigits-r = "3/9"\n')
    config = make_config({"expect": {"digits-r": "4/9"}}, file)
    assert config.expect == {"digits-a": "50", "digits-r": "4/9"}


def test_every_form_of_a_result_tells_notes_and_known_answers(right: dict[str, Cell]) -> None:
    expect = {"digits-a": f"{right['digits-a'].correct}/{right['digits-a'].n}", "digits-v2": "5"}
    results = rib_harness.evaluate(**SMALL, expect=expect, allow_mismatch=True, store=Path("store"))
    text = results.to_markdown()
    assert f"digits-v2 {right['digits-v2'].top1:.2f} ≠ 5.00" in text
    assert f"digits-a {right['digits-a'].top1:.2f} = {right['digits-a'].top1:.2f}" in text
    rows = {row["dataset"]: row for row in results.rows()}
    assert rows["digits-v2"]["known_answer"] == 5.0
    assert "pretraining" in rows["digits-v2"]
    assert results.to_json()[0]["known_answers"]["digits-v2"]["agrees"] is False


def test_on_a_sample_harmless_changes_are_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point is missing, and each trial flips 1.5 % of the images at random: none explains it."""
    import torch

    from rib_harness.engine import diagnose
    from rib_harness.known_answers import Miss
    from rib_harness.testing import TINY, tiny_classifier, tiny_images

    rng = np.random.default_rng(0)
    images = tiny_images(3000)
    right = rng.random(2000) < 0.8

    def trials(trial: Any, own: Any, preprocess: Any) -> Any:
        for k in range(6):
            flips = rng.random(2000) < 0.015
            yield f"harmless {k}", right ^ flips

    monkeypatch.setattr(diagnose, "_tried", trials)
    monkeypatch.setattr(diagnose._Trial, "logits", lambda *_: np.zeros((2000, 10)))
    monkeypatch.setattr(diagnose._Trial, "right", lambda *_, **__: right)
    blamed = 0
    for _ in range(20):
        miss = Miss("x", Expected(81.0), Cell(80.0, 2400, 3000))
        told = diagnose.explain(miss, tiny_classifier(), images, TINY,
                                device=torch.device("cpu"), batch_size=500)  # fmt: skip
        blamed += bool(told.causes)
    assert blamed <= 2
