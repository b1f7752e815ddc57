"""LiNeS: what fine-tuning changed, scaled by depth (Wang et al., 2025)."""

from dataclasses import dataclass

import torch

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.depth import Depth, depth_of


@dataclass(frozen=True)
class LayerScaling:
    """Take less of what fine-tuning changed the lower the layer; trains nothing itself.

        θ_l = θ₀_l + ( alpha + (1 − alpha) · l / (L − 1) ) · Δ_l,      Δ = θ_base − θ₀

    l = 0 … L − 1 are the blocks; outside the blocks the factor is alpha, as in the authors' code,
    which has a fixed head; so it is for the head here. Where a net has no transformer's blocks,
    its layers in their order are the blocks. Batch-norm statistics go with their layer.

    Helps: low layers hold what is general; WiSE-FT takes the same of all.

    Cost: the base; then a sum.

    Args:
        alpha: factor of the lowest block; 1 is the base, and 0 leaves head and embedding at θ₀.
        base: the fine-tuning method, as a reference; it is made once.

    Source: arXiv:2410.17146 and its authors' code.
    """

    alpha: float = 0.5
    base: str = "ft"

    def __post_init__(self) -> None:
        expect(0 <= self.alpha <= 1, "lines", "alpha in 0 … 1", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Scale the base's change."""
        model = task.checkpoint(self.base)
        start, depth = task.pretrained.state_dict(), depth_of(model.encoder)
        if self.alpha == 1:  # the base to the bit
            return model
        with torch.no_grad():
            for name, end in model.state_dict().items():
                if end.is_floating_point():
                    end.copy_(start[name].lerp(end, self.factor(depth, name)))
        return model

    def factor(self, depth: Depth, name: str) -> float:
        """Of the classifier's tensor of that name."""
        last = len(depth.blocks) - 1
        at = depth.of(name.removeprefix("encoder.")) if name.startswith("encoder.") else -1
        if not 0 <= at <= last:
            return self.alpha
        return self.alpha + (1 - self.alpha) * (at / last if last else 1.0)
