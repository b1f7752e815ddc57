"""Fine-tuning together with chosen pretraining data (Liu et al., 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class PretrainingData:
    """Fine-tune on the new images and on those of the pretraining that are most like them.

        loss = CE(f(x), y) + weight · CE(f(x′), y′)        x′ drawn from the chosen, batch by batch

    Chosen are the images of the old dataset whose pretrained features are nearest, by cosine, to
    the mean features of one of the new classes. The paper chooses classes, by unbalanced optimal
    transport (its code: 100 of ImageNet's 1000, weight 0.3), gives each data a head of its own,
    and passes both through batch-norm together; here they share the label space, and pass one
    after the other. Old images are not augmented.

    Helps: where the pretraining data, or a part of them, are at hand.

    Cost: the features of the old dataset once; then twice ft's.

    Args:
        data: the old dataset, e.g. `imagenet-train` or `digits-train`.
        weight: of the old images' loss; 0 is plain fine-tuning.
        share: how many are chosen, as a share of the old dataset.

    Source: after arXiv:2111.12292.
    """

    data: str
    weight: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        expect(self.weight >= 0, "pretraining-data", "weight ≥ 0", self.weight)
        expect(0 < self.share <= 1, "pretraining-data", "share in 0 … 1, not 0", self.share)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters on both."""
        old = task.on(self.data)
        chosen = self.nearest(task, old) if self.weight else torch.arange(0)
        task.report(chosen=len(chosen))

        def loss(model: Classifier, batch: Batch) -> Tensor:
            learned = task.cross_entropy(model, batch)
            if not self.weight:
                return learned
            # Drawn from the global generator, which a fit seeds, saves and restores.
            drawn = chosen[torch.randint(len(chosen), (len(batch.labels),))]
            (kept,) = old.batches(len(drawn), drawn)
            return learned + self.weight * old.cross_entropy(model, kept)

        return task.fit(task.pretrained.copy(), loss)

    def nearest(self, task: Task, old: Task) -> Tensor:
        """Indices of the old images that are chosen, the nearest first."""
        labels = torch.tensor(task.images.labels, device=task.device)
        new, candidates = directions(task), directions(old)
        means = torch.stack([new[labels == k].mean(0) for k in labels.unique()])
        nearness = (candidates @ F.normalize(means, dim=1).T).amax(1)
        count = max(round(self.share * len(nearness)), 1)
        return nearness.topk(count).indices.cpu()


def directions(task: Task) -> Tensor:
    """The pretrained features of a task's images, of length 1: (N, D)."""
    model = task.pretrained.frozen().to(task.device)
    with torch.no_grad():
        return torch.cat([F.normalize(model.features(b.images), dim=1) for b in task.batches()])
