"""Feature distillation: stay near the pretrained features."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class FeatureDistillation:
    """Fine-tune while keeping the features that the pretrained encoder gives the new images.

        loss = CE(f(x), y) + lambda · Σ ‖Φ(x) − Φ₀(x)‖² / Σ ‖Φ₀(x)‖²        over the batch

    Φ are the features that the head sees; Φ₀ those of the pretrained encoder, frozen. Relative to
    Φ₀, so that lambda means the same for every backbone.

    Helps: where the features carry the robustness and the head does not; no answers are copied,
    so wrong ones are not kept either.

    Cost: one more forward pass an image, paid once when nothing about the image is random.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.

    Source: as a baseline in arXiv:2405.16027; Romero et al., arXiv:1412.6550, for the idea.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "feature-distill", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, distilling the pretrained features."""
        remember = task.features_of(task.pretrained)  # Batch -> features of f0

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features, kept = model.features(batch.images), remember(batch)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            drift = (features - kept).square().sum() / kept.square().sum()
            return learned + self.lambda_ * drift

        return task.fit(task.pretrained.copy(), loss)
