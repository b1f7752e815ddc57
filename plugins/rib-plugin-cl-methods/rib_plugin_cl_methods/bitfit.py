"""BitFit: train the biases only (Ben Zaken et al., 2022)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class BitFit:
    """Train the biases of the encoder, and the head; all other weights stay.

        loss = CE(h(Φ(x)), y)        over h and the biases of Φ

    In a net with batch-norm its shifts are biases, and its statistics move as in fine-tuning.

    Helps: so few weights move that much of the pretrained function has to stay.

    Cost: ft's forward pass; the backward pass makes no gradients of the encoder's weight matrices,
    and the optimizer keeps state for about a hundredth of a ViT-B's parameters, the head's mostly.

    Args:
        lr_scale: learning rate as a multiple of the recipe's; biases need a higher one.

    Source: arXiv:2106.10199.
    """

    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.lr_scale > 0, "bitfit", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune biases and head."""
        model = task.pretrained.copy()
        for name, parameter in model.encoder.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return task.fit(model, lr=task.recipe.lr * self.lr_scale).requires_grad_(True)
