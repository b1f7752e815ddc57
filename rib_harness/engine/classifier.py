"""A classifier: encoder, head and preprocessing; copy, freeze, save, load."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rib_harness.engine.weights import load_weights
from rib_harness.images import Preprocess


class Classifier(nn.Module):
    """A timm model, a CLIP tower with a text-made head and a toy all look like this.

    Args:
        encoder: images (N, 3, S, S), normalised float32 → features (N, D).
        head: features (N, D) → logits (N, label space).
        preprocess: what the images went through.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.preprocess = preprocess

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D)."""
        features: Tensor = self.encoder(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, label space)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def copy(self) -> Classifier:
        """An independent copy with every parameter trainable and no gradients."""
        duplicate = copy.deepcopy(self)
        duplicate.zero_grad(set_to_none=True)
        return duplicate.requires_grad_(True)

    def frozen(self) -> Classifier:
        """An independent copy that cannot train, in eval mode: a teacher."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def fingerprint(self) -> str:
        """Hash of all parameters and buffers, to show that nobody changed them."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write all parameters and buffers as safetensors, at full precision."""
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}
        path.write_bytes(save(state))

    def load(self, path: Path) -> Classifier:
        """Read what `save` wrote, in place.

        Raises:
            DataError: the file is damaged or of another architecture; names what differs.
        """
        load_weights(self, path)
        return self


def misfit(built: object, classes: int) -> str:
    """What is wrong with what a backbone built; empty if it is an encoder and a head.

    One black image goes through it, in eval mode, which stays.

    Args:
        built: by a backbone's `build`.
        classes: logits that its `identity` says.
    """
    if not isinstance(built, Classifier):
        return f"build() gave {type(built).__name__}: return a rib_harness.Classifier."
    side = built.preprocess.size
    where = next((tensor.device for tensor in built.state_dict().values()), None)
    with torch.no_grad():
        features: object = built.eval().features(torch.zeros(1, 3, side, side, device=where))
        if not isinstance(features, Tensor) or features.ndim != 2:
            gave = (
                tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            )
            return (
                f"its encoder gave {gave}, expected a tensor (N, D): pool in it, or end it with "
                "nn.Flatten()."
            )
        logits = tuple(built.head(features).shape)
    if logits != (1, classes):
        return f"its head gave {logits}, expected (N, {classes}), as its identity() says."
    return ""


def refusal_of_side(model: nn.Module, side: int, anew: Callable[[], nn.Module]) -> str:
    """Why a net does not take square images of a side; empty if it does.

    Tried without numbers, on the meta device; and where that says no, with a net made anew and
    numbers, since some nets look at them.

    Args:
        model: images (1, 3, S, S) → anything; it stays on the meta device, its weights are lost.
        side: S, in pixels.
        anew: makes the net once more.
    """
    refused = ""
    for device in ("meta", "cpu"):
        net = model.to("meta") if device == "meta" else anew()
        try:
            with torch.no_grad():
                net.eval()(torch.zeros(1, 3, side, side, device=device))
        except Exception as error:
            refused = " ".join(str(error).split()) or type(error).__name__
        else:
            return ""
    return refused
