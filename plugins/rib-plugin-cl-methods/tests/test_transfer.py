"""Learning from a second backbone: the loss in numpy, what the teacher sees, keys and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rib_plugin_cl_methods.dp_transfer import PartitionedTransfer
from scipy import special
from torch import nn

import rib_harness
from rib_harness import Classifier, ConfigError, RibError, Task
from rib_harness.config import make_config
from rib_harness.runner import open_session
from rib_harness.testing import TINY, tiny_classifier, tiny_images, tiny_task


class Mean(nn.Module):
    """Features by the mean of each channel, which differ with mean and std of the preprocessing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == (16, 16)
        return images.mean((2, 3))


def other() -> Classifier:
    """A backbone that wants larger pictures, normalised otherwise."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = nn.Linear(3, 10)
    wanted = replace(TINY, size=16, resize=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    return Classifier(Mean(), head, wanted).eval()


def task_for(**arguments: Any) -> Task:
    net = tiny_classifier(batchnorm=False)
    return tiny_task(pretrained=net, teachers={"other": other()}, **arguments)


def test_the_better_of_two_teaches_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: softmax and KL in numpy; the other sees pictures that PIL has resized."""
    images, caught = tiny_images(), []
    task = task_for(images=images)
    monkeypatch.setattr(task, "fit", lambda model, loss: caught.append((model, loss)))
    PartitionedTransfer("other", lambda_=0.7, temperature=2.0).finetune(task)
    ((model, loss),) = caught
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    order = torch.tensor([5, 3, 20, 11, 0, 7])
    batch = next(task.batches(24, order))
    with torch.no_grad():
        now, own = (net(batch.images).double().numpy() for net in (model, task.pretrained))
    pictures = [images.image(int(i)).resize((16, 16), Image.Resampling.BICUBIC) for i in order]
    pixels = np.stack([np.asarray(one) / 255 for one in pictures])
    means = ((pixels - (0.1, 0.2, 0.3)) / (0.4, 0.5, 0.6)).mean((1, 2))
    head = other().head
    weight, bias = (p.detach().double().numpy() for p in head.parameters())
    theirs = means @ weight.T + bias
    ids = [i for (i,) in images.class_map]
    now, own, theirs = (rows[:, ids] for rows in (now, own, theirs))
    expected, chosen = 0.0, []
    for i, k in enumerate(batch.labels.tolist()):
        chosen.append(special.softmax(theirs[i])[k] > special.softmax(own[i])[k])
        q = special.softmax((theirs if chosen[-1] else own)[i] / 2)
        p = special.softmax(now[i] / 2)
        expected += -special.log_softmax(now[i])[k] + 0.7 * (q * np.log(q / p)).sum()
    assert 0 < sum(chosen) < len(chosen)
    assert loss(model, batch).item() == pytest.approx(expected / len(order), rel=2e-3)


def test_too_many_answers_to_keep_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the answers that are kept."""
    task = task_for()
    kept = task.answers_of_teacher("other")
    monkeypatch.setattr("rib_harness.engine.task.KEEP_LIMIT", 0)
    asked = task.answers_of_teacher("other")
    batch = next(task.batches(24, torch.tensor([4, 1, 9])))
    torch.testing.assert_close(asked(batch), kept(batch))
    with pytest.raises(ConfigError, match=r"declare the backbone 'third' in `teachers`"):
        task.answers_of_teacher("third")


def settings(store: Path, **more: Any) -> dict[str, Any]:
    small = {"dataset": ["digits-r", "digits-c"], "limit": 6, "recipe": {"epochs": 1}}
    return {**small, "backbone": "digits-vit", "store": store, **more}


def test_the_teacher_sees_the_images_that_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the accuracy of the untouched digits-conv, over images that are in another order."""
    seen = []
    original = PartitionedTransfer.finetune

    def finetune(self: PartitionedTransfer, task: Task) -> Classifier:
        answers = task.answers_of_teacher(self.teacher)
        right = n = 0
        order = torch.randperm(len(task.images), generator=torch.Generator().manual_seed(0))
        for batch in task.batches(16, order):
            right += int((task.project(answers(batch)).argmax(1) == batch.labels).sum())
            n += len(batch)
        seen.append((right / n, task.score(task.teachers[self.teacher][0])["accuracy"] / 100))
        return original(self, task)

    monkeypatch.setattr(PartitionedTransfer, "finetune", finetune)
    method = "dp-transfer:teacher=digits-conv"
    recipe = {"epochs": 1, "held_out": 0.3}
    rib_harness.run(method=method, **settings(tmp_path / "s", recipe=recipe))
    assert len(seen) == 2
    for by_answers, by_score in seen:  # both nets of the suite have one preprocessing
        assert by_answers == pytest.approx(by_score)
        assert by_answers > 0.3
    assert not open_session(
        make_config(settings(tmp_path / "s", recipe=recipe, method=method))
    ).plan.missing


def test_the_teacher_is_in_the_key(tmp_path: Path) -> None:
    def keys(method: str) -> set[str]:
        plan = open_session(make_config(settings(tmp_path, method=method))).plan
        return {step.key for step in plan.steps if step.kind == "finetune"}

    names = ("digits-conv", "digits-vit")
    one, two = (keys(f"dp-transfer:teacher={name}") for name in names)
    assert one and not one & two
    based = keys("wise-ft:base=(dp-transfer:teacher=digits-conv)")
    assert one < based


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("dp-transfer", "teacher"),
        ("dp-transfer:teacher=digits-convv", "digits-conv"),
        ("dp-transfer:teacher=timm:resnet18.a1_in1k", "1000 classes"),
        ("dp-transfer:teacher=digits-conv,temperature=0", "temperature > 0"),
    ],
)
def test_a_wrong_teacher_is_told_when_planning(tmp_path: Path, method: str, said: str) -> None:
    with pytest.raises(RibError, match=said):
        open_session(make_config(settings(tmp_path, method=method)))


def test_of_other_images_the_teacher_says_nothing() -> None:
    """Its answers are of the images that are trained on; of others they would be wrong ones."""
    task = task_for(datasets={"old": tiny_images(16, seed=7)})
    with pytest.raises(ConfigError, match="declare the backbone 'other'"):
        task.on("old").answers_of_teacher("other")
