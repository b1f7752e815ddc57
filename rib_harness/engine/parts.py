"""What an encoder is made of, as far as methods ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

#: Class of a vision transformer → attributes that lead to its blocks, and what tells width and
#: patch. Each block takes and gives tokens (N, T, D), and has its MLP as `mlp`.
_TRANSFORMERS: dict[str, tuple[str, Callable[[Any], tuple[int, int]]]] = {
    "timm.models.vision_transformer.VisionTransformer": (
        "blocks",
        lambda net: (net.embed_dim, net.patch_embed.patch_size[0]),
    ),
    "torchvision.models.vision_transformer.VisionTransformer": (
        "encoder.layers",
        lambda net: (net.hidden_dim, net.patch_size),
    ),
    "open_clip.transformer.VisionTransformer": (
        "transformer.resblocks",
        lambda net: (net.conv1.out_channels, net.conv1.kernel_size[0]),
    ),
}


@dataclass(frozen=True)
class Transformer:
    """A vision transformer inside an encoder.

    Args:
        blocks: its blocks, which may be replaced in place; tokens (N, T, D) → (N, T, D), and
            each has its MLP as `mlp`.
        width: D.
        prefix: class and register tokens, which come before those of the patches.
        patch: side of a patch, in pixels.
    """

    blocks: nn.Sequential | nn.ModuleList
    width: int
    prefix: int
    patch: int


def transformer_of(encoder: nn.Module) -> Transformer | None:
    """The vision transformer of timm, torchvision or open_clip in an encoder; None if none is.

    Example:
        >>> from timm.models.vision_transformer import VisionTransformer
        >>> net = VisionTransformer(img_size=8, patch_size=4, embed_dim=6, depth=2, num_heads=2)
        >>> found = transformer_of(net)
        >>> len(found.blocks), found.width, found.prefix, found.patch
        (2, 6, 1, 4)
    """
    for module in encoder.modules():
        for kind in type(module).__mro__:
            known = _TRANSFORMERS.get(f"{kind.__module__}.{kind.__qualname__}")
            if known is not None:
                return _read(module, *known)
    return None


def _read(
    model: nn.Module, path: str, sizes: Callable[[Any], tuple[int, int]]
) -> Transformer | None:
    blocks = model.get_submodule(path)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return None
    if not all(hasattr(block, "mlp") for block in blocks):
        return None
    if getattr(model.get_submodule(path.rpartition(".")[0]), "batch_first", True) is False:
        return None  # open_clip's blocks then take (T, N, D)
    width, patch = sizes(model)
    # timm says how many prefix tokens it has; the other two have a class token, and no more.
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    return Transformer(blocks, width=int(width), prefix=prefix, patch=int(patch))


def parts_of(encoder: nn.Module) -> tuple[str, ...]:
    """The names of the parts that methods may require, for `Identity.has`.

    `"batch-norm"`: batch normalisation. `"blocks"`: a vision transformer that `transformer_of`
    finds. `"qkv"`: its attention makes queries, keys and values with one linear layer, `attn.qkv`.
    """
    parts = []
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules()):
        parts.append("batch-norm")
    transformer = transformer_of(encoder)
    if transformer is not None:
        parts.append("blocks")
        layers = [getattr(getattr(b, "attn", None), "qkv", None) for b in transformer.blocks]
        if all(isinstance(layer, nn.Linear) for layer in layers):
            parts.append("qkv")
    return tuple(parts)
