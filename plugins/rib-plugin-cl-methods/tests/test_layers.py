"""What is seen of an encoder's layers, and the methods that look there: ldifs and levi.

Expected values come from timm's and torchvision's own ways to the same features, from the authors'
code (`anchor_authors.json`; `make_anchor_authors.py` recorded it), and from formulas written out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rib_plugin_cl_methods.layers import watched
from rib_plugin_cl_methods.ldifs import FeatureSpaceDistance, distance
from rib_plugin_cl_methods.levi import LayerwiseEnsemble
from torch import Tensor, nn

from rib_harness import Classifier, ConfigError, Task
from rib_harness.testing import TINY, tiny_classifier, tiny_clip, tiny_task, tiny_vit

AUTHORS = json.loads(Path(__file__).with_name("anchor_authors.json").read_text())


def picture(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def seen(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), watched(encoder.eval()) as found:
        encoder(images)
    return found.layers()


def rows(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H · W, C)."""
    return images.permute(0, 2, 3, 1).reshape(len(images), -1, images.shape[1])


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# What is seen


def test_of_a_vision_transformer_the_tokens_behind_each_block_are_seen() -> None:
    """Source: timm's own `forward_intermediates`."""
    encoder: Any = tiny_vit().encoder
    both = encoder.forward_intermediates(
        picture(8), output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    expected = [torch.cat([prefix, patches], 1) for patches, prefix in both]
    assert len(expected) == 2
    assert_equal(seen(encoder, picture(8)), [one.detach() for one in expected])


@pytest.mark.parametrize(
    ("tag", "options", "layers"),
    [
        ("resnet18", {}, 5),
        ("test_efficientnet", {}, 5),
        # Its maps are (N, H, W, C); the lists below have (N, C, H, W).
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "embed_dim": 12, "window_size": 2}, 4),
    ],
)
def test_of_timms_other_nets_the_stages_are_seen(
    tag: str, options: dict[str, Any], layers: int
) -> None:
    """Source: timm's own `forward_intermediates`."""
    timm = pytest.importorskip("timm")
    encoder = timm.create_model(tag, num_classes=0, **options).eval()
    with torch.no_grad():
        maps = encoder.forward_intermediates(picture(), output_fmt="NCHW", intermediates_only=True)
    assert len(maps) == layers
    assert_equal(seen(encoder, picture()), [rows(one) for one in maps])


def test_of_torchvisions_nets_the_stages_are_seen() -> None:
    """Source: torchvision's `create_feature_extractor`: a ResNet's stages, VGG's before pooling."""
    vision = pytest.importorskip("torchvision.models")
    extract = pytest.importorskip("torchvision.models.feature_extraction")
    for encoder, names in (
        (vision.resnet18(), ["layer1", "layer2", "layer3", "layer4"]),
        (vision.vgg11(), [f"features.{i}" for i in (1, 4, 9, 14, 19, 20)]),
    ):
        wanted = extract.create_feature_extractor(encoder.eval(), names)
        with torch.no_grad():
            maps = wanted(picture())
        # VGG's last map is 1 × 1, and its first of that size too.
        assert_equal(seen(encoder, picture()), [rows(maps[name]) for name in names])


def test_in_a_sequence_the_last_map_of_each_resolution_is_seen() -> None:
    """Source: its parts, run one after the other."""
    first = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    second = [nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()]
    encoder = nn.Sequential(*first, *second, nn.Flatten()).eval()
    with torch.no_grad():
        one = nn.Sequential(*first)(picture(8))
        two = nn.Sequential(*second)(one)
    assert_equal(seen(encoder, picture(8)), [rows(one), rows(two)])


class Plain(nn.Module):
    """A net without blocks or stages; it can fail, and its inner layer gives two tensors."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.inner, self.fails = nn.Linear(192, 5), fails

    def forward(self, images: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("no")
        features: Tensor = self.inner(images.flatten(1))
        return features


def test_a_net_without_layers_has_its_features() -> None:
    """Source: what it gives."""
    encoder = Plain()
    with torch.no_grad():
        expected = encoder(picture(8))
    assert_equal(seen(encoder, picture(8)), [expected[:, None]])


@pytest.mark.parametrize("make", [tiny_vit, tiny_classifier, lambda: tiny_clip()[0]])
def test_the_hooks_go_with_the_block(make: Callable[[], Classifier]) -> None:
    """Source: torch's own lists of hooks; also where the forward pass fails."""

    def hooks(encoder: nn.Module) -> int:
        return sum(len(module._forward_hooks) for module in encoder.modules())

    encoder = make().encoder
    with watched(encoder):
        assert hooks(encoder) > 0
    assert hooks(encoder) == 0
    failing = Plain(fails=True)
    with pytest.raises(RuntimeError), watched(failing):
        failing(picture(8))
    assert hooks(failing) == 0


# ldifs


@pytest.mark.parametrize("case", AUTHORS["ldifs"])
def test_the_distance_is_the_authors(case: dict[str, Any]) -> None:
    """Source: the authors' loss, on maps whose channels come second; it divides by their number."""
    now, before = (
        [t.mT if t.ndim == 3 else t[:, None] for t in map(torch.tensor, case[which])]
        for which in ("now", "before")
    )
    theirs = case["value"] * now[0].shape[-1]
    assert theirs > 0.05
    assert distance(now, before).item() == pytest.approx(theirs, rel=1e-5)


def test_a_vector_without_length_has_a_distance_and_a_gradient() -> None:
    """Source: ‖0 − û‖² = 1, half of the two positions."""
    now = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    found = distance([now], [torch.ones(1, 2, 2) * torch.tensor([0.0, 3.0])])
    found.backward()
    assert found.item() == pytest.approx(0.5)
    assert now.grad is not None and torch.isfinite(now.grad).all()


def caught(method: Any, task: Task) -> tuple[Classifier, Any]:
    """The model and the loss that a method hands to `fit`, before any step."""
    found: list[Any] = []

    def fit(model: Classifier, loss: Any = None, **rest: Any) -> Classifier:
        found.append((model, loss))
        return model

    task.fit = fit  # type: ignore[method-assign]
    method.finetune(task)
    return found[-1]  # type: ignore[no-any-return]


def moved(model: Classifier, by: float = 0.1) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_ldifs_adds_the_distance_of_all_blocks() -> None:
    """Source: timm's intermediate tokens of both nets, compared in numpy."""
    task = tiny_task(pretrained=tiny_vit())
    model, loss = caught(FeatureSpaceDistance(lambda_=3.0), task)
    batch = next(task.batches())
    assert loss(model.eval(), batch).item() == pytest.approx(
        task.cross_entropy(model, batch).item()
    )
    moved(model)

    def tokens(encoder: Any) -> list[np.ndarray]:
        with torch.no_grad():
            both = encoder.forward_intermediates(
                batch.images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
            )
        found = [torch.cat([prefix, patches], 1).double().numpy() for patches, prefix in both]
        return [one / np.linalg.norm(one, axis=2, keepdims=True) for one in found]

    pairs = zip(tokens(model.encoder), tokens(task.pretrained.encoder), strict=True)
    drift = np.mean([((u - u0) ** 2).sum(2).mean() for u, u0 in pairs])
    expected = task.cross_entropy(model, batch).item() + 3 * drift
    assert drift > 0.01
    assert loss(model, batch).item() == pytest.approx(expected, rel=1e-4)


def test_ldifs_keeps_the_layers() -> None:
    """Source: the claim itself: the tokens stay nearer to where they were than plainly tuned."""

    def drift(strength: float) -> float:
        task = tiny_task(pretrained=tiny_vit(), epochs=5)
        result = FeatureSpaceDistance(lambda_=strength).finetune(task)
        images = next(task.batches(24)).images
        kept = seen(task.pretrained.encoder, images)
        return distance(seen(result.encoder, images), kept).item()

    assert drift(10.0) < drift(0.0) / 2


# levi


def by_hand(model: Classifier, task: Task, images: Tensor) -> Tensor:
    """The logits, from the weights by name and timm's own intermediate tokens."""
    w = {name: value.detach() for name, value in model.named_parameters()}
    net: Any = task.pretrained.encoder
    both = net.forward_intermediates(
        images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    s = images
    for i in (0, 3, 6):
        s = F.conv2d(s, w[f"encoder.small.{i}.weight"], stride=2, padding=1)
        s = F.gelu(
            F.group_norm(s, 1, w[f"encoder.small.{i + 1}.weight"], w[f"encoder.small.{i + 1}.bias"])
        )
    s = s.mean((2, 3))
    features, added = net(images), []
    for i, (patches, prefix) in enumerate(both):
        z = torch.cat([prefix, patches], 1).mean(1)
        joined = torch.cat([z / z.norm(dim=1)[:, None], s / s.norm(dim=1)[:, None]], 1)
        added.append(joined @ w[f"encoder.adapt.{i}.weight"].T + w[f"encoder.adapt.{i}.bias"])
    z1 = features + features.norm(dim=1)[:, None] * (added[0] + added[1]) / 2
    return z1 @ w["head.weight"].T + w["head.bias"]


def test_levi_joins_a_small_net_to_every_block() -> None:
    """Source: its formula in plain torch, all of its own weights moved."""
    task = tiny_task(pretrained=tiny_vit())
    model, _ = caught(LayerwiseEnsemble(width=3), task)
    own = Classifier(nn.ModuleList([model.encoder.small, model.encoder.adapt]), model.head, TINY)  # type: ignore[list-item]
    moved(own, by=0.3)
    images = picture(8)
    with torch.no_grad():
        ours, theirs = model.eval()(images), by_hand(model, task, images)
        assert (ours - task.pretrained(images)).abs().mean() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_levis_small_net_is_drawn_by_the_seed() -> None:
    """Source: Kaiming's deviation √(2 / fan-in); alike for one seed, unlike for two."""
    method = LayerwiseEnsemble(width=64)
    first, again, other = (
        caught(method, tiny_task(seed=seed))[0].state_dict() for seed in (0, 0, 1)
    )
    for i, fan_in in ((0, 27), (3, 64 * 9), (6, 128 * 9)):
        name = f"encoder.small.{i}.weight"
        assert first[name].std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        assert first[name].equal(again[name]) and not first[name].equal(other[name])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FeatureSpaceDistance(lambda_=-1.0), "ldifs: expected lambda ≥ 0, got -1.0."),
        (lambda: LayerwiseEnsemble(width=0), "levi: expected width ≥ 1, got 0."),
        (lambda: LayerwiseEnsemble(lr_scale=0.0), "levi: expected lr_scale > 0, got 0.0."),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], Any], said: str) -> None:
    """Source: the options' own ranges."""
    with pytest.raises(ConfigError) as refusal:
        make()
    assert str(refusal.value) == said
