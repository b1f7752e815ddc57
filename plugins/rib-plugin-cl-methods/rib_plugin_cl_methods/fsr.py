"""Function-space regularisation on simulated shifts (Yuan et al., 2025)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.views import shifted


@dataclass(frozen=True)
class FunctionSpaceRegularisation:
    """Fine-tune while staying near the pretrained function where it will be asked: off the data.

        loss = CE(f(x), y) + lambda · KL( softmax f₀(x̃) ‖ softmax f(x̃) )
               + consistency · KL( softmax f(x) ‖ softmax f(x̃) )

    x̃ is x under a simulated shift: noise, blur, low contrast, no colour or hidden patches, drawn
    anew for each image at each step. The second term is over the whole label space; the third over
    the set's classes, and f(x) is its fixed target. After the paper, of which the abstract could
    be checked: these two terms are its own, that they are KLs, the shifts and the weights are not.
    Batch-norm takes its statistics of x̃ as of x.

    Helps: where the pretrained model was right on shifted images of the same things, of which the
    fine-tuning set shows one shift only.

    Cost: twice ft's, and a forward pass of the pretrained model at each step.

    Args:
        lambda_: weight of the distance to f₀.
        consistency: weight of the last term; both 0 is plain fine-tuning.

    Source: arXiv:2509.05328.
    """

    lambda_: float = 1.0
    consistency: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.lambda_, self.consistency)
        expect(min(weights) >= 0, "fsr", "weights ≥ 0", weights)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, near f₀ on shifted images."""
        teacher = task.pretrained.frozen().to(task.device)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            clean = model(batch.images)  # (N, label space)
            learned = F.cross_entropy(task.project(clean), batch.labels)
            if not (self.lambda_ or self.consistency):
                return learned
            images = shifted(batch.images)
            with torch.no_grad():
                before = teacher(images)
            now = model(images)
            moved = divergence(before, now)
            swayed = divergence(task.project(clean.detach()), task.project(now))
            return learned + self.lambda_ * moved + self.consistency * swayed

        return task.fit(task.pretrained.copy(), loss)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(target) ‖ softmax(logits)); a scalar."""
    q, log_p = F.log_softmax(target, 1), F.log_softmax(logits, 1)
    return F.kl_div(log_p, q, reduction="batchmean", log_target=True)
