"""spd and mixout: what pulls back to θ₀ tensor by tensor, and neuron by neuron.

Expected values come from the authors' code (`anchor_authors.json`; `make_anchor_authors.py`
recorded it), from what dropout does, and from loops written out in numpy.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rib_plugin_cl_methods import mixout as mixing
from rib_plugin_cl_methods.mixout import Mixed, Mixout, mask_of, mixable
from rib_plugin_cl_methods.spd import Decay, SelectiveProjectionDecay
from torch import Tensor, nn

from rib_harness import Classifier, ConfigError, Task
from rib_harness.testing import TINY, tiny_classifier, tiny_task, tiny_vit

AUTHORS = json.loads(Path(__file__).with_name("anchor_authors.json").read_text())
#: One batch holds the whole set and nothing but the method is random.
WHOLE: dict[str, Any] = {"batch_size": 24, "schedule": "constant", "lr": 0.05}


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear_task(**arguments: Any) -> Task:
    """Logits W x + b on pixels, whose gradients are known in closed form."""
    generator = torch.Generator().manual_seed(0)
    model = Classifier(nn.Flatten(), nn.Linear(192, 10), TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return tiny_task(pretrained=model, **{**WHOLE, **arguments})


def data_of(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, (N, 192), the labels as rows, (N, 10), W and b, in float64."""
    images = task.images
    pictures = np.stack([np.asarray(images.image(i)) for i in range(len(images))])
    normal = (pictures / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    x = normal.transpose(0, 3, 1, 2).reshape(len(images), -1)
    w, b = (t.double().numpy() for t in task.pretrained.head.state_dict().values())
    return x, np.eye(10)[images.labels], w, b


def slopes(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """The gradient of the mean cross-entropy by W and b."""
    z = x @ w.T + b
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return [(p - y).T @ x / len(x), (p - y).mean(0)]


# spd


@pytest.mark.parametrize("strength", ["0.5", "1.0", "2.0"])
def test_spd_under_adam_is_the_authors_optimizer(strength: str) -> None:
    """Source: AdamSPD of the authors, on gradients that turn around; Adam is torch's own here."""
    record = AUTHORS["spd"]
    model: Any = nn.ParameterList(nn.Parameter(double(one)) for one in record["start"])
    decay, free = Decay(model, float(strength)), [double(one) for one in record["start"]]
    adam = torch.optim.Adam(model.parameters(), lr=record["lr"])
    for step, expected in zip(record["gradients"], record["paths"][strength], strict=True):
        for parameter, gradient in zip(model, step, strict=True):
            parameter.grad = double(gradient)
        adam.step()
        decay.apply()
        for parameter, end in zip(model, expected, strict=True):
            np.testing.assert_allclose(parameter.detach(), end, rtol=1e-9, atol=1e-12)
    # Adam alone ends elsewhere, so that something was tested.
    other: Any = nn.ParameterList(nn.Parameter(one) for one in free)
    adam = torch.optim.Adam(other.parameters(), lr=record["lr"])
    for step in record["gradients"]:
        for parameter, gradient in zip(other, step, strict=True):
            parameter.grad = double(gradient)
        adam.step()
    assert all((a - b).abs().max() > 0.01 for a, b in zip(model, other, strict=True))


def test_spd_decays_what_momentum_carries_on() -> None:
    """Source: SGD with momentum and the paper's formula on W x + b, in numpy, 30 steps."""
    task = linear_task(epochs=30, momentum=0.9)
    x, y, *start = data_of(task)
    theta, speed = [one.copy() for one in start], [np.zeros_like(one) for one in start]
    acted = 0
    for _ in range(30):
        g = slopes(x, y, theta[0], theta[1])
        for i in range(2):
            before = theta[i] - start[i]
            speed[i] = 0.9 * speed[i] + g[i]
            after = before - 0.05 * speed[i]
            far, was = np.linalg.norm(after), np.linalg.norm(before)
            if (g[i] * before).sum() > 0 and far > was:
                after *= 1 - 0.7 * (far - was) / far
                acted += 1
            theta[i] = start[i] + after
    result = SelectiveProjectionDecay(lambda_=0.7).finetune(task)
    assert acted > 5
    np.testing.assert_allclose(result.head.weight.detach(), theta[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.head.bias.detach(), theta[1], rtol=1e-3, atol=1e-4)


def test_an_update_that_was_skipped_leaves_all_as_it_is() -> None:
    """Source: the weights before; fp16's scaler skips where a gradient is not finite."""
    model: Any = nn.ParameterList([nn.Parameter(torch.tensor([1.0, 2.0]))])
    decay = Decay(model, 1.0)
    with torch.no_grad():
        model[0] += 1
    for bad in (torch.inf, torch.nan):
        model[0].grad = torch.tensor([bad, 1.0])
        decay.apply()
        decay.apply()
        assert model[0].tolist() == [2.0, 3.0]


# mixout


def test_mixed_weights_and_their_gradient_are_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the authors' function, on the mask that it drew."""
    record = AUTHORS["mixout"]
    layer = nn.Linear(9, 4).double()
    layer.weight.data = double(record["start"])
    model: Any = nn.Sequential(layer)
    mixed = Mixed(linear_task(), model, record["p"])
    layer.weight.data = double(record["theta"])
    monkeypatch.setattr(mixing, "mask_of", lambda *_: double(record["mask"]))
    weights = mixed.weights()
    assert list(weights) == ["0.weight"]
    np.testing.assert_allclose(weights["0.weight"].detach(), record["mixed"], rtol=1e-12)
    weights["0.weight"].backward(double(record["upstream"]))
    np.testing.assert_allclose(layer.weight.grad, record["gradient"], rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Conv2d(6, 4, 3), (3, 6, 5, 5)),
        (nn.Conv2d(6, 9, 3, groups=3), (3, 6, 5, 5)),
        (nn.Conv2d(6, 12, 3, groups=6), (3, 6, 5, 5)),
    ],
    ids=["linear", "conv", "groups", "depthwise"],
)
def test_mixing_with_zero_is_dropout(layer: Any, shape: tuple[int, ...]) -> None:
    """Source: the same layer on inputs of which some are dropped: the paper's starting point."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ((name, groups),) = mixable(nn.Sequential(layer)).items()
    assert name == "0.weight"
    mask = mask_of(layer.weight, groups, 0.5, torch.Generator().manual_seed(1))
    kept = torch.bernoulli(torch.full((6,), 0.5), generator=torch.Generator().manual_seed(1))
    assert 0 < kept.sum() < 6
    with torch.no_grad():
        dropped = layer(x * kept.view(1, 6, *[1] * (x.ndim - 2)))
        layer.weight *= mask
        torch.testing.assert_close(layer(x), dropped)


def test_as_many_are_kept_as_the_probability_says() -> None:
    """Source: the binomial's mean, within four standard deviations; nothing between 0 and 1."""
    mask = mask_of(torch.empty(2, 10_000), 1, 0.9, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0].equal(mask[1])
    assert abs(mask[0].sum().item() - 1000) < 4 * (10_000 * 0.9 * 0.1) ** 0.5


def test_linear_layers_convolutions_and_the_head_are_mixed() -> None:
    """Source: the list, by hand: no biases, norms, class token or position embedding."""
    blocks = [f"encoder.blocks.{i}.{name}.weight" for i in (0, 1)
              for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]  # fmt: skip
    expected = ["encoder.patch_embed.proj.weight", *blocks, "head.weight"]
    assert list(mixable(tiny_vit())) == expected
    assert list(mixable(tiny_classifier())) == ["encoder.0.weight", "head.weight"]
    attention = nn.Sequential(nn.MultiheadAttention(4, 2))
    assert list(mixable(attention)) == ["0.in_proj_weight", "0.out_proj.weight"]


@pytest.mark.parametrize("micro_batch", [None, 7])
def test_mixout_trains_under_a_new_mask_at_each_step(micro_batch: int | None) -> None:
    """Source: W x + b by hand in numpy; masks from the generators that the steps are named by.

    Micro-batches of a step share its mask, so they make no difference.
    """
    task = linear_task(epochs=4, momentum=0.0, micro_batch=micro_batch)
    x, y, w0, b = data_of(task)
    w, masks = w0.copy(), []
    for step in range(4):
        share = torch.full((1, 192), 1 - 0.6)
        mask = torch.bernoulli(share, generator=task.generator(f"mixout/{step}")).numpy()
        masks.append(mask)
        by_w, by_b = slopes(x, y, (mask * w + (1 - mask) * w0 - 0.6 * w0) / 0.4, b)
        w, b = w - 0.05 * mask * by_w, b - 0.05 * by_b
    assert not any((masks[0] == other).all() for other in masks[1:])
    result = Mixout(p=0.6).finetune(task)
    np.testing.assert_allclose(result.head.weight.detach(), w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.head.bias.detach(), b, rtol=1e-4, atol=1e-6)


def test_dropout_is_off_while_mixout_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: the net's own dropout, 0.1, before and after."""
    during: list[float] = []
    original = Task.fit

    def fit(self: Task, model: Classifier, *given: Any, **rest: Any) -> Classifier:
        during.append(dropout_of(model))
        return original(self, model, *given, **rest)

    def dropout_of(model: Classifier) -> float:
        (found,) = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
        return found

    monkeypatch.setattr(Task, "fit", fit)
    result = Mixout(p=0.5).finetune(tiny_task())
    Mixout(p=0.0).finetune(tiny_task())
    assert during == [0.0, 0.1] and dropout_of(result) == 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SelectiveProjectionDecay(lambda_=-1.0), "spd: expected lambda ≥ 0, got -1.0."),
        (lambda: Mixout(p=1.0), "mixout: expected 0 ≤ p < 1, got 1.0."),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], Any], said: str) -> None:
    """Source: the options' own ranges."""
    with pytest.raises(ConfigError) as refusal:
        make()
    assert str(refusal.value) == said
