"""Mixture of adapters: low-rank experts of several ranks, one a token (Lee et al., 2023)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Batch, Classifier, Task, transformer_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class MixtureOfAdapters:
    """Beside each block's MLP, low-rank experts of several ranks; a router sends each token to one.

        h = MLP(x) + p_k(x) · B_k A_k x,      k = argmax p,   p = softmax( cos(W x, e_k) / T )

    Experts, routers and head train; B = 0 at the start, so step 0 is the pretrained model. An
    auxiliary loss keeps the experts in use: K · Σ_k (share of tokens sent to k) · (mean p_k). After
    the paper: the form of its adapters, where they sit, and its temperature are not known here.

    Helps: where shifts differ in how much they ask for, since easy tokens take a small expert.

    Cost: as adapters, and the experts cannot be merged: forward some 10 % slower, for ever.

    Args:
        ranks: of the experts, joined by `+`.
        aux: weight of the auxiliary loss.
        temperature: T of the router.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2310.11031.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    aux: float = 0.01
    temperature: float = 0.1
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(min(self.ranks, default=0) >= 1, "moa", "ranks ≥ 1", self.ranks)
        expect(self.aux >= 0, "moa", "aux ≥ 0", self.aux)
        expect(self.temperature > 0, "moa", "temperature > 0", self.temperature)
        expect(self.lr_scale > 0, "moa", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train experts, routers and head."""
        model = self.rebuild(task.pretrained)
        model.encoder.requires_grad_(False)
        mixtures = [module for module in model.modules() if isinstance(module, Mixture)]
        with task.seeded("moa"):
            for mixture in mixtures:
                mixture.draw()

        def loss(model: Classifier, batch: Batch) -> Tensor:
            learned = task.cross_entropy(model, batch)
            unbalanced = [m.unbalance for m in mixtures if m.unbalance is not None]
            return learned + self.aux * torch.stack(unbalanced).mean()

        model = task.fit(model, loss, lr=task.recipe.lr * self.lr_scale)
        for mixture in mixtures:
            mixture.unbalance = None  # it holds the last step's graph
        return model.requires_grad_(True)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier with experts that do nothing yet."""
        model = pretrained.copy()
        transformer = transformer_of(model.encoder)
        if transformer is None:
            raise TypeError("moa needs the blocks of a transformer")
        for block in transformer.blocks:
            block.mlp = Mixture(
                block.mlp,  # type: ignore[arg-type]
                transformer.width,
                self.ranks,
                self.temperature,
            )
        return model


class Mixture(nn.Module):
    """An MLP with low-rank experts beside it.

    Args:
        mlp: (…, D) → (…, D).
        width: D.
        ranks: of the experts.
        temperature: of the router.
    """

    def __init__(self, mlp: nn.Module, width: int, ranks: tuple[int, ...], temperature: float):
        super().__init__()
        self.mlp, self.temperature = mlp, temperature
        self.down = nn.ParameterList(torch.zeros(rank, width) for rank in ranks)
        self.up = nn.ParameterList(torch.zeros(width, rank) for rank in ranks)
        self.route = nn.Parameter(torch.zeros(width, width))
        self.embeddings = nn.Parameter(torch.zeros(len(ranks), width))
        self.unbalance: Tensor | None = None

    def draw(self) -> None:
        """Random experts and router, and all of it trainable."""
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=5**0.5)
        nn.init.xavier_uniform_(self.route)
        nn.init.normal_(self.embeddings)
        for parameter in (*self.down, *self.up, self.route, self.embeddings):
            parameter.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        keys = F.normalize(x @ self.route.T, dim=-1)
        cosines = keys @ F.normalize(self.embeddings, dim=-1).T
        p = (cosines / self.temperature).softmax(-1)  # (…, K)
        sent = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        self.unbalance = (
            p.shape[-1] * (sent.flatten(0, -2).mean(0) * p.flatten(0, -2).mean(0)).sum()
        )
        weights = (p * sent).unbind(-1)
        experts = [
            weight[..., None] * (x @ down.T @ up.T)
            for weight, down, up in zip(weights, self.down, self.up, strict=True)
        ]
        h: Tensor = self.mlp(x)
        return h + torch.stack(experts).sum(0)
