"""What the methods compute that stay near the pretrained weights or features.

Expected values come from closed forms in numpy, from loops written out in plain torch, and from
numbers that another library was asked for; each test says from which.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rib_plugin_cl_methods.anchor import check_steady, largest_of
from rib_plugin_cl_methods.ema import MovingAverage
from rib_plugin_cl_methods.ewc import ElasticWeightConsolidation
from rib_plugin_cl_methods.feature_distill import FeatureDistillation
from rib_plugin_cl_methods.ft import FineTuning
from rib_plugin_cl_methods.ftp import Balls, FastTrainableProjection
from rib_plugin_cl_methods.importance import mean_over_images, normalised
from rib_plugin_cl_methods.l1_sp import L1SP
from rib_plugin_cl_methods.l2_sp import L2SP
from rib_plugin_cl_methods.mas import MemoryAwareSynapses
from rib_plugin_cl_methods.pretraining_data import PretrainingData
from rib_plugin_cl_methods.projection import projected
from rib_plugin_cl_methods.si import PathIntegral, SynapticIntelligence
from rib_plugin_cl_methods.tpgm import TrainableProjection
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Classifier, ConfigError, ImageSet, Task
from rib_harness.engine.fit import _Fit
from rib_harness.testing import TINY, tiny_classifier, tiny_images, tiny_task

#: One batch holds the whole set and nothing about a step is random: easy to write out by hand.
WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant"}
OTHER = tiny_images(seed=3)


def plain_task(**arguments: Any) -> Task:
    """A task on a net without batch-norm and dropout, one batch an epoch; `other` is at hand."""
    net = tiny_classifier(batchnorm=False)
    return tiny_task(pretrained=net, datasets={"other": OTHER}, **{**WHOLE, **arguments})


def inputs_of(images: ImageSet) -> Tensor:
    """The set as a model's input, (N, 3, 8, 8), from the pictures and without the engine."""
    pictures = np.stack([np.asarray(images.image(i)) for i in range(len(images))])
    normal = (pictures / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    return torch.tensor(normal.transpose(0, 3, 1, 2), dtype=torch.float32)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_near(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), atol=1e-6, rtol=1e-5)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), atol=0, rtol=0)


def descended(
    task: Task,
    steps: int,
    pull: Callable[[str, Tensor], Tensor] | None = None,
    extra: Callable[[Classifier, Tensor], Tensor] | None = None,
    after: Callable[[Classifier, dict[str, Tensor], dict[str, Tensor]], None] | None = None,
) -> Classifier:
    """SGD at 0.05 written out, on the whole set at once.

    Args:
        pull: (name, θ − θ₀) → what is added to the gradient.
        extra: (model, inputs) → what is added to the cross-entropy.
        after: called with the model, the last gradients and the weights before the step.
    """
    x, y = inputs_of(task.images), torch.tensor(task.images.labels)
    model, start = task.pretrained.copy(), weights_of(task.pretrained)
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y) + (extra(model, x) if extra else 0)
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients = dict(zip(start, found, strict=True))
        before = weights_of(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.05 * (gradients[name] + (pull(name, p - start[name]) if pull else 0))
            if after:
                after(model, gradients, before)
    return model


def loss_of(method: Any, task: Task) -> tuple[Classifier, Any]:
    """The model and the loss that a method hands to `fit`, before any step."""
    caught: list[Any] = []

    def fit(model: Classifier, loss: Any = None, **rest: Any) -> Classifier:
        caught.append((model, loss))
        return model

    task.fit = fit  # type: ignore[method-assign]
    method.finetune(task)
    return caught[-1]  # type: ignore[no-any-return]


def moved(model: Classifier, seed: int = 0, by: float = 0.1) -> dict[str, np.ndarray]:
    """Move a model at random, in place; the moves, as they came out in float32."""
    generator, before = torch.Generator().manual_seed(seed), weights_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return {n: (p - before[n]).double().numpy() for n, p in weights_of(model).items()}


def linear_task(**arguments: Any) -> Task:
    """Logits W x + b on pixels, whose gradients are known in closed form."""
    generator = torch.Generator().manual_seed(0)
    model = Classifier(nn.Flatten(), nn.Linear(192, 10), TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return tiny_task(pretrained=model, datasets={"other": OTHER}, **arguments)


def numpy_logits(task: Task, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """x, (N, 192), and W x + b, (N, 10), in float64."""
    x = inputs_of(images).flatten(1).double().numpy()
    w, b = (t.double().numpy() for t in task.pretrained.head.state_dict().values())
    return x, x @ w.T + b


def over_mean(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divided by the mean of all values together, in numpy."""
    mean = np.concatenate([v.double().numpy().ravel() for v in raw.values()]).mean()
    return {name: value / float(mean) for name, value in raw.items()}


# Importance: mas, ewc, si


def test_mas_is_the_mean_of_absolute_gradients_image_by_image() -> None:
    """Source: ∂ ‖z‖² / ∂W = 2 z xᵀ and ∂ ‖z‖² / ∂b = 2 z for z = W x + b, in numpy."""
    task = linear_task()
    x, z = numpy_logits(task, task.images)
    omega = MemoryAwareSynapses(images=None).importance(task)
    per_image = 2 * z[:, :, None] * x[:, None, :]
    np.testing.assert_allclose(omega["head.weight"], np.abs(per_image).mean(0), rtol=1e-4)
    np.testing.assert_allclose(omega["head.bias"], np.abs(2 * z).mean(0), rtol=1e-4)
    # The absolute value of the mean would be less.
    assert omega["head.weight"].sum() > 1.4 * np.abs(per_image.mean(0)).sum()


def test_mas_takes_as_many_images_as_it_is_told() -> None:
    """Source: the closed form on those that the task's generator of that name draws."""
    task = linear_task(seed=3)
    chosen = torch.randperm(24, generator=task.generator("mas"))[:7].numpy()
    _, z = numpy_logits(task, task.images)
    omega = MemoryAwareSynapses(images=7).importance(task)
    np.testing.assert_allclose(omega["head.bias"], np.abs(2 * z[chosen]).mean(0), rtol=1e-4)


def test_mas_can_be_taken_on_other_images() -> None:
    """Source: the closed form on the other dataset's pictures."""
    task = linear_task()
    x, z = numpy_logits(task, OTHER)
    omega = MemoryAwareSynapses(images=None, data="other").importance(task)
    expected = np.abs(2 * z[:, :, None] * x[:, None, :]).mean(0)
    np.testing.assert_allclose(omega["head.weight"], expected, rtol=1e-4)


def test_ewc_can_be_taken_on_other_images() -> None:
    """Source: (e_y − p) xᵀ squared, in numpy, on the other pictures and the labels drawn for them.

    Labels are drawn image by image, by the generator that drew the order.
    """
    task = linear_task()
    generator = task.generator("ewc")
    order = torch.randperm(24, generator=generator).numpy()
    x, z = (array[order] for array in numpy_logits(task, OTHER))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    rows = torch.tensor(p, dtype=torch.float32)
    y = [int(torch.multinomial(row, 1, generator=generator)) for row in rows]
    squared = ((np.eye(10)[y] - p)[:, :, None] * x[:, None, :]) ** 2
    fisher = ElasticWeightConsolidation(images=None, data="other").importance(task)
    np.testing.assert_allclose(fisher["head.weight"], squared.mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", [ElasticWeightConsolidation, MemoryAwareSynapses])
def test_a_dataset_that_was_not_declared_is_named(method: Any) -> None:
    """Source: the name that was given."""
    with pytest.raises(ConfigError, match="declare the dataset 'elsewhere'"):
        method(data="elsewhere").finetune(tiny_task())


def test_the_fisher_information_is_what_avalanche_computes() -> None:
    """Source: `avalanche_fisher.json`, avalanche 0.6.0; `make_avalanche_fisher.py` recorded it."""
    record = json.loads(Path(__file__).with_name("avalanche_fisher.json").read_text())
    pictures = np.array(record["images"], dtype=np.uint8)
    images = replace(
        tiny_images(n=6, classes=4),
        labels=np.array(record["labels"]),
        read=lambda i: Image.fromarray(pictures[i]),
    )
    encoder = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(encoder, nn.Linear(3, 4), TINY).eval()
    ours = {"encoder.0.weight": "0.weight", "encoder.0.bias": "0.bias",
            "head.weight": "3.weight", "head.bias": "3.bias"}  # fmt: skip
    model.load_state_dict({name: torch.tensor(record["weights"][ours[name]]) for name in ours})
    task = tiny_task(images=images, pretrained=model)
    order = torch.randperm(6, generator=task.generator("given"))
    labels = iter(images.labels[order.numpy()].tolist())

    def given(logits: Tensor, generator: torch.Generator) -> Tensor:
        return F.log_softmax(logits, 1)[0, next(labels)]

    fisher = mean_over_images(task, given, torch.square, None, "given")
    assert set(fisher) == set(ours)
    for name, value in fisher.items():
        expected = np.array(record["fisher"][ours[name]])
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-8)
        assert (expected > 0).any()


def test_the_fisher_information_is_cut_at_a_multiple_of_its_mean() -> None:
    """Source: numpy's minimum, after scaling to mean 1."""
    values = {"a": torch.tensor([0.0, 1.0, 2.0]), "b": torch.tensor([197.0])}
    found = normalised(values, 3.0)
    np.testing.assert_allclose(found["a"], np.array([0, 1, 2]) / 50)
    np.testing.assert_allclose(found["b"], [3.0])
    assert largest_of(normalised(values)) == pytest.approx(197 / 50)
    assert largest_of(None) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("side", [0.99, 1.01])
def test_a_penalty_is_told_where_gradient_descent_on_it_grows(
    momentum: float, side: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Source: torch's own SGD on h θ² / 2, 200 steps: it dies out, or grows."""
    curvature = side * 2 * (1 + momentum) / 0.1
    theta = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.1, momentum=momentum)
    for _ in range(200):
        optimizer.zero_grad()
        (curvature / 2 * theta**2).backward()
        optimizer.step()
    grows = abs(theta.item()) > 1
    task = tiny_task(lr=0.1, momentum=momentum)
    check_steady(task, curvature)
    assert ("unsteady" in task.facts) == grows == (side > 1)
    assert ("too strong for the learning rate" in caplog.text) == grows


@pytest.mark.parametrize(
    ("method", "strength"),
    [
        (L2SP(alpha=80.0), 80.0),
        (ElasticWeightConsolidation(lambda_=80.0, fisher="identity"), 80.0),
        (ElasticWeightConsolidation(lambda_=80.0, largest=1.0), 80.0),
    ],
)
def test_methods_tell_of_a_penalty_that_is_too_strong(method: Any, strength: float) -> None:
    """Source: 0.05 × 80 = 4 ≥ 2 · (1 + 0.9)."""
    task = tiny_task(epochs=0)
    method.finetune(task)
    assert f"{task.recipe.lr:g} × {strength:g}" in task.facts["unsteady"]
    quiet = tiny_task(epochs=0)
    replace(method, **{next(iter(vars(method))): 0.1}).finetune(quiet)
    assert "unsteady" not in quiet.facts


def test_the_path_integral_is_the_sum_of_minus_gradient_times_move() -> None:
    """Source: SGD written out, with Ω = max(0, Σ −g Δθ_t) / (Δθ² + ξ) from its steps."""
    task = plain_task(epochs=4)
    gain = {name: torch.zeros_like(value) for name, value in weights_of(task.pretrained).items()}

    def count(model: Classifier, gradients: Any, before: Any) -> None:
        for name, p in model.named_parameters():
            gain[name] += -gradients[name] * (p - before[name])

    after = weights_of(descended(task.on("other"), 4, after=count))
    start = weights_of(task.pretrained)
    omega = SynapticIntelligence(old="other", xi=1e-3).importance(task)
    for name in start:
        expected = gain[name].clamp(min=0) / ((after[name] - start[name]) ** 2 + 1e-3)
        torch.testing.assert_close(omega[name], expected, rtol=1e-3, atol=1e-6)
        assert omega[name].max() > 1e-3


def test_weights_that_raised_the_loss_do_not_count() -> None:
    """Source: the sign: ascent instead of descent has an integral below zero everywhere."""
    task = plain_task(epochs=2)
    caught: list[PathIntegral] = []

    def fit(self: Task, model: Classifier, *, state: Any, after_step: Any) -> Classifier:
        caught.append(state["path"])
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
            parameter.data += 0.1
        after_step()
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "fit", fit)
        omega = SynapticIntelligence(old="other").importance(task)
    assert all((value < -0.09).all() for value in caught[0].gain.values())
    assert all((value == 0).all() for value in omega.values())


@pytest.mark.parametrize("lr", [0.2, 0.02, 0.0002])
def test_on_a_quadratic_the_path_integral_tends_to_the_drop_of_the_loss(lr: float) -> None:
    """Source: for L = Σ a (θ − c)² / 2 the sum is the drop over 1 − lr a / 2: a geometric series.

    So its limit for small steps is the drop itself, weight by weight.
    """
    a, c = torch.tensor([0.5, 1.0, 3.0]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    model: Any = nn.ParameterDict({"theta": nn.Parameter(torch.zeros(3).double())})
    path = PathIntegral(model)
    for _ in range(500):
        model["theta"].grad = a * (model["theta"].detach() - c)
        model["theta"].data -= lr * model["theta"].grad
        path.add()
    drop = (a * (c**2 - (model["theta"].detach() - c) ** 2) / 2).numpy()
    np.testing.assert_allclose(path.gain["theta"], drop / (1 - lr * a.numpy() / 2), rtol=1e-9)
    if lr < 1e-3:
        np.testing.assert_allclose(path.gain["theta"], drop, rtol=1e-3)


# Penalties, and training with them


PENALISED = [
    pytest.param(MemoryAwareSynapses(3.0, images=None), 3.0, id="mas"),
    pytest.param(MemoryAwareSynapses(3.0, images=None, data="other"), 3.0, id="mas-other"),
    pytest.param(ElasticWeightConsolidation(3.0, data="other"), 1.5, id="ewc-other"),
    pytest.param(SynapticIntelligence("other", c=3.0, xi=1e-3), 3.0, id="si"),
]


@pytest.mark.parametrize(("method", "factor"), PENALISED)
def test_a_penalty_is_weighted_squared_distance(method: Any, factor: float) -> None:
    """Source: cross-entropy + factor · Σ Ω Δ² in numpy, Ω over its mean; factor is half EWC's λ."""
    weight = over_mean(method.importance(plain_task()))
    model, loss = loss_of(method, task := plain_task())
    batch = next(task.batches(24))
    at_start = loss(model, batch).item()
    assert at_start == pytest.approx(F.cross_entropy(model(batch.images), batch.labels).item())
    moves = moved(model)
    learned = F.cross_entropy(model(batch.images), batch.labels).item()
    penalty = sum((weight[n].double().numpy() * move**2).sum() for n, move in moves.items())
    assert loss(model, batch).item() == pytest.approx(learned + factor * penalty, rel=1e-5)


@pytest.mark.parametrize(("method", "factor"), PENALISED)
def test_training_with_a_penalty_pulls_by_importance(method: Any, factor: float) -> None:
    """Source: SGD written out, with 2 · factor · Ω (θ − θ₀) added to the gradient."""
    weight = over_mean(method.importance(plain_task()))
    task = plain_task(epochs=3)
    expected = descended(task, 3, lambda name, move: 2 * factor * weight[name] * move)
    assert_near(method.finetune(task), expected)
    with pytest.raises(AssertionError):  # the tolerance sees an importance of 1
        assert_near(expected, descended(task, 3, lambda name, move: 2 * factor * move))


def size_of(model: nn.Module) -> float:
    return sum(float(np.abs(p.double().numpy()).sum()) for p in weights_of(model).values())


def test_l1_sp_charges_the_distance() -> None:
    """Source: cross-entropy + α · Σ |Δ| / Σ |θ₀|, in numpy."""
    model, loss = loss_of(L1SP(alpha=0.3), task := plain_task())
    batch = next(task.batches(24))
    moves = moved(model)
    learned = F.cross_entropy(model(batch.images), batch.labels).item()
    penalty = sum(np.abs(move).sum() for move in moves.values()) / size_of(task.pretrained)
    assert loss(model, batch).item() == pytest.approx(learned + 0.3 * penalty, rel=1e-5)


def test_l1_sp_pulls_every_weight_alike() -> None:
    """Source: SGD written out, α / Σ|θ₀| · sign(θ − θ₀) added to the gradient; 0 at θ₀ itself."""
    task = plain_task(epochs=3)
    result = L1SP(alpha=0.01 * size_of(task.pretrained)).finetune(task)
    assert_near(result, descended(task, 3, lambda name, move: 0.01 * torch.sign(move)))
    with pytest.raises(AssertionError):
        assert_near(result, descended(task, 3, lambda name, move: 0.02 * torch.sign(move)))


def test_feature_distillation_charges_the_drift_of_the_features() -> None:
    """Source: cross-entropy + λ · Σ‖Φ − Φ₀‖² / Σ‖Φ₀‖², in numpy, on images out of order."""
    model, loss = loss_of(FeatureDistillation(lambda_=0.7), task := plain_task())
    batch = next(task.batches(24, torch.tensor([5, 3, 20, 11, 0])))
    moved(model)
    x = inputs_of(task.images)[[5, 3, 20, 11, 0]]
    with torch.no_grad():
        new, old = (net.encoder(x).double().numpy() for net in (model, task.pretrained))
        learned = F.cross_entropy(model(x), batch.labels).item()
    drift = ((new - old) ** 2).sum() / (old**2).sum()
    assert loss(model, batch).item() == pytest.approx(learned + 0.7 * drift, rel=1e-5)


def test_feature_distillation_trains_with_that_penalty() -> None:
    """Source: SGD written out, on cross-entropy plus λ · the relative squared drift."""
    task = plain_task(epochs=3)
    old = task.pretrained.encoder(inputs_of(task.images)).detach()

    def drift(model: Classifier, x: Tensor) -> Tensor:
        return 5.0 * ((model.encoder(x) - old) ** 2).sum() / (old**2).sum()

    result = FeatureDistillation(lambda_=5.0).finetune(task)
    assert_near(result, descended(task, 3, extra=drift))
    with pytest.raises(AssertionError):
        assert_near(result, FineTuning().finetune(plain_task(epochs=3)))


# pretraining-data


def test_old_images_that_are_like_the_new_ones_are_chosen() -> None:
    """Source: cosines with the classes' mean directions, by loops in numpy."""
    task = plain_task()
    chosen = PretrainingData("other", share=0.25).nearest(task, task.on("other"))
    with torch.no_grad():
        new, old = (
            task.pretrained.encoder(inputs_of(images)).double().numpy()
            for images in (task.images, OTHER)
        )
    new, old = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (new, old))
    labels = np.array(task.images.labels)
    nearness = []
    for row in old:
        means = [new[labels == k].mean(0) for k in np.unique(labels)]
        nearness.append(max(row @ mean / np.linalg.norm(mean) for mean in means))
    assert chosen.tolist() == np.argsort(-np.array(nearness))[:6].tolist()


def test_both_losses_are_weighed_and_the_old_images_are_drawn_from_the_chosen() -> None:
    """Source: cross-entropy in plain torch; the indices that the loss asks for."""
    method = PretrainingData("other", weight=0.3, share=0.25)
    model, loss = loss_of(method, task := plain_task())
    moved(model)
    old, asked = task.on("other"), []
    batches = old.batches

    def watched(size: int, order: Tensor) -> Any:
        asked.append(order.tolist())
        return batches(size, order)

    old.batches = watched  # type: ignore[method-assign]
    batch = next(task.batches(24))
    value = loss(model, batch).item()
    (drawn,) = asked
    chosen = set(method.nearest(task, plain_task().on("other")).tolist())
    assert set(drawn) <= chosen and len(drawn) == 24 and len(set(drawn)) > 3
    with torch.no_grad():
        learned = F.cross_entropy(model(inputs_of(task.images)), torch.tensor(task.images.labels))
        x, y = inputs_of(OTHER)[drawn], torch.tensor(OTHER.labels)[drawn]
        expected = learned + 0.3 * F.cross_entropy(model(x), y)
    assert value == pytest.approx(expected.item(), rel=1e-5)


# ema


def test_ema_is_the_average_along_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: θ̄ ← d θ̄ + (1 − d) θ in numpy over the weights after each of nine updates.

    It begins with the weights after the first. Batch-norm statistics are averaged likewise.
    """
    original, seen = _Fit.update, []

    def update(self: _Fit, batch: Any) -> Any:
        result = original(self, batch)
        state = self.model.state_dict()
        seen.append({n: t.double().numpy().copy() for n, t in state.items()})
        return result

    monkeypatch.setattr(_Fit, "update", update)
    result = MovingAverage(horizon=0.5).finetune(tiny_task()).state_dict()
    assert len(seen) == 9
    decay, average = 1 - 1 / (0.5 * 9), seen[0]
    for now in seen[1:]:
        average = {n: decay * average[n] + (1 - decay) * now[n] for n in now}
    for name, tensor in result.items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(tensor, average[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("horizon", "recipe", "decay"),
    [
        (0.1, {"epochs": 10}, 1 - 1 / 3),  # 30 updates
        (1.0, {"epochs": 10}, 1 - 1 / 30),
        (0.5, {"epochs": 10, "max_steps": 8}, 1 - 1 / 4),
        (0.5, {"epochs": 2, "batch_size": 5}, 1 - 1 / 5),  # 24 images in 5 batches an epoch
        (0.1, {}, 0.0),  # less than one update
    ],
)
def test_the_horizon_is_a_share_of_the_updates(
    horizon: float, recipe: Any, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: 1 − 1 / (horizon · updates), with the updates counted by hand."""
    asked: list[float] = []

    def fit(self: Task, model: Classifier, *, ema: float) -> Classifier:
        asked.append(ema)
        return model

    monkeypatch.setattr(Task, "fit", fit)
    MovingAverage(horizon=horizon).finetune(tiny_task(**recipe))
    assert asked == [pytest.approx(decay)]


@pytest.mark.parametrize("batchnorm", [True, False])
def test_ema_without_a_horizon_is_fine_tuning(batchnorm: bool) -> None:
    """Source: `ft`, to the bit, counters of batch-norm included."""
    tasks = [tiny_task(pretrained=tiny_classifier(batchnorm=batchnorm)) for _ in range(2)]
    assert_same(MovingAverage(horizon=0).finetune(tasks[0]), FineTuning().finetune(tasks[1]))


# Projections: tpgm, ftp


def test_projected_is_the_nearest_point_of_a_ball() -> None:
    """Source: θ₀ + Δ · min(1, γ / ‖Δ‖), in numpy."""
    rng = np.random.default_rng(0)
    start, move = rng.standard_normal((2, 3, 5))
    norm = np.sqrt((move**2).sum())
    for radius in (0.0, 0.3 * norm, norm, 2 * norm):
        got = projected(torch.tensor(start), torch.tensor(move), torch.tensor(radius))
        np.testing.assert_allclose(got, start + move * min(1, radius / norm), rtol=1e-12)
    still = projected(torch.tensor(start), torch.zeros(3, 5), torch.tensor(0.0))
    np.testing.assert_array_equal(still, start)


def line_task(zeros: int, of: int) -> Task:
    """θ₀ = 0, one tensor that moved, and held-out images that are all the same picture.

    The move gives that picture a margin of 4 for class 0, which `zeros` of `of` labels are.
    """
    picture = np.asarray(tiny_images().image(0))
    held = replace(
        tiny_images(n=of, classes=2),
        labels=np.array([0] * zeros + [1] * (of - zeros)),
        read=lambda i: Image.fromarray(picture),
    )
    x = inputs_of(held)[0].flatten()
    models = [Classifier(nn.Flatten(), nn.Linear(192, 2, bias=False), TINY) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            model.head.weight.zero_()
        models[1].head.weight[0] = x * 4 / (x @ x)
    return tiny_task(
        images=tiny_images(classes=2), pretrained=models[0].eval(), held=held,
        checkpoints={"ft": models[1].eval()}, batch_size=of,
    )  # fmt: skip


@pytest.mark.parametrize(("zeros", "share"), [(15, np.log(3) / 4), (20, 1.0), (5, 0.0)])
def test_tpgm_learns_the_share_that_is_best_on_held_out_images(zeros: int, share: float) -> None:
    """Source: −q log σ(4s) − (1 − q) log σ(−4s) is least at s = log(q / (1 − q)) / 4, in 0 … 1."""
    task = line_task(zeros, 20)
    result = TrainableProjection(iterations=300, lr=0.02).finetune(task)
    weight = result.head.get_parameter("weight")
    torch.testing.assert_close(
        weight, share * task.checkpoint("ft").head.get_parameter("weight"), atol=2e-4, rtol=0
    )
    assert task.facts == {"shares": {"head.weight": pytest.approx(share, abs=1e-3)}}


def tuned_task(seed: int = 0) -> Task:
    """A task with a fine-tuned checkpoint and held-out images."""
    return tiny_task(checkpoints={"ft": FineTuning().finetune(tiny_task())}, held=OTHER, seed=seed)


def test_tpgm_at_rest_is_the_base_or_the_start() -> None:
    """Source: the checkpoint and the pretrained model; the base to the bit."""
    task = tuned_task()
    base = TrainableProjection(iterations=0, start=1.0).finetune(task)
    assert_same(base, task.checkpoint("ft"))
    theta0 = TrainableProjection(iterations=0, start=0.0).finetune(task)
    torch.testing.assert_close(weights_of(theta0), weights_of(task.pretrained), atol=0, rtol=0)
    half = TrainableProjection(iterations=0, start=0.5).finetune(task)
    mean = {n: (w + weights_of(base)[n]) / 2 for n, w in weights_of(theta0).items()}
    torch.testing.assert_close(weights_of(half), mean)


@pytest.mark.parametrize("lr", [1e-3, 1e-2, 10.0])
def test_tpgm_goes_no_further_than_the_base(lr: float) -> None:
    """Source: ‖θ − θ₀‖ and ‖Δ‖ of each tensor; all lie on the line between the two."""
    task = tuned_task()
    start, end = weights_of(task.pretrained), weights_of(task.checkpoint("ft"))
    result = weights_of(TrainableProjection(iterations=7, lr=lr).finetune(task))
    for name, share in task.facts["shares"].items():
        assert 0 <= share <= 1
        torch.testing.assert_close(
            result[name] - start[name], share * (end[name] - start[name]), atol=2e-4, rtol=0
        )
    # At such a rate most shares are at one end, at a small one none is.
    ends = [share in (0, 1) for share in task.facts["shares"].values()]
    assert sum(ends) > len(ends) / 2 if lr == 10.0 else not any(ends)


@pytest.mark.parametrize("batch_norm", ["base", "recompute"])
def test_tpgms_statistics(batch_norm: Any) -> None:
    """Source: the base's own, or those that batches of the fine-tuning set have, in torch."""
    task = tuned_task()
    result = TrainableProjection(iterations=5, batch_norm=batch_norm).finetune(task)
    base, own = task.checkpoint("ft").state_dict(), result.state_dict()
    anew = task.recompute_batchnorm(result.copy()).state_dict()
    for name in ("encoder.1.running_mean", "encoder.1.running_var"):
        assert torch.equal(own[name], base[name]) == (batch_norm == "base")
        assert torch.equal(own[name], anew[name]) == (batch_norm == "recompute")


def test_the_gradient_of_a_radius_is_that_of_the_projection() -> None:
    """Source: autograd through `projected` where it acts; k times what would shrink a radius."""
    task, k = plain_task(), 0.25
    model = task.pretrained.copy()
    start, balls = weights_of(model), Balls(model, lr=1e-2, k=k)
    moved(model)
    balls.project()
    with torch.no_grad():
        balls.radii.mul_(0.6)
        for i, (name, p) in enumerate(model.named_parameters()):
            p.copy_(projected(start[name], balls.moves[name], balls.radii[i]))
    x, y = inputs_of(task.images), torch.tensor(task.images.labels)
    F.cross_entropy(model(x), y).backward()
    radii = balls.radii.detach().clone().requires_grad_(True)
    through = {n: projected(start[n], balls.moves[n], radii[i]) for i, n in enumerate(start)}
    F.cross_entropy(functional_call(model, through, (x,)), y).backward()
    expected = radii.grad
    assert expected is not None and (expected > 0).any() and (expected < 0).any()
    with torch.no_grad():
        balls.learn()
    wanted = torch.where(expected > 0, k * expected, expected)
    torch.testing.assert_close(balls.radii.grad, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_ftp_is_sgd_projected_to_radii_that_adam_learns(k: float) -> None:
    """Source: SGD, the projection and Adam written out."""
    lr, start = 0.03, weights_of((task := plain_task(epochs=5)).pretrained)
    radius, move = {}, {}
    first, second = dict.fromkeys(start, 0.0), dict.fromkeys(start, 0.0)
    times = 0

    def project(model: Classifier, gradients: Any, before: Any) -> None:
        nonlocal times
        for name, p in model.named_parameters():
            if times:
                g = float((gradients[name] * move[name]).sum() / move[name].norm())
                g *= k if g > 0 else 1
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                rate = first[name] / (1 - 0.9**times)
                rate /= (second[name] / (1 - 0.999**times)) ** 0.5 + 1e-8
                radius[name] = max(0.0, radius[name] - lr * rate)
            move[name] = p.detach() - start[name]
            norm = float(move[name].norm())
            radius[name] = min(radius.get(name, norm), norm)
            p.copy_(start[name] + move[name] * min(1.0, radius[name] / norm))
        times += 1

    expected = descended(task, 5, after=project)
    assert_near(FastTrainableProjection(lr=lr, k=k).finetune(task), expected)


def test_ftp_projects_no_first_step() -> None:
    """Source: `ft` of one step."""
    result = FastTrainableProjection().finetune(plain_task(epochs=1))
    assert_near(result, FineTuning().finetune(plain_task(epochs=1)))


def radii_of(k: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Radii and lengths of the moves after each step; every tensor has to lie in its ball.

    At a rate at which steps overshoot, so that some gradients point away from θ₀.
    """
    original, radii, lengths = Balls.project, [], []

    def project(self: Balls) -> None:
        original(self)
        radii.append(self.radii.detach().clone())
        lengths.append(torch.stack([move.norm() for move in self.moves.values()]))
        assert (radii[-1] <= lengths[-1]).all()
        for i, (name, p) in enumerate(self.parameters.items()):
            assert (p - self.start[name]).norm() <= self.radii[i] * (1 + 1e-4) + 1e-6

    with monkeypatch.context() as patch:
        patch.setattr(Balls, "project", project)
        task = tiny_task(pretrained=tiny_classifier(batchnorm=False), lr=0.5)
        FastTrainableProjection(k=k).finetune(task)
    assert len(radii) == 9 and (radii[0] > 0).all()
    return radii, lengths


def test_after_each_step_the_weights_lie_in_their_balls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the norms; with k = 0 no radius shrinks but with the move, with k = 1 some do."""
    for k, shrinks in ((0.0, False), (1.0, True)):
        radii, lengths = radii_of(k, monkeypatch)
        shrunk = [
            (after < torch.minimum(before, length)).any()
            for (before, after), length in zip(pairwise(radii), lengths[1:], strict=True)
        ]
        assert any(shrunk) == shrinks


@pytest.mark.parametrize("step", [1, 5])
def test_ftp_goes_on_with_its_radii(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: a run without an interruption, to the bit."""
    original = _Fit.update

    def killed(self: _Fit, batch: Any) -> Any:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Fit, "update", killed)
        FastTrainableProjection(lr=0.05).finetune(tiny_task(work=tmp_path))
    assert list(tmp_path.glob("state-*"))
    result = FastTrainableProjection(lr=0.05).finetune(tiny_task(work=tmp_path))
    assert_same(result, FastTrainableProjection(lr=0.05).finetune(tiny_task()))


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        (MemoryAwareSynapses, {"lambda_": -1}, "mas: expected lambda ≥ 0, got -1."),
        (MemoryAwareSynapses, {"images": 0}, "mas: expected images ≥ 1 or none, got 0."),
        (ElasticWeightConsolidation, {"images": 0}, "ewc: expected images ≥ 1 or none, got 0."),
        (SynapticIntelligence, {"old": "x", "c": -1}, "si: expected c ≥ 0 and xi > 0, got (-1, "),
        (
            SynapticIntelligence,
            {"old": "x", "xi": 0},
            "si: expected c ≥ 0 and xi > 0, got (0.1, 0)",
        ),
        (L1SP, {"alpha": -0.5}, "l1-sp: expected alpha ≥ 0, got -0.5."),
        (FeatureDistillation, {"lambda_": -1}, "feature-distill: expected lambda ≥ 0, got -1."),
        (MovingAverage, {"horizon": 1.5}, "ema: expected horizon in 0 … 1, got 1.5."),
        (MovingAverage, {"horizon": float("nan")}, "ema: expected horizon in 0 … 1, got nan."),
        (TrainableProjection, {"iterations": -1}, "tpgm: expected iterations ≥ 0, got -1."),
        (TrainableProjection, {"lr": 0}, "tpgm: expected lr > 0, got 0."),
        (TrainableProjection, {"start": 1.1}, "tpgm: expected start in 0 … 1, got 1.1."),
        (FastTrainableProjection, {"lr": 0}, "ftp: expected lr > 0, got 0."),
        (FastTrainableProjection, {"k": 2}, "ftp: expected k in 0 … 1, got 2."),
    ],
)
def test_a_wrong_option_is_told(method: Any, options: Any, text: str) -> None:
    """Source: the options' meaning."""
    with pytest.raises(ConfigError) as caught:
        method(**options)
    assert text in str(caught.value)
