"""What is found in an encoder, what backbones say they have, and what methods require."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer as ClipTransformer
from timm import create_model
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.models.vision_transformer import VisionTransformer as VisionTransformerTV

from rib_harness import BackboneSpec, ConfigError
from rib_harness.cache import read_checked, write_checked
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.config import make_config
from rib_harness.engine.parts import parts_of, transformer_of
from rib_harness.identify import identity_of
from rib_harness.plan import Plan, PlannedBackbone, make_plan
from rib_harness.protocols import Identity
from rib_harness.store import Store
from rib_harness.testing import TINY as PREPROCESS
from rib_harness.testing import catalog_with, tiny_classifier, tiny_vit

TINY: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3,
}  # fmt: skip


def torchvision_vit() -> VisionTransformerTV:
    return VisionTransformerTV(16, 8, 3, 2, 12, 24, num_classes=3)


def clip_vit(**options: Any) -> ClipTransformer:
    return ClipTransformer(
        image_size=16, patch_size=8, width=12, layers=2, heads=2, mlp_ratio=2.0, output_dim=5,
        **options,
    )  # fmt: skip


#: Encoder, its parts, and blocks, width, prefix and patch.
TRANSFORMERS = {
    "timm": (lambda: VisionTransformer(**TINY), ("blocks", "qkv"), (2, 12, 1, 4)),
    "timm, registers": (
        lambda: VisionTransformer(**TINY, reg_tokens=4),
        ("blocks", "qkv"),
        (2, 12, 5, 4),
    ),
    "timm, no class token": (
        lambda: VisionTransformer(**TINY, class_token=False, global_pool="avg"),
        ("blocks", "qkv"),
        (2, 12, 0, 4),
    ),
    "timm, post-norm": (
        lambda: VisionTransformer(**TINY, block_fn=ResPostBlock),
        ("blocks", "qkv"),
        (2, 12, 1, 4),
    ),
    "timm, distilled": (
        lambda: VisionTransformerDistilled(**TINY),
        ("blocks", "qkv"),
        (2, 12, 2, 4),
    ),
    "torchvision": (torchvision_vit, ("blocks",), (3, 12, 1, 8)),
    "open_clip": (clip_vit, ("blocks",), (2, 12, 1, 8)),
    "digits": (lambda: tiny_vit().encoder, ("blocks", "qkv"), (2, 12, 1, 4)),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_vision_transformer_is_found_with_its_measures(kind: str) -> None:
    make, parts, measures = TRANSFORMERS[kind]
    for encoder in (make(), nn.Sequential(nn.Identity(), make())):
        found = transformer_of(encoder)
        assert found is not None
        assert (len(found.blocks), found.width, found.prefix, found.patch) == measures
        assert parts_of(encoder) == parts


def test_behind_a_stem_of_convolutions_the_width_is_still_that_of_the_blocks() -> None:
    """The first convolution of timm's hybrid has 64 channels, of torchvision's stem 8."""
    hybrid = transformer_of(create_model("vit_tiny_r_s16_p8_224", img_size=64, depth=2))
    assert hybrid is not None and hybrid.width == 192
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
    found = transformer_of(VisionTransformerTV(16, 8, 3, 2, 12, 24, conv_stem_configs=stem))
    assert found is not None and (found.width, found.patch) == (12, 8)


class Recorded(nn.Module):
    """A block that keeps the shape of what comes in, and changes what goes out."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.shapes = block, list[tuple[int, ...]]()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.shapes.append(tuple(x.shape))
        out: Tensor = self.block(x, *args, **kwargs)
        assert out.shape == x.shape
        return out + 1 * torch.arange(out.shape[-1]) ** 2


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_blocks_replaced_in_place_are_what_the_encoder_uses(kind: str) -> None:
    make, _, (count, width, prefix, patch) = TRANSFORMERS[kind]
    torch.manual_seed(0)
    encoder = make().eval()
    side = 8 if kind == "digits" else 16
    images = torch.randn(5, 3, side, side)
    heads = getattr(encoder, "heads", None)
    if heads is not None:  # torchvision's head begins as zeros
        encoder.heads = nn.Identity()
    with torch.no_grad():
        before = encoder(images)
        found = transformer_of(encoder)
        assert found is not None and len(found.blocks) == count
        for i, block in enumerate(found.blocks):
            found.blocks[i] = Recorded(block)
        after = encoder(images)
    tokens = (5, prefix + (side // patch) ** 2, width)  # N first: 5 is no number of tokens
    assert tokens[1] != 5 or prefix
    assert [block.shapes for block in found.blocks] == [[tokens]] * count
    assert not torch.allclose(torch.as_tensor(before), torch.as_tensor(after))


def test_the_prefix_comes_before_the_patches() -> None:
    """A change of one patch reaches the first block in that token only."""
    for kind in ("timm", "timm, registers", "timm, distilled", "torchvision", "open_clip"):
        make, _, (_, _, prefix, patch) = TRANSFORMERS[kind]
        encoder = make().eval()
        found = transformer_of(encoder)
        assert found is not None
        seen: list[Tensor] = []
        found.blocks[0].register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        images = torch.randn(1, 3, 16, 16)
        with torch.no_grad():
            encoder(images)
            images[..., :patch, patch : 2 * patch] += 1  # the second patch of the first row
            encoder(images)
        changed = (seen[0] != seen[1]).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == [prefix + 1], kind


@pytest.mark.parametrize(
    ("encoder", "parts"),
    [
        (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3), ("batch-norm",)),
        (lambda: tiny_classifier().encoder, ("batch-norm",)),
        (lambda: tiny_classifier(batchnorm=False).encoder, ()),
        (lambda: nn.SyncBatchNorm(3), ("batch-norm",)),
        (lambda: nn.GroupNorm(1, 3), ()),
        (lambda: nn.Identity(), ()),
    ],
)
def test_a_net_without_a_transformer_has_no_blocks(encoder: Any, parts: tuple[str, ...]) -> None:
    assert transformer_of(encoder()) is None
    assert parts_of(encoder()) == parts


def test_blocks_that_are_called_in_another_way_or_have_no_mlp_are_not_claimed() -> None:
    swin = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(1, 2), window_size=4,
        num_classes=3,
    )  # fmt: skip
    for encoder in (
        swin,  # (N, H, W, D)
        Eva(**TINY),  # rotary positions for the tokens that there are
        Beit(**TINY),  # a table of relative positions, as large as the tokens are many
        VisionTransformer(**TINY, block_fn=ParallelScalingBlock),
        VisionTransformer(**TINY, block_fn=ParallelThingsBlock),
    ):
        assert transformer_of(encoder) is None, type(encoder)
        assert parts_of(encoder) == ()
    clip = clip_vit()
    clip.transformer.batch_first = False  # it then turns tokens to (T, N, D)
    assert transformer_of(clip) is None
    empty = VisionTransformer(**{**TINY, "depth": 0})
    assert parts_of(empty) == ()


def test_attention_with_separate_or_wrapped_layers_has_no_qkv() -> None:
    encoder = VisionTransformer(**TINY)
    encoder.blocks[1].attn.qkv = nn.Identity()  # one of them is enough
    assert parts_of(encoder) == ("blocks",)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("digits-vit", ("blocks", "qkv")),
        ("digits-conv", ("batch-norm",)),
        ("digits-conv:pretrained=false", ("batch-norm",)),
        ("timm:vit_tiny_patch16_224,pretrained=false", ("blocks", "qkv")),
        ("timm:resnet18,pretrained=false", ("batch-norm",)),
    ],
)
def test_a_backbone_says_what_its_encoder_has(name: str, parts: tuple[str, ...]) -> None:
    backbone = load_catalog().bind("backbone", name).build()
    assert backbone.identity().has == parts
    assert parts_of(backbone.build().encoder) == parts


def test_what_a_spec_suggests_is_what_the_backbone_has() -> None:
    catalog = load_catalog()
    for name in ("digits-vit", "digits-conv"):
        bound = catalog.bind("backbone", name)
        assert bound.spec.has == bound.build().identity().has
    alias = next(
        v for v in catalog.get("backbone", "timm").spec.variants  # type: ignore[attr-defined]
        if v.tag.startswith("vit_base_patch16_224")
    )  # fmt: skip
    assert alias.has == ("blocks", "qkv")


def test_parts_are_in_no_key() -> None:
    config = make_config({
        "backbone": "digits-vit", "method": "ft", "dataset": ["digits-a", "digits-r"], "limit": 2,
    })  # fmt: skip
    keys = []
    for has in ((), ("blocks", "qkv"), ("anything",)):

        def identify(bound: Any, has: tuple[str, ...] = has) -> Identity:
            return replace(bound.build().identity(), has=has)

        plan = make_plan(config, load_catalog(), Store("store"), identify=identify)
        keys.append([step.key for step in plan.steps])
        assert "has" not in plan.steps[0].inputs["backbone"]["identity"]
    assert keys[0] == keys[1] == keys[2]


def test_the_kept_identity_says_what_the_backbone_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    bound = load_catalog().bind("backbone", "timm:vit_tiny_patch16_224,pretrained=false")
    assert not bound.spec.light
    first = identity_of(bound)
    assert first.has == ("blocks", "qkv")
    (file,) = (tmp_path / "cache" / "identities").glob("*.json")
    answer = json.loads(read_checked(file) or "")
    assert answer["has"] == ["blocks", "qkv"]
    assert identity_of(bound) == first
    write_checked(file, json.dumps({**answer, "has": ["batch-norm"]}).encode())
    read = identity_of(bound)
    assert read.has == ("batch-norm",)  # it is this file that is read
    inputs = [PlannedBackbone(bound, one).inputs() for one in (first, read)]
    assert inputs[0] == inputs[1]
    # An answer that an earlier version kept, or an editor changed.
    file.write_text(json.dumps({**answer, "classes": 7}))
    assert identity_of(bound) == first
    assert json.loads(read_checked(file) or "")["classes"] == first.classes


@pytest.mark.slow
def test_a_child_process_says_what_the_backbone_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    bound = load_catalog().bind("backbone", "timm:vit_tiny_patch16_224,pretrained=false")
    expected = bound.build().identity()
    monkeypatch.delitem(sys.modules, "torch")  # so that it is asked in a child
    said = identity_of(bound)
    assert said == expected
    assert identity_of(bound) == expected


SMALL: dict[str, Any] = {
    "backbone": "digits-conv", "dataset": ["digits-v2", "digits-r"], "limit": 2,
}  # fmt: skip


def plan_of(method: str | list[str], catalog: Catalog | None = None, **changes: Any) -> Plan:
    config = make_config({**SMALL, "method": method, **changes})
    return make_plan(config, catalog or load_catalog(), Store(config.store))


def problem(method: str | list[str], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(method, **changes)
    return str(caught.value)


def test_a_backbone_without_a_part_is_refused_and_those_that_have_it_are_named() -> None:
    assert plan_of("lora").steps
    qkv = "attention with one linear layer `qkv`, which digits-conv does not have"
    for method in (
        "lora:layers=q-v", "boft", "soup:members=ft+boft", "lp-ft:second=boft",
        "best-of:members=ft+(lora:layers=q-v)", "wise-ft:base=(soup:members=boft)",
    ):  # fmt: skip
        said = problem(method)
        assert qkv in said and "Backbones that do: digits-vit," in said
    assert "lora:" in problem("lora", preset="paper")
    said = problem("flyp", backbone="digits-vit")
    assert "a text tower" in said and "none is known over digits-11" in said
    said = problem(["vpt", "flyp", "boft", "ft"], backbone=["digits-conv", "digits-vit"])
    assert said.startswith("4 problems")
    lines = [line.split(" needs ")[0].strip(" -") for line in said.splitlines()[1:]]
    assert lines == ["vpt", "flyp", "boft", "flyp"]


def test_a_backbone_that_does_not_say_what_it_has_has_nothing() -> None:
    class Silent:
        def identity(self) -> Identity:
            return Identity("none", PREPROCESS, 11)

    space = load_catalog().get("backbone", "digits-vit").spec.label_space  # type: ignore[attr-defined]
    spec = BackboneSpec(name="silent", target="", summary="", label_space=space, light=True)
    catalog = catalog_with((spec, Silent))
    assert plan_of(["ft", "lora"], catalog, backbone="silent").steps
    with pytest.raises(ConfigError, match=r"which silent does not say that it has.*: digits-vit"):
        plan_of("adapter", catalog, backbone="silent")
