"""LDIFS: stay near the pretrained features of every layer (Mukhoti et al., 2024)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.layers import watched


@dataclass(frozen=True)
class FeatureSpaceDistance:
    """Fine-tune while keeping what every layer of the pretrained encoder makes of the new images.

        loss = CE(f(x), y) + lambda · mean_l mean_p ‖ û_lp(x) − û⁰_lp(x) ‖²      û = u / ‖u‖

    u_lp is the vector of channels that layer l gives at position p (a token, a place of a map), u⁰
    the pretrained encoder's, frozen. Layers are the blocks of a vision transformer and the stages
    of a conv net; where neither is found, the features that the head sees, alone.

    As LPIPS compares images, which the paper builds on. Its authors' public code differs for ViTs:
    it takes the patch embedding and the first two blocks only, normalises each channel over the
    tokens, and takes the mean over channels where this takes the sum.

    Helps: against forgetting of concepts that the fine-tuning set lacks; early layers are kept as
    well as the last one, which `feature-distill` keeps alone.

    Cost: one more forward pass an image at each step; the teacher's weights and both encoders'
    activations.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.

    Source: arXiv:2308.13320; lambda as in its authors' code.
    """

    lambda_: float = 10.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "ldifs", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, keeping the layers' features."""
        teacher = task.pretrained.frozen().to(task.device).encoder

        def loss(model: Classifier, batch: Batch) -> Tensor:
            with watched(model.encoder) as now:
                learned = task.cross_entropy(model, batch)
            with torch.no_grad(), watched(teacher) as before:
                teacher(batch.images)
            return learned + self.lambda_ * distance(now.layers(), before.layers())

        return task.fit(task.pretrained.copy(), loss)


def distance(now: list[Tensor], before: list[Tensor]) -> Tensor:
    """The mean over layers, images and positions of ‖û − û⁰‖²; a scalar.

    Args:
        now, before: what each layer gives, (N, positions, C).
    """
    layers = []
    for u, u0 in zip(now, before, strict=True):
        moved = F.normalize(u.float(), dim=-1) - F.normalize(u0.float(), dim=-1)
        layers.append(moved.square().sum(-1).mean())
    return torch.stack(layers).mean()
