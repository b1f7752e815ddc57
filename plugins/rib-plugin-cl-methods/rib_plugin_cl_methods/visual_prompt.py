"""Visual prompting: a learnable border around every image (Bahng et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class VisualPrompt:
    """Add one learned border to every image; the model itself is frozen, in eval mode.

        f₀(x + δ)

    δ is added in normalised space, 30 pixels wide at 224 × 224 (69 840 parameters) and in
    proportion at other sizes. It starts at zero, so that step 0 is the pretrained model; `paper`
    starts from noise, as the reference code of ImageNet-RIB.

    Helps: where the weights may not be touched at all; what is learned can be taken off again.

    Cost: ft's time without the gradients of the weights; no optimizer state but δ's.

    Args:
        pad: width of the border in pixels; None is 30/224 of the input's side.
        lr: its own learning rate, far from that of weights; None is the paper's 40 for 256 images
            an update, in proportion to the batch. The paper trains 1000 epochs.
        start: `"zero"` or `"noise"`.

    Source: arXiv:2203.17274.
    """

    pad: int | None = None
    lr: float | None = None
    start: Literal["zero", "noise"] = "zero"

    def __post_init__(self) -> None:
        expect(self.pad is None or self.pad >= 1, "visual-prompt", "pad ≥ 1 or none", self.pad)
        expect(self.lr is None or self.lr > 0, "visual-prompt", "lr > 0 or none", self.lr)

    def finetune(self, task: Task) -> Classifier:
        """Train the border."""
        model = self.rebuild(task.pretrained).requires_grad_(False)
        generator = task.generator("visual-prompt")
        for border in model.encoder.borders:  # type: ignore[union-attr]
            border.requires_grad_(True)
            if self.start == "noise":
                border.data.copy_(torch.randn(border.shape, generator=generator))
        return task.fit(model, lr=self.lr or 40 * task.recipe.batch_size / 256)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier behind a border of zeros."""
        size = pretrained.preprocess.size
        pad = self.pad if self.pad is not None else max(1, round(size * 30 / 224))
        expect(2 * pad <= size, "visual-prompt", f"pad ≤ {size // 2} for images of {size}", pad)
        model = pretrained.copy()
        return Classifier(Bordered(model.encoder, size, pad), model.head, model.preprocess)


class Bordered(nn.Module):
    """An encoder that sees every image with a border added.

    Args:
        encoder: images (N, 3, S, S) → features (N, D).
        size: S.
        pad: width of the border.
    """

    def __init__(self, encoder: nn.Module, size: int, pad: int):
        super().__init__()
        self.encoder = encoder
        sides, inner = torch.zeros(3, size - 2 * pad, pad), torch.zeros(3, pad, size)
        self.borders = nn.ParameterList(x.clone() for x in (inner, inner, sides, sides))

    def delta(self) -> Tensor:
        """δ, (3, S, S): zero inside."""
        top, bottom, left, right = self.borders
        middle = left.new_zeros(3, left.shape[1], top.shape[2] - 2 * left.shape[2])
        return torch.cat([top, torch.cat([left, middle, right], 2), bottom], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D)."""
        features: Tensor = self.encoder(images + self.delta())
        return features
