"""Self-distillation first: learn a further trained self's features, then fine-tune."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class SelfDistillation:
    """Train on from θ₀ as a teacher; distil it into a student from θ₀; fine-tune the student.

        1. θ_T = what the teacher method makes of θ₀
        2. from θ₀:    loss = CE(f(x), y) + lambda · Σ ‖Φ(x) − Φ_T(x)‖² / Σ ‖Φ_T(x)‖²
        3. from there: loss = CE(f(x), y)

    Φ are the features that the head sees. In the paper the teacher and the first loss are masked
    auto-encoding, with the decoder of the pretraining; a classifier has none, so both are
    fine-tuning here. The student has the teacher's features at a smaller distance from θ₀, the
    paper shows, and its fine-tuning starts nearer to where the pretraining ended.

    Helps: small sets that are far from the pretraining.

    Cost: three times ft's, less where the teacher is made anyway.

    Args:
        lambda_: weight of the teacher's features.
        teacher: a method, as a reference; it is made once.

    Source: after Lee et al., arXiv:2210.02871.
    """

    lambda_: float = 1.0
    teacher: str = "ft"

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "self-distillation", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Distil the teacher's features; then fine-tune all parameters."""
        taught = task.features_of(task.checkpoint(self.teacher))  # Batch -> Φ_T

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features, wanted = model.features(batch.images), taught(batch)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            gap = (features - wanted).square().sum() / wanted.square().sum()
            return learned + self.lambda_ * gap

        student = task.fit(task.pretrained.copy(), loss)
        return task.fit(student.copy())
