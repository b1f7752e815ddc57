"""Small pieces for tests, ours and a plugin author's: a tiny task, image set and classifier.

All are made from seeds and need no files and no network.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from rib_harness.catalog import Catalog, Component, Plugin, load_catalog
from rib_harness.config import Recipe
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Pixels
from rib_harness.engine.device import make_accelerator
from rib_harness.engine.task import Task
from rib_harness.images import ImageSet, Preprocess, fingerprint_of
from rib_harness.specs import KINDS, Spec

#: What the tiny images go through.
TINY = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


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
    pictures = pictures.clip(0, 255).astype(np.uint8)
    names = [f"class {k}" for k in range(classes)]
    ids = tuple(tuple(one) for one in class_map or [(k,) for k in range(classes)])
    group = np.array([groups[i % len(groups)] for i in range(n)])
    source = np.array([f"photo-{i}" for i in range(n)])
    return ImageSet(
        labels=labels.astype(np.int64),
        classes=tuple(names),
        class_map=ids,
        read=lambda i: Image.fromarray(pictures[i]),
        names=[f"tiny[{i}]" for i in range(n)],
        source=source,
        group=group,
        fingerprint=fingerprint_of(
            classes=names,
            class_map=ids,
            labels=labels,
            group=group,
            contents=[picture.tobytes().hex() for picture in pictures],
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


def tiny_task(
    *,
    images: ImageSet | None = None,
    pretrained: Classifier | None = None,
    checkpoints: dict[str, Classifier] | None = None,
    work: Path | None = None,
    seed: int = 0,
    **recipe: Any,
) -> Task:
    """A task on the CPU that takes milliseconds.

    Args:
        images: the fine-tuning set.
        pretrained: the untouched classifier.
        checkpoints: what the method needs.
        work: folder for the state of the fits; None keeps none.
        seed: of the run.
        recipe: values of `Recipe`; the defaults here are 3 epochs in batches of 8 at lr 0.05.
    """
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05, **recipe}
    return Task(
        pretrained=pretrained or tiny_classifier(),
        pixels=Pixels(images or tiny_images(), TINY, workers=1, pack=False),
        recipe=Recipe(**settings),
        seed=seed,
        accelerator=make_accelerator("cpu", settings.get("precision", "fp32")),
        checkpoints=checkpoints or {},
        work=work,
        save_every=0.0,
    )


def catalog_with(*offers: tuple[Spec, Any], base: Catalog | None = None) -> Catalog:
    """A catalog that also has these components, without any installed package.

    Args:
        offers: pairs of a spec and the class or function that is its target; what the spec says
            of its target is replaced.
        base: the catalog to add to; None is all installed plugins.
    """
    base = load_catalog() if base is None else base
    name = f"rib_harness_testing_{next(_COUNTER)}"
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = module
    plugin = Plugin(name="testing", distribution="testing", version="0", status="ok")
    components = [component for kind in KINDS for component in base.list(kind)]
    for position, (spec, target) in enumerate(offers):
        setattr(module, f"target_{position}", target)
        components.append(Component(replace(spec, target=f"{name}:target_{position}"), plugin))
    return Catalog([*base.plugins, plugin], components)


_COUNTER = itertools.count()
