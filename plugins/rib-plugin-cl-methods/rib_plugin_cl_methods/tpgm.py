"""Trainable projected gradient method: learned distances from θ₀ (Tian et al., 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class TrainableProjection:
    """Fine-tune; then learn, on held-out images, how far each layer may have gone from θ₀.

        θ_l = θ₀_l + s_l · Δ_l,        Δ = θ_base − θ₀,   s_l in 0 … 1

    The shares s, one a tensor, are trained by Adam on the cross-entropy of images that the base
    was not trained on; the weights themselves stay. They are the paper's radii γ_l = s_l · ‖Δ_l‖,
    and relative, so that one learning rate fits layers of all sizes. Norms are L2; the paper also
    has a row-sum norm, and projects during fine-tuning as well: see `ftp`.

    Helps: layers differ in how far they should go, and nobody has to say.

    Cost: the base; then as many of ft's steps as there are iterations. Δ in memory.

    Args:
        base: the fine-tuning method, as a reference.
        iterations: of Adam.
        lr: of Adam.
        start: first share; with no iterations, 1 is the base and 0 is θ₀.
        batch_norm: `"base"` keeps the base's batch-norm statistics, as the authors do;
            `"recompute"` learns under each batch's own, and takes them anew on the fine-tuning set
            at the end.

    Source: arXiv:2303.10720.
    """

    base: str = "ft"
    iterations: int = 200
    lr: float = 1e-2
    start: float = 0.5
    batch_norm: Literal["base", "recompute"] = "base"

    def __post_init__(self) -> None:
        expect(self.iterations >= 0, "tpgm", "iterations ≥ 0", self.iterations)
        expect(self.lr > 0, "tpgm", "lr > 0", self.lr)
        expect(0 <= self.start <= 1, "tpgm", "start in 0 … 1", self.start)

    def finetune(self, task: Task) -> Classifier:
        """Learn the shares of the base's checkpoint, and go so far."""
        if not self.iterations and not self.start:
            return task.pretrained.copy()
        base = task.checkpoint(self.base).to(task.device).eval()
        start = {n: p.detach() for n, p in task.pretrained.named_parameters()}
        ends = {n: p.detach() for n, p in base.named_parameters() if not p.equal(start[n])}
        shares = self.learn(task, base, start, ends)
        model = base.copy()
        with torch.no_grad():
            for name, end in ends.items():
                model.get_parameter(name).copy_(start[name].lerp(end, shares[name]))
        task.report(shares={name: round(float(share), 4) for name, share in shares.items()})
        # The base itself has its own statistics already.
        is_base = not self.iterations and self.start == 1
        anew = self.batch_norm == "recompute" and not is_base
        return task.recompute_batchnorm(model) if anew else model

    def learn(
        self, task: Task, base: Classifier, start: dict[str, Tensor], ends: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """s by the name of the parameter, of those that moved."""
        shares = {n: torch.full((), self.start, device=task.device) for n in ends}
        if not ends or not self.iterations:
            return shares
        model = base.copy().requires_grad_(False)
        for module in model.modules():
            if self.batch_norm == "recompute" and isinstance(
                module, nn.modules.batchnorm._NormBase
            ):
                module.train()
        optimizer = torch.optim.Adam([s.requires_grad_() for s in shares.values()], lr=self.lr)
        batches = endless(task.held_out, task.generator("tpgm"))
        for _ in range(self.iterations):
            batch = next(batches)
            weights = {n: start[n].lerp(ends[n], share) for n, share in shares.items()}
            logits = functional_call(model, weights, (batch.images,))
            optimizer.zero_grad()
            F.cross_entropy(task.project(logits), batch.labels).backward()
            optimizer.step()
            with torch.no_grad():
                for share in shares.values():
                    share.clamp_(0, 1)
        return {name: share.detach() for name, share in shares.items()}


def endless(task: Task, generator: torch.Generator) -> Iterator[Batch]:
    """The task's images over and over, in a new order each time."""
    while True:
        order = torch.randperm(len(task.images), generator=generator)
        yield from task.batches(task.recipe.batch_size, order)
