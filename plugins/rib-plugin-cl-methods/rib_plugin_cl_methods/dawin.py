"""DaWin: weights interpolated for each image, by entropy (Oh et al., 2025)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class DynamicInterpolation:
    """Between θ₀ and θ_base as far as this image asks for; trains nothing itself.

        θ(x) = (1 − λ(x)) · θ₀ + λ(x) · θ_base
        λ(x) = exp(−H(f_base(x))) / ( exp(−H(f₀(x))) + exp(−H(f_base(x))) )

    H is the entropy of softmax f(x) over the whole label space: the surer model weighs more.
    Everything is a function of the one image, so nothing is learned from the images that score
    it. The authors' offset of λ and their clusters of it (a Beta mixture of three) are of a whole
    test set, which makes theirs transductive; both are left out here, and so are a temperature for
    each model, and the restriction of H to the classes of the test set. Instead of their clusters,
    λ is rounded. Features are its logits.

    Helps: where some images are the old model's and others the new one's, of which one alpha for
    all, as in `wise-ft`, knows nothing.

    Cost: the base; then three forward passes an image for ever, in up to `levels` + 1 parts a
    batch, each with weights of its own. Exact weights (`levels=0`) are made for each image alone:
    a pass over ImageNet's 50 000 images is that many batches of one, hours where it was minutes.
    It cannot be merged.

    Args:
        base: the fine-tuning method, as a reference; it is made once.
        space: `"weights"`; or `"outputs"`, which averages the two models' probabilities with λ,
            as the authors' ablation, and takes two forward passes.
        levels: λ is rounded to multiples of 1 / levels; 0 leaves it as it is.

    Source: arXiv:2410.03782, and its authors' code for λ; their per-sample variant without offset.
    """

    base: str = "ft"
    space: Literal["weights", "outputs"] = "weights"
    levels: int = 10

    def __post_init__(self) -> None:
        expect(self.levels >= 0, "dawin", "levels ≥ 0", self.levels)

    def finetune(self, task: Task) -> Classifier:
        """Put both ends together."""
        return self.between(task.pretrained.copy(), task.checkpoint(self.base))

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier at both ends."""
        return self.between(pretrained.copy(), pretrained.copy())

    def between(self, old: Classifier, new: Classifier) -> Classifier:
        """The classifier that goes between these two."""
        encoder = Between(old, new, self.levels, weights=self.space == "weights")
        return Classifier(encoder, nn.Identity(), old.preprocess).eval()


class Between(nn.Module):
    """Two classifiers of one architecture, and what is between them for an image.

    Args:
        old, new: λ = 0 and λ = 1.
        levels: λ is rounded to multiples of 1 / levels; 0 leaves it as it is.
        weights: whether these are interpolated, or the probabilities.
    """

    def __init__(self, old: Classifier, new: Classifier, levels: int, *, weights: bool):
        super().__init__()
        self.old, self.new = old, new
        self.levels, self.weights = levels, weights

    def share(self, old: Tensor, new: Tensor) -> Tensor:
        """λ, (N,), from both models' logits (N, label space)."""
        # exp(−a) / (exp(−a) + exp(−b)) = sigmoid(b − a), which cannot overflow.
        share = torch.sigmoid(entropy(old) - entropy(new))
        return (share * self.levels).round() / self.levels if self.levels else share

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, label space)."""
        old, new = self.old(images), self.new(images)
        share = self.share(old, new)
        if not self.weights:
            parts = (1 - share, old), (share, new)
            return torch.logaddexp(*(w.log()[:, None] + z.log_softmax(1) for w, z in parts))
        logits = torch.full_like(old, torch.nan)
        for one in share.unique():
            these = share == one
            logits[these] = self.at(one, images[these])
        return logits

    def at(self, share: Tensor, images: Tensor) -> Tensor:
        """Logits of the model with the weights and the statistics at λ = share."""
        ends = self.new.state_dict()
        state = {name: start.lerp(ends[name], share) if start.is_floating_point() else start
                 for name, start in self.old.state_dict().items()}  # fmt: skip
        logits: Tensor = functional_call(self.old, state, (images,))
        return logits


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), in nats: (N, K) → (N,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
