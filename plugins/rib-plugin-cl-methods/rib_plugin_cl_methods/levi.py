"""LEVI: frozen features of every layer beside a small net of the task's own (Roh et al., 2024)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rib_harness import Classifier, Task
from rib_plugin_cl_methods.checks import expect
from rib_plugin_cl_methods.layers import watched


@dataclass(frozen=True)
class LayerwiseEnsemble:
    """Train a small net on the images, and what joins it to each layer of the frozen encoder.

        f(x) = h( Φ₀(x) + ‖Φ₀(x)‖ · mean_l A_l [ z_l(x), s(x) ] )

    z_l is the mean over positions of what layer l of the pretrained encoder gives, s the small
    net's features; both are of length 1, so that one learning rate fits all encoders. A_l are
    linear, the paper's adapting layers, and start at zero, so that step 0 is the pretrained model.
    Small net, adapting layers and head train.

    After the paper, of which only summaries could be read; no code was found. Its own are: adapting
    layers on the concatenated features of the pretrained model's layers and of a small net trained
    from scratch. Ours are: that they add to the pretrained features, so that classes outside the
    fine-tuning set keep their place; all sizes; and the small net, three 3 × 3 convolutions of
    stride 2, each with a group norm and GELU, and a mean over places.

    Helps: where pretraining lacks what the task needs, and the fine-tuning set alone misleads: two
    views, neither of which is trusted alone.

    Cost: nothing of the encoder is trained; forward a little slower, for ever, since it cannot be
    merged.

    Args:
        width: of the small net's first convolution; the next have twice and four times as many.
        lr_scale: learning rate as a multiple of the recipe's; what starts from nothing needs more.

    Source: after arXiv:2402.04644.
    """

    width: int = 32
    lr_scale: float = 10.0

    def __post_init__(self) -> None:
        expect(self.width >= 1, "levi", "width ≥ 1", self.width)
        expect(self.lr_scale > 0, "levi", "lr_scale > 0", self.lr_scale)

    def finetune(self, task: Task) -> Classifier:
        """Train the small net, the adapting layers and the head."""
        model = self.rebuild(task.pretrained)
        ensemble: Ensemble = model.encoder  # type: ignore[assignment]
        ensemble.pretrained.requires_grad_(False)
        with task.seeded("levi"):
            for module in ensemble.small:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        return task.fit(model, lr=task.recipe.lr * self.lr_scale).requires_grad_(True)

    def rebuild(self, pretrained: Classifier) -> Classifier:
        """The pretrained classifier beside a small net that does nothing yet."""
        model = pretrained.copy().eval()
        size, some = pretrained.preprocess.size, next(model.parameters())
        with torch.no_grad(), watched(model.encoder) as seen:
            features = model.features(some.new_zeros(1, 3, size, size))
        channels = [layer.shape[-1] for layer in seen.layers()]
        ensemble = Ensemble(model.encoder, channels, self.width, features.shape[1])
        return Classifier(ensemble.to(some.device), model.head, model.preprocess)


class Ensemble(nn.Module):
    """An encoder whose features a small net and adapting layers correct.

    Args:
        pretrained: images (N, 3, S, S) → features (N, D).
        channels: of each of its layers.
        width: of the small net's first convolution.
        features: D.
    """

    def __init__(self, pretrained: nn.Module, channels: list[int], width: int, features: int):
        super().__init__()
        self.pretrained = pretrained
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            # Without the random weights, so that no global generator moves.
            layers += [
                nn.utils.skip_init(nn.Conv2d, before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, after),
                nn.GELU(),
            ]
        self.small = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.adapt = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, one + 4 * width, features) for one in channels
        )
        for module in (*self.small, *self.adapt):
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D)."""
        with watched(self.pretrained) as seen:
            features: Tensor = self.pretrained(images)
        own = F.normalize(self.small(images))
        added = [
            adapt(torch.cat([F.normalize(layer.mean(1)), own], 1))
            for adapt, layer in zip(self.adapt, seen.layers(), strict=True)
        ]
        return features + features.norm(dim=1, keepdim=True) * torch.stack(added).mean(0)
