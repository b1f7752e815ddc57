"""Mixout: train with random neurons' weights put back to θ₀ (Lee et al., 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class Mixout:
    """Fine-tune while, at each step, a neuron's outgoing weights are θ₀'s with probability p.

        L = CE(f_w(x), y),     w = ( m θ + (1 − m) θ₀ − p θ₀ ) / (1 − p),     m ~ Bernoulli(1 − p)

    Dropout towards θ₀ in place of 0: w is θ on average, and wandering off costs. As in the authors'
    code, m is drawn for each input of a layer, once for all its outputs; weights of linear layers
    are mixed, and not biases, norms or embeddings; dropout proper is off meanwhile. Here
    convolutions, which they have none of, are mixed too, by input channel, and the head, which is
    pretrained in this protocol. The result is θ itself, without mixing.

    As in their code too, θ gets m · ∂L/∂w: the gradient of L without its factor 1/(1 − p), by which
    the rare steps of a large p would be too long for SGD.

    Helps: where few images make fine-tuning unstable; the pull grows with the distance.

    Cost: ft's time and little more; one more copy of the weights, and one of the mixed ones.

    Args:
        p: probability of θ₀, 0 ≤ p < 1; 0 is plain fine-tuning, dropout and all.

    Source: arXiv:1909.11299; p as in its authors' example.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        expect(0 <= self.p < 1, "mixout", "0 ≤ p < 1", self.p)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, mixing."""
        model = task.pretrained.copy().to(task.device)
        if not self.p:
            return task.fit(model)
        mixed = Mixed(task, model, self.p)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            logits = functional_call(model, mixed.weights(), (batch.images,))
            return F.cross_entropy(task.project(logits), batch.labels)

        dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        shares = [dropout.p for dropout in dropouts]
        for dropout in dropouts:
            dropout.p = 0.0
        model = task.fit(model, loss, state={"mixed": mixed}, after_step=mixed.next)
        for dropout, share in zip(dropouts, shares, strict=True):
            dropout.p = share
        return model


class Mixed:
    """The weights of one step, from masks that a step's number and the run's seed make.

    Args:
        task: draws.
        model: at θ₀; its linear layers and convolutions are mixed.
        p: probability of θ₀.
    """

    def __init__(self, task: Task, model: Classifier, p: float):
        self.task, self.p, self.step = task, p, 0
        self.groups = mixable(model)
        self.theta = {name: model.get_parameter(name) for name in self.groups}
        self.start = {name: theta.detach().clone() for name, theta in self.theta.items()}

    def weights(self) -> dict[str, Tensor]:
        """w by name. Micro-batches of one step have the same."""
        generator = self.task.generator(f"mixout/{self.step}")
        found = {}
        for name, theta in self.theta.items():
            mask, start = mask_of(theta, self.groups[name], self.p, generator), self.start[name]
            mixed = start + mask / (1 - self.p) * (theta.detach() - start)
            found[name] = mixed + mask * (theta - theta.detach())
        return found

    def next(self) -> None:
        """An update is done."""
        self.step += 1

    def state_dict(self) -> dict[str, int]:
        """For a fit that is stopped and goes on."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The inverse."""
        self.step = state["step"]


def mixable(model: nn.Module) -> dict[str, int]:
    """Names of the weights that are mixed, and the groups of their layers (1 but in some convs)."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[f"{path}.weight"] = 1
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found[f"{path}.weight"] = module.groups
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{path}.in_proj_weight"] = 1
    return found


def mask_of(weight: Tensor, groups: int, p: float, generator: torch.Generator) -> Tensor:
    """1 with probability 1 − p, else 0, the same for all weights that leave one input.

    Args:
        weight: (out, in / groups, …); the result broadcasts to it.
        groups: of a convolution: its outputs are in as many parts, each with inputs of its own.
        p: probability of 0.
        generator: on the CPU.
    """
    out, inputs = weight.shape[:2]
    share = torch.full((groups, inputs), 1 - p)
    drawn = torch.bernoulli(share, generator=generator).to(weight.device)
    return drawn.repeat_interleave(out // groups, 0).view(out, inputs, *[1] * (weight.ndim - 2))
