"""DoRA: LoRA on a weight's direction, with a magnitude of its own (Liu et al., 2024)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.lowrank import all_layers, attention_layers, exactly, fit_adapters


@dataclass(frozen=True)
class WeightDecomposedAdaptation:
    """Train direction and magnitude of each chosen weight apart; merge, so the result is plain.

        m · (W + alpha / rank · B A) / ‖W + alpha / rank · B A‖     norms by output; m = ‖W‖ first

    By peft. The layers are those of `lora:layers=auto`.

    Helps: nearer to full fine-tuning than LoRA at the same rank, its authors find.

    Cost: as LoRA, and the norms of the updated weights at each step.

    Args:
        rank: of the update.
        alpha: the update's scale is alpha / rank.
        train_head: whether the head trains too.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2402.09353.
    """

    rank: int = 8
    alpha: float = 8.0
    train_head: bool = True
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(self.rank >= 1, "dora", "rank ≥ 1", self.rank)
        expect(self.alpha > 0, "dora", "alpha > 0", self.alpha)
        expect(self.lr_scale > 0, "dora", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the update and, if asked, the head; merge it."""
        from peft import LoraConfig

        encoder = task.pretrained.encoder
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            use_dora=True,
            target_modules=exactly(attention_layers(encoder) or all_layers(encoder)),
        )
        lr = task.recipe.lr * self.lr_scale
        return fit_adapters(task, "dora", config, lr=lr, train_head=self.train_head)
