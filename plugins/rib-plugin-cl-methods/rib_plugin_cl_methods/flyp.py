"""Finetune like you pretrain: CLIP's contrastive loss on prompts (Goyal et al., 2023)."""

from dataclasses import dataclass

from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.twotower import TwoTowers, captions, check_whole_batches, contrastive


@dataclass(frozen=True)
class FinetuneLikeYouPretrain:
    """Fine-tune both towers of a CLIP model on images and prompts of their classes.

        loss = ½ [ CE(s · I Tᵀ) + CE(s · T Iᵀ) ]      image i belongs to text i of the batch

    Each image's prompt is drawn from its class's templates at each step. Items of the same class
    in a batch are not negatives of each other here, so a batch of one class teaches nothing.
    Afterwards the head is made anew from the text
    tower, over the whole label space: the result is a plain classifier.

    The paper's optimizer is AdamW at 1e-5 with weight decay 0.1; these are the defaults here. Its
    batches of 512 and its warmup of 500 steps are for larger sets; both are the recipe's.

    Helps: the loss of the pretraining does not distort what came of it.

    Cost: ft's, the text tower's forward and backward pass beside it (less than the image tower's
    for CLIP), and its optimizer state; the head anew at the end.

    Args:
        lr: of AdamW.
        weight_decay: of AdamW.

    Source: arXiv:2212.00638.
    """

    lr: float = 1e-5
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        expect(self.lr > 0 and self.weight_decay >= 0, "flyp", "lr > 0 and weight_decay ≥ 0",
               (self.lr, self.weight_decay))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Train both towers; make the head."""
        check_whole_batches(task, "flyp")
        model = TwoTowers(task.pretrained.copy(), task.text_tower())

        def loss(model: Classifier, batch: Batch) -> Tensor:
            if not isinstance(model, TwoTowers):
                raise TypeError(model)
            tokens = captions(task, model.text, batch)
            return contrastive(model.similarities(batch.images, tokens), batch.labels)

        task.fit(model, loss, optimizer="adamw", lr=self.lr, weight_decay=self.weight_decay)
        return model.classifier()
