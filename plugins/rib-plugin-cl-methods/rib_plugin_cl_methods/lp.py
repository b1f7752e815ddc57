"""Linear probing (Kumar et al., 2022)."""

from dataclasses import dataclass
from typing import Literal

from rib_harness import Classifier, Task


@dataclass(frozen=True)
class LinearProbing:
    """Train the head only; the encoder is frozen, in eval mode, batch-norm statistics included.

        loss = CE(h(Φ₀(x)), y)        over the head h

    Helps: the features stay as they were, and so does most of the robustness; as good as the
    features are for the new data.

    Cost: one forward pass an image, once; then steps of a linear layer. A few percent of ft's.

    Args:
        lr: learning rate of the head; None is the recipe's. Its authors sweep 0.003 … 1:
            `--search lp:lr=0.003,0.03,0.3`. CLIP's zero-shot head has rows of length 100 on
            features of length 1, where such rates do nothing and 1 … 10 do: search there.
        features: `"once"` computes each image's features once, before training, which is exact
            while nothing about the images is random, and so with no augmentation only;
            `"every-step"` computes them at each step.

    Source: arXiv:2202.10054.
    """

    lr: float | None = None
    features: Literal["once", "every-step"] = "once"

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune the head."""
        model = task.pretrained.copy()
        model.encoder.requires_grad_(False)
        lr = task.recipe.lr if self.lr is None else self.lr
        if self.features == "once" and task.repeats_images:
            return task.fit_head(model, lr=lr)
        return task.fit(model, lr=lr)
