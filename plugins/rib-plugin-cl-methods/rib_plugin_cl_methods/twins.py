"""TWINS: one net under new statistics and under the pretrained ones (Liu et al., 2023)."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect


@dataclass(frozen=True)
class TwoWingNormalisation:
    """Fine-tune under the batch's statistics, and half of each batch under the pretrained ones.

        loss = lambda · CE( f_old(x), y over the first half ) + CE( f_new(x), y over the second )

    Both are one net, but for batch-norm: in f_old it normalises with the pretrained mean and
    variance, which stay, and has a scale and a shift of its own; in f_new it is as in plain
    fine-tuning. f_new is the result. Without adversarial images by default, since the method is
    meant for nets that were pretrained with them and these are not: `eps` makes them, of f_new in
    evaluation mode, by ten steps of eps/4 along the sign of the gradient from a random start. With
    `recipe.micro_batch` each micro-batch is halved.

    Helps: convolutional nets, whose statistics remember the pretraining images.

    Cost: ft's; with eps eleven times that.

    Args:
        lambda_: weight of f_old; the authors take 0.3 or 0.4.
        eps: radius of the attack, a share of the pixels' range; the authors' is 8/255.

    Source: arXiv:2303.11135, and its authors' code for the constants and the halves.
    """

    lambda_: float = 0.4
    eps: float = 0.0

    def __post_init__(self) -> None:
        expect(self.lambda_ >= 0, "twins", "lambda ≥ 0", self.lambda_)
        expect(0 <= self.eps <= 1, "twins", "eps in 0 … 1", self.eps)

    def finetune(self, task: Task) -> Classifier:
        """Train the two as one; return the new one."""
        model = Twins(task.pretrained.copy())

        def loss(model: Classifier, batch: Batch) -> Tensor:
            if not isinstance(model, Twins):
                raise TypeError(model)
            images = attacked(task, model, batch, self.eps) if self.eps else batch.images
            half = len(batch) // 2
            features = torch.cat([model.old_features(images[:half]), model.features(images[half:])])
            each = F.cross_entropy(
                task.project(model.head(features)), batch.labels, reduction="none"
            )
            old, new = each[:half], each[half:]
            return self.lambda_ * old.sum() / max(half, 1) + new.mean()

        task.fit(model, loss)
        return Classifier(model.encoder, model.head, model.preprocess).eval()


class Twins(Classifier):
    """A classifier that can be asked under the statistics that it had when it was given.

    Args:
        classifier: its encoder and head become this one's.
    """

    def __init__(self, classifier: Classifier):
        super().__init__(classifier.encoder, classifier.head, classifier.preprocess)
        self.norms = {
            name: module
            for name, module in classifier.encoder.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        # Never called, so their statistics stay; a name of a module has dots, which a list has not.
        self.twins = nn.ModuleList(copy.deepcopy(norm) for norm in self.norms.values())

    def old_features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D), with the statistics, scales and shifts of the twins."""
        state = {
            f"{name}.{key}": tensor
            for name, twin in zip(self.norms, self.twins, strict=True)
            for key, tensor in (*twin.named_parameters(), *twin.named_buffers())
        }
        training = [norm.training for norm in self.norms.values()]
        for norm in self.norms.values():
            norm.eval()
        features: Tensor = functional_call(self.encoder, state, (images,))
        for norm, mode in zip(self.norms.values(), training, strict=True):
            norm.train(mode)
        return features


def attacked(task: Task, model: Classifier, batch: Batch, eps: float) -> Tensor:
    """The batch's images moved to where the loss is larger, by at most eps in each pixel.

    Args:
        task: of the loss.
        model: left in the modes that it was in.
        batch: its images are left as they are.
        eps: a share of the range of pixels, which is not left either.

    Source: Madry et al., arXiv:1706.06083.
    """
    images, preprocess = batch.images, model.preprocess
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    black, white, radius = -mean / std, (1 - mean) / std, eps / std
    least, most = (images - radius).maximum(black), (images + radius).minimum(white)
    moved = (images + radius * (2 * torch.rand_like(images) - 1)).clamp(least, most)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for _ in range(10):
        moved.requires_grad_(True)
        value = F.cross_entropy(task.project(model(moved)), batch.labels)
        (uphill,) = torch.autograd.grad(value, moved)
        moved = (moved.detach() + radius / 4 * uphill.sign()).clamp(least, most)
    for module, mode in modes:
        module.training = mode
    return moved
