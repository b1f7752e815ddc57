"""Context-aware robust fine-tuning of CLIP (Mao et al., 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, ConfigError, Task, TextTower
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class ContextAwareFineTuning:
    """Fine-tune while keeping what the image says of its context: a sketch, a toy, a blurry photo.

        loss = CE(f(x), y) + lambda · KL( p₀(c | x) ‖ p(c | x) )
        p(c | x) = softmax_c( s · ⟨Φ(x), w_c⟩ )

    The penalty is the mean over the batch. w_c is the text of context c, one of the templates of
    the prompts: the mean of its embeddings over the fine-tuning set's classes, of length 1 again.
    The text tower and its temperature s stay as they are; image tower and head are trained. After
    the paper: its formula is that of its abstract, its constants could not be checked.

    Helps: CLIP models, whose knowledge of styles is what plain fine-tuning loses.

    Cost: ft's; all prompts of the set's classes through the text tower once, as many as for the
    zero-shot head; the pretrained features, once where nothing about the images is random.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.

    Source: arXiv:2211.16175.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "car-ft", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune image tower and head."""
        text = task.text_tower().requires_grad_(False).eval()
        words = text.logit_scale.detach().exp() * contexts(task, text)  # (C, D)
        remember = task.features_of(task.pretrained)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features = model.features(batch.images)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            log_p = F.log_softmax(features @ words.T, 1)  # (N, C)
            log_p0 = F.log_softmax(remember(batch) @ words.T, 1)
            drift = F.kl_div(log_p, log_p0, reduction="batchmean", log_target=True)
            return learned + self.lambda_ * drift

        return task.fit(task.pretrained.copy(), loss)


def contexts(task: Task, text: TextTower) -> Tensor:
    """w, (C, D), each of length 1: one for each template.

    Raises:
        ConfigError: the backbone has a single template.
    """
    ids = sorted({one for several in task.images.class_map for one in several})
    with torch.no_grad():
        # A class at a time: all prompts of all classes are a hundred thousand texts.
        total = torch.stack([
            text(text.tokens(text.captions(one)).to(task.device)) for one in ids
        ]).sum(0)  # fmt: skip
    if len(total) < 2:
        raise ConfigError(
            [f"{task.label}: car-ft compares contexts, and the backbone's prompts have one "
             "template only: take more of them."]
        )  # fmt: skip
    return F.normalize(total, dim=1)
