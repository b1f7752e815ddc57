"""Feature distillation: stay near the pretrained features."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class FeatureDistillation:
    """Fine-tune while keeping the features that the pretrained encoder gives the new images.

        loss = CE(f(x), y) + lambda · ‖Φ(x) − Φ₀(x)‖²        the mean over the batch

    Φ are the features that the head sees; Φ₀ those of the pretrained encoder, frozen.

    Helps: where the features carry the robustness and the head does not; no answers are copied,
    so wrong ones are not kept either.

    Cost: one more forward pass an image, paid once when nothing about the image is random.

    Args:
        lambda_: weight of the penalty, by sweep, since features differ in scale from backbone to
            backbone; 0 is plain fine-tuning.

    Source: as a baseline in arXiv:2405.16027; Romero et al., arXiv:1412.6550, for the idea.
    """

    lambda_: float = 0.01

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "feature-distill", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, distilling the pretrained features."""
        remember = task.features_of(task.pretrained)  # Batch -> features of f0

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features = model.features(batch.images)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            drift = (features - remember(batch)).square().sum(1).mean()
            return learned + self.lambda_ * drift

        return task.fit(task.pretrained.copy(), loss)
