"""The two architectures of `digits-rib`."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from rib_harness import Classifier
from rib_plugin_digits.backbones import PREPROCESS
from rib_plugin_digits.data import CLASSES


def vit() -> Classifier:
    """timm's VisionTransformer, small: 3 blocks, width 64, 4 heads, patch 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=64, depth=3, num_heads=4, num_classes=0
        )
        return Classifier(encoder, nn.Linear(64, len(CLASSES)), PREPROCESS)


def conv() -> Classifier:
    """Three stages of two 3 × 3 convolutions with batch-norm, each at half the resolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages: list[nn.Module] = []
        for width_in, width in ((3, 16), (16, 32), (32, 64)):
            stages += [
                nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        encoder = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Classifier(encoder, nn.Linear(64, len(CLASSES)), PREPROCESS)
