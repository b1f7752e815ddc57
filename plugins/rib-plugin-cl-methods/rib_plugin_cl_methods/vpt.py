"""Visual prompt tuning: learned tokens in a frozen transformer (Jia et al., 2022)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rib_harness import Classifier, Task, transformer_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class VisualPromptTuning:
    """Give the frozen transformer a few learned tokens beside those of the image.

        [class token, prompts, patches]  →  block  →  …

    They stand behind the class token and have no position. `shallow` puts them before the first
    block; `deep` gives every block new ones in place of the last block's. They are taken out
    behind the last block, so that pooling by average does not see them. Prompts and head train.

    The prompts are drawn from U(−v, v), v = √(6 / (3 · patch² + width)), so step 0 is not the
    pretrained model: attention has something new to look at.

    Helps: where one backbone serves many tasks, since a task is a few thousand numbers and a head.

    Cost: longer sequences (10 tokens beside 197 in a B/16: some 5 % more time forward); no
    gradients of weights but the head's.

    Args:
        tokens: how many prompts a block has.
        depth: `"shallow"` or `"deep"`.
        lr_scale: learning rate as a multiple of the recipe's; its authors search .25 … 250 at 256
            images an update, and prompts at the rate of weights hardly learn, which looks robust.

    Source: arXiv:2203.12119.
    """

    tokens: int = 10
    depth: Literal["shallow", "deep"] = "shallow"
    lr_scale: float = 10.0

    def __post_init__(self) -> None:
        expect(self.tokens >= 1, "vpt", "tokens ≥ 1", self.tokens)
        expect(self.lr_scale > 0, "vpt", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train prompts and head."""
        model = self.rebuild(task.pretrained)
        generator = task.generator("vpt")
        for name, parameter in model.encoder.named_parameters():
            prompt = name.endswith(".prompts")
            parameter.requires_grad_(prompt)
            if prompt:
                width = self.bound(model)
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.data.copy_((2 * drawn - 1) * width)
        return task.fit(model, lr=task.recipe.lr * self.lr_scale).requires_grad_(True)

    def bound(self, model: Classifier) -> float:
        """v: as Xavier's rule for the patch embedding."""
        blocks = [m for m in model.modules() if isinstance(m, PromptedBlock)]
        return math.sqrt(6 / (3 * blocks[0].patch ** 2 + blocks[0].width))

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier with prompts of zeros."""
        model = pretrained.copy()
        transformer = transformer_of(model.encoder)
        if transformer is None:
            raise TypeError("vpt needs the blocks of a transformer")
        last = len(transformer.blocks) - 1
        for i, block in enumerate(transformer.blocks):
            transformer.blocks[i] = PromptedBlock(
                block,
                tokens=self.tokens,
                new=i == 0 or self.depth == "deep",
                old=self.tokens if i > 0 else 0,
                last=i == last,
                width=transformer.width,
                prefix=transformer.prefix,
                patch=transformer.patch,
            )
        return model


class PromptedBlock(nn.Module):
    """A block that sees prompts behind the prefix tokens.

    Args:
        block: tokens (N, T, D) → (N, T, D).
        tokens: how many prompts.
        new: whether it has prompts of its own; else it sees those that come in.
        old: how many prompts come in; new ones replace them.
        last: whether it takes the prompts out again.
        width, prefix, patch: see `rib_harness.transformer_of`.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        tokens: int,
        new: bool,
        old: int,
        last: bool,
        width: int,
        prefix: int,
        patch: int,
    ):
        super().__init__()
        self.block, self.tokens, self.old, self.last = block, tokens, old, last
        self.width, self.prefix, self.patch = width, prefix, patch
        self.prompts = nn.Parameter(torch.zeros(tokens, width)) if new else None

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """(N, T, D) → (N, T′, D)."""
        if self.prompts is not None:
            prompts = self.prompts.expand(len(x), -1, -1)
            x = torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix + self.old :]], 1)
        x = self.block(x, *args, **kwargs)
        if self.last:
            x = torch.cat([x[:, : self.prefix], x[:, self.prefix + self.tokens :]], 1)
        return x
