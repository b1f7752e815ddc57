"""The text tower of a backbone, for methods that fine-tune or regularise with words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TextTower(nn.Module, ABC):
    """Texts → embeddings in the space of the classifier's features.

    A backbone that has one offers it as `text_tower() -> TextTower`, and says `"text-tower"` in
    its identity's `has`. The classifier's features are then of length 1 too, and its head is
    what `head` gives.

    Attributes:
        logit_scale: log of the temperature, one number; trainable.
        projection: which of the encoder's parameters is its last projection (width, D); there
            is one if the backbone also says `"projection"`.
        text_projection: the text tower's own, (its width, D); there is one if that is said.
    """

    logit_scale: nn.Parameter
    projection: str
    text_projection: Tensor

    @abstractmethod
    def captions(self, label: int) -> list[str]:
        """All prompts for one id of the label space, e.g. `a photo of a tench.`"""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts → (N, L), long, on the CPU."""

    @abstractmethod
    def random_tokens(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Texts of `length` random words of the vocabulary: (count, L), long, on the CPU."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) → (N, D), each of length 1."""

    @abstractmethod
    def head(self) -> nn.Module:
        """The zero-shot head of the present weights: features (N, D) → logits."""
