"""The zero-shot head: ImageNet's class names in prompts → an embedding a class, made once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rib_harness import cache_dir
from rib_harness.store import key_of, write_atomically

log = logging.getLogger("rib_harness.open_clip")

#: Option → prompts, each of a class name.
TEMPLATES: dict[str, tuple[Callable[[str], str], ...]] = {
    "openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES,
    "simple-7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    "one": (lambda name: f"a photo of a {name}.",),
}

#: The class names, in the order of ImageNet-1k's ids.
NAMES: tuple[str, ...] = tuple(open_clip.IMAGENET_CLASSNAMES)

#: Prompts that go through the text tower together: CLIP's largest fits beside them anywhere.
_BATCH = 800


def prompts_digest(templates: str) -> str:
    """Hash of every prompt of every class: other words give other numbers."""
    digest = hashlib.sha256()
    for name in NAMES:
        for template in TEMPLATES[templates]:
            digest.update(f"{template(name)}\n".encode())
    return digest.hexdigest()


def kept_embeddings(
    inputs: Mapping[str, Any], shape: tuple[int, int], make: Callable[[], Tensor]
) -> Tensor:
    """The class embeddings from the cache; made and kept there if it has none, or a damaged one.

    Args:
        inputs: everything that decides them, as JSON values.
        shape: (classes, D).
        make: computes them: (classes, D), float32.
    """
    path = cache_dir("zero-shot-heads") / f"{key_of(inputs)}.safetensors"
    kept = _read(path, shape)
    if kept is not None:
        return kept
    log.warning(
        "%s: embedding %d classes in the words of %r, once; kept in %s",
        inputs["model"], shape[0], inputs["templates"], path,
    )  # fmt: skip
    made = make()
    try:
        write_atomically(path, save({"embeddings": made}, {"sha256": _digest(made)}))
    except OSError as error:
        log.warning("%s could not be written (%s); they are made again next time", path, error)
    return made


@torch.no_grad()
def class_embeddings(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    templates: str,
    device: str | None = None,
) -> Tensor:
    """The mean of a class's normalised prompt embeddings, normalised: (classes, D), float32.

    Source: open_clip's `build_zero_shot_classifier`. On a GPU where there is one, unless told: the
    80 000 prompts of `openai-80` take hours on a few CPU cores.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        columns = open_clip.build_zero_shot_classifier(
            model.to(device),
            tokenizer,
            NAMES,
            TEMPLATES[templates],
            num_classes_per_batch=max(_BATCH // len(TEMPLATES[templates]), 1),
            device=device,
        )
    finally:
        model.to("cpu")
    embeddings: Tensor = columns.T.float().cpu().contiguous()
    return embeddings


def linear_head(embeddings: Tensor, scale: Tensor, bias: Tensor | None) -> nn.Linear:
    """Normalised image features (N, D) → CLIP's logits (N, classes).

    Args:
        embeddings: (classes, D), normalised.
        scale: CLIP's temperature, `logit_scale.exp()`: one number.
        bias: `logit_bias`, one number; None where the model has none.
    """
    classes, width = embeddings.shape
    # Without the random weights, so that no global generator moves.
    head = nn.utils.skip_init(nn.Linear, width, classes, bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(embeddings * scale)
        if bias is not None:
            head.bias.copy_(bias.expand(classes))
    return head


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            kept: Tensor = file.get_tensor("embeddings")
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    whole = kept.dtype == torch.float32 and tuple(kept.shape) == shape and _digest(kept) == digest
    return kept if whole else None


def _digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()
