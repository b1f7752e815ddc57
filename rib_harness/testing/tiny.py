"""A tiny image set, classifiers and a task: made from seeds, without files and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rib_harness.config import Recipe
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Pixels
from rib_harness.engine.device import make_accelerator
from rib_harness.engine.task import Task
from rib_harness.engine.text import TextTower
from rib_harness.images import ImageSet, Preprocess, fingerprint_of

#: What the tiny images go through.
TINY = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Picture i: at the top of a module, so that it can be sent to another process."""

    pixels: NDArray[np.uint8]

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def tiny_images(
    n: int = 24,
    classes: int = 10,
    seed: int = 0,
    class_map: Sequence[Sequence[int]] | None = None,
    groups: Sequence[str] = ("",),
) -> ImageSet:
    """Random 8 × 8 pictures whose brightness depends on the label, so that they can be learned.

    Args:
        n: how many.
        classes: how many classes.
        seed: of the pixels.
        class_map: ids of each class; the default is one each, in order.
        groups: given to the images in turn.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    pictures = rng.integers(0, 256, (n, 8, 8, 3)) * 0.5
    pictures[np.arange(n), labels % 8] += 120
    pixels = pictures.clip(0, 255).astype(np.uint8)
    names = [f"class {k}" for k in range(classes)]
    ids = tuple(tuple(one) for one in class_map or [(k,) for k in range(classes)])
    group = np.array([groups[i % len(groups)] for i in range(n)])
    source = np.array([f"photo-{i}" for i in range(n)])
    return ImageSet(
        labels=labels.astype(np.int64),
        classes=tuple(names),
        class_map=ids,
        read=_Pictures(pixels),
        names=[f"tiny[{i}]" for i in range(n)],
        source=source,
        group=group,
        fingerprint=fingerprint_of(
            classes=names,
            class_map=ids,
            labels=labels,
            group=group,
            contents=[picture.tobytes().hex() for picture in pixels],
        ),
    )


def tiny_classifier(classes: int = 10, *, batchnorm: bool = True, seed: int = 0) -> Classifier:
    """A convolutional net with batch-norm and dropout (or a plain one), random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
        layers += [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)] if batchnorm else [nn.ReLU()]
        encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return Classifier(encoder, nn.Linear(32, classes), TINY).eval()


def tiny_vit(classes: int = 10, *, seed: int = 0) -> Classifier:
    """timm's VisionTransformer with two blocks of width 12, patch 4 and dropout, random weights."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0,
            proj_drop_rate=0.1,
        )  # fmt: skip
        return Classifier(encoder, nn.Linear(12, classes), TINY).eval()


class TinyTextTower(TextTower):
    """A text tower of 20 words: the mean of their embeddings, projected. Class k is word k.

    Args:
        classes: size of the label space.
        width: of the embeddings, as of the image features.
        seed: of the weights.
    """

    projection = "3.proj"

    def __init__(self, classes: int = 10, width: int = 6, seed: int = 0):
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.words = nn.Embedding(20, 8)
            self.out = nn.Linear(8, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def text_projection(self) -> torch.Tensor:  # type: ignore[override]
        """(8, D)."""
        return self.out.weight.T

    def captions(self, label: int) -> list[str]:
        """Two prompts: the class's word alone, and behind word 19."""
        return [f"{label}", f"19 {label}"]

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, 4), filled up with the last word."""
        rows = [[int(word) for word in text.split()] for text in texts]
        return torch.tensor([(row + row[-1:] * 4)[:4] for row in rows])

    def random_tokens(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """(count, 4)."""
        return torch.randint(0, 20, (count, 4), generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, 4) → (N, D), each of length 1."""
        return nn.functional.normalize(self.out(self.words(tokens).mean(1)), dim=1)

    def head(self) -> nn.Module:
        """Scaled embeddings of the classes."""
        head = nn.Linear(self.out.out_features, self.classes, bias=False)
        texts = [caption for k in range(self.classes) for caption in self.captions(k)]
        means = self(self.tokens(texts)).view(self.classes, 2, -1).mean(1)
        rows = nn.functional.normalize(means, dim=1)
        head.weight = nn.Parameter((self.logit_scale.exp() * rows).detach())
        return head


class _Projected(nn.Module):
    """Rows times a matrix (width, D), then of length 1."""

    def __init__(self, width: int, d: int):
        super().__init__()
        self.proj = nn.Parameter(torch.randn(width, d) / width**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x @ self.proj, dim=1)


def tiny_clip(classes: int = 10, *, seed: int = 0) -> tuple[Classifier, TinyTextTower]:
    """A classifier with normalised features and a zero-shot head, and its text tower."""
    text = TinyTextTower(classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), _Projected(32, 6))
        with torch.no_grad():
            return Classifier(encoder, text.head(), TINY).eval(), text


def tiny_task(
    *,
    images: ImageSet | None = None,
    pretrained: Classifier | None = None,
    checkpoints: dict[str, Classifier] | None = None,
    methods: Mapping[str, Any] | None = None,
    datasets: Mapping[str, ImageSet] | None = None,
    teachers: Mapping[str, Classifier] | None = None,
    held: ImageSet | None = None,
    text: TextTower | None = None,
    work: Path | None = None,
    seed: int = 0,
    **recipe: Any,
) -> Task:
    """A task on the CPU that takes milliseconds.

    Args:
        images: the fine-tuning set.
        pretrained: the untouched classifier.
        checkpoints: what the method needs.
        methods: what it calls.
        datasets: what it reads.
        teachers: other backbones that it learns from.
        held: images that are not trained on.
        text: the backbone's text tower.
        work: folder for the state of the fits; None keeps none.
        seed: of the run.
        recipe: values of `Recipe`; the defaults here are 3 epochs in batches of 8 at lr 0.05.
    """
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05, **recipe}

    def pixels(one: ImageSet) -> Pixels:
        return Pixels(one, TINY, workers=1, pack=False)

    images = images or tiny_images()
    return Task(
        pretrained=pretrained or tiny_classifier(),
        pixels=pixels(images),
        recipe=Recipe(**settings),
        seed=seed,
        accelerator=make_accelerator("cpu", settings.get("precision", "fp32")),
        checkpoints=checkpoints or {},
        methods=methods or {},
        datasets={name: pixels(one) for name, one in (datasets or {}).items()},
        teachers={
            name: (one, Pixels(images, one.preprocess, workers=1, pack=False))
            for name, one in (teachers or {}).items()
        },
        held=pixels(held) if held is not None else None,
        text=(lambda: text) if text is not None else None,
        work=work,
        save_every=0.0,
    )
