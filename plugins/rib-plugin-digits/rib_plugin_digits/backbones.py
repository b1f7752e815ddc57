"""Two small classifiers of 32 × 32 pictures, pretrained by `pretrain.py` on the training split.

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


@dataclass(frozen=True)
class DigitsBackbone:
    """A ViT of 3 blocks, or a convolutional net with batch-norm.

    Args:
        kind: `"vit"` or `"conv"`.
        pretrained: False keeps the initial, random weights.
    """

    kind: Literal["vit", "conv"]
    pretrained: bool = True

    def identity(self) -> Identity:
        """Digest of the weights that ship with the package."""
        digest = "none"
        if self.pretrained:
            digest = "sha256:" + hashlib.sha256(self.file.read_bytes()).hexdigest()
        has = ("blocks", "qkv") if self.kind == "vit" else ("batch-norm",)
        return Identity(digest, PREPROCESS, len(CLASSES), (str(self.file),), has)

    @property
    def file(self) -> Path:
        """The weights."""
        return WEIGHTS / f"digits-{self.kind}.safetensors"

    def build(self) -> Classifier:
        """The classifier, in eval mode."""
        from rib_harness import load_weights
        from rib_plugin_digits.nets import conv, vit

        classifier = vit() if self.kind == "vit" else conv()
        if self.pretrained:
            load_weights(classifier, self.file)
        return classifier.eval()
