"""Make the weights that ship with the package: `python -m rib_plugin_digits.pretrain [KIND...]`.

Trains the backbones on the clean training split, with strong augmentation (affine, colour,
noise, erasing) where they are to be robust enough for fine-tuning to have something to lose.
About a minute a backbone on one core. The weights are kept in half precision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rib_harness import Classifier
from rib_plugin_digits.backbones import WEIGHTS
from rib_plugin_digits.data import Digits
from rib_plugin_digits.nets import conv, vit

BATCH = 64


@dataclass(frozen=True)
class Pretraining:
    """How one backbone is made.

    Args:
        make: its architecture, with random weights.
        updates: of the weights, of a batch each; a multiple of the batches in an epoch.
        lr: peak learning rate.
        images: of the training split.
        augment: whether on random views of them.
        stop: after so many of the updates; 0 does all of them.
    """

    make: Callable[[], Classifier] = vit
    updates: int = 1800
    lr: float = 1.5e-3
    images: int = 760
    augment: bool = True
    stop: int = 0


PRETRAININGS = {
    "vit": Pretraining(),
    "conv": Pretraining(conv, updates=720, lr=4e-3),
    "vit-380": Pretraining(images=380),
    "vit-190": Pretraining(images=190),
    "vit-95": Pretraining(images=95),
    "vit-plain": Pretraining(augment=False),
    "vit-at-300": Pretraining(stop=300),
    "vit-at-600": Pretraining(stop=600),
    "vit-at-1200": Pretraining(stop=1200),
}


def main(kinds: Sequence[str] = (), folder: Path = WEIGHTS) -> None:
    """Pretrain these, or all, and write their weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds or PRETRAININGS:
        classifier = pretrain(PRETRAININGS[kind])
        state = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in classifier.state_dict().items()
        }
        save_file(state, folder / f"digits-{kind}.safetensors")


def pretrain(how: Pretraining) -> Classifier:
    """AdamW with a one-cycle schedule on the training split, or on a part of it."""
    images, labels = tensors("train")
    if how.images < len(images):
        chosen = torch.from_numpy(stratified(labels.numpy(), how.images))
        images, labels = images[chosen], labels[chosen]
    generator = torch.Generator().manual_seed(0)
    classifier = how.make()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=how.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=how.updates)
    an_epoch = -(-len(images) // BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier.train()
        for _ in range((how.stop or how.updates) // an_epoch):
            for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
                views = augmented(images[chosen], generator) if how.augment else images[chosen]
                loss = F.cross_entropy(classifier(views), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


def stratified(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of so many images, every class in proportion; a smaller draw is part of a larger."""
    order = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return np.sort(np.argsort(place, kind="stable")[:count])


def tensors(part: str) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, 32, 32) and label ids (N,)."""
    opened = Digits(part).open(None)  # type: ignore[arg-type]
    pictures = np.stack([np.asarray(opened.image(i)) for i in range(len(opened))])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    ids = torch.tensor([opened.class_map[label][0] for label in opened.labels])
    return images * 2 - 1, ids


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random affine maps, inversion, colour, blur, noise and erased squares."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    n = len(images)
    angle, scale = uniform(-0.35, 0.35, n), uniform(0.85, 1.35, n)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin(), scale * angle.cos()
    theta[:, :, 2] = uniform(-0.2, 0.2, n, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    invert = uniform(0, 1, n, 1, 1, 1) < 0.3
    views = torch.where(invert, -views, views)
    views = views * uniform(0.4, 1.1, n, 3, 1, 1) + uniform(-0.4, 0.4, n, 3, 1, 1)
    blurred = F.avg_pool2d(views, 3, 1, 1)
    views = torch.where(uniform(0, 1, n, 1, 1, 1) < 0.3, blurred, views)
    noise = torch.randn(views.shape, generator=generator) * uniform(0, 0.35, n, 1, 1, 1)
    views = (views + noise).clamp(-1, 1)
    top, left = torch.randint(0, 26, (2, n), generator=generator)
    rows, columns = torch.arange(32)[None, :, None], torch.arange(32)[None, None, :]
    inside = (
        (rows >= top[:, None, None]) & (rows < top[:, None, None] + 7)
        & (columns >= left[:, None, None]) & (columns < left[:, None, None] + 7)
    )  # fmt: skip
    erase = inside[:, None] & (uniform(0, 1, n, 1, 1, 1) < 0.5)
    return torch.where(erase, uniform(-1, 1, n, 1, 1, 1), views)


if __name__ == "__main__":
    main(sys.argv[1:])
