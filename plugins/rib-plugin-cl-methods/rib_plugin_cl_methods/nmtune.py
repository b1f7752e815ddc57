"""NMTune: refine frozen features through a small residual net (Chen et al., 2024)."""

from dataclasses import dataclass

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

        def loss(model: Classifier, batch: Batch) -> Tensor:
            before = model.features(batch.images)  # z, (N, D)
            after = model.head.refined(before)  # type: ignore[operator]  # z′
            learned = F.cross_entropy(task.project(model.head(before)), batch.labels)
            return learned + self.regularisation(before, after)

        fit = task.fit_head if task.repeats_images else task.fit
        return fit(
            model,
            loss,
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs if task.recipe.epochs else 0,
        ).requires_grad_(True)

    def regularisation(self, before: Tensor, after: Tensor) -> Tensor:
        """The three terms beside cross-entropy, of z and z′ (N, D); a scalar."""
        return (
            self.mse * F.mse_loss(F.normalize(after), F.normalize(before))
            + self.covariance * covariance_of_others(after)
            - self.singular * share_of_largest(after)
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


def covariance_of_others(features: Tensor) -> Tensor:
    """Σ_{i≠j} C²_ij / D, C the covariance of features (N, D); a scalar."""
    centred = features - features.mean(0)
    squares = (centred.T @ centred / max(len(features) - 1, 1)).square()
    return (squares.sum() - squares.diagonal().sum()) / len(squares)


def share_of_largest(features: Tensor, k: int = 5) -> Tensor:
    """Mean share of the k largest singular values of features (N, D) in their sum; a scalar."""
    values = torch.linalg.svdvals(features.float())
    return values[:k].mean() / values.sum().clamp_min(1e-12)


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
