"""Image and text tower in one model, for contrastive fine-tuning."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task, TextTower
from rib_plugin_cl_methods.checks import expect


class TwoTowers(Classifier):
    """A classifier with the text tower that its head came from.

    Args:
        classifier: its encoder and head become this one's.
        text: the text tower.
    """

    def __init__(self, classifier: Classifier, text: TextTower):
        super().__init__(classifier.encoder, classifier.head, classifier.preprocess)
        self.text = text
        self.head.requires_grad_(False)  # made anew from the text tower afterwards

    def similarities(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Scaled cosines of N images and N texts, (N, N): rows are images."""
        features = F.normalize(self.features(images), dim=1)
        words: Tensor = self.text(tokens)
        return self.text.logit_scale.exp() * features @ words.T

    def classifier(self) -> Classifier:
        """The encoder with the head that the text tower now makes: a plain classifier."""
        self.eval()
        with torch.no_grad():
            head = self.text.head()
        return Classifier(self.encoder, head, self.preprocess).requires_grad_(True).eval()


def check_whole_batches(task: Task, method: str) -> None:
    """Refuse micro-batches: an image's negatives are the rest of its batch.

    Raises:
        ConfigError: the recipe has them.
    """
    size = task.recipe.micro_batch
    expect(size is None or size >= task.recipe.batch_size, method,
           "no recipe.micro_batch, since each image is contrasted with the rest of its batch "
           "(a smaller recipe.batch_size saves memory too)", size)  # fmt: skip


def captions(task: Task, text: TextTower, batch: Batch) -> Tensor:
    """A prompt for each image of a batch, drawn from those of its class: tokens (N, L).

    Drawn from the global generator, which a fit seeds, saves and restores.
    """
    texts = []
    for label in batch.labels.tolist():
        ids = task.images.class_map[label]
        some = [caption for one in ids for caption in text.captions(one)]
        texts.append(some[int(torch.randint(len(some), ()))])
    return text.tokens(texts).to(batch.labels.device)


def contrastive(similarities: Tensor, labels: Tensor) -> Tensor:
    """Symmetric cross-entropy of N images against N texts, the mean over both; a scalar.

    Other items of the same class are no negatives: their similarities are left out. With all
    classes different this is CLIP's loss.

    Args:
        similarities: (N, N), rows are images.
        labels: (N,).
    """
    n = len(labels)
    same = labels[:, None] == labels[None, :]
    same &= ~torch.eye(n, dtype=torch.bool, device=labels.device)
    masked = similarities.masked_fill(same, -torch.inf)
    target = torch.arange(n, device=labels.device)
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2
