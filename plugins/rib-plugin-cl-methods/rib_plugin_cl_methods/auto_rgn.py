"""Auto-RGN: learning rates by relative gradient norms, surgical fine-tuning (Lee et al., 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class RelativeGradientNorms:
    """Fine-tune most what the new images pull most, relative to its size.

        lr_i = lr · r_i / max r,      r_i = mean over batches of ‖∂ CE / ∂θ_i‖ / ‖θ_i‖

    for each tensor, from a few batches at the start of every epoch, in eval mode. Batch-norm is
    frozen, statistics and all, as in the authors' code. Optimizer and schedule are the recipe's,
    and go on from epoch to epoch, where the authors begin a new Adam. One tensor has the recipe's
    rate and the others less, so search it: they do, in 1e-5 … 1e-1. A tensor of zeros has the
    largest rate, too.

    Helps: where a shift asks for some layers only: the lowest for corruptions, its authors find,
    the highest for new labels.

    Cost: ft's, and a few more forward and backward passes an epoch.

    Args:
        batches: how many of them.

    Source: arXiv:2210.11466 and its authors' code.
    """

    batches: int = 5

    def __post_init__(self) -> None:
        expect(self.batches >= 1, "auto-rgn", "batches ≥ 1", self.batches)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all but batch-norm, with rates that are set anew at every epoch."""
        model = task.pretrained.copy().to(task.device)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
        rates = Rates(task, model, self.batches)
        model = task.fit(
            model, lr_scales=rates.scales, state={"rates": rates}, after_step=rates.follow
        )
        return model.requires_grad_(True)


class Rates:
    """Factors on the learning rate by the name of the parameter, set anew at every epoch.

    Args:
        task: its images.
        model: whose parameters.
        batches: to measure on.
    """

    def __init__(self, task: Task, model: Classifier, batches: int):
        self.task, self.model, self.batches = task, model, batches
        self.generator = task.generator("auto-rgn")
        self.step = 0
        self.scales: dict[str, float] = {}
        self.measure()

    def follow(self) -> None:
        """Called after each update."""
        self.step += 1
        if self.step % self.task.steps_per_epoch == 0 and self.step < self.task.steps:
            self.measure()

    def measure(self) -> None:
        """Set the factors by the model as it is."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        order = torch.randperm(len(self.task.images), generator=self.generator)
        size = self.task.recipe.batch_size
        total = torch.zeros(len(named), device=self.task.device)
        for batch in self.task.batches(size, order[: self.batches * size]):
            gradients = self.gradients(batch, list(named.values()))
            ratios = [g.norm() / p.norm() for g, p in zip(gradients, named.values(), strict=True)]
            total += torch.stack(ratios).detach()
        for module, training in modes.items():
            module.training = training
        largest = max([float(one) for one in total if one.isfinite()], default=0.0) or 1.0
        for name, one in zip(named, total, strict=True):
            self.scales[name] = float(one) / largest if one.isfinite() else 1.0

    def gradients(self, batch: Batch, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Of the batch's cross-entropy, piece by piece where the recipe has micro-batches."""
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for part in batch.split(self.task.recipe.micro_batch):
            loss = self.task.cross_entropy(self.model, part) * len(part) / len(batch)
            for added, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                added += gradient
        return total

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        return {"step": self.step, "scales": self.scales, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]
        self.scales.update(state["scales"])
        self.generator.set_state(state["generator"])
