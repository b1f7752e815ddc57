"""Trainable projected gradient method: learned distances from θ₀ (Tian et al., 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.projection import projected


@dataclass(frozen=True)
class TrainableProjection:
    """Fine-tune; then learn, on held-out images, how far each layer may have gone from θ₀.

        θ_l = θ₀_l + min(1, γ_l / ‖Δ_l‖) · Δ_l,        Δ = θ_base − θ₀

    The radii γ, one a tensor, are trained by Adam on the cross-entropy of images that the base
    was not trained on; the weights themselves stay. Norms are L2; the paper also has a row-sum
    norm, and projects during fine-tuning as well: see `ftp`. Batch-norm statistics are the base's
    while the radii are learned, and taken anew on the fine-tuning set at the end.

    Helps: layers differ in how far they should go, and nobody has to say.

    Cost: the base; then as many of ft's steps as there are iterations. Δ in memory.

    Args:
        base: the fine-tuning method, as a reference.
        iterations: of Adam.
        lr: of Adam.
        start: first radius, as a share of ‖Δ_l‖; with no iterations, 1 is the base and 0 is θ₀.

    Source: arXiv:2303.10720.
    """

    base: str = "ft"
    iterations: int = 200
    lr: float = 1e-2
    start: float = 0.5

    def __post_init__(self) -> None:
        expect(self.iterations >= 0, "tpgm", "iterations ≥ 0", self.iterations)
        expect(self.lr > 0, "tpgm", "lr > 0", self.lr)
        expect(0 <= self.start <= 1, "tpgm", "start in 0 … 1", self.start)

    def finetune(self, task: Task) -> Classifier:
        """Learn the radii of the base's checkpoint, and project."""
        if not self.iterations and not self.start:
            return task.pretrained.copy()
        model = task.checkpoint(self.base).to(task.device).eval().requires_grad_(False)
        start = {n: p.detach() for n, p in task.pretrained.named_parameters()}
        moves = {n: p - start[n] for n, p in model.named_parameters()}
        radii = self.learn(task, model, start, moves)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if self.iterations or self.start < 1:
                    parameter.copy_(projected(start[name], moves[name], radii[name]))
        shares = {n: float(radii[n] / m.norm()) for n, m in moves.items() if m.norm() > 0}
        task.report(shares={name: round(share, 4) for name, share in shares.items()})
        model.requires_grad_(True)
        # The base itself has its own statistics already.
        is_base = not self.iterations and self.start == 1
        return model if is_base else task.recompute_batchnorm(model)

    def learn(
        self, task: Task, model: Classifier, start: dict[str, Tensor], moves: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """γ by the name of the parameter, each in 0 … ‖Δ_l‖."""
        most = {name: move.norm() for name, move in moves.items()}
        radii = {
            name: (self.start * norm).requires_grad_(True)
            for name, norm in most.items()
            if norm > 0
        }
        optimizer = torch.optim.Adam(radii.values(), lr=self.lr) if radii else None
        batches = endless(task.held_out, task.generator("tpgm"))
        for _ in range(self.iterations if optimizer is not None else 0):
            batch = next(batches)
            weights = {n: projected(start[n], moves[n], radius) for n, radius in radii.items()}
            logits = functional_call(model, weights, (batch.images,))
            loss = torch.nn.functional.cross_entropy(task.project(logits), batch.labels)
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss.backward()
            optimizer.step()  # type: ignore[union-attr]
            with torch.no_grad():
                for name, radius in radii.items():
                    radius.clamp_(torch.zeros_like(radius), most[name])
        return {name: radii[name].detach() if name in radii else most[name] for name in most}


def endless(task: Task, generator: torch.Generator) -> Iterator[Batch]:
    """The task's images over and over, in a new order each time."""
    while True:
        order = torch.randperm(len(task.images), generator=generator)
        yield from task.batches(task.recipe.batch_size, order)
