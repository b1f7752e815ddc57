"""An encoder's tensors by depth: the stem that sees the pixels, the blocks, and what is above."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from rib_harness import transformer_of

#: Of vision transformers, by their last name: what makes tokens of pixels (and norms these, in
#: CLIP), what is added to the tokens, and what stands behind the blocks.
_PATCHES = ("patch_embed", "conv1", "conv_proj", "norm_pre", "ln_pre")
_TOKENS = ("cls_token", "reg_token", "pos_embed", "class_token", "pos_embedding",
           "class_embedding", "positional_embedding")  # fmt: skip
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Depth:
    """Names of modules and parameters, as the encoder has them.

    Args:
        stem: what sees the pixels.
        tokens: what else is below the blocks.
        blocks: from the bottom; each is one block of a transformer, or one member of a conv net's
            sequences, with the norm behind it.
    """

    stem: tuple[str, ...]
    tokens: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]

    def of(self, tensor: str) -> int:
        """Where a tensor of the encoder is: −1 below the blocks, 0 … L − 1, L above them."""
        for depth, names in enumerate([(*self.stem, *self.tokens), *self.blocks], -1):
            if any(tensor == name or tensor.startswith(f"{name}.") for name in names):
                return depth
        return len(self.blocks)


def depth_of(encoder: nn.Module) -> Depth:
    """The vision transformer of timm, torchvision or open_clip, or else the order of the modules.

    Example:
        >>> depth_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)))
        Depth(stem=('0', '1'), tokens=(), blocks=(('2',),))
    """
    transformer = transformer_of(encoder)
    if transformer is None:
        members = _with_norms(_members(encoder))
        return Depth(members[0] if members else (), (), tuple(members[1:]))
    names = {id(module): name for name, module in encoder.named_modules()}
    blocks = tuple((names[id(block)],) for block in transformer.blocks)
    outside = [name for name in _named(encoder) if not any(name.startswith(b) for (b,) in blocks)]
    stem = tuple(name for name in outside if name.rpartition(".")[2] in _PATCHES)
    tokens = tuple(name for name in outside if name.rpartition(".")[2] in _TOKENS)
    return Depth(stem, tokens, blocks)


def _named(encoder: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in encoder.named_modules())
    yield from (name for name, _ in encoder.named_parameters())


def _members(
    module: nn.Module, name: str = "", whole: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """The parts with parameters in their order: children, and those of sequences one by one."""
    prefix = f"{name}." if name else ""
    children = [
        (prefix + child, one) for child, one in module.named_children() if list(one.parameters())
    ]
    if not children or not (whole or isinstance(module, nn.Sequential | nn.ModuleList)):
        yield name, module
        return
    for child, one in children:
        yield from _members(one, child, whole and len(children) == 1)


def _with_norms(members: Iterator[tuple[str, nn.Module]]) -> list[tuple[str, ...]]:
    """Each member, with the norms that come behind it."""
    groups: list[tuple[str, ...]] = []
    for name, module in members:
        if groups and isinstance(module, _NORMS):
            groups[-1] = (*groups[-1], name)
        else:
            groups.append((name,))
    return groups
