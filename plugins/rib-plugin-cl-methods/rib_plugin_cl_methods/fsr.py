"""Function-space regularisation on simulated shifts, and consistency (Yuan et al., 2025)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rib_harness import Batch, Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.divergence import divergence


@dataclass(frozen=True)
class FunctionSpaceRegularisation:
    """Fine-tune while answering shifted images as the pretrained model answers them.

        loss = CE(f(x), y) + lambda · KL( p₀(x̃) ‖ p(x̃) ) + consistency · KL( p(x) ‖ p(x̃) )
        x̃ = a x + b + σ ε,      a ~ U(1 − contrast, 1 + contrast),  b ~ U(−contrast, contrast),
                                ε ~ N(0, 1) a pixel

    p are softmax answers over the whole label space, p₀ those of the pretrained model; a and b are
    drawn for each image and channel, in the units of the normalised pixels, so that colours shift
    too; x̃ simulates images from elsewhere. p(x) of the last term is a target: it has no gradient.

    The paper's idea, a distance in function space on simulated images and a consistency; its
    simulation, distance and constants are not known here.

    Helps: where other penalties on weights or features hold on to what does not matter.

    Cost: one more forward and backward pass an image, and the teacher's forward pass.

    Args:
        lambda_: weight of the distance in function space.
        consistency: weight of the consistency.
        noise: σ, in standard deviations of the normalised pixels.
        contrast: half width of the shifts of contrast and brightness.

    Source: after arXiv:2509.05328.
    """

    lambda_: float = 1.0
    consistency: float = 1.0
    noise: float = 0.2
    contrast: float = 0.4

    def __post_init__(self) -> None:
        given = (self.lambda_, self.consistency, self.noise, self.contrast)
        expect(min(given) >= 0, "fsr", "weights, noise and contrast ≥ 0", given)

    def finetune(self, task: Task) -> Classifier:
        """Fine-tune all parameters, held in function space."""
        teacher = task.pretrained.frozen().to(task.device)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            logits = model(batch.images)
            learned = F.cross_entropy(task.project(logits), batch.labels)
            if not self.lambda_ and not self.consistency:
                return learned
            shifted = self.shifted(batch.images)
            now = model(shifted)  # (N, label space)
            with torch.no_grad():
                before = teacher(shifted)
            return (
                learned
                + self.lambda_ * divergence(now, before)
                + self.consistency * divergence(now, logits.detach())
            )

        return task.fit(task.pretrained.copy(), loss)

    def shifted(self, images: Tensor) -> Tensor:
        """x̃ of normalised images (N, C, H, W): other contrast, brightness and colours, and noise.

        Drawn from the global generator, which a fit seeds, saves and restores.
        """
        n, channels = images.shape[:2]
        scale, offset = self.contrast * (
            2 * torch.rand(2, n, channels, 1, 1, device=images.device, dtype=images.dtype) - 1
        )
        return images * (1 + scale) + offset + self.noise * torch.randn_like(images)
