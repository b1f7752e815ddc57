"""Plain fine-tuning: the baseline that every other method is compared with."""

from dataclasses import dataclass

from rib_harness import Classifier, Task


@dataclass(frozen=True)
class FineTuning:
    """Train everything on the new images with cross-entropy.

        loss = CE(f(x), y)

    Helps: it is what the others are compared with, and the best on the fine-tuning set itself.

    Cost: 1, by definition: about three forward passes an image and step; the optimizer's state.

    Source: the protocol's `FT`, arXiv:2410.21582.
    """

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters."""
        return task.fit(task.pretrained.copy())
