"""Selective projection decay: draw back only what its gradient wants back (Tian et al., 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.anchor import snapshot
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class SelectiveProjectionDecay:
    """After each update, draw back to θ₀ those tensors that go on though the loss wants them back.

        where ⟨g, Δ⟩ > 0:   Δ̃ ← (1 − lambda · r) · Δ̃,    r = clip( (‖Δ̃‖ − ‖Δ‖) / ‖Δ̃‖, 0, 1 )

    For each tensor, Δ = θ − θ₀ before the update, Δ̃ after it, g the gradient that made it. With
    lambda = 1 this is the projection onto the ball whose radius the tensor had before: it may turn,
    but not go farther. All other tensors are free.

    What carries a tensor on against its gradient is the optimizer: momentum, or Adam's scaling; by
    plain SGD the step itself goes back, and the decay hardly ever acts. The paper's optimizer is
    Adam; here it is the recipe's, whose own weight decay stays as the recipe says.

    Helps: layers that learn steadily are not held back, as an anchor on all of them would.

    Cost: ft's time and little more; two more copies of the weights (θ₀ and the last Δ).

    Args:
        lambda_: strength; 0 is plain fine-tuning.

    Source: arXiv:2411.01713 and its authors' code, AdamSPD; the default of lambda is ours.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "spd", "lambda ≥ 0", self.lambda_)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, decaying selectively."""
        model = task.pretrained.copy().to(task.device)
        decay = Decay(model, self.lambda_)
        return task.fit(model, state={"decay": decay}, after_step=decay.apply)


class Decay:
    """θ₀ and where each parameter was before the update.

    Args:
        model: at θ₀; its parameters are decayed in place.
        strength: lambda.
    """

    def __init__(self, model: Classifier, strength: float):
        self.strength = strength
        self.parameters = dict(model.named_parameters())
        self.start = snapshot(model)
        self.moves = {name: torch.zeros_like(value) for name, value in self.start.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Decay what the update made; its gradients are still there."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            start, before = self.start[name], self.moves[name]
            after = parameter - start
            length = after.norm().clamp_min(torch.finfo(after.dtype).tiny)
            ratio = ((length - before.norm()) / length).clamp(0, 1)
            runs_on = (parameter.grad * before).sum() > 0
            parameter.sub_(torch.where(runs_on, self.strength * ratio, 0.0) * after)
            before.copy_(parameter - start)

    def state_dict(self) -> dict[str, object]:
        """For a fit that is stopped and goes on. θ₀ is the pretrained model's, and not kept."""
        return {"moves": self.moves}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse."""
        for name, move in state["moves"].items():  # type: ignore[attr-defined]
            self.moves[name].copy_(move)
