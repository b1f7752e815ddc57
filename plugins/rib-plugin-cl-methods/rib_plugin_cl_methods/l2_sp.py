"""L2-SP: weight decay towards the pretrained weights (Li et al., 2018)."""

from dataclasses import dataclass

from torch import Tensor

from rib_harness import Batch, Classifier, ConfigError, Task
from rib_plugin_cl_methods.anchor import snapshot, squared_distance


@dataclass(frozen=True)
class L2SP:
    """Fine-tune while staying near the starting point.

        loss = CE(f(x), y) + alpha / 2 · ‖θ − θ₀‖²

    The head is pretrained in this protocol, so it is anchored too; the paper's separate weight
    decay on a new head has no place here.

    Args:
        alpha: weight of the penalty; 0 is plain fine-tuning.

    Source: arXiv:1802.01483.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ConfigError([f"l2-sp: expected alpha ≥ 0, got {self.alpha}."])

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored."""
        model = task.pretrained.copy()
        start = snapshot(model)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start)
            return task.cross_entropy(model, batch) + self.alpha / 2 * penalty

        return task.fit(model, loss)
