"""Adapters: a small bottleneck behind every MLP (Houlsby et al., 2019)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Classifier, Task, transformer_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class Adapters:
    """Put a small bottleneck behind each block's MLP; train these and the head.

        h ← h + up( GELU( down(h) ) )

    `down` starts as Kaiming's rule draws it, `up` at zero: step 0 is the pretrained model (both
    at zero would never train).

    Helps: as LoRA, with a nonlinearity; it cannot be merged into the weights.

    Cost: 2 · width² / reduction parameters a block; forward some 5 % slower, for ever.

    Args:
        reduction: width of the block over that of the bottleneck.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:1902.00751 (there also behind the attention, with layer norms trained).
    """

    reduction: int = 8
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.reduction >= 1, "adapter", "reduction ≥ 1", self.reduction)
        expect(self.lr_scale > 0, "adapter", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train adapters and head."""
        model = self.rebuild(task.pretrained)
        model.encoder.requires_grad_(False)
        with task.seeded("adapter"):
            for module in model.modules():
                if isinstance(module, Adapted):
                    nn.init.kaiming_uniform_(module.down.weight, a=5**0.5)
                    module.down.requires_grad_(True)
                    module.up.requires_grad_(True)
        return task.fit(model, lr=task.recipe.lr * self.lr_scale).requires_grad_(True)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier with adapters that do nothing yet."""
        model = pretrained.copy()
        transformer = transformer_of(model.encoder)
        if transformer is None:
            raise TypeError("adapter needs the blocks of a transformer")
        for block in transformer.blocks:
            narrow = max(1, transformer.width // self.reduction)
            block.mlp = Adapted(block.mlp, transformer.width, narrow)  # type: ignore[arg-type]
        return model


class Adapted(nn.Module):
    """An MLP with an adapter behind it.

    Args:
        mlp: (…, D) → (…, D).
        width: D.
        narrow: width of the bottleneck.
    """

    def __init__(self, mlp: nn.Module, width: int, narrow: int):
        super().__init__()
        self.mlp = mlp
        # Without the random weights, so that no global generator moves.
        self.down = nn.utils.skip_init(nn.Linear, width, narrow)
        self.up = nn.utils.skip_init(nn.Linear, narrow, width)
        for parameter in (*self.down.parameters(), *self.up.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        h = self.mlp(x)
        bottleneck: Tensor = self.up(F.gelu(self.down(h)))
        return torch.add(h, bottleneck)
