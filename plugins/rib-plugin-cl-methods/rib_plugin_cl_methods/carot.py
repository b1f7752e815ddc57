"""CaRot: calibrated robust fine-tuning of CLIP (Oh et al., 2024)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.divergence import divergence
from rib_plugin_cl_methods.twotower import TwoTowers, captions, check_whole_batches, contrastive


@dataclass(frozen=True)
class CalibratedRobustFinetuning:
    """FLYP with a projection kept orthogonal, and a moving average of itself as a teacher.

        loss = FLYP + orthogonality · ‖WᵀW − I‖_F + alignment · ‖W Vᵀ‖_F
               + distillation · [ KL(q̃ᴵ‖qᴵ) + KL(q̃ᵀ‖qᵀ) ]

    The first and the last term are means over the batch. W and V are the last projections of the
    image and of the text tower; q are the softmaxes of a batch's similarities over texts and over
    images, q̃ those of the average θ̃, which starts as the pretrained model:

        θ̃ ← m · θ̃ + (1 − m) · θ      at the first update and each `every`th,

    with m from `decay[0]` to `decay[1]` over the first fifth of the updates. A fit of fewer
    than `every` updates has the one after its first update for a teacher.

    Helps: FLYP's accuracy with probabilities that fit better.

    Cost: FLYP's, another forward pass of both towers, and a copy of them.

    Args:
        orthogonality: weight of the second term.
        alignment: weight of the third.
        distillation: weight of the last; all 0 is FLYP.
        decay: m at the start, and from a fifth of the updates on.
        every: how many updates apart the average is taken.
        lr: of AdamW.
        weight_decay: of AdamW.

    Source: arXiv:2311.01723, and its authors' code for what the paper leaves open.
    """

    orthogonality: float = 0.2
    alignment: float = 0.05
    distillation: float = 1.5
    decay: tuple[float, float] = (0.05, 0.9)
    every: int = 500
    lr: float = 1e-5
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        weights = (self.orthogonality, self.alignment, self.distillation)
        expect(min(weights) >= 0, "carot", "weights ≥ 0", weights)
        both = len(self.decay) == 2 and all(0 <= m <= 1 for m in self.decay)
        expect(both, "carot", "decay: two numbers in 0 … 1", self.decay)
        expect(self.every >= 1, "carot", "every ≥ 1", self.every)
        expect(self.lr > 0 and self.weight_decay >= 0, "carot", "lr > 0 and weight_decay ≥ 0",
               (self.lr, self.weight_decay))  # fmt: skip

    def finetune(self, task: Task) -> Classifier:
        """Train both towers; make the head."""
        check_whole_batches(task, "carot")
        model = TwoTowers(task.pretrained.copy(), task.text_tower()).to(task.device)
        teacher = Teacher(model, self.decay, self.every, warmup=0.2 * task.steps)

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
                + self.alignment * (projection @ model.text.text_projection.T).norm()
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
    """‖WᵀW − I‖_F of (width, D); a scalar."""
    gram = projection.T @ projection
    return (gram - torch.eye(len(gram), device=gram.device)).norm()


class Teacher:
    """A moving average of a model, starting as it is now.

    Args:
        model: whose.
        decay: at the first update, and from the end of the warm-up on; between them a line.
        every: updates from one average to the next.
        warmup: how many updates.
    """

    def __init__(self, model: TwoTowers, decay: tuple[float, float], every: int, warmup: float):
        self.of, self.decay, self.every, self.warmup = model, decay, every, warmup
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = 0

    def momentum(self, update: int) -> float:
        """m at an update, counted from 0."""
        first, last = self.decay
        return first + (last - first) * update / self.warmup if update < self.warmup else last

    @torch.no_grad()
    def follow(self) -> None:
        """θ̃ ← m · θ̃ + (1 − m) · θ, if it is time."""
        update, self.updates = self.updates, self.updates + 1
        if update % self.every:
            return
        m = self.momentum(update)
        for mine, theirs in zip(self.model.parameters(), self.of.parameters(), strict=True):
            mine.lerp_(theirs, 1 - m)
        for kept, moved in zip(self.model.buffers(), self.of.buffers(), strict=True):
            kept.copy_(moved)

    def state_dict(self) -> dict[str, Tensor]:
        """For a fit that is stopped and goes on."""
        return {**self.model.state_dict(), "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        weights = dict(state)
        self.updates = int(weights.pop("updates"))
        self.model.load_state_dict(weights)
