"""CLIPood: margins by the meaning of classes, and weights averaged by Beta (Shu et al., 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task, TextTower
from rib_plugin_cl_methods.anchor import snapshot
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class GeneralizingClip:
    """Fine-tune the image tower against fixed texts, with a margin; keep an average of the path.

        loss = CE( s · ⟨Φ(x) − lambda · t_y, t_j⟩ over classes j,  y )
        θ̄ = Σ_i b_i θ_i / Σ_i b_i,        b_i = Beta(beta, beta)( (i + ½) / (T + 1) )

    t_j are the texts of the zero-shot head and s its temperature, so class j is pushed away by a
    margin lambda · (1 − ⟨t_y, t_j⟩): less if it means nearly the same. θ_0 … θ_T are the weights
    before the first update and after each; beta = ½ weighs both ends most. The head is the
    pretrained one, before and afterwards. Nothing is in training mode: batch-norm and dropout are
    as in evaluation. The authors train in half precision; their text is one prompt a class.

    Helps: CLIP models that shall keep the classes and the styles that they are not tuned on.

    Cost: ft's, and one more copy of the weights.

    Args:
        lambda_: of the margin.
        beta: of the average; 1 weighs all alike, and the larger, the more the middle.
        lr: of AdamW; the authors train 5000 to 10 000 updates of 36 images.
        weight_decay: of AdamW.

    Source: arXiv:2302.00864, and its authors' code for the constants.
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
        """Train the image tower; return the average."""
        model = task.pretrained.copy().to(task.device)
        model.head.requires_grad_(False)
        texts = class_texts(task, model, task.text_tower())  # (K, D)
        average = BetaAverage(model, self.beta, task.steps)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features = model.eval().features(batch.images)  # (N, D)
            logits = model.head(features - self.lambda_ * texts[batch.labels])
            return F.cross_entropy(task.project(logits), batch.labels)

        task.fit(model, loss, state={"average": average}, after_step=average.follow,
                 optimizer="adamw", lr=self.lr, weight_decay=self.weight_decay)  # fmt: skip
        average.write()
        return model.requires_grad_(True)


def class_texts(task: Task, model: Classifier, text: TextTower) -> Tensor:
    """t of the fine-tuning set's classes, (K, D): of several ids the mean, of length 1 again."""
    with torch.no_grad():
        width = model.eval().features(next(task.batches(1)).images).shape[1]
        origin = torch.zeros(1, width, device=task.device)
        axes = torch.eye(width, device=task.device)
        rows = (model.head(axes) - model.head(origin)).T / text.logit_scale.exp()  # (ids, D)
        return F.normalize(
            torch.stack([rows[list(ids)].mean(0) for ids in task.images.class_map]), dim=1
        )


class BetaAverage:
    """Σ b_i θ_i / Σ b_i of a model's weights, from where it is now on.

    Args:
        model: whose.
        beta: both parameters of the density b.
        steps: T.
    """

    def __init__(self, model: Classifier, beta: float, steps: int):
        self.of, self.beta, self.steps = model, beta, steps
        self.mean = snapshot(model)
        self.updates, self.total = 0, self.weight(0)

    def weight(self, update: int) -> float:
        """b up to a factor that is the same for all."""
        x = (update + 0.5) / (self.steps + 1)
        return float((x * (1 - x)) ** (self.beta - 1))

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the weights after an update."""
        self.updates += 1
        weight = self.weight(self.updates)
        self.total += weight
        for name, parameter in self.of.named_parameters():
            self.mean[name].lerp_(parameter, weight / self.total)

    @torch.no_grad()
    def write(self) -> None:
        """Give the model the average."""
        for name, parameter in self.of.named_parameters():
            parameter.copy_(self.mean[name])

    def state_dict(self) -> dict[str, object]:
        """For a fit that is stopped and goes on."""
        return {"mean": self.mean, "updates": self.updates, "total": self.total}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse."""
        for name, mean in state["mean"].items():  # type: ignore[attr-defined]
            self.mean[name].copy_(mean)
        self.updates, self.total = int(state["updates"]), float(state["total"])  # type: ignore
