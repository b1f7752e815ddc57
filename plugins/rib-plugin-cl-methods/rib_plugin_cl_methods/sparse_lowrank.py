"""Sparse and low-rank updates together (Chen et al., 2023)."""

from dataclasses import dataclass

from torch import Tensor, nn

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import all_layers, attention_layers, fit_updates


@dataclass(frozen=True)
class SparseLowRank:
    """Train a low-rank update and a few single entries of each chosen weight; merge both.

        W + alpha / rank · B A + S        B = 0 and S = 0 at the start

    S has entries at the largest of |W|, which the authors' code calls `omp`; their default finds
    the places by decomposing W. The layers are those of `lora:layers=auto`, where theirs are
    queries and values; they scale S by alpha / rank too, which is 1 by default here. Their second
    half, pruning W itself, is left out: it makes the model small.

    Helps: where single weights matter that no low-rank update can reach alone.

    Cost: as LoRA.

    Args:
        rank: of the update.
        alpha: the low-rank update's scale is alpha / rank.
        sparse: entries of S in each weight.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2111.00160 and its authors' scripts, which have rank 16 and 16 entries.
    """

    rank: int = 16
    alpha: float = 16.0
    sparse: int = 16
    train_head: bool = True
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.rank >= 1 and self.alpha > 0, "sparse-lowrank", "rank ≥ 1 and alpha > 0",
               (self.rank, self.alpha))  # fmt: skip
        expect(self.sparse >= 0, "sparse-lowrank", "sparse ≥ 0", self.sparse)
        expect(self.lr_scale > 0, "sparse-lowrank", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Put both updates in, train them and, if asked, the head; merge them."""
        encoder = task.pretrained.encoder
        return fit_updates(
            task,
            "sparse-lowrank",
            attention_layers(encoder) or all_layers(encoder),
            lambda weight: Update(weight, self.rank, self.alpha, self.sparse),
            lr=task.recipe.lr * self.lr_scale,
            train_head=self.train_head,
        )


class Update(nn.Module):
    """A weight (out, in, …) → the same with both updates.

    Args:
        weight: as it is before.
        rank: of the low-rank update.
        alpha: its scale is alpha / rank.
        sparse: how many entries of the sparse one.
    """

    places: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float, sparse: int):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        count = min(sparse, weight.numel())
        self.s = nn.Parameter(weight.new_zeros(count))
        self.register_buffer("places", weight.detach().abs().flatten().topk(count).indices)
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, …) → (out, in, …)."""
        low_rank = self.scale * self.b @ self.a
        return weight + low_rank.flatten().index_add(0, self.places, self.s).view_as(weight)
