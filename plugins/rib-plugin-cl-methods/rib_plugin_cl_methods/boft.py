"""BOFT: rotate the weights by butterflies of small rotations (Liu et al., 2024)."""

from dataclasses import dataclass
from typing import Any

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import attention_layers, fit_adapters


@dataclass(frozen=True)
class ButterflyFinetuning:
    """Train an orthogonal matrix, and a scale, in front of each chosen weight; then merge.

        R W        R a product of sparse block-diagonal rotations, R = 1 at the start

    By peft, on the attention's fused `qkv` layers. Angles between neurons are kept, and with them,
    its authors argue, what was learned in pretraining.

    Helps: where low-rank updates forget too much.

    Cost: as LoRA in memory, slower in time: a Cayley transform of every block at each step.

    Args:
        block_size: of the rotations; it must divide the layers' input width.
        factors: butterflies that are multiplied; 1 is OFT.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2311.06243.
    """

    block_size: int = 4
    factors: int = 1
    train_head: bool = True
    lr_scale: float = 10.0

    def __post_init__(self) -> None:
        expect(self.block_size >= 2, "boft", "block_size ≥ 2", self.block_size)
        expect(self.factors >= 1, "boft", "factors ≥ 1", self.factors)
        expect(self.lr_scale > 0, "boft", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the rotations and, if asked, the head."""
        encoder = task.pretrained.encoder
        layers = attention_layers(encoder)
        width = encoder.get_parameter(f"{layers[0]}.weight").shape[1]
        expect(width % self.block_size == 0, "boft", f"a block_size that divides {width}",
               self.block_size)  # fmt: skip
        return fit_adapters(
            task,
            "boft",
            self.config,
            layers,
            train_head=self.train_head,
            lr_scale=self.lr_scale,
        )

    def config(self, layers: list[str]) -> Any:
        """peft's configuration."""
        from peft import BOFTConfig

        return BOFTConfig(
            boft_block_size=self.block_size,
            boft_n_butterfly_factor=self.factors,
            target_modules=layers,
        )
