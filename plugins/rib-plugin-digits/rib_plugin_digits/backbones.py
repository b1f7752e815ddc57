"""Small classifiers of 32 × 32 pictures, pretrained by `pretrain.py` on the training split.

torch is imported when one is built, not when it is planned.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rib_harness import Identity, Preprocess
from rib_plugin_digits.data import CLASSES

if TYPE_CHECKING:
    from rib_harness import Classifier

PREPROCESS = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = Path(__file__).with_name("weights")

#: Architecture, and after a dash what is other in its pretraining.
Kind = Literal[
    "vit", "conv", "vit-380", "vit-190", "vit-95", "vit-plain",
    "vit-at-300", "vit-at-600", "vit-at-1200",
]  # fmt: skip


@dataclass(frozen=True)
class DigitsBackbone:
    """A ViT of 3 blocks, or a convolutional net with batch-norm.

    Args:
        kind: `"vit"` or `"conv"`, pretrained on all 760 training images, augmented; `"vit-380"`
            and so on, on so many of them; `"vit-plain"`, without augmentation; `"vit-at-300"` and
            so on, stopped after so many of the 1 800 updates.
        pretrained: False keeps the initial, random weights.
    """

    kind: Kind
    pretrained: bool = True

    def identity(self) -> Identity:
        """Digest of the weights that ship with the package."""
        digest = "none"
        if self.pretrained:
            digest = "sha256:" + hashlib.sha256(self.file.read_bytes()).hexdigest()
        has = ("batch-norm",) if self.kind == "conv" else ("blocks", "qkv")
        return Identity(digest, PREPROCESS, len(CLASSES), (str(self.file),), has)

    @property
    def file(self) -> Path:
        """The weights."""
        return WEIGHTS / f"digits-{self.kind}.safetensors"

    def build(self) -> Classifier:
        """The classifier, in eval mode."""
        from rib_harness import load_weights
        from rib_plugin_digits.nets import conv, vit

        classifier = conv() if self.kind == "conv" else vit()
        if self.pretrained:
            load_weights(classifier, self.file)
        return classifier.eval()
