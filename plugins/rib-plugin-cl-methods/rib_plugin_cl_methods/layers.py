"""What an encoder's layers give along the way: a transformer's blocks, a conv net's stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from rib_harness import transformer_of


@dataclass
class Seen:
    """What was seen of one forward pass.

    Args:
        staged: whether of the maps of one resolution only the last counts.
        outputs: each layer's (N, positions, C), by the resolution, or what else tells them apart.
        features: those that the head sees, (N, 1, D).
    """

    staged: bool
    outputs: dict[object, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def layers(self) -> list[Tensor]:
        """Each layer's output, (N, positions, C): tokens, places of a map, or the one vector."""
        given = list(self.outputs.values())
        return given or ([] if self.features is None else [self.features])

    def add(self, output: object, channels: int | None) -> None:
        """Keep a layer's output; `channels` tells (N, H, W, C) from (N, C, H, W)."""
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return  # a vector, or several outputs, of which none is known to be the layer's
        last = output.ndim == 3 or (channels not in (None, output.shape[1]))
        rows = output.flatten(1, -2) if last else output.flatten(2).mT
        self.outputs[output.shape[2:] if self.staged else len(self.outputs)] = rows

    def end(self, features: Tensor) -> None:
        """Keep what the encoder gives, (N, D)."""
        self.features = features[:, None]


@contextmanager
def watched(encoder: nn.Module) -> Iterator[Seen]:
    """While the block runs, sees what the encoder's layers give; its hooks go with the block.

    The layers are the blocks of a vision transformer; else what timm calls a net's features, which
    are its stages; else the four stages of a ResNet; else, in a plain sequence of layers, the last
    map of each resolution. A net with none of these has one layer, the features that the head sees.
    """
    modules, staged = _layers_of(encoder)
    seen = Seen(staged)
    handles = [
        module.register_forward_hook(
            lambda _, inputs, output, channels=channels: seen.add(output, channels)
        )
        for module, channels in modules
    ]
    handles.append(encoder.register_forward_hook(lambda _, inputs, output: seen.end(output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layers_of(encoder: nn.Module) -> tuple[list[tuple[nn.Module, int | None]], bool]:
    """The modules to look at, with their channels where these are known; see `Seen.staged`."""
    transformer = transformer_of(encoder)
    if transformer is not None:
        return [(block, None) for block in transformer.blocks], False
    for net in encoder.modules():
        if told := getattr(net, "feature_info", None):  # timm's
            modules = dict(net.named_modules())
            known = [(modules.get(one["module"]), one["num_chs"]) for one in told]
            return [(module, n) for module, n in known if module is not None], False
        stages = [getattr(net, f"layer{i}", None) for i in (1, 2, 3, 4)]
        if all(isinstance(stage, nn.Module) for stage in stages):
            return [(stage, None) for stage in stages], False  # type: ignore[misc]
    layers = getattr(encoder, "features", encoder)  # torchvision's
    if isinstance(layers, nn.Sequential):
        return [(layer, None) for layer in layers], True
    return [], False
