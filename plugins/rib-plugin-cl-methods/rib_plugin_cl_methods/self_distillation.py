"""Self-distillation before fine-tuning (Lee et al., 2023)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.views import masked


@dataclass(frozen=True)
class SelfDistillation:
    """Train the encoder on the new images without labels, twice; then fine-tune.

        1  teacher, from θ₀:   M(θ) = Σ ‖Φ(m(x)) − Φ₀(x)‖² / Σ ‖Φ₀(x)‖²
        2  student, from θ₀:   M(θ) + lambda · Σ ‖Φ(x) − Φ_teacher(x)‖² / Σ ‖Φ_teacher(x)‖²
        3  `second`, from the student: it takes the student for the pretrained model

    m hides a share of each image's patches, others at each step. After the paper: its M is the
    reconstruction of the hidden patches by a masked auto-encoder, which a classifier has no
    decoder for; here the features of the whole image are what is to be reconstructed. The second
    term is theirs, but relative to the teacher's features, so that lambda means the same for every
    backbone. The head is left alone until the third stage. The authors train the first two for
    20 000 updates each by AdamW, with three quarters of the patches hidden.

    Helps: where the new images look otherwise than the pretraining's, and there are few of them;
    a teacher that has seen them keeps the student from fitting M too closely.

    Cost: ft's for `second`, as much for the teacher, twice that for the student, if `epochs` is
    the recipe's.

    Args:
        second: the method of the third stage, as a reference.
        lambda_: weight of the teacher.
        mask: share of the patches that is hidden.
        epochs: of each of the first two stages; None is the recipe's, 0 leaves them out. A
            recipe's max_steps still ends them.
        lr_scale: their learning rate as a multiple of the recipe's.

    Source: arXiv:2210.02871, and its authors' code.
    """

    second: str = "ft"
    lambda_: float = 1.0
    mask: float = 0.75
    epochs: int | None = None
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "self-distillation", "lambda ≥ 0", self.lambda_)
        expect(0 <= self.mask <= 1, "self-distillation", "mask in 0 … 1", self.mask)
        expect(self.lr_scale > 0, "self-distillation", "lr_scale > 0", self.lr_scale)
        fine = self.epochs is None or self.epochs >= 0
        expect(fine, "self-distillation", "epochs ≥ 0 or none", self.epochs)

    def finetune(self, task: Task) -> Classifier:
        """Teacher, student, fine-tuning."""
        if self.epochs == 0:
            return task.run(self.second, task.pretrained)
        recipe: dict[str, Any] = {"lr": task.recipe.lr * self.lr_scale}
        if self.epochs is not None and task.recipe.epochs:
            recipe["epochs"] = self.epochs
        whole = task.features_of(task.pretrained)  # Batch -> features of θ₀

        def reconstruction(model: Classifier, batch: Batch) -> Tensor:
            return relative(model.features(masked(batch.images, self.mask)), whole(batch))

        teacher = self.further(task, reconstruction, recipe)
        taught = task.features_of(teacher)

        def distillation(model: Classifier, batch: Batch) -> Tensor:
            drift = relative(model.features(batch.images), taught(batch))
            return reconstruction(model, batch) + self.lambda_ * drift

        student = self.further(task, distillation, recipe)
        return task.run(self.second, student)

    def further(
        self, task: Task, loss: Callable[[Classifier, Batch], Tensor], recipe: dict[str, Any]
    ) -> Classifier:
        """The pretrained encoder, trained further, under the pretrained head."""
        model = task.pretrained.copy()
        model.head.requires_grad_(False)
        return task.fit(model, loss, **recipe)


def relative(features: Tensor, target: Tensor) -> Tensor:
    """Squared distance over the squared length of the target, both summed over the batch."""
    distance: Tensor = (features - target).square().sum()
    return distance / target.square().sum()
