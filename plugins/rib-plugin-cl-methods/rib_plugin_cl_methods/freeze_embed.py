"""Freeze-embed: plain fine-tuning with the patch embedding frozen (Kumar et al., 2022)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.depth import depth_of


@dataclass(frozen=True)
class FreezeEmbedding:
    """Fine-tune all but the layer that sees the pixels.

        min CE(f(x), y) over θ without the embedding, which stays θ₀

    Frozen are a vision transformer's patch embedding, with the norm behind it in CLIP, and a conv
    net's first layer, with its norm. Class token and positions train, as in the authors' code.
    The gradients of the embedding are much larger than others in modern nets, its authors find,
    and SGD then needs a rate that is too small for the rest; Adam hides that. Where fine-tuning
    collapses and this does not, that was why.

    Helps: ViTs, ConvNeXts and CLIP under SGD.

    Cost: slightly less than ft's.

    Source: arXiv:2211.09359 and its authors' code.
    """

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all other parameters."""
        model = task.pretrained.copy()
        for name in depth_of(model.encoder).stem:
            model.encoder.get_submodule(name).requires_grad_(False)
        return task.fit(model).requires_grad_(True)
