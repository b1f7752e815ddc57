"""Linear probing, then fine-tuning (Kumar et al., 2022)."""

from dataclasses import dataclass

from rib_harness import Classifier, Task


@dataclass(frozen=True)
class LinearProbingFineTuning:
    """Fine-tune everything, starting from the head that linear probing found.

    The paper's motive is a head that starts at random and distorts good features. In this
    protocol the head is pretrained already, so expect less of it here.

    Args:
        lp: the linear probing to start from, as a reference; it is made once.
        lr_scale: learning rate as a share of the recipe's; the paper's second stage uses a
            smaller one.

    Source: arXiv:2202.10054.
    """

    lp: str = "lp"
    lr_scale: float = 0.5

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters from the probed head."""
        return task.fit(task.checkpoint(self.lp), lr=task.recipe.lr * self.lr_scale)
