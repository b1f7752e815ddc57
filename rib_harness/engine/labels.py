"""The model's logits → the logits of a set's own classes, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClassMap(nn.Module):
    """(N, label space) → (N, K), for a set of K classes with one or several ids each.

    Args:
        ids: for each class its ids in the label space.

    Example:
        >>> both = ClassMap([(0,), (1, 2)])
        >>> both(torch.tensor([[1.0, 2.0, 5.0]]), "max")
        tensor([[1., 5.]])
    """

    index: Tensor
    absent: Tensor

    def __init__(self, ids: Sequence[Sequence[int]]):
        super().__init__()
        self.single = all(len(one) == 1 for one in ids)
        widest = max(len(one) for one in ids)
        index = torch.zeros(len(ids), widest, dtype=torch.long)
        absent = torch.ones(len(ids), widest, dtype=torch.bool)
        for row, one in enumerate(ids):
            index[row, : len(one)] = torch.tensor(one)
            absent[row, : len(one)] = False
        self.register_buffer("index", index)
        self.register_buffer("absent", absent)

    def forward(self, logits: Tensor, how: str) -> Tensor:
        """Several ids: their maximum (`how="max"`, scoring) or log-sum-exp (`"logsumexp"`, loss).

        With the log-sum-exp, the softmax of the result is the sum of the ids' probabilities,
        renormalised over the set.
        """
        chosen = logits[:, self.index.flatten()]
        if self.single:
            return chosen
        chosen = chosen.view(len(logits), *self.index.shape).masked_fill(self.absent, -torch.inf)
        return chosen.amax(2) if how == "max" else chosen.logsumexp(2)
