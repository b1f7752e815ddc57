"""Layer-wise learning-rate decay: lower layers move less (Dong et al., 2022, for CLIP)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.depth import depth_of


@dataclass(frozen=True)
class LayerDecay:
    """Fine-tune with a learning rate that shrinks from layer to layer, from the head down.

        lr_l = lr · decay^(L − l)        block l = 0 … L − 1; below the blocks l = −1, above l = L

    With the optimizer of the recipe. The authors' recipe for CLIP has AdamW at 6e-4, weight decay
    0.05 and a moving average of .9998 beside it; where a net has no transformer's blocks, its
    layers in their order are the blocks.

    Helps: keeps the low layers near θ₀, without a penalty and without freezing.

    Cost: ft's.

    Args:
        decay: 1 is plain fine-tuning, 0 trains the head, and what else is above the blocks.

    Source: arXiv:2212.06138 and its authors' code.
    """

    decay: float = 0.6

    def __post_init__(self) -> None:
        expect(0 <= self.decay <= 1, "layer-decay", "decay in 0 … 1", self.decay)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters at rates of their own."""
        model = task.pretrained.copy()
        depth = depth_of(model.encoder)
        top = len(depth.blocks)
        scales = {
            f"encoder.{name}": self.decay ** (top - depth.of(name))
            for name, _ in model.encoder.named_parameters()
        }
        return task.fit(model, lr_scales=scales)
