"""L2-SP: weight decay towards the pretrained weights (Li et al., 2018)."""

from dataclasses import dataclass

from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.anchor import check_steady, snapshot, squared_distance
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class L2SP:
    """Fine-tune while staying near the starting point.

        loss = CE(f(x), y) + alpha / 2 · ‖θ − θ₀‖²

    The head is pretrained in this protocol, so it is anchored too; the paper's separate weight
    decay on a new head has no place here.

    Helps: the simplest anchor; a baseline for all that weigh the weights.

    Cost: one more copy of the weights, and a sum over them at each step.

    Args:
        alpha: weight of the penalty; 0 is plain fine-tuning.

    Source: arXiv:1802.01483.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        expect(self.alpha >= 0, "l2-sp", "alpha ≥ 0", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored."""
        model = task.pretrained.copy()
        start = snapshot(model)
        check_steady(task, self.alpha)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start)
            return task.cross_entropy(model, batch) + self.alpha / 2 * penalty

        return task.fit(model, loss)
