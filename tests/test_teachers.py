"""Methods that learn from another backbone: planned, loaded, and shown the images its own way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rib_harness import (
    Batch,
    Classifier,
    ConfigError,
    Identity,
    ImageSet,
    MethodSpec,
    Preprocess,
    Task,
)
from rib_harness.catalog import Bound, Catalog, load_catalog
from rib_harness.config import make_config
from rib_harness.disk import needed
from rib_harness.engine import task as task_module
from rib_harness.engine.data import Pixels
from rib_harness.identify import identity_of
from rib_harness.plan import Plan, Step, make_plan
from rib_harness.runner import execute, open_session
from rib_harness.store import Store
from rib_harness.testing import catalog_with, tiny_classifier, tiny_images, tiny_task

#: Smaller than the student's, and of another mean and std.
SIX = Preprocess(size=6, mean=(0.3, 0.4, 0.5), std=(0.5, 0.6, 0.7))
SMALL: dict[str, Any] = {
    "backbone": "digits-vit",
    "dataset": ["digits-v2", "digits-r"],
    "limit": 4,
    "recipe": {"max_steps": 2},
    "store": Path("store"),
}
LEARNS = "dp-transfer:teacher=digits-conv"


def teacher(preprocess: Preprocess = SIX) -> Classifier:
    made = tiny_classifier(batchnorm=False, seed=5)
    return Classifier(made.encoder, made.head, preprocess).eval()


def plan_of(method: str | list[str], catalog: Catalog | None = None, **changes: Any) -> Plan:
    config = make_config({**SMALL, "method": method, **changes})
    return make_plan(config, catalog or load_catalog(), Store(config.store))


def tuned(plan: Plan) -> dict[str, Step]:
    """Label of the method → its step on digits-v2."""
    steps = [s for s in plan.steps if s.kind == "finetune" and s.dataset.name == "digits-v2"]
    return {s.method.label: s for s in steps if s.method is not None}


def answers_by_hand(images: ImageSet) -> Tensor:
    """Of `teacher()` to the middle of each picture, normalised with numpy; no engine."""
    middle = np.stack([np.asarray(images.image(i))[1:7, 1:7] for i in range(len(images))])
    x = (middle / 255 - np.array(SIX.mean)) / np.array(SIX.std)
    with torch.no_grad():
        logits: Tensor = teacher()(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32))
    return logits


@pytest.mark.parametrize("kept", [True, False])
def test_a_teacher_sees_the_pictures_through_its_own_preprocessing(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: crop and normalisation in numpy."""
    monkeypatch.setattr(task_module, "KEEP_LIMIT", 2**30 if kept else 0)
    given = teacher()
    task = tiny_task(teachers={"other": given})
    expected, answer = answers_by_hand(task.images), task.answers_of_teacher("other")
    given.head.requires_grad_(False).weight.zero_()  # it is a copy that teaches
    order = torch.tensor([5, 1, 17, 20])
    for batch in task.batches(3, order):
        torch.testing.assert_close(answer(batch), expected[batch.index], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_a_part_of_the_set_has_the_teachers_answers_to_that_part(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: rows of the answers to the whole set; as images are held out, and pruned."""
    monkeypatch.setattr(task_module, "KEEP_LIMIT", 2**30 if kept else 0)
    whole = tiny_task(teachers={"other": teacher()})
    rest = np.delete(np.arange(24), [3, 4, 11])
    part, held = whole.pixels.taken(rest).taken(np.array([0, 5, 9])), np.array([3, 4, 11])
    task = replace(whole, pixels=part, held=whole.pixels.taken(held))
    expected = answers_by_hand(whole.images)
    for of, rows in ((task, rest[[0, 5, 9]]), (task.held_out, held)):
        (batch,) = of.batches(8)
        torch.testing.assert_close(
            of.answers_of_teacher("other")(batch), expected[rows], atol=1e-6, rtol=1e-5
        )


def test_a_teacher_sees_the_views_that_a_batch_shows() -> None:
    """Source: the student's pixels of these batches, normalised as the teacher's are."""
    preprocess = replace(SIX, size=8)
    other = teacher(preprocess)
    task = tiny_task(teachers={"other": other}, augment="crop-flip", batch_size=8, micro_batch=5)
    answer, seen = task.answers_of_teacher("other"), 0
    mean, std = (torch.tensor([[0.5] * 3, [0.25] * 3])[:, :, None, None][i] for i in (0, 1))
    theirs = [torch.tensor(one)[:, None, None] for one in (preprocess.mean, preprocess.std)]
    plain = {int(b.index[i]): b.images[i] for b in task.batches(8) for i in range(len(b))}
    moved = 0

    def loss(model: Classifier, batch: Batch) -> Tensor:
        nonlocal seen, moved
        again = ((batch.images * std + mean) - theirs[0]) / theirs[1]
        with torch.no_grad():
            torch.testing.assert_close(answer(batch), other(again), atol=1e-5, rtol=1e-4)
        moved += sum(not torch.equal(plain[int(k)], batch.images[i])
                     for i, k in enumerate(batch.index))  # fmt: skip
        seen += 1
        return task.cross_entropy(model, batch)

    task.fit(task.pretrained.copy(), loss)
    assert seen == 2 * 3 * 3 and moved > 60


def test_a_teacher_is_of_the_fine_tuning_set_and_declared() -> None:
    """Source: the message."""
    task = tiny_task(teachers={"other": teacher()}, datasets={"old": tiny_images(16, seed=7)})
    for of, name in ((task, "another"), (task.on("old"), "other")):
        with pytest.raises(ConfigError, match=f"declare the backbone '{name}' in `teachers`"):
            of.answers_of_teacher(name)


def test_the_teacher_is_in_the_key_of_what_learns_from_it_and_of_nothing_else() -> None:
    """Source: its identity is what tells two teachers of one name apart."""
    steps = tuned(plan_of([LEARNS, LEARNS.replace("conv", "vit-95"), "ft"]))
    keys = {label: step.key for label, step in steps.items()}
    assert len(set(keys.values())) == 3
    assert "teachers" not in steps["ft"].inputs
    mine = steps[LEARNS].inputs["teachers"]["digits-conv"]
    assert mine["identity"]["weights"].startswith("sha256:")
    assert mine["preprocess"]["size"] == 32

    def others(bound: Bound) -> Identity:
        same = identity_of(bound)
        return replace(same, weights="other") if bound.spec.name == "digits-conv" else same

    config = make_config({**SMALL, "method": [LEARNS, "ft"]})
    changed = tuned(make_plan(config, load_catalog(), Store(config.store), identify=others))
    assert changed["ft"].key == keys["ft"] and changed[LEARNS].key != keys[LEARNS]


def test_a_run_learns_from_another_backbone_and_says_from_which() -> None:
    """Source: the provenance of step and record; the same command again has nothing to do."""
    config = make_config({**SMALL, "method": [f"wise-ft:base=({LEARNS})"]})
    session = open_session(config)
    (result,) = execute(session)
    steps = tuned(session.plan)
    done = Store("store").done(steps[LEARNS].key)
    assert done is not None
    named = {one["id"] for one in done["provenance"]["components"]}
    assert {"digits/digits-vit", "digits/digits-conv"} <= named
    assert "digits/digits-conv" in {one["id"] for one in result.record["components"]}
    assert not open_session(config).plan.missing


class AsksItsTeacher:
    """A method that compares what its teacher says with what the teacher's net says itself."""

    def finetune(self, task: Task) -> Classifier:
        answer = task.answers_of_teacher("digits-conv")
        net = load_catalog().bind("backbone", "digits-conv").build().build()
        for of in (task, task.held_out):
            for batch in of.batches(5):
                with torch.no_grad():
                    torch.testing.assert_close(
                        of.answers_of_teacher("digits-conv")(batch), net(batch.images)
                    )
        task.report(differ=bool((answer(next(task.batches(2))) != 0).any()))
        with torch.no_grad():  # of the teacher that it was given: no other step may see it
            task.teachers["digits-conv"][0].head.bias.add_(100)
        return task.pretrained.copy().eval()


def test_a_runs_teacher_is_that_backbone_on_what_is_trained_on_and_on_what_is_held_out() -> None:
    """Source: the other backbone, built and asked apart; digits' backbones share a preprocessing.

    What one step does to its teacher, the next does not see.
    """
    spec = MethodSpec(name="asks", target="", summary="", teachers=("digits-conv",), holds_out=0.3)
    config = make_config({**SMALL, "limit": 12, "method": ["asks"], "recipe": {"per_class": 2}})
    session = open_session(config, catalog=catalog_with((spec, AsksItsTeacher)))
    execute(session)
    for step in session.plan.steps:
        if step.kind == "finetune":
            done = Store("store").done(step.key)
            assert done is not None and done["facts"]["differ"]


def test_a_teachers_pictures_need_room_too() -> None:
    """Source: images × 3 × 64², for a teacher of that input size."""
    step = tuned(plan_of(LEARNS))[LEARNS]
    backbone, preprocess = step.teachers["digits-conv"]
    before = needed([step])["packs"]
    larger = replace(step, teachers={"digits-conv": (backbone, replace(preprocess, size=64))})
    assert needed([larger])["packs"] - before == len(step.dataset.images) * 3 * 64**2


def test_pixels_of_a_part_know_their_places() -> None:
    """Source: what a teacher's pixels rest on: rows of a part of a part are those of the whole."""
    pixels = Pixels(tiny_images(), SIX, workers=1, pack=False)
    part = pixels.taken(np.arange(10, 20)).taken(np.array([2, 3]))
    assert part.rows is not None and part.rows.tolist() == [12, 13]
