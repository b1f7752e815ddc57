"""Memory aware synapses (Aljundi et al., 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.anchor import check_steady, largest_of, snapshot, squared_distance
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.importance import mean_over_images, normalised


@dataclass(frozen=True)
class MemoryAwareSynapses:
    """Fine-tune while holding on to the weights that the logits are most sensitive to.

        loss = CE(f(x), y) + lambda · Σ Ω (θ − θ₀)²,        Ω = E_x | ∂ ‖f₀(x)‖² / ∂θ |

    No labels are used for Ω; the absolute value is taken image by image. Ω is taken on the
    fine-tuning set unless `data` names another, over all logits, and scaled to mean 1, so that
    lambda means the same for every backbone (the paper's is not scaled).

    Helps: as EWC, where the model's answers are too sure for their gradients to say much.

    Cost: as EWC: one backward pass an image, once; two more copies of the weights.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.
        images: how many images Ω is estimated from, drawn without replacement; None is all.
        data: a dataset to estimate Ω on, e.g. `imagenet-train`; None is the fine-tuning set.

    Source: arXiv:1711.09601.
    """

    lambda_: float = 1.0
    images: int | None = 2000
    data: str | None = None

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "mas", "lambda ≥ 0", self.lambda_)
        expect(self.images is None or self.images >= 1, "mas", "images ≥ 1 or none", self.images)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored by sensitivity."""
        model = task.pretrained.copy()
        start, importance = snapshot(model), normalised(self.importance(task))
        check_steady(task, 2 * self.lambda_ * largest_of(importance))

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start, importance)
            return task.cross_entropy(model, batch) + self.lambda_ * penalty

        return task.fit(model, loss)

    def importance(self, task: Task) -> dict[str, Tensor]:
        """Ω by parameter name; not scaled."""

        def squared_norm(logits: Tensor, generator: torch.Generator) -> Tensor:
            return logits.square().sum()

        over = task.on(self.data) if self.data else task
        return mean_over_images(over, squared_norm, torch.abs, self.images, "mas")
