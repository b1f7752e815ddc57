"""Lipsum-FT: keep what the model says of random texts (Nam et al., 2024)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class LipsumFineTuning:
    """Fine-tune while keeping the logits of every image against random texts.

        loss = CE(f(x), y) + lambda / (2 M) · Σ_m ( s ⟨Φ(x), t_m⟩ − s ⟨Φ₀(x), t_m⟩ )²

    The penalty is the mean over the batch. t_m are the embeddings of M texts of random tokens,
    drawn anew at each step and embedded by the frozen text tower; s is CLIP's temperature. What
    ties images to words outside the new classes is kept by this, without a word that anybody
    chose.

    Helps: CLIP models with a zero-shot head, whose image tower would drift away from the text's.

    Cost: ft's; the pretrained features, once where nothing about the images is random; and M
    short texts through the text tower at each step.

    Args:
        lambda_: weight of the penalty; 0 is plain fine-tuning.
        texts: M.
        length: tokens in each.

    Source: arXiv:2404.00860.
    """

    lambda_: float = 1.0
    texts: int = 80
    length: int = 8

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "lipsum-ft", "lambda ≥ 0", self.lambda_)
        expect(min(self.texts, self.length) >= 1, "lipsum-ft", "texts ≥ 1 and length ≥ 1",
               (self.texts, self.length))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune image tower and head."""
        remember = task.features_of(task.pretrained)
        text = task.text_tower().requires_grad_(False).eval()
        scale = text.logit_scale.detach().exp()

        def loss(model: Classifier, batch: Batch) -> Tensor:
            features = model.features(batch.images)  # (N, D)
            learned = F.cross_entropy(task.project(model.head(features)), batch.labels)
            if not self.lambda_:
                return learned
            # Seeded by the global generator, which a fit seeds, saves and restores.
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
            with torch.no_grad():
                words = text(text.random_tokens(self.texts, self.length, generator).to(task.device))
            gaps = scale * (features - remember(batch)) @ words.T  # (N, M)
            return learned + self.lambda_ / 2 * gaps.square().mean(1).mean()

        return task.fit(task.pretrained.copy(), loss)
