"""Ensembles of outputs: of the models before and after, or of several fine-tunings."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Classifier, Task, members_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class OutputEnsemble:
    """Average what several checkpoints answer, not their weights; trains nothing itself.

        p(y | x) = Σ_m w_m · softmax f_m(x),      Σ w = 1

    or the same mean of logits, f = Σ w f_m. `pretrained`, if it is a member, weighs 1 − alpha, and
    the others share the rest alike. `pretrained+ft` is the output-space ensemble beside which
    WiSE-FT was proposed; `ft+ft@1+ft@2` is a deep ensemble of fine-tunings that differ in their
    seed.

    Helps: where weights cannot be averaged, since the members are far apart. It bounds from above
    what averages of weights are hoped to give.

    Cost: the members'; and for ever the memory and the time of all of them at each image.

    Args:
        members: references joined by `+`; `pretrained` is the untouched model. Each is made once.
        alpha: weight of all members but the pretrained one.
        average: of `"probabilities"` over the label space, or of `"logits"`.

    Source: arXiv:2109.01903 (output space), arXiv:2010.06866 (several fine-tunings).
    """

    members: str = "pretrained+ft"
    alpha: float = 0.5
    average: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        names = members_of(self.members)
        expect(bool(names) and all(names), "ensemble", "members such as ft+lwf", repr(self.members))
        expect(len(set(names)) == len(names), "ensemble", "each member once", repr(self.members))
        expect(0 <= self.alpha <= 1, "ensemble", "alpha in 0 … 1", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Put the members side by side."""
        models = [task.checkpoint(member) for member in members_of(self.members)]
        return self.side_by_side(models)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """As many pretrained classifiers side by side."""
        return self.side_by_side([pretrained.copy() for _ in members_of(self.members)])

    def side_by_side(self, models: list[Classifier]) -> Classifier:
        """One classifier of several of one architecture."""
        some = next(models[0].parameters())
        size = models[0].preprocess.size
        with torch.no_grad():
            probe = some.new_zeros(1, 3, size, size)
            width = models[0].eval().features(probe).shape[1]
        encoder = Together([model.encoder for model in models])
        heads = Apart([m.head for m in models], self.weights(), width, self.average == "logits")
        return Classifier(encoder, heads, models[0].preprocess).eval()

    def weights(self) -> list[float]:
        """w, in the order of the members."""
        names = members_of(self.members)
        others = len(names) - ("pretrained" in names)
        if others == len(names):
            return [1 / others] * others
        return [
            1 - self.alpha * bool(others) if name == "pretrained" else self.alpha / others
            for name in names
        ]


class Together(nn.Module):
    """Images (N, 3, S, S) → the features of all encoders side by side, (N, M · D)."""

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, M · D)."""
        return torch.cat([encoder(images) for encoder in self.encoders], 1)


class Apart(nn.Module):
    """A head for each part of the features, and the mean of what they answer.

    Args:
        heads: each of features (N, D).
        weights: of the mean.
        width: D.
        logits: average logits; else probabilities, whose logarithms are returned.
    """

    def __init__(self, heads: list[nn.Module], weights: list[float], width: int, logits: bool):
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.weights, self.width, self.logits = weights, width, logits

    def forward(self, features: Tensor) -> Tensor:
        """(N, M · D) → (N, label space)."""
        parts = features.split(self.width, 1)
        answers = torch.stack([h(part) for h, part in zip(self.heads, parts, strict=True)])
        weights = answers.new_tensor(self.weights)[:, None, None]
        if self.logits:
            return (weights * answers).sum(0)
        return (F.log_softmax(answers, 2) + weights.log()).logsumexp(0)
