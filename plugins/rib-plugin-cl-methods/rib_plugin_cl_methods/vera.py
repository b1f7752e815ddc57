"""VeRA: LoRA with shared random matrices and trained scales (Kopiczko et al., 2024)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import attention_layers, exactly, fit_adapters


@dataclass(frozen=True)
class VectorAdaptation:
    """Train two vectors a layer around random matrices that all layers share; then merge.

        W + diag(b) B diag(d) A        A and B random and frozen, b = 0 at the start

    By peft, on the attention's fused `qkv` layers: the shared matrices need layers of one shape.

    Helps: the fewest numbers of the low-rank family.

    Cost: as LoRA; rank + 3 · width parameters a block, so a high rank costs little.

    Args:
        rank: of the shared matrices.
        d_initial: what `d` starts with.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's; its authors' is ten times LoRA's.

    Source: arXiv:2310.11454.
    """

    rank: int = 64
    d_initial: float = 0.1
    train_head: bool = True
    lr_scale: float = 10.0

    def __post_init__(self) -> None:
        expect(self.rank >= 1, "vera", "rank ≥ 1", self.rank)
        expect(self.d_initial != 0, "vera", "d_initial ≠ 0", self.d_initial)
        expect(self.lr_scale > 0, "vera", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the vectors and, if asked, the head; merge them."""
        from peft import VeraConfig

        config = VeraConfig(
            r=self.rank,
            d_initial=self.d_initial,
            projection_prng_key=task.seed,  # of the random matrices
            target_modules=exactly(attention_layers(task.pretrained.encoder)),
        )
        lr = task.recipe.lr * self.lr_scale
        return fit_adapters(task, "vera", config, lr=lr, train_head=self.train_head)
