"""TWINS: one half of each batch under pretrained batch-norm statistics (Liu et al., 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class TwoStatistics:
    """Fine-tune two nets of the same weights: one keeps the pretrained batch-norm statistics.

        loss = lambda · CE(f_frozen(x₁), y₁) + CE(f_adaptive(x₂), y₂)      x = x₁ ∪ x₂, halves

    f_frozen normalises by the pretrained running statistics, f_adaptive by each batch's own, as
    batch-norm does while training; all else they share. What is returned is f_adaptive, under its
    running statistics, as in the authors' code.

    The paper starts from adversarially pretrained nets and trains on adversarial images (PGD, 10
    steps of 2/255 within 4/255); this is its loss, on the images as they are.

    Helps: the frozen half holds the weights where the pretrained statistics still fit them.

    Cost: ft's.

    Args:
        lambda_: weight of the frozen half; with 0 only one half of each batch is learnt from.

    Source: after arXiv:2303.11135 and its authors' code, without the adversary.
    """

    lambda_: float = 0.3

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "twins", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters under both statistics."""
        pretrained = {
            name: value.clone()
            for name, value in task.pretrained.named_buffers()
            if name.endswith((".running_mean", ".running_var"))
        }

        def loss(model: Classifier, batch: Batch) -> Tensor:
            n = len(batch.labels)
            half = n // 2 if n >= 4 else 0  # batch-norm cannot train on one image
            logits = task.project(model(batch.images[half:]))
            adaptive = F.cross_entropy(logits, batch.labels[half:])
            if not half:
                return adaptive
            with statistics_kept(model):
                logits = functional_call(model, pretrained, (batch.images[:half],))
            frozen = F.cross_entropy(task.project(logits), batch.labels[:half])
            return self.lambda_ * frozen + adaptive

        return task.fit(task.pretrained.copy(), loss)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch-norm normalises by its running statistics, and leaves them as they are."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
