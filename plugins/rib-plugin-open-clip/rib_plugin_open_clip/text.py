"""CLIP's text tower, for methods that fine-tune or regularise with words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rib_harness import ConfigError, TextTower
from rib_plugin_open_clip.head import NAMES, TEMPLATES, class_embeddings, linear_head


class OpenClipText(TextTower):
    """The text tower of an open_clip model, without its image tower.

    Args:
        clip: the model; its image tower is taken out.
        tokenizer: texts → tokens.
        templates: a key of `TEMPLATES`; the prompts of the head.
    """

    projection = "visual.proj"

    def __init__(self, clip: Any, tokenizer: Callable[[list[str]], Tensor], templates: str):
        super().__init__()
        clip.visual = nn.Identity()
        self.clip, self.tokenizer, self.templates = clip, tokenizer, templates

    @property
    def logit_scale(self) -> nn.Parameter:  # type: ignore[override]
        """Log of the temperature."""
        scale: nn.Parameter = self.clip.logit_scale
        return scale

    @property
    def text_projection(self) -> Tensor:  # type: ignore[override]
        """(width, D); a parameter, or the weight of a layer, of CLIP itself or of its `text`."""
        owner = self.clip if hasattr(self.clip, "text_projection") else self.clip.text
        projection = owner.text_projection
        return projection.weight.T if isinstance(projection, nn.Linear) else projection

    def captions(self, label: int) -> list[str]:
        """The templates' prompts for a class of ImageNet."""
        return [template(NAMES[label]) for template in TEMPLATES[self.templates]]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(N, L)."""
        return self.tokenizer(list(texts))

    def random_tokens(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """(count, L): start, random words, end."""
        start, end = (getattr(self.tokenizer, f"{n}_token_id", None) for n in ("sot", "eot"))
        if start is None or end is None:
            raise ConfigError(
                ["random texts need open_clip's own tokenizer; this model has another."]
            )
        tokens = torch.zeros(count, self.tokenizer.context_length, dtype=torch.long)  # type: ignore[attr-defined]
        length = min(length, tokens.shape[1] - 2)
        # In open_clip's vocabulary the two marks are the last; all before them are words.
        tokens[:, 1 : length + 1] = torch.randint(0, start, (count, length), generator=generator)
        tokens[:, 0], tokens[:, length + 1] = start, end
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) → (N, D), each of length 1."""
        embeddings: Tensor = self.clip.encode_text(tokens, normalize=True)
        return embeddings

    def head(self) -> nn.Module:
        """The zero-shot head of the present weights, where they are."""
        device = self.logit_scale.device
        embeddings = class_embeddings(self.clip, self.tokenizer, self.templates, str(device))
        self.clip.to(device)
        bias = getattr(self.clip, "logit_bias", None)
        return linear_head(embeddings, self.logit_scale.detach().exp().cpu(), bias).to(device)
