"""fsr and twins: expected values from loops in plain torch, from numpy and from other methods."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods.fsr import FunctionSpaceRegularisation
from rib_plugin_cl_methods.lwf import LearningWithoutForgetting
from rib_plugin_cl_methods.twins import TwoStatistics

from rib_harness import Classifier, Task
from rib_harness.testing import tiny_classifier, tiny_images, tiny_task, tiny_vit


def task_for(**arguments: object) -> Task:
    return tiny_task(**{"momentum": 0.0, "schedule": "constant", **arguments})  # type: ignore[arg-type]


def test_without_shifts_fsr_is_lwf_at_temperature_one() -> None:
    """Source: `lwf` with T = 1; what is consistent with itself has no gradient."""
    theirs = LearningWithoutForgetting(alpha=0.7, temperature=1.0)
    ours = FunctionSpaceRegularisation(0.7, consistency=0.5, noise=0.0, contrast=0.0)
    net = tiny_classifier(batchnorm=False)  # without dropout, which would draw once more
    expected = theirs.finetune(task_for(pretrained=net))
    result = ours.finetune(task_for(pretrained=net))
    torch.testing.assert_close(result.state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-4)


def test_the_loss_of_fsr_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: softmax and KL in numpy, on images shifted by hand."""
    caught = []
    task = task_for(pretrained=tiny_vit())
    monkeypatch.setattr(task, "fit", lambda model, loss, **_: caught.append((model, loss)))
    method = FunctionSpaceRegularisation(lambda_=0.3, consistency=2.0)
    monkeypatch.setattr(
        FunctionSpaceRegularisation, "shifted", lambda _, images: 1.2 * images - 0.1
    )
    method.finetune(task)
    ((model, loss),) = caught
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    batch = next(task.batches(8))

    def answers(net: Classifier, images: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            rows = net(images).double().numpy()
        return np.exp(rows) / np.exp(rows).sum(1, keepdims=True)  # type: ignore[no-any-return]

    shifted = 1.2 * batch.images - 0.1
    p, q, before = (
        answers(model, batch.images),
        answers(model, shifted),
        answers(task.pretrained, shifted),
    )
    learned = -np.log([row[k] for row, k in zip(p, batch.labels.tolist(), strict=True)])
    distance = (before * np.log(before / q)).sum(1)
    consistency = (p * np.log(p / q)).sum(1)
    expected = (learned + 0.3 * distance + 2.0 * consistency).mean()
    assert loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_shifts_of_fsr_have_the_spread_that_is_said() -> None:
    """Source: the variances of a uniform and of a normal distribution."""
    method = FunctionSpaceRegularisation(noise=0.5, contrast=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shifted = method.shifted(torch.full((4000, 3, 4, 4), 2.0)).double().numpy()
    channels = shifted.mean((2, 3))  # 2 a + b, and a sixteenth of the noise
    assert channels.mean() == pytest.approx(2.0, abs=0.02)
    uniform = 0.3**2 / 3
    assert channels.var() == pytest.approx(4 * uniform + uniform + 0.25 / 16, rel=0.05)
    assert shifted.var((2, 3), ddof=1).mean() == pytest.approx(0.25, rel=0.02)
    assert abs(np.corrcoef(channels.T)[0, 1]) < 0.05  # colours shift apart


def test_twins_learns_one_half_under_the_pretrained_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Source: two nets in plain torch, one of them in eval mode; the sum of their gradients."""
    task = task_for()
    caught = []
    monkeypatch.setattr(task, "fit", lambda model, loss: caught.append((model, loss)))
    TwoStatistics(lambda_=0.3).finetune(task)
    ((model, loss),) = caught
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)  # only weights move away from what the pretrained statistics fit
        model.encoder[1].running_mean.add_(1.0)
    frozen, adaptive = copy.deepcopy(model).eval(), copy.deepcopy(model)
    frozen.encoder[1].load_state_dict(
        {**frozen.encoder[1].state_dict(), **dict(task.pretrained.encoder[1].named_buffers())}
    )
    for net in (model, adaptive):
        net.encoder[1].train()
    batch = next(task.batches(24))
    x, y = batch.images, batch.labels
    loss(model, batch).backward()
    (0.3 * F.cross_entropy(frozen(x[:12]), y[:12])).backward()
    F.cross_entropy(adaptive(x[12:]), y[12:]).backward()
    for ours, one, other in zip(
        *(net.parameters() for net in (model, frozen, adaptive)), strict=True
    ):
        torch.testing.assert_close(ours.grad, one.grad + other.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(dict(model.named_buffers()), dict(adaptive.named_buffers()))


def test_twins_learns_from_few_images_too() -> None:
    """Batches of one to three are all of the adaptive half."""
    task = task_for(images=tiny_images(7), batch_size=4)
    assert TwoStatistics().finetune(task)
