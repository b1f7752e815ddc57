"""CLIPood: margins from the words, and weights averaged by a Beta density (Shu et al., 2023)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class ClipOutOfDistribution:
    """Fine-tune CLIP's image tower against its fixed words, and average along the way.

        loss = CE( s ⟨Φ(x) − lambda · t_y, t_k⟩ over the classes k, y )
        θ = Σ w_i θ_i / Σ w_i,   w_i = Beta(beta, beta) at (i + ½) / (T + 1),   i = 0 … T updates

    t_k are the words of the classes, the rows of the zero-shot head without its scale s. A class
    that is near the true one in words is given a smaller margin than a far one, so that the image
    tower is not torn from what words are alike. With beta = ½ the average weighs both ends most,
    the pretrained weights (i = 0) and the last.

    Here the head stays the zero-shot one; where a class of the set stands for several ids, t_y is
    the mean of theirs. The authors' optimizer is AdamW at 5e-6 with weight decay 0.1, 10 000
    updates of 36 images: the length is the recipe's here.

    Helps: CLIP models that must still know classes that the new images do not show.

    Cost: ft's, and one more copy of the weights.

    Args:
        lambda_: of the margin; 0 is cross-entropy with the words fixed.
        beta: of the density; 1 weighs all updates alike.
        lr: of AdamW.
        weight_decay: of AdamW.

    Source: arXiv:2302.00864 and its authors' code.
    """

    lambda_: float = 0.3
    beta: float = 0.5
    lr: float = 5e-6
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "clipood", "lambda ≥ 0", self.lambda_)
        expect(self.beta > 0, "clipood", "beta > 0", self.beta)
        expect(self.lr > 0 and self.weight_decay >= 0, "clipood", "lr > 0 and weight_decay ≥ 0",
               (self.lr, self.weight_decay))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune the image tower; return the average."""
        model = task.pretrained.copy()
        model.head.requires_grad_(False)
        with torch.no_grad():
            nearness = task.project(model.head(words(task, model)))  # s ⟨t_y, t_k⟩, (K, K)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            logits = task.project(model(batch.images))
            return F.cross_entropy(logits - self.lambda_ * nearness[batch.labels], batch.labels)

        average = self.average_of(model, task.steps)
        task.fit(
            model,
            loss,
            state={"average": average},
            after_step=lambda: average.update_parameters(model),
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        model.load_state_dict(average.module.state_dict())
        return model.requires_grad_(True).eval()

    def average_of(self, model: Classifier, updates: int) -> AveragedModel:
        """The average of the weights, which has seen those before the first update."""
        at = (torch.arange(updates + 1, dtype=torch.float64) + 0.5) / (updates + 1)
        weights = torch.distributions.Beta(*torch.tensor([self.beta] * 2).double()).log_prob(at)
        shares = weights.exp() / weights.exp().cumsum(0)

        def mix(average: Tensor, now: Tensor, seen: Tensor | int) -> Tensor:
            return average + float(shares[int(seen)]) * (now - average)

        average = AveragedModel(model, avg_fn=mix, use_buffers=True)
        average.update_parameters(model)
        return average


def words(task: Task, model: Classifier) -> Tensor:
    """The direction of each of the set's classes in the zero-shot head: (K, D), of length 1."""
    rows = F.normalize(model.head.get_parameter("weight"), dim=1)  # (label space, D)
    means = [rows[list(ids)].mean(0) for ids in task.images.class_map]
    return F.normalize(torch.stack(means), dim=1)
