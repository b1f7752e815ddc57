"""Synaptic intelligence (Zenke et al., 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.anchor import check_steady, largest_of, snapshot, squared_distance
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.importance import normalised


@dataclass(frozen=True)
class SynapticIntelligence:
    """Fine-tune while holding on to the weights that did most for the old task's loss.

        loss = CE(f(x), y) + c · Σ Ω (θ − θ₀)²,    Ω = max(0, Σ_t −g_t Δθ_t) / (Δθ² + ξ)

    The sum runs along the old task's training. A downloaded checkpoint has no such trajectory, and
    without one Ω = 0 and this is plain fine-tuning; so a phase of training on old data is needed
    first, with the recipe of the run. Only Ω is taken from it: fine-tuning starts from, and is
    anchored at, θ₀. With a recipe's clip_grad the sum is over clipped gradients. Ω is scaled to
    mean 1, so that c means the same for every backbone.

    Helps: where the pretraining data are at hand, and EWC's Fisher is too local.

    Cost: another fine-tuning, on the old data; then ft's. Three more copies of the weights.

    Args:
        old: the dataset of the old task, e.g. `imagenet-train` or `digits-train`. A downloaded
            checkpoint has no training trajectory, and without one the penalty would be 0.
        c: weight of the penalty; 0 is plain fine-tuning.
        xi: ξ, keeps Ω finite where a weight hardly moved. At the 1e-7 of some libraries a few
            such weights take most of it, and the penalty diverges.

    Source: arXiv:1703.04200.
    """

    old: str
    c: float = 0.1
    xi: float = 1e-3

    def __post_init__(self) -> None:
        expect(self.c >= 0 and self.xi > 0, "si", "c ≥ 0 and xi > 0", (self.c, self.xi))

    def finetune(self, task: Task) -> Classifier:
        """Train on the old data for the importance, then fine-tune all parameters from θ₀."""
        importance = normalised(self.importance(task))
        check_steady(task, 2 * self.c * largest_of(importance))
        model = task.pretrained.copy()
        start = snapshot(model)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            penalty = squared_distance(model, start, importance)
            return task.cross_entropy(model, batch) + self.c * penalty

        return task.fit(model, loss)

    def importance(self, task: Task) -> dict[str, Tensor]:
        """Ω by parameter name; not scaled."""
        old = task.on(self.old)
        model = task.pretrained.copy()
        path = PathIntegral(model.to(task.device))
        start = snapshot(model)
        model = old.fit(model, state={"path": path}, after_step=path.add)
        return {
            name: path.gain[name].clamp_min(0) / ((p.detach() - start[name]).square() + self.xi)
            for name, p in model.named_parameters()
        }


class PathIntegral:
    """Σ_t −g_t Δθ_t of each parameter: how much its moves lowered the loss."""

    def __init__(self, model: Classifier):
        self.model = model
        self.last = snapshot(model)
        self.gain = {name: torch.zeros_like(value) for name, value in self.last.items()}

    @torch.no_grad()
    def add(self) -> None:
        """Count the update that was just made."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and torch.isfinite(parameter.grad).all():
                self.gain[name] -= parameter.grad * (parameter - self.last[name])
            self.last[name].copy_(parameter)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """For a fit that is stopped and goes on."""
        return {"last": self.last, "gain": self.gain}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse."""
        for mine, kept in ((self.last, state["last"]), (self.gain, state["gain"])):
            for name in mine:
                mine[name].copy_(kept[name])
