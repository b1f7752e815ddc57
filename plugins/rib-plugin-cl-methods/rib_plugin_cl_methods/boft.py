"""OFT and BOFT: rotate the weights by (butterflies of) small rotations (Liu et al., 2024)."""

import warnings
from dataclasses import dataclass

from rib_harness import Classifier, RibError, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import attention_layers, exactly, fit_adapters


@dataclass(frozen=True)
class ButterflyFinetuning:
    """Train a rotation of each chosen weight's inputs, and a scale of its outputs; then merge.

        diag(s) W Rᵀ        R a product of sparse block-diagonal rotations; R = 1, s = 1 at first

    With one factor, the default, R is one block-diagonal rotation and this is OFT
    (arXiv:2306.07280); from two on it is BOFT. By peft, on the attention's fused `qkv` layers.
    Angles between neurons are kept, and with them, its authors argue, what was learned in
    pretraining.

    Helps: where low-rank updates forget too much.

    Cost: as LoRA in memory, slower in time: a Cayley transform of every block at each step.

    Args:
        block_size: of the rotations; it must divide the layers' input width.
        factors: butterflies that are multiplied; more than one need peft's CUDA kernel.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2311.06243.
    """

    block_size: int = 4
    factors: int = 1
    train_head: bool = True
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.block_size >= 2, "boft", "block_size ≥ 2", self.block_size)
        expect(self.factors >= 1, "boft", "factors ≥ 1", self.factors)
        expect(self.lr_scale > 0, "boft", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the rotations and, if asked, the head; merge them."""
        from peft import BOFTConfig

        encoder = task.pretrained.encoder
        layers = attention_layers(encoder)
        width = encoder.get_parameter(f"{layers[0]}.weight").shape[1]
        expect(width % self.block_size == 0, "boft", f"a block_size that divides {width}",
               self.block_size)  # fmt: skip
        if self.factors > 1 and not has_kernel():
            raise RibError(
                f"boft:factors={self.factors} needs peft's CUDA kernel, which cannot be built here "
                "(nvcc and ninja); peft would use factors=1 without it."
            )
        config = BOFTConfig(
            boft_block_size=self.block_size,
            boft_n_butterfly_factor=self.factors,
            target_modules=exactly(layers),
        )
        lr = task.recipe.lr * self.lr_scale
        return fit_adapters(task, "boft", config, lr=lr, train_head=self.train_head)


def has_kernel() -> bool:
    """Whether peft can build its CUDA kernel; without it, it resets `factors` to 1."""
    from peft.tuners.boft.layer import get_fbd_cuda

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_fbd_cuda() is not None
