"""L1-SP: sparse moves away from the pretrained weights (Li et al., 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.anchor import snapshot
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class L1SP:
    """Fine-tune while charging every weight for the distance that it moves.

        loss = CE(f(x), y) + alpha · Σ |θ − θ₀| / Σ |θ₀|

    Unlike L2-SP, a small move pays the same rate as a large one, which favours a few weights that
    move far. Relative to θ₀, so that alpha means the same for nets of all sizes. The head is
    pretrained in this protocol, and anchored too.

    Helps: where a few weights suffice for the new data.

    Cost: one more copy of the weights, and a sum over them at each step.

    Args:
        alpha: weight of the penalty, by sweep; 0 is plain fine-tuning.

    Source: arXiv:1802.01483; as a robust fine-tuning baseline arXiv:2405.16027.
    """

    alpha: float = 5.0

    def __post_init__(self) -> None:
        expect(self.alpha >= 0, "l1-sp", "alpha ≥ 0", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored."""
        model = task.pretrained.copy()
        start = snapshot(model)
        size = torch.stack([value.abs().sum() for value in start.values()]).sum()

        def loss(model: Classifier, batch: Batch) -> Tensor:
            moves = [(p - start[name]).abs().sum() for name, p in model.named_parameters()]
            return task.cross_entropy(model, batch) + self.alpha * torch.stack(moves).sum() / size

        return task.fit(model, loss)
