"""LoRA: train a low-rank update of frozen weights (Hu et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import (
    all_layers,
    attention_layers,
    exactly,
    fit_adapters,
    fit_updates,
)


@dataclass(frozen=True)
class LowRankAdaptation:
    """Train a low-rank update of each chosen weight; merge it, so that the result is a plain net.

        W + alpha / rank · B A        A: (rank, in), B: (out, rank), B = 0 at the start

    By peft, except for `q-v`: timm's attention makes queries, keys and values with one fused
    layer, and peft on it adapts all three together. torch's own multi-head attention, in
    torchvision's and open_clip's transformers, reads its weights past any adapter: there the MLPs
    and the patch embedding are adapted, and no attention. Take the timm form of such a model.

    Helps: where memory is short; and as a bound on how far weights may go.

    Cost: no gradients and no optimizer state of the frozen weights; evaluation costs nothing more,
    since the update is merged.

    Args:
        rank: of the update.
        alpha: the update's scale is alpha / rank.
        layers: `"auto"`: the attention's fused `qkv`, or where there is none every linear layer
            and ungrouped convolution of the encoder; `"all"`: these everywhere; `"q-v"`: the
            queries and values of a fused `qkv` only, as in the reference code of ImageNet-RIB.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2106.09685.
    """

    rank: int = 8
    alpha: float = 8.0
    layers: Literal["auto", "all", "q-v"] = "auto"
    train_head: bool = True
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.rank >= 1, "lora", "rank ≥ 1", self.rank)
        expect(self.alpha > 0, "lora", "alpha > 0", self.alpha)
        expect(self.lr_scale > 0, "lora", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the update and, if asked, the head; merge it."""
        if self.layers == "q-v":
            return self.finetune_queries_and_values(task)
        from peft import LoraConfig

        encoder = task.pretrained.encoder
        attention = attention_layers(encoder) if self.layers == "auto" else []
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=exactly(attention or all_layers(encoder)),
        )
        lr = task.recipe.lr * self.lr_scale
        return fit_adapters(task, "lora", config, lr=lr, train_head=self.train_head)

    def finetune_queries_and_values(self, task: Task) -> Classifier:
        """The same on two thirds of each fused layer, which peft cannot."""
        return fit_updates(
            task,
            "lora",
            attention_layers(task.pretrained.encoder),
            lambda weight: QueryValueUpdate(weight, self.rank, self.alpha),
            lr=task.recipe.lr * self.lr_scale,
            train_head=self.train_head,
        )


class QueryValueUpdate(nn.Module):
    """A fused weight (3 · D, in) → the same with low-rank updates of its first and last third."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        third, width = len(weight) // 3, weight.shape[1]
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(2, rank, width, device=weight.device))
        self.b = nn.Parameter(torch.zeros(2, third, rank, device=weight.device))
        for part in self.a:
            nn.init.kaiming_uniform_(part, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """(3 · D, in) → (3 · D, in)."""
        query, value = self.scale * self.b @ self.a
        return weight + torch.cat([query, torch.zeros_like(query), value])
