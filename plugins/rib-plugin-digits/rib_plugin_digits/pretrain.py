"""Make the weights that ship with the package: `python -m rib_plugin_digits.pretrain [DIR]`.

Trains both backbones on the clean training split with strong augmentation (affine, colour,
noise, erasing), so that they are robust enough for fine-tuning to have something to lose.
About two minutes on two cores. The weights are kept in half precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rib_harness import Classifier
from rib_plugin_digits.backbones import WEIGHTS
from rib_plugin_digits.data import Digits
from rib_plugin_digits.nets import conv, vit

EPOCHS = {"vit": 150, "conv": 60}
BATCH = 64
PEAK_LR = {"vit": 1.5e-3, "conv": 4e-3}


def main(folder: Path = WEIGHTS) -> None:
    """Pretrain both and write their weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, make in (("vit", vit), ("conv", conv)):
        classifier = pretrain(make(), EPOCHS[kind], PEAK_LR[kind])
        state = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in classifier.state_dict().items()
        }
        save_file(state, folder / f"digits-{kind}.safetensors")


def pretrain(classifier: Classifier, epochs: int, lr: float) -> Classifier:
    """AdamW with a one-cycle schedule on augmented views of the training split."""
    images, labels = tensors("train")
    generator = torch.Generator().manual_seed(0)
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier.train()
        for _ in range(epochs):
            for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
                views = augmented(images[chosen], generator)
                loss = F.cross_entropy(classifier(views), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


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
    main(*(Path(argument) for argument in sys.argv[1:2]))
