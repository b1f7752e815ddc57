"""Elastic weight consolidation (Kirkpatrick et al., 2017)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, ConfigError, Task
from rib_plugin_cl_methods.anchor import snapshot, squared_distance


@dataclass(frozen=True)
class ElasticWeightConsolidation:
    """Fine-tune while holding on to the weights that the pretrained model's answers hang on.

        loss = CE(f(x), y) + lambda / 2 · Σ F (θ − θ₀)²

    F is the diagonal of the Fisher information of θ₀: the mean over images of the squared
    gradient of log p(y|x), with y drawn from θ₀'s own prediction over the whole label space. The
    gradient is squared image by image; squaring the gradient of a batch's mean is a well-known
    bug. The old task's images are not at hand in this protocol, so F is taken on the fine-tuning
    set. It is scaled to mean 1, so that lambda means the same for every backbone.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.
        fisher: `"diagonal"`, or `"identity"`: F = 1, as in the reference code of ImageNet-RIB,
            which with lambda = 2 gives its penalty Σ(θ − θ₀)².
        images: how many images F is estimated from, drawn without replacement; None is all.

    Source: arXiv:1612.00796.
    """

    lambda_: float = 0.1
    fisher: Literal["diagonal", "identity"] = "diagonal"
    images: int | None = 2000

    def __post_init__(self) -> None:
        if self.lambda_ < 0:
            raise ConfigError([f"ewc: expected lambda ≥ 0, got {self.lambda_}."])
        if self.images is not None and self.images < 1:
            raise ConfigError([f"ewc: expected images ≥ 1 or none, got {self.images}."])

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored by importance."""
        model = task.pretrained.copy()
        start = snapshot(model)
        importance = None if self.fisher == "identity" else normalised(self.importance(task))

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start, importance)
            return task.cross_entropy(model, batch) + self.lambda_ / 2 * penalty

        return task.fit(model, loss)

    def importance(self, task: Task) -> dict[str, Tensor]:
        """The diagonal Fisher information, by parameter name; not scaled."""
        model = task.pretrained.copy().eval()
        generator = task.generator("ewc")
        order = torch.randperm(len(task.images), generator=generator)[: self.images]
        parameters = dict(model.named_parameters())
        fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for batch in task.batches(1, order):
            log_p = F.log_softmax(model(batch.images), 1)
            label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).item()
            gradients = torch.autograd.grad(
                log_p[0, int(label)], list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    fisher[name] += gradient.square() / len(order)
        return fisher


def normalised(importance: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scaled so that the mean over all parameters is 1."""
    total = torch.stack([value.sum() for value in importance.values()]).sum()
    mean = total / sum(value.numel() for value in importance.values())
    return {name: value / mean.clamp_min(1e-30) for name, value in importance.items()}
