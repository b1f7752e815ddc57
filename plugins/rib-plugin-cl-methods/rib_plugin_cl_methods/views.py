"""Views of images that say less, or look otherwise: what self-distillation and FSR train on.

All draw from the global generators, which a fit seeds, saves and restores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Patches along a side of an image that are hidden or shown as a whole, as a ViT/16 cuts 224.
PATCHES = 14


def masked(images: Tensor, share: float) -> Tensor:
    """Each image with a share of its square patches at the mean colour, drawn for it alone.

    Args:
        images: (N, 3, S, S), normalised: the mean is 0.
        share: of the patches, rounded to whole ones.
    """
    n, _, side, _ = images.shape
    patches = min(PATCHES, side)
    hidden = round(share * patches**2)
    rank = torch.rand(n, patches**2, device=images.device).argsort(1).argsort(1)
    shown = (rank >= hidden).to(images.dtype).view(n, 1, patches, patches)
    return images * F.interpolate(shown, (side, side))


def shifted(images: Tensor) -> Tensor:
    """Each image under one simulated shift, drawn for it alone.

    Noise of up to one standard deviation, a 5 × 5 blur, up to 80 % less contrast, less colour, each
    with a strength drawn evenly; or a quarter of its patches hidden.

    Args:
        images: (N, 3, S, S), normalised.
    """
    kind = torch.randint(5, (len(images),), device=images.device)[:, None, None, None]
    strength = torch.rand(len(images), 1, 1, 1, device=images.device)
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    grey = images.mean(1, keepdim=True).expand_as(images)
    views = torch.stack([
        images + strength * torch.randn_like(images),
        images.lerp(blurred, strength),
        images.lerp(mean.expand_as(images), 0.8 * strength),
        images.lerp(grey, strength),
        masked(images, 0.25),
    ])  # fmt: skip
    return torch.where(kind == torch.arange(5, device=images.device).view(5, 1, 1, 1, 1),
                       views, 0).sum(0)  # fmt: skip
