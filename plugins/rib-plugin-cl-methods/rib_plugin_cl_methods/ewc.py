"""Elastic weight consolidation (Kirkpatrick et al., 2017)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.anchor import check_steady, largest_of, snapshot, squared_distance
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.importance import mean_over_images, normalised


@dataclass(frozen=True)
class ElasticWeightConsolidation:
    """Fine-tune while holding on to the weights that the pretrained model's answers hang on.

        loss = CE(f(x), y) + lambda / 2 · Σ F (θ − θ₀)²

    F is the diagonal of the Fisher information of θ₀: the mean over images of the squared
    gradient of log p(y|x), with y drawn from θ₀'s own prediction over the whole label space. The
    gradient is squared image by image; squaring the gradient of a batch's mean is a well-known
    bug. The old task's images are not at hand in this protocol, so F is taken on the fine-tuning
    set unless `data` names another. It is scaled to mean 1, so that lambda means the same for
    every backbone, and cut at `largest`: its greatest values are some hundreds of the mean, and
    gradient descent on them grows from lr · lambda · F = 2 (1 + momentum) on, which ruins the
    model. A penalty that is too strong for the recipe all the same is told before training.

    Helps: where few weights carry the old answers; a penalty that is as easy to compute as
    L2-SP's. With F from the fine-tuning set it guards what the model says about these images.

    Cost: one backward pass for each of `images` images, one at a time, once; then ft's, and two
    more copies of the weights in memory (θ₀ and F).

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.
        fisher: `"diagonal"`, or `"identity"`: F = 1, as in the reference code of ImageNet-RIB,
            which with lambda = 2 gives its penalty Σ(θ − θ₀)².
        images: how many images F is estimated from, drawn without replacement; None is all.
        data: a dataset to estimate F on, e.g. `imagenet-train`; None is the fine-tuning set.
        largest: of F, which has mean 1 before it is cut; None does not cut it.

    Source: arXiv:1612.00796.
    """

    lambda_: float = 0.1
    fisher: Literal["diagonal", "identity"] = "diagonal"
    images: int | None = 2000
    data: str | None = None
    largest: float | None = 20.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "ewc", "lambda ≥ 0", self.lambda_)
        fine = self.largest is None or self.largest >= 1
        expect(fine, "ewc", "largest ≥ 1 or none", self.largest)
        expect(self.images is None or self.images >= 1, "ewc", "images ≥ 1 or none", self.images)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, anchored by importance."""
        model = task.pretrained.copy()
        start = snapshot(model)
        importance = None
        if self.fisher == "diagonal":
            importance = normalised(self.importance(task), self.largest)
        check_steady(task, self.lambda_ * largest_of(importance))

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start, importance)
            return task.cross_entropy(model, batch) + self.lambda_ / 2 * penalty

        return task.fit(model, loss)

    def importance(self, task: Task) -> dict[str, Tensor]:
        """The diagonal Fisher information, by parameter name; not scaled."""

        def log_likelihood(logits: Tensor, generator: torch.Generator) -> Tensor:
            log_p = F.log_softmax(logits, 1)
            label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            return log_p[0, int(label.item())]

        over = task.on(self.data) if self.data else task
        return mean_over_images(over, log_likelihood, torch.square, self.images, "ewc")
