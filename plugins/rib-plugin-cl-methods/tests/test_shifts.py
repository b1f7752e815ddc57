"""What the methods compute that train on other views: twins, self-distillation and fsr.

Expected values come from the authors' code, from numpy and scipy, and from training loops written
out in plain torch; each test says from which.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods import fsr, self_distillation, views
from rib_plugin_cl_methods.fsr import FunctionSpaceRegularisation
from rib_plugin_cl_methods.ft import FineTuning
from rib_plugin_cl_methods.self_distillation import SelfDistillation
from rib_plugin_cl_methods.twins import Twins, TwoWingNormalisation, attacked
from rib_plugin_cl_methods.views import masked, shifted
from scipy.ndimage import uniform_filter
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

import rib_harness
from rib_harness import Batch, Classifier, ConfigError, RibError, Task
from rib_harness.testing import TINY, tiny_classifier, tiny_images, tiny_task

#: What the authors' code gives; see make_clipood_dawin_twins.py.
AUTHORS = json.loads(Path(__file__).with_name("clipood_dawin_twins.json").read_text())["twins"]

#: One batch holds the whole set, and nothing is drawn.
WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant",
                         "weight_decay": 0.0}  # fmt: skip


def fit_of(method: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What a method hands to the loop, which is not run: model and loss."""
    calls: list[tuple[Any, Any]] = []

    def fit(self: Task, model: Classifier, loss: Any = None, **rest: Any) -> Classifier:
        calls.append((model, loss))
        return model

    with monkeypatch.context() as patch:
        patch.setattr(Task, "fit", fit)
        method.finetune(task)
    [call] = calls
    return call


def noise(n: int = 6, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# TWINS


def norm_alone() -> Classifier:
    """Batch-norm in the recorded state, and the mean of each channel as logits."""
    norm = nn.BatchNorm2d(4)
    start = {key: torch.tensor(value) for key, value in AUTHORS["start"].items()}
    norm.weight.data, norm.bias.data = start["weight"], start["bias"]
    norm.running_mean, norm.running_var = start["mean"], start["var"]
    encoder = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(encoder, nn.Identity(), TINY)


def test_loss_and_statistics_of_twins_are_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: clipood_dawin_twins.json, a layer in training with half of the batch in each."""
    task = tiny_task(pretrained=norm_alone(), images=tiny_images(6, classes=4))
    model, loss = fit_of(TwoWingNormalisation(lambda_=0.4), task, monkeypatch)
    [twin] = model.twins
    twin.weight.data = torch.tensor(AUTHORS["frozen"]["weight"])
    twin.bias.data = torch.tensor(AUTHORS["frozen"]["bias"])
    x = torch.tensor(AUTHORS["x"])
    batch = Batch(x, torch.tensor(AUTHORS["labels"]), torch.arange(6))
    value = loss(model.train(), batch)
    assert value.item() == pytest.approx(AUTHORS["loss"], rel=1e-5)
    norm = model.encoder[0]
    np.testing.assert_allclose(norm.running_mean, AUTHORS["mean"], rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, AUTHORS["var"], rtol=1e-5)
    np.testing.assert_allclose(twin.running_mean, AUTHORS["frozen_mean"], rtol=1e-6)
    old = model.eval().old_features(x[:3])
    np.testing.assert_allclose(old.detach(), AUTHORS["y"][:3], rtol=1e-4, atol=1e-5)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_what_twins_give_is_a_plain_net_and_the_old_half_keeps_its_statistics() -> None:
    """Source: the pretrained statistics; of the net, they are those of every second half."""
    seen: list[Twins] = []

    class Seen(Twins):
        def __init__(self, classifier: Classifier):
            super().__init__(classifier)
            seen.append(self)

    task = tiny_task()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rib_plugin_cl_methods.twins.Twins", Seen)
        result = TwoWingNormalisation().finetune(task)
    assert type(result) is Classifier
    assert result.state_dict().keys() == task.pretrained.state_dict().keys()
    before, [twin] = task.pretrained.encoder[1], seen[0].twins  # type: ignore[index]
    assert torch.equal(twin.running_mean, before.running_mean)
    assert not torch.equal(result.encoder[1].running_mean, before.running_mean)  # type: ignore[index]
    assert not torch.equal(twin.weight, before.weight)
    assert not torch.equal(twin.weight, result.encoder[1].weight)  # type: ignore[index]
    assert int(result.encoder[1].num_batches_tracked) == 9  # type: ignore[index]


def test_a_batch_of_one_image_is_the_new_nets() -> None:
    """Source: cross-entropy of that image under its own statistics, by F.batch_norm."""
    task = tiny_task()
    made: list[float] = []

    def fit(self: Task, model: Any, loss: Any = None, **rest: Any) -> Classifier:
        batch = next(task.batches(1))
        net = model.encoder
        x = net[0](batch.images)
        x = F.batch_norm(x, None, None, net[1].weight, net[1].bias, training=True)
        logits = model.head(net[5](net[4](net[2](x))))
        net[3].p = 0.0
        expected = F.cross_entropy(logits, batch.labels).item()
        made.append(loss(model.train(), batch).item() - expected)
        return model  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "fit", fit)
        TwoWingNormalisation().finetune(task)
    assert made == [pytest.approx(0, abs=1e-5)]


def test_the_attack_on_a_linear_model_is_known() -> None:
    """Source: the gradient has the sign of the weights everywhere: x ± eps, within the pixels."""
    model = Classifier(nn.Flatten(), nn.Linear(192, 2), TINY).eval()
    task = tiny_task(pretrained=model, images=tiny_images(4, classes=2))
    batch, eps = next(task.batches(4)), 0.1
    model.train()
    moved = attacked(task, model, batch, eps)
    assert model.training and all(p.grad is None for p in model.parameters())
    pixels = (batch.images * 0.25 + 0.5).numpy()  # as TINY has them
    away = (model.head.weight[1] - model.head.weight[0]).detach().view(3, 8, 8).numpy()
    sign = np.where(batch.labels.numpy() == 0, 1, -1)[:, None, None, None] * np.sign(away)
    expected = np.clip(pixels + eps * sign, 0, 1)
    np.testing.assert_allclose((moved * 0.25 + 0.5).detach(), expected, atol=1e-6)


def test_attacked_images_are_what_twins_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the loss is larger under the attack; another eps, other weights."""
    task = tiny_task()
    plain = TwoWingNormalisation().finetune(tiny_task())
    model, loss = fit_of(TwoWingNormalisation(eps=0.2), task, monkeypatch)
    _, without = fit_of(TwoWingNormalisation(), task, monkeypatch)
    batch = next(task.batches(8))
    model.eval()
    assert loss(model, batch) > without(model, batch) + 0.01
    other = TwoWingNormalisation(eps=0.2).finetune(tiny_task())
    assert not torch.equal(other.head.weight, plain.head.weight)  # type: ignore[arg-type]


def test_a_net_without_batch_norm_is_refused_before_any_work(tmp_path: Path) -> None:
    """Source: what the method requires; one sentence."""
    with pytest.raises(
        RibError, match="twins needs batch normalisation, which digits-vit does not have"
    ):
        rib_harness.run(backbone="digits-vit", method="twins", dataset=["digits-r", "digits-a"],
                        store=tmp_path / "store")  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))


# Views


@pytest.mark.parametrize(("share", "hidden"), [(0, 0), (0.25, 16), (0.75, 48), (1, 64)])
def test_a_share_of_the_patches_is_hidden(share: float, hidden: int) -> None:
    """Source: counted; 8 × 8 pixels are 64 patches, and all colours of one go together."""
    images = noise().abs() + 1
    seen = masked(images, share)
    gone = seen == 0
    assert torch.equal(seen[~gone], images[~gone])
    assert (gone.sum((2, 3)) == hidden).all()
    assert (gone == gone[:, :1]).all()
    if 0 < share < 1:
        assert not torch.equal(gone[0], gone[1])


def test_patches_are_squares() -> None:
    """Source: an image of 28 pixels has 14 patches a side, 2 × 2 each."""
    gone = (masked(torch.ones(2, 3, 28, 28), 0.5) == 0)[:, 0].reshape(2, 14, 2, 14, 2)
    whole = gone[:, :, :1, :, :1]
    assert (gone == whole).all() and int(whole.sum()) == 2 * 98


def drawn(patch: pytest.MonkeyPatch, kind: int, strength: float) -> Tensor:
    """The views of a kind, with this strength."""
    patch.setattr(views.torch, "randint", lambda *a, **k: torch.full((6,), kind))
    patch.setattr(views.torch, "rand", lambda *size, **k: torch.full(size, strength))
    return shifted(noise())


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_each_shift_is_what_it_is_called(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: numpy, and scipy's filter for the blur."""
    x = noise().numpy()
    blurred = uniform_filter(x, (0, 0, 5, 5), mode="nearest")
    flat = x.mean((1, 2, 3), keepdims=True)
    ends = {1: (blurred, 1.0), 2: (flat, 0.8), 3: (x.mean(1, keepdims=True), 1.0)}
    for kind, (end, most) in ends.items():
        with monkeypatch.context() as patch:
            got = drawn(patch, kind, strength)
        share = most * strength
        np.testing.assert_allclose(got, (1 - share) * x + share * end, rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        torch.manual_seed(0)
        got = drawn(patch, 0, strength)
    assert (got.numpy() - x).std() == pytest.approx(strength, abs=0.05)
    with monkeypatch.context() as patch:
        assert (drawn(patch, 4, strength) == 0).sum() == 6 * 3 * 16


def test_every_image_has_a_shift_of_its_own() -> None:
    """Source: the same image a hundred times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seen = shifted(noise(1).expand(100, -1, -1, -1))
    assert len({float(one.square().sum()) for one in seen}) > 90
    assert torch.isfinite(seen).all()


# FSR


def halved(images: Tensor) -> Tensor:
    """A shift in which nothing is drawn."""
    return 0.5 * images


def test_the_loss_of_fsr_is_its_three_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: scipy's softmax; and its gradient with both targets as plain numbers."""
    monkeypatch.setattr(fsr, "shifted", halved)
    several = [(3,), (5, 7), (0, 1, 9)]
    task = tiny_task(pretrained=tiny_classifier(batchnorm=False),
                     images=tiny_images(classes=3, class_map=several))  # fmt: skip
    method = FunctionSpaceRegularisation(lambda_=0.3, consistency=0.7)
    model, loss = fit_of(method, task, monkeypatch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    batch = next(task.batches(24))
    clean, now = model(batch.images), model(0.5 * batch.images)
    with torch.no_grad():
        before = task.pretrained(0.5 * batch.images).double().numpy()

    def of_classes(logits: np.ndarray) -> np.ndarray:
        return np.stack([np.log(np.exp(logits[:, list(ids)]).sum(1)) for ids in several], 1)

    p0 = softmax(before, 1)
    own = softmax(of_classes(clean.detach().double().numpy()), 1)
    kl0 = (p0 * (np.log(p0) - log_softmax(now.detach().double().numpy(), 1))).sum(1).mean()
    shaken = log_softmax(of_classes(now.detach().double().numpy()), 1)
    kl1 = (own * (np.log(own) - shaken)).sum(1).mean()
    learned = -np.log(own[range(24), batch.labels.numpy()]).mean()
    assert min(kl0, kl1) > 1e-3
    value = loss(model, batch)
    assert value.item() == pytest.approx(learned + 0.3 * kl0 + 0.7 * kl1, rel=1e-4)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    # With constant targets the gradient of a KL is that of a cross-entropy with soft labels.
    by_hand = (
        F.cross_entropy(task.project(clean), batch.labels)
        + 0.3 * F.cross_entropy(now, torch.tensor(p0, dtype=torch.float32))
        + 0.7 * F.cross_entropy(task.project(now), torch.tensor(own, dtype=torch.float32))
    )
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_without_its_terms_fsr_is_plain_fine_tuning_and_each_matters() -> None:
    """Source: ft, to the bit, with batch-norm."""
    expected = FineTuning().finetune(tiny_task())
    for weights, same in (((0, 0), True), ((1, 0), False), ((0, 1), False)):
        result = FunctionSpaceRegularisation(*weights).finetune(tiny_task())
        assert torch.equal(result.head.weight, expected.head.weight) == same  # type: ignore[arg-type]


def test_fsr_keeps_the_old_answers_off_the_data() -> None:
    """Source: KL to the pretrained model on shifted images, with the term and without."""
    drifts = []
    for weight in (0.0, 10.0):
        task = tiny_task(epochs=8, pretrained=tiny_classifier(batchnorm=False))
        method = FunctionSpaceRegularisation(weight, consistency=0)
        result = method.finetune(task)
        with torch.no_grad():
            p, q = (m.eval()(noise(64)).softmax(1).double() for m in (task.pretrained, result))
        drifts.append(float((p * (p.log() - q.log())).sum(1).mean()))
    assert drifts[1] < 0.7 * drifts[0]


# Self-distillation


def sgd(model: Classifier, parameters: Any, loss: Callable[[], Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(parameters, 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_self_distillation_is_its_three_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the three loops in plain torch; nothing is drawn, the mask halves the image."""
    monkeypatch.setattr(self_distillation, "masked", lambda images, share: (1 - share) * images)
    start = tiny_classifier(batchnorm=False)
    task = tiny_task(pretrained=start, methods={"ft": FineTuning()}, **WHOLE)
    x, y = (batch := next(task.batches(24))).images, batch.labels
    old = start.features(x).detach()

    def masked_loss(model: Classifier) -> Tensor:
        return ((model.features(0.6 * x) - old) ** 2).sum() / (old**2).sum()

    teacher, student = start.copy(), start.copy()
    sgd(teacher, teacher.encoder.parameters(), lambda: masked_loss(teacher))
    taught = teacher.features(x).detach()
    sgd(student, student.encoder.parameters(), lambda: masked_loss(student)
        + 0.5 * ((student.features(x) - taught) ** 2).sum() / (taught**2).sum())  # fmt: skip
    sgd(student, student.parameters(), lambda: F.cross_entropy(student(x), y))
    result = SelfDistillation(mask=0.4, lambda_=0.5).finetune(task)
    torch.testing.assert_close(result.state_dict(), student.state_dict(), rtol=1e-4, atol=1e-5)
    without = FineTuning().finetune(tiny_task(pretrained=start.copy(), **WHOLE))
    assert (result.head.weight - without.head.weight).abs().max() > 1e-4  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "stages"),
    [({}, [3, 3, 3]), ({"epochs": 1}, [1, 1, 3]), ({"epochs": 5}, [5, 5, 3]), ({"epochs": 0}, [3])],
)
def test_how_long_each_stage_takes(
    options: dict[str, Any], stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: the options' meaning, in epochs; rates are those of the option and the recipe."""
    seen: list[tuple[int, float]] = []
    original = Task.fit

    def fit(self: Task, model: Classifier, loss: Any = None, **recipe: Any) -> Classifier:
        given = self.recipe.model_copy(update=recipe)
        seen.append((given.epochs, given.lr))
        return original(self, model, loss, **recipe)

    monkeypatch.setattr(Task, "fit", fit)
    task = tiny_task(methods={"ft": FineTuning()})
    SelfDistillation(**options, lr_scale=0.1).finetune(task)
    assert [epochs for epochs, _ in seen] == stages
    expected = [0.005] * (len(stages) - 1) + [0.05]
    assert [lr for _, lr in seen] == pytest.approx(expected)


def test_the_labels_are_not_used_before_the_third_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the same images under other labels have the same student."""
    starts = []
    for shift in (0, 1):
        images = tiny_images()
        images = replace(images, labels=(images.labels + shift) % 10)
        task = tiny_task(images=images, methods={"ft": FineTuning()})
        with monkeypatch.context() as patch:
            patch.setattr(Task, "run", lambda self, reference, start, **_: start)
            starts.append(SelfDistillation().finetune(task))
    torch.testing.assert_close(starts[0].state_dict(), starts[1].state_dict(), rtol=0, atol=0)
    assert torch.equal(starts[0].head.weight, tiny_classifier().head.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TwoWingNormalisation(lambda_=-1), "twins: expected lambda ≥ 0, got -1."),
        (lambda: TwoWingNormalisation(eps=2), "twins: expected eps in 0 … 1, got 2."),
        (lambda: FunctionSpaceRegularisation(-1), "fsr: expected weights ≥ 0"),
        (lambda: FunctionSpaceRegularisation(1, -1), "fsr: expected weights ≥ 0"),
        (lambda: SelfDistillation(lambda_=-1), "self-distillation: expected lambda ≥ 0"),
        (lambda: SelfDistillation(mask=1.5), "self-distillation: expected mask in 0 … 1"),
        (lambda: SelfDistillation(epochs=-1), "self-distillation: expected epochs ≥ 0"),
        (lambda: SelfDistillation(lr_scale=0), "self-distillation: expected lr_scale > 0"),
    ],
)
def test_a_wrong_option_is_told(make: Any, text: str) -> None:
    """Source: the options' meaning."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
