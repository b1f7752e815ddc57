"""DaWiN: weights between before and after, chosen for each image (Oh et al., 2025)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class DynamicInterpolation:
    """Classify each image by weights of its own between θ₀ and θ; trains nothing itself.

        θ(x) = (1 − c) θ₀ + c θ_base,     c(x) = exp(−H(p)) / ( exp(−H(p₀)) + exp(−H(p)) )

    H are the entropies, in nats, of what the fine-tuned and the pretrained model answer to the
    image over the label space: the surer model has more say. c is rounded to one of some levels,
    so that images of a batch share models; nothing is learnt from the images that are scored, and
    what is said of one does not depend on the others. The authors' main variant does: it clusters
    the c of all images of a test set, and takes the entropies over that set's classes.

    Helps: where shifts differ in which of the two models knows them.

    Cost: the base; and for ever both models at each image and then that between them: three times
    ft's, and an average of all weights for each level that a batch has.

    Args:
        base: the fine-tuning method, as a reference; it is made once.
        levels: how many steps c has from 0 to 1; many are exact and slow.

    Source: arXiv:2410.03782, its variant a sample.
    """

    base: str = "ft"
    levels: int = 20

    def __post_init__(self) -> None:
        expect(self.levels >= 1, "dawin", "levels ≥ 1", self.levels)

    def finetune(self, task: Task) -> Classifier:
        """Put both models side by side."""
        return self.between(task.pretrained.copy(), task.checkpoint(self.base))

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """Between the pretrained classifier and itself."""
        return self.between(pretrained.copy(), pretrained.copy())

    def between(self, start: Classifier, end: Classifier) -> Classifier:
        """One classifier of two."""
        heads = BetweenHeads(start.copy().head, end.copy().head)
        encoder = BetweenEncoders(start, end, self.levels)
        return Classifier(encoder, heads, start.preprocess).eval()


class BetweenEncoders(nn.Module):
    """Images (N, 3, S, S) → the features of the encoder that each asks for, and its c: (N, D + 1).

    Args:
        start, end: the models, with their heads: c comes from their answers.
        levels: of c.
    """

    def __init__(self, start: Classifier, end: Classifier, levels: int):
        super().__init__()
        self.start, self.end, self.levels = start, end, levels

    def shares(self, images: Tensor) -> Tensor:
        """c: (N, 3, S, S) → (N,)."""
        sureness = torch.stack([-entropy(model(images)) for model in (self.start, self.end)])
        return (sureness.softmax(0)[1] * self.levels).round() / self.levels

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D + 1)."""
        shares = self.shares(images)
        start, end = (dict(model.encoder.state_dict()) for model in (self.start, self.end))
        parts, order = [], []
        for share in shares.unique():
            mine = (shares == share).nonzero().flatten()
            weights = {
                name: one.lerp(end[name], share.to(one)) if one.is_floating_point() else one
                for name, one in start.items()
            }
            parts.append(functional_call(self.start.encoder, weights, (images[mine],)))
            order.append(mine)
        features = torch.cat(parts)[torch.cat(order).argsort()]
        return torch.cat([features, shares[:, None]], 1)


class BetweenHeads(nn.Module):
    """Between two heads; where they are linear, the head of the weights between them.

    Args:
        start, end: features (N, D) → logits.
    """

    def __init__(self, start: nn.Module, end: nn.Module):
        super().__init__()
        self.start, self.end = start, end

    def forward(self, features: Tensor) -> Tensor:
        """(N, D + 1) → (N, label space)."""
        inner, share = features[:, :-1], features[:, -1:]
        logits: Tensor = (1 - share) * self.start(inner) + share * self.end(inner)
        return logits


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax of logits (N, K), in nats: (N,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
