"""Learning without Forgetting (Li & Hoiem, 2016)."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class LearningWithoutForgetting:
    """Fine-tune while keeping the pretrained model's soft answers on the new images.

        loss = CE(f(x), y) + alpha · KL( softmax(f0(x)/T) ‖ softmax(f(x)/T) )

    f0 is the pretrained model, frozen.

    Helps: where the old answers on the new images are worth keeping; no old data are needed.

    Cost: one more forward pass an image, once where its answers fit in memory (1 GiB), else at
    each step; the teacher's weights.

    Args:
        alpha: weight of the distillation term; 0 is plain fine-tuning.
        temperature: T > 0; larger keeps more of what f0 says about unlikely classes.
        over: "all" distils every class of the label space; "task" only those of the
            fine-tuning set, as the ImageNet-RIB reference code does.

    Source: arXiv:1606.09282.
    """

    alpha: float = 1.0
    temperature: float = 2.0
    over: Literal["all", "task"] = "all"

    def __post_init__(self) -> None:
        given = f"{self.alpha} and {self.temperature}"
        fine = self.alpha >= 0 and self.temperature > 0
        expect(fine, "lwf", "alpha ≥ 0 and temperature > 0", given)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, distilling the pretrained model."""
        remember = task.answers_of(task.pretrained)  # Batch -> logits of f0, kept where they can be

        def loss(model: Classifier, batch: Batch) -> Tensor:
            now, before = model(batch.images), remember(batch)  # (N, label space)
            learned = F.cross_entropy(task.project(now), batch.labels)
            return learned + self.alpha * self.distillation(task, now, before)

        return task.fit(task.pretrained.copy(), loss)

    def distillation(self, task: Task, now: Tensor, before: Tensor) -> Tensor:
        """KL from the pretrained model's softened answers to the present ones; a scalar.

        Args:
            task: whose classes are meant by `over="task"`.
            now, before: logits, (N, label space).
        """
        if self.over == "task":
            now, before = task.project(now), task.project(before)
        log_p, q = F.log_softmax(now / self.temperature, 1), F.softmax(before / self.temperature, 1)
        return F.kl_div(log_p, q, reduction="batchmean")
