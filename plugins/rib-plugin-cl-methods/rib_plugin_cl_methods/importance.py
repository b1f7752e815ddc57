"""How much each weight matters to the pretrained model, one image at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from rib_harness import Batch, Classifier, Task

#: (logits of one image (1, label space), generator) → a scalar to differentiate.
Value = Callable[[Tensor, torch.Generator], Tensor]


def mean_over_images(
    task: Task, value: Value, shape: Callable[[Tensor], Tensor], images: int | None, name: str
) -> dict[str, Tensor]:
    """E_x[ shape( ∂ value(f(x)) / ∂θ ) ], by parameter name, of θ₀ in eval mode.

    The gradient is shaped (squared, or its absolute value taken) image by image; of a batch's
    mean gradient it would be another number.

    Args:
        task: whose images.
        value: what is differentiated.
        shape: applied to each image's gradient.
        images: how many, drawn without replacement; None is all.
        name: of the generator.
    """
    model = task.pretrained.copy().eval()
    generator = task.generator(name)
    order = torch.randperm(len(task.images), generator=generator)[:images]
    parameters = dict(model.named_parameters())
    total = {key: torch.zeros_like(p) for key, p in parameters.items()}
    for batch in task.batches(1, order):
        gradients = torch.autograd.grad(
            value(_logits(model, batch), generator), list(parameters.values()), allow_unused=True
        )
        for key, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[key] += shape(gradient) / len(order)
    return total


def _logits(model: Classifier, batch: Batch) -> Tensor:
    logits: Tensor = model(batch.images)
    return logits


def normalised(importance: dict[str, Tensor], largest: float | None = None) -> dict[str, Tensor]:
    """Scaled so that the mean over all parameters is 1: a penalty's weight then means the same
    for every backbone; then cut at the largest.
    """
    total = torch.stack([value.sum() for value in importance.values()]).sum()
    mean = total / sum(value.numel() for value in importance.values())
    scaled = {name: value / mean.clamp_min(1e-30) for name, value in importance.items()}
    return {name: value.clamp_max(largest or torch.inf) for name, value in scaled.items()}
