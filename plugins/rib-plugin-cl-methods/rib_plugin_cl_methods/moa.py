"""Mixture of adapters: low-rank experts of several ranks, one a token (Lee et al., 2023)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Batch, Classifier, Task, transformer_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class MixtureOfAdapters:
    """Beside the attention's linear layers, low-rank experts; a router sends each token to one.

        h = W x + p_k · B_k A_k x,      k = argmax p,   p = softmax( s(x) + ε )
        s_j(x) = τ · cos(P x, e_j),     ε ~ N(0, 1/K²) while training, 0 afterwards

    In every second block, from the first on. Experts, routers (P, e, τ) and head train; B = 0 at
    the start, so step 0 is the pretrained model. An auxiliary loss keeps the K experts in use, for
    each layer half of

        CV²( Σ_x softmax s(x) ) + CV²( Σ_x Pr[ softmax s(x) + N(0, 1/K²) > p_k(x) ] )

    over the tokens of a batch: importance and load, CV = standard deviation / mean. So a batch's
    images are coupled, and with `recipe.micro_batch` it is taken over each micro-batch.

    Helps: where shifts differ in how much they ask for, since easy tokens take a small expert.

    Cost: as LoRA's, and the experts cannot be merged: forward some 10 % slower, for ever.

    Args:
        ranks: of the experts, joined by `+`.
        aux: weight of the auxiliary loss.
        temperature: 1/τ at the start; τ is at most 100.
        lr_scale: learning rate as a multiple of the recipe's.

    Source: arXiv:2310.11031 and its authors' code, the mixture of LoRA experts.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    aux: float = 0.01
    temperature: float = 0.5
    lr_scale: float = 3.0

    def __post_init__(self) -> None:
        expect(min(self.ranks, default=0) >= 1, "moa", "ranks ≥ 1", self.ranks)
        expect(len(self.ranks) >= 2, "moa", "two ranks at least", self.ranks)
        expect(self.aux >= 0, "moa", "aux ≥ 0", self.aux)
        expect(self.temperature >= 0.01, "moa", "temperature ≥ 0.01", self.temperature)
        expect(self.lr_scale > 0, "moa", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train experts, routers and head."""
        model = self.rebuild(task.pretrained)
        model.encoder.requires_grad_(False)
        mixtures = [module for module in model.modules() if isinstance(module, Mixture)]
        with task.seeded("moa"):
            for mixture in mixtures:
                mixture.draw(self.temperature)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            learned = task.cross_entropy(model, batch)
            unbalanced = [m.unbalance for m in mixtures if m.unbalance is not None]
            return learned + self.aux * torch.stack(unbalanced).sum()

        model = task.fit(model, loss, lr=task.recipe.lr * self.lr_scale)
        for mixture in mixtures:
            mixture.unbalance = None  # it holds the last step's graph
        return model.requires_grad_(True)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier with experts that do nothing yet."""
        model = pretrained.copy()
        transformer = transformer_of(model.encoder)
        if transformer is None:
            raise TypeError("moa needs the attention of a transformer")
        for block in list(transformer.blocks)[::2]:
            attention: nn.Module = block.attn  # type: ignore[assignment]
            for name, layer in list(attention.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(attention, name, Mixture(layer, self.ranks))
        return model


class Mixture(nn.Module):
    """A linear layer with low-rank experts beside it.

    Args:
        linear: (…, in) → (…, out).
        ranks: of the experts.
    """

    #: Width of the space in which tokens and experts are compared; largest τ.
    KEYS, SHARPEST = 256, 100.0

    def __init__(self, linear: nn.Linear, ranks: tuple[int, ...]):
        super().__init__()
        width, out = linear.in_features, linear.out_features
        self.linear = linear
        self.down = nn.ParameterList(torch.zeros(rank, width) for rank in ranks)
        self.up = nn.ParameterList(torch.zeros(out, rank) for rank in ranks)
        self.route = nn.Parameter(torch.zeros(self.KEYS, width))
        self.route_bias = nn.Parameter(torch.zeros(self.KEYS))
        self.embeddings = nn.Parameter(torch.zeros(self.KEYS, len(ranks)))
        self.sharpness = nn.Parameter(torch.zeros(1))  # log τ
        self.unbalance: Tensor | None = None

    def draw(self, temperature: float) -> None:
        """Random experts and router, and all of it trainable."""
        for down in self.down:
            nn.init.normal_(down, std=1 / len(down))
        nn.init.kaiming_uniform_(self.route, a=5**0.5)
        bound = self.route.shape[1] ** -0.5
        nn.init.uniform_(self.route_bias, -bound, bound)
        nn.init.normal_(self.embeddings, std=0.01)
        nn.init.constant_(self.sharpness, -math.log(temperature))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith("linear."))

    def scores(self, x: Tensor) -> Tensor:
        """s: (…, in) → (…, K)."""
        keys = F.normalize(F.linear(x, self.route, self.route_bias), dim=-1)
        scale = self.sharpness.clamp_max(math.log(self.SHARPEST)).exp()
        return scale * keys @ F.normalize(self.embeddings, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        scores = self.scores(x)
        noise = 1 / scores.shape[-1]
        noisy = scores + noise * torch.randn_like(scores) if self.training else scores
        best, k = noisy.softmax(-1).max(-1, keepdim=True)
        if self.training:
            self.unbalance = unbalance(scores.softmax(-1), best, noise)
        weights = torch.zeros_like(scores).scatter(-1, k, best).unbind(-1)
        h: Tensor = self.linear(x)
        for weight, down, up in zip(weights, self.down, self.up, strict=True):
            h = h + weight[..., None] * (x @ down.T @ up.T)
        return h


def unbalance(p: Tensor, threshold: Tensor, noise: float) -> Tensor:
    """Half of CV² of the experts' importance and CV² of their load; a scalar.

    Args:
        p: shares without noise, (…, K).
        threshold: share that was enough for each token to be sent, (…, 1).
        noise: standard deviation of what an expert may gain.
    """
    reached = torch.special.ndtr((p - threshold) / noise)
    parts = []
    for each in (p, reached):
        total = each.flatten(0, -2).float().sum(0)  # (K,)
        parts.append(total.var() / (total.mean().square() + 1e-10))
    return (parts[0] + parts[1]) / 2
