"""Output-space ensembles: what several checkpoints say of an image, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rib_harness import Classifier, Task, members_of
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class OutputEnsemble:
    """Average the answers of several checkpoints, not their weights; trains nothing itself.

        p(x) = Σ_m w_m softmax f_m(x)        or, of logits,        f(x) = Σ_m w_m f_m(x)

    Logits of the result are log p, over the whole label space; its features are those of all
    members, side by side.

    Helps: no two weights have to fit each other, as those of an average must. What a weight
    average gains beyond this one is its own.

    Cost: the members'; then as many forward passes an image as there are members, for ever, and
    the weights of all of them. It cannot be merged.

    Args:
        members: references joined by `+`; `pretrained` is the untouched model. A deep ensemble
            over seeds is `ft+ft@1+ft@2`.
        alpha: what the fine-tuned members weigh together, each alike; `pretrained` has the rest.
            Without it among them, or without others, all weigh the same. Never choose it on a set
            that scores it.
        average: of `"probabilities"` or of `"logits"`.

    Source: arXiv:2010.06866 for deep ensembles of fine-tuned models; arXiv:2109.01903 for that of
    both ends of the fine-tuning, its output-space ensemble.
    """

    members: str = "pretrained+ft"
    alpha: float = 0.5
    average: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        fine = bool(self.members) and all(members_of(self.members))
        expect(fine, "ensemble", "members such as pretrained+ft", repr(self.members))
        expect(0 <= self.alpha <= 1, "ensemble", "alpha in 0 … 1", self.alpha)

    def finetune(self, task: Task) -> Classifier:
        """Put the members together."""
        return self.of([task.checkpoint(member) for member in members_of(self.members)])

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """As many copies of the pretrained classifier as there are members."""
        return self.of([pretrained.copy() for _ in members_of(self.members)])

    def of(self, models: Sequence[Classifier]) -> Classifier:
        """The ensemble of these models, in the order of the members."""
        encoder = SideBySide([model.encoder for model in models])
        heads = [model.head for model in models]
        head = AveragedHeads(heads, self.weights(), probabilities=self.average == "probabilities")
        return Classifier(encoder, head, models[0].preprocess).eval()

    def weights(self) -> list[float]:
        """w, which sum to 1."""
        old = [member == "pretrained" for member in members_of(self.members)]
        if all(old) or not any(old):
            return [1 / len(old)] * len(old)
        share = {True: (1 - self.alpha) / sum(old), False: self.alpha / (len(old) - sum(old))}
        return [share[one] for one in old]


class SideBySide(nn.Module):
    """Several encoders' features in one row.

    Args:
        encoders: M of them, each images (N, 3, S, S) → features (N, D).
    """

    def __init__(self, encoders: Sequence[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, M · D)."""
        return torch.cat([encoder(images) for encoder in self.encoders], 1)


class AveragedHeads(nn.Module):
    """What several heads say, each of its own features, averaged.

    Args:
        heads: M of them, each features (N, D) → logits.
        weights: w.
        probabilities: whether these are averaged, or the logits.
    """

    def __init__(self, heads: Sequence[nn.Module], weights: Sequence[float], *,
                 probabilities: bool):  # fmt: skip
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.weights = tuple(weights)
        self.probabilities = probabilities

    def forward(self, features: Tensor) -> Tensor:
        """(N, M · D) → logits."""
        parts = features.chunk(len(self.heads), 1)
        logits = torch.stack([head(z) for head, z in zip(self.heads, parts, strict=True)])
        weights = logits.new_tensor(self.weights)[:, None, None]
        if not self.probabilities:
            return (weights * logits).sum(0)
        # In logarithms: a probability may be too small for a number, its logarithm is not.
        return (logits.log_softmax(2) + weights.log()).logsumexp(0)
