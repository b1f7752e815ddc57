"""CAR-FT: keep what the model says of an image's context (Mao et al., 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task, TextTower
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.divergence import divergence


@dataclass(frozen=True)
class ContextAwareFinetuning:
    """Fine-tune while keeping which of CLIP's prompts fits an image: a sketch, a photo, a cartoon.

        loss = CE(f(x), y) + lambda · KL( softmax(s Φ₀(x) Cᵀ) ‖ softmax(s Φ(x) Cᵀ) )

    A row of C is a prompt without its class: the mean of its embeddings over the classes of the
    set, of length 1, from the frozen text tower; s is CLIP's temperature. Fine-tuning forgets such
    contexts, and they are what a shift changes.

    Helps: CLIP models on renditions and styles.

    Cost: ft's; the pretrained features, once where nothing about the images is random; and every
    prompt of every class of the set through the text tower, once.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.

    Source: arXiv:2211.16175; the constant is not known here.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "car-ft", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune image tower and head."""
        text = task.text_tower().requires_grad_(False).eval()
        scale = text.logit_scale.exp()
        contexts = contexts_of(task, text)  # (M, D)
        remember = task.features_of(task.pretrained)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features = model.features(batch.images)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            now, before = (scale * f @ contexts.T for f in (features, remember(batch)))
            return learned + self.lambda_ * divergence(now, before)

        return task.fit(task.pretrained.copy(), loss)


def contexts_of(task: Task, text: TextTower) -> Tensor:
    """C: a direction for each prompt, the mean over the set's classes, (M, D).

    Raises:
        ConfigError: classes differ in how many prompts they have.
    """
    ids = [one for each in task.images.class_map for one in each]
    prompts = [text.captions(one) for one in ids]
    counts = sorted({len(one) for one in prompts})
    expect(len(counts) == 1, "car-ft", "as many prompts of every class", counts)
    total = torch.zeros((), device=task.device)
    with torch.no_grad():
        for captions in prompts:
            total = total + text(text.tokens(captions).to(task.device))
    return F.normalize(total, dim=1)
