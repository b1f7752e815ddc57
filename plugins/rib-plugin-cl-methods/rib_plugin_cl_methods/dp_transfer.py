"""Transfer from another pretrained backbone where that one is the better (Roth et al., 2024)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.divergence import divergence


@dataclass(frozen=True)
class PartitionedTransfer:
    """Fine-tune while distilling, for each image, the better of two: another backbone, or oneself.

        loss = CE(f(x), y) + lambda · KL( softmax(t(x)/T) ‖ softmax(f(x)/T) )
        t(x) = f_other(x)  if p_other(y | x) > p₀(y | x),  else f₀(x)

    f_other is another pretrained backbone, f₀ oneself before, both frozen; p are their softmax over
    the classes of the fine-tuning set, over which the answers are distilled too. So an image on
    which the other knows less keeps what oneself knew, and what the other knows more of is learnt.
    The paper transfers without cross-entropy; here it is part of fine-tuning.

    Helps: two backbones of different pretraining differ in what they know, whichever is the better
    one on the whole, its authors find.

    Cost: ft's; both teachers' forward pass an image, once where their answers fit in memory (1
    GiB), else at each step; their weights. Both see the views that are trained on.

    Args:
        teacher: the other backbone, as a reference over the same classes.
        lambda_: weight of the distillation; 0 is plain fine-tuning.
        temperature: T > 0.

    Source: arXiv:2310.17653, its supervised data partitioning.
    """

    teacher: str
    lambda_: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        fine = self.lambda_ >= 0 and self.temperature > 0
        expect(fine, "dp-transfer", "lambda ≥ 0 and temperature > 0",
               (self.lambda_, self.temperature))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, distilling the better of two."""
        own, other = task.answers_of(task.pretrained), task.answers_of_teacher(self.teacher)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            now = task.project(model(batch.images))  # (N, K)
            learned = F.cross_entropy(now, batch.labels)
            before = better(task.project(own(batch)), task.project(other(batch)), batch.labels)
            t = self.temperature
            return learned + self.lambda_ * divergence(now / t, before / t)

        return task.fit(task.pretrained.copy(), loss)


def better(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """For each image the logits that give its label more probability, in doubt one's own.

    Args:
        own, other: logits, (N, K).
        labels: (N,).
    """
    losses = [F.cross_entropy(one, labels, reduction="none") for one in (own, other)]
    return torch.where((losses[1] < losses[0])[:, None], other, own)
