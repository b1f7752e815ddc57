"""Methods by depth: against timm's and the authors' groups, numpy and loops in plain torch."""

from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from rib_plugin_cl_methods.auto_rgn import RelativeGradientNorms
from rib_plugin_cl_methods.depth import depth_of
from rib_plugin_cl_methods.freeze_embed import FreezeEmbedding
from rib_plugin_cl_methods.layer_decay import LayerDecay
from rib_plugin_cl_methods.lines import LayerScaling
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from rib_harness import Batch, Classifier, ConfigError, Task
from rib_harness.testing import TINY, tiny_classifier, tiny_task

WHOLE: dict[str, Any] = {"batch_size": 24, "momentum": 0.0, "schedule": "constant", "lr": 0.05}


def vit(depth: int = 3, seed: int = 0) -> Classifier:
    """Without dropout, so that it can be trained by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=12, depth=depth, num_heads=2, num_classes=0
        )
        return Classifier(encoder, nn.Linear(12, 10), TINY).eval()


def depths(encoder: nn.Module) -> dict[str, int]:
    depth = depth_of(encoder)
    return {name: depth.of(name) for name, _ in encoder.named_parameters()}


def timms(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter by timm's own groups, the stem's at −1."""
    found = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return {name: layer - 1 for name, layer in found.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32}),
        ("vit_base_patch16_clip_224", {"img_size": 32, "embed_dim": 24, "num_heads": 2}),
        ("resnet18", {}),
        ("resnet26", {}),
    ],
)
def test_blocks_are_those_of_timm(name: str, options: dict[str, Any]) -> None:
    """Source: `timm.models.group_parameters`, but for the last norm, which it puts to a block."""
    net = timm.create_model(name, num_classes=0, **options)
    ours, theirs = depths(net), timms(net)
    above = {one for one in ours if one.startswith("norm.")}
    assert {n: d for n, d in ours.items() if n not in above} == {
        n: d for n, d in theirs.items() if n not in above
    }
    assert {ours[one] for one in above} <= {max(theirs.values()) + 1}


def test_the_stem_is_what_the_authors_freeze() -> None:
    """Source: the two lowest layers of `get_layers` in AnanyaKumar/transfer_learning."""
    tower = open_clip.transformer.VisionTransformer(
        image_size=8, patch_size=4, width=12, layers=2, heads=2, mlp_ratio=2.0, output_dim=6
    )
    clip = timm.create_model(
        "vit_base_patch16_clip_224", num_classes=0, img_size=32, embed_dim=24, num_heads=2
    )
    nets: list[tuple[nn.Module, tuple[str, ...]]] = [
        (tower, ("conv1", "ln_pre")),
        (clip, ("patch_embed", "norm_pre")),
        (torchvision.models.vit_b_32(image_size=32), ("conv_proj",)),
        (torchvision.models.resnet18(), ("conv1", "bn1")),
        (timm.create_model("convnext_atto", num_classes=0), ("stem.0", "stem.1")),
        (timm.create_model("mobilenetv2_035", num_classes=0), ("conv_stem", "bn1")),
    ]
    for net, stem in nets:
        assert set(depth_of(net).stem) == set(stem)
    assert len(depth_of(nets[0][0]).blocks) == 2
    for above in ("ln_post.weight", "proj"):
        assert depth_of(tower).of(above) == 2
    for below in ("class_embedding", "positional_embedding", "ln_pre.bias"):
        assert depth_of(tower).of(below) == -1


def test_freeze_embed_moves_all_but_the_stem() -> None:
    """Source: `ft` on the same net, whose other parameters are frozen by name."""
    task = tiny_task(pretrained=vit(), **WHOLE)
    result = FreezeEmbedding().finetune(task)
    before = task.pretrained.state_dict()
    same = {name for name, tensor in result.state_dict().items() if tensor.equal(before[name])}
    assert same == {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
    assert all(parameter.requires_grad for parameter in result.parameters())


def test_layer_decay_has_the_rates_of_its_authors() -> None:
    """Source: the layers of `optim_factory.py` in LightDXY/FT-CLIP, with torch's SGD."""
    task = tiny_task(pretrained=vit(), **{**WHOLE, "momentum": 0.9, "weight_decay": 0.1})
    result = LayerDecay(decay=0.7).finetune(task)
    model = task.pretrained.copy()

    def layer(name: str) -> int:
        if name.startswith(("encoder.patch_embed", "encoder.cls_token", "encoder.pos_embed")):
            return 0
        return int(name.split(".")[2]) + 1 if ".blocks." in name else 4

    optimizer = torch.optim.SGD(
        [{"params": p, "lr": 0.05 * 0.7 ** (4 - layer(n))} for n, p in model.named_parameters()],
        momentum=0.9,
        weight_decay=0.1,
    )
    batch = next(task.batches(24))
    for _ in range(3):
        optimizer.zero_grad()
        task.cross_entropy(model, batch).backward()
        optimizer.step()
    torch.testing.assert_close(result.state_dict(), model.state_dict(), atol=1e-5, rtol=1e-4)


def test_the_schedule_holds_for_every_rate() -> None:
    """Source: torch's own cosine, on groups with their rates."""
    net = tiny_classifier(batchnorm=False)
    task = tiny_task(pretrained=net, **{**WHOLE, "schedule": "cosine", "epochs": 4})
    result = LayerDecay(decay=0.5).finetune(task)
    model = task.pretrained.copy()
    rates = [
        {"params": list(model.encoder.parameters()), "lr": 0.025},
        {"params": list(model.head.parameters()), "lr": 0.05},
    ]
    optimizer = torch.optim.SGD(rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    batch = next(task.batches(24))
    for _ in range(4):
        optimizer.zero_grad()
        task.cross_entropy(model, batch).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(result.state_dict(), model.state_dict(), atol=1e-6, rtol=1e-4)


def test_a_rate_of_no_parameter_is_told() -> None:
    task = tiny_task()
    with pytest.raises(ConfigError, match=r"'head.wait', which is no parameter.*'head.weight'"):
        task.fit(task.pretrained.copy(), lr_scales={"head.wait": 0.5})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_lines_scales_as_its_authors(alpha: float) -> None:
    """Source: `LiNeS_scaling` of wang-kee/LiNeS: keys with `.i.`, alpha + beta · i / (L − 1)."""
    start, end = vit(seed=0), vit(seed=1)
    task = tiny_task(pretrained=start, checkpoints={"ft": end})
    result = LayerScaling(alpha).finetune(task)
    for name, tensor in result.state_dict().items():
        factor = alpha
        for i in range(3):
            if f".{i}." in name:
                factor = alpha + (1 - alpha) * i / 2
        one, other = (m.state_dict()[name].double().numpy() for m in (start, end))
        np.testing.assert_allclose(tensor, one + factor * (other - one), rtol=1e-5, atol=1e-7)


def test_lines_scales_statistics_with_their_layer() -> None:
    """Source: the line between both ends."""
    nets = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for width_in, width in ((3, 4), (4, 4), (4, 8)):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers[-1].running_mean.normal_()  # type: ignore[operator, union-attr]
            encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            nets.append(Classifier(encoder, nn.Linear(8, 10), TINY).eval())
    task = tiny_task(pretrained=nets[0], checkpoints={"ft": nets[1]})
    result = LayerScaling(0.4).finetune(task).state_dict()
    for module, factor in (("encoder.1", 0.4), ("encoder.3", 0.4), ("encoder.5", 1.0)):
        name = f"{module}.running_mean"
        one, other = (net.state_dict()[name] for net in nets)
        torch.testing.assert_close(result[name], one + factor * (other - one))


def ratios(task: Task, model: nn.Module) -> list[float]:
    """‖g‖/‖θ‖ of each tensor over the largest, by loops in float64."""
    model.zero_grad()
    task.cross_entropy(model, next(task.batches(24))).backward()  # type: ignore[arg-type]
    found = [
        float(np.linalg.norm(p.grad.double().numpy()) / np.linalg.norm(p.detach().double().numpy()))  # type: ignore[union-attr]
        for p in model.parameters()
    ]
    return [one / max(found) for one in found]


def test_auto_rgn_sets_its_rates_anew_at_every_epoch() -> None:
    """Source: gradients over weights in numpy, SGD written out."""
    net = tiny_classifier(batchnorm=False)
    task = tiny_task(pretrained=net, **WHOLE)
    result = RelativeGradientNorms(batches=1).finetune(task)
    model = net.copy()
    seen = []
    for _ in range(3):
        seen.append(ratios(task, model))
        with torch.no_grad():
            for p, ratio in zip(model.parameters(), seen[-1], strict=True):
                p -= 0.05 * ratio * p.grad
    assert seen[0] != seen[1]
    model.zero_grad()
    torch.testing.assert_close(result.state_dict(), model.state_dict(), atol=1e-6, rtol=1e-4)


def test_auto_rgn_measures_piece_by_piece_what_it_trains_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Source: the weights without micro-batches; the pieces that the model is given."""
    net = tiny_classifier(batchnorm=False)
    whole = RelativeGradientNorms(batches=1).finetune(tiny_task(pretrained=net, **WHOLE))
    sizes, original = [], Task.cross_entropy

    def watched(self: Task, model: Classifier, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        return original(self, model, batch)

    monkeypatch.setattr(Task, "cross_entropy", watched)
    task = tiny_task(pretrained=net, **WHOLE, micro_batch=5)
    pieces = RelativeGradientNorms(batches=1).finetune(task)
    assert max(sizes) == 5
    torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), atol=1e-6, rtol=1e-4)


def test_auto_rgn_leaves_batch_norm() -> None:
    """Source: the authors' `"bn" not in n`, and their configuration's `train_mode: eval`."""
    task = tiny_task(pretrained=tiny_classifier(), **{**WHOLE, "weight_decay": 0.1})
    result, before = (
        RelativeGradientNorms().finetune(task).state_dict(),
        task.pretrained.state_dict(),
    )
    same = {name for name in before if before[name].equal(result[name])}
    assert same == {name for name in before if name.startswith("encoder.1.")}


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (LayerDecay, {"decay": 1.5}, "layer-decay: expected decay in 0 … 1, got 1.5."),
        (LayerScaling, {"alpha": -1}, "lines: expected alpha in 0 … 1, got -1."),
        (RelativeGradientNorms, {"batches": 0}, "auto-rgn: expected batches ≥ 1, got 0."),
    ],
)
def test_a_wrong_option_is_told(method: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        method(**options)
    assert str(error.value) == said
