"""Fast trainable projection: radii learned along the way (Tian et al., 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.anchor import snapshot
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.projection import projected


@dataclass(frozen=True)
class FastTrainableProjection:
    """Project every update back towards θ₀, to radii that the training gradient itself teaches.

        θ_l ← θ₀_l + min(1, γ_l / ‖Δ_l‖) · Δ_l     after each update, Δ = θ − θ₀ before it
        γ_l ← Adam on  ∂L/∂γ_l = ⟨ ∂L/∂θ_l , Δ_l / ‖Δ_l‖ ⟩     with the next step's gradient

    The gradient of the next step, which is there anyway, is what the last projection would have
    liked to be different: no held-out images and no second loop, unlike `tpgm`. A radius is never
    longer than the move itself. The first update sets the radii and is not projected (the authors'
    code starts near 0, and measures rows, not whole tensors).

    Helps: as TPGM, in one fine-tuning.

    Cost: ft's time and little more; two more copies of the weights (θ₀ and the last Δ).

    Args:
        lr: of Adam, on the radii.
        k: weight of gradients that would shrink a radius, 0 … 1; smaller keeps less of θ₀.

    Source: arXiv:2310.19182.
    """

    lr: float = 1e-2
    k: float = 1.0

    def __post_init__(self) -> None:
        expect(self.lr > 0, "ftp", "lr > 0", self.lr)
        expect(0 <= self.k <= 1, "ftp", "k in 0 … 1", self.k)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, projecting."""
        model = task.pretrained.copy().to(task.device)
        balls = Balls(model, self.lr, self.k)
        return task.fit(model, state={"balls": balls}, after_step=balls.project)


class Balls:
    """One radius a parameter tensor around θ₀, and what it takes to learn them.

    Args:
        model: at θ₀; its parameters are projected in place.
        lr: of Adam on the radii.
        k: weight of gradients that would shrink one.
    """

    def __init__(self, model: Classifier, lr: float, k: float):
        self.k = k
        self.parameters = dict(model.named_parameters())
        self.start = snapshot(model)
        self.moves = {name: torch.zeros_like(value) for name, value in self.start.items()}
        some = next(iter(self.start.values()))
        self.radii = torch.zeros(len(self.start), device=some.device, requires_grad=True)
        self.adam = torch.optim.Adam([self.radii], lr=lr)
        self.steps = 0

    @torch.no_grad()
    def project(self) -> None:
        """Teach the radii by the update's gradient, and project what came of the update."""
        if self.steps:
            self.learn()
        for i, (name, parameter) in enumerate(self.parameters.items()):
            self.moves[name].copy_(parameter - self.start[name])
            norm = self.moves[name].norm()
            self.radii[i] = self.radii[i].clamp(max=norm) if self.steps else norm
            parameter.copy_(projected(self.start[name], self.moves[name], self.radii[i]))
        self.steps += 1

    def learn(self) -> None:
        """One step of Adam on the radii."""
        gradient = torch.zeros_like(self.radii)
        for i, (name, parameter) in enumerate(self.parameters.items()):
            norm = self.moves[name].norm()
            if parameter.grad is not None and norm > 0:
                gradient[i] = (parameter.grad * self.moves[name]).sum() / norm
        if torch.isfinite(gradient).all():  # else fp16's scaler skipped the update
            self.radii.grad = torch.where(gradient > 0, self.k * gradient, gradient)
            self.adam.step()
            self.radii.clamp_(min=0)

    def state_dict(self) -> dict[str, object]:
        """For a fit that is stopped and goes on. θ₀ is the pretrained model's, and not kept."""
        return {
            "moves": self.moves,
            "radii": self.radii.detach(),
            "adam": self.adam.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse."""
        moves, radii = state["moves"], state["radii"]
        for name, move in moves.items():  # type: ignore[attr-defined]
            self.moves[name].copy_(move)
        with torch.no_grad():
            self.radii.copy_(radii)  # type: ignore[arg-type]
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]
