"""NMTune: refine frozen features through a small residual net (Chen et al., 2024)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class NoisyModelTuning:
    """Train a residual MLP between the frozen encoder and the head, and the head.

        z = Φ₀(x),   z′ = z + MLP(z)
        loss = CE(h(z′), y) + mse · ‖z′/‖z′‖ − z/‖z‖‖² / D + covariance · Σ_{i≠j} C(z′)²_ij / D
               − singular · (σ₁ + … + σ₅) / (5 Σ σ)

    The first two terms are means over the batch; C and σ are the covariance and the singular
    values of the batch's z′. The MLP is D → D → D with ReLU, and its last layer starts at zero, so
    that step 0 is the pretrained model; the authors' is D → 4 D → D with batch-norm and a learned
    scale of the residual, and starts at random.

    Helps: where pretraining labels were noisy, the paper finds; and on black-box encoders, since
    only features are needed.

    Cost: the features once; then steps of a small net. About lp's.

    Args:
        mse: weight of the consistency with the pretrained features.
        covariance: weight of the covariance between features.
        singular: weight of the mean share of the five largest singular values.
        lr: of AdamW.
        weight_decay: of AdamW.
        epochs: of its own, since they cost little; a recipe's max_steps still ends them.

    Source: arXiv:2309.17002.
    """

    mse: float = 1.0
    covariance: float = 0.04
    singular: float = 0.001
    lr: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 30

    def __post_init__(self) -> None:
        weights = (self.mse, self.covariance, self.singular)
        expect(min(weights) >= 0, "nmtune", "weights ≥ 0", weights)
        expect(self.lr > 0 and self.weight_decay >= 0 and self.epochs >= 0, "nmtune",
               "lr > 0, weight_decay ≥ 0 and epochs ≥ 0",
               (self.lr, self.weight_decay, self.epochs))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Train the residual net and the head."""
        model = self.rebuild(task.pretrained)
        model.encoder.requires_grad_(False)
        with task.seeded("nmtune"):
            nn.init.kaiming_uniform_(model.head.get_parameter("refine.0.weight"), a=5**0.5)
        recipe: dict[str, Any] = {"optimizer": "adamw", "lr": self.lr, "epochs": self.epochs,
                                  "weight_decay": self.weight_decay}  # fmt: skip
        if task.recipe.epochs == 0:
            recipe["epochs"] = 0
        fit = task.fit_head if task.repeats_images else task.fit
        return fit(model, self.loss_of(task), **recipe).requires_grad_(True)

    def loss_of(self, task: Task) -> Callable[[Classifier, Batch], Tensor]:
        """The loss of a batch of images, or of their features."""

        def loss(model: Classifier, batch: Batch) -> Tensor:
            before = model.features(batch.images)  # (N, D)
            after = model.head.refined(before)  # type: ignore[operator]
            learned = F.cross_entropy(task.project(model.head(before)), batch.labels)
            return learned + self.regularisation(before, after)

        return loss

    def regularisation(self, before: Tensor, after: Tensor) -> Tensor:
        """The three terms beside cross-entropy; a scalar.

        Args:
            before, after: z and z′, (N, D).
        """
        consistency = F.mse_loss(F.normalize(after), F.normalize(before))
        centred = after - after.mean(0)
        covariance = centred.T @ centred / max(len(after) - 1, 1)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        values = torch.linalg.svdvals(after.float())
        return (
            self.mse * consistency
            + self.covariance * off_diagonal / after.shape[1]
            - self.singular * values[:5].mean() / values.sum().clamp_min(1e-12)
        )

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier with a residual net that does nothing yet."""
        model = pretrained.copy()
        size = pretrained.preprocess.size
        some = next(model.parameters())
        with torch.no_grad():
            width = model.eval().features(some.new_zeros(1, 3, size, size)).shape[1]
        head = Refined(width, model.head).to(some.device)
        return Classifier(model.encoder, head, model.preprocess)


class Refined(nn.Module):
    """A head behind a residual MLP.

    Args:
        width: of the features, D.
        head: features (N, D) → logits.
    """

    def __init__(self, width: int, head: nn.Module):
        super().__init__()
        # Without the random weights, so that no global generator moves.
        first = nn.utils.skip_init(nn.Linear, width, width)
        last = nn.utils.skip_init(nn.Linear, width, width)
        for parameter in (*first.parameters(), *last.parameters()):
            nn.init.zeros_(parameter)
        self.refine = nn.Sequential(first, nn.ReLU(), last)
        self.head = head

    def refined(self, features: Tensor) -> Tensor:
        """(N, D) → (N, D)."""
        refined: Tensor = features + self.refine(features)
        return refined

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) → logits."""
        logits: Tensor = self.head(self.refined(features))
        return logits
