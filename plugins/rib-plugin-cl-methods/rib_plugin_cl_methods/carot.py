"""CaRot: calibrated robust fine-tuning of CLIP (Oh et al., 2024)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.twotower import TwoTowers, captions, check_whole_batches, contrastive


@dataclass(frozen=True)
class CalibratedRobustFinetuning:
    """FLYP with a projection kept orthogonal, and a moving average of itself as a teacher.

        loss = FLYP + orthogonality · ‖WᵀW − I‖²_F + distillation · [ KL(q̃ᴵ‖qᴵ) + KL(q̃ᵀ‖qᵀ) ]

    All terms but the second are means over the batch. W is the image tower's last projection; q
    are the softmaxes of a batch's similarities over texts and over images, q̃ those of the
    average, which starts as the pretrained model. The authors' schedule of the average is not
    known here, so: after the paper.

    Helps: FLYP's accuracy with probabilities that fit better.

    Cost: FLYP's, another forward pass of both towers, and a copy of them.

    Args:
        orthogonality: weight of the second term.
        distillation: weight of the third; both 0 is FLYP.
        decay: of the average, at each step.
        lr: of AdamW.
        weight_decay: of AdamW.

    Source: arXiv:2311.01723.
    """

    orthogonality: float = 0.2
    distillation: float = 1.5
    decay: float = 0.99
    lr: float = 1e-5
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        weights = (self.orthogonality, self.distillation)
        expect(min(weights) >= 0, "carot", "weights ≥ 0", weights)
        expect(0 <= self.decay <= 1, "carot", "decay in 0 … 1", self.decay)
        expect(self.lr > 0 and self.weight_decay >= 0, "carot", "lr > 0 and weight_decay ≥ 0",
               (self.lr, self.weight_decay))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Train both towers; make the head."""
        check_whole_batches(task, "carot")
        model = TwoTowers(task.pretrained.copy(), task.text_tower()).to(task.device)
        teacher = Teacher(model, self.decay)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            if not isinstance(model, TwoTowers):
                raise TypeError(model)
            tokens = captions(task, model.text, batch)
            now = model.similarities(batch.images, tokens)
            with torch.no_grad():
                before = teacher.model.similarities(batch.images, tokens)
            projection = model.encoder.get_parameter(model.text.projection)
            return (
                contrastive(now, batch.labels)
                + self.orthogonality * unorthogonal(projection)
                + self.distillation * (divergence(now, before) + divergence(now.T, before.T))
            )

        task.fit(
            model,
            loss,
            state={"teacher": teacher},
            after_step=teacher.follow,
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        return model.classifier()


def unorthogonal(projection: Tensor) -> Tensor:
    """‖WᵀW − I‖²_F of (width, D); a scalar."""
    gram = projection.T @ projection
    return (gram - torch.eye(len(gram), device=gram.device)).square().sum()


def divergence(now: Tensor, before: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(before) ‖ softmax(now)); a scalar."""
    log_p, log_q = F.log_softmax(now, 1), F.log_softmax(before, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class Teacher:
    """A moving average of a model, starting as it is now."""

    def __init__(self, model: TwoTowers, decay: float):
        self.of, self.decay = model, decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self) -> None:
        """θ̃ ← decay · θ̃ + (1 − decay) · θ."""
        for mine, theirs in zip(self.model.parameters(), self.of.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
        for kept, moved in zip(self.model.buffers(), self.of.buffers(), strict=True):
            kept.copy_(moved)

    def state_dict(self) -> dict[str, Tensor]:
        """For a fit that is stopped and goes on."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.model.load_state_dict(dict(state))
