"""The family `timm:TAG`."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from rib_harness import (
    Classifier,
    ConfigError,
    DataError,
    Identity,
    Preprocess,
    file_digest,
    hub_file,
    load_weights,
    parts_of,
)
from rib_harness.engine.classifier import refusal_of_side
from rib_harness.errors import nearest

#: Arguments of timm that bring weights of which the harness would have no digest.
_OTHER_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "features_only")


class TimmBackbone:
    """A timm classifier, with weights from the hub or from a local file.

    Input size, mean, std, crop and interpolation are those of timm's own data configuration for
    the tag, unless given. Options that are not named here go to `timm.create_model`.

    Args:
        tag: a name of timm, as in `resnet50.a1_in1k`.
        weights: a local file, safetensors or a torch file (loaded with weights_only); None
            takes the tag's own from the hub or its local cache.
        weights_key: which set of weights, of a file with several, e.g. state_dict_ema.
        pretrained: False keeps the initial, random weights (seed 0).
        input_size: side of the input, in pixels.
        mean: of each channel in 0 … 1; one value for all, or three joined by `+`.
        std: likewise.
        crop_pct: the input's share of the shorter side after resizing.
        interpolation: PIL's filter.
    """

    def __init__(
        self,
        tag: str,
        *,
        weights: Path | None = None,
        weights_key: str | None = None,
        pretrained: bool = True,
        input_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        **model_args: Any,
    ):
        self.tag, self.pretrained, self.model_args = tag, pretrained, model_args
        self.weights, self.weights_key = weights, weights_key
        self.given = {
            "input_size": input_size and (3, input_size, input_size),
            "mean": mean,
            "std": std,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
        }
        refused = [name for name in _OTHER_WEIGHTS if name in model_args]
        if refused:
            raise ConfigError([f"timm:{tag}: give weights=FILE instead of {refused[0]}."])
        if weights_key is not None and (weights is None or not pretrained):
            raise ConfigError([f"timm:{tag}: weights_key={weights_key} needs weights=FILE."])
        checks = {
            "input_size": (input_size is None or input_size > 0, "an integer above 0"),
            "mean": (mean is None or len(mean) in (1, 3), "one value or three, as 0.5+0.5+0.5"),
            "std": (std is None or (len(std) in (1, 3) and min(std) > 0), "one value or three > 0"),
            "crop_pct": (crop_pct is None or 0 < crop_pct <= 1, "a number above 0, at most 1"),
            "interpolation": (
                interpolation in (None, "nearest", "bilinear", "bicubic", "lanczos"),
                "nearest, bilinear, bicubic or lanczos",
            ),
        }
        problems = [
            f"timm:{tag}: {name}: expected {expected}, got {self.given[name]!r}."
            for name, (fine, expected) in checks.items()
            if not fine
        ]
        if problems:
            raise ConfigError(problems)
        if not timm.is_model(tag):
            known = timm.list_models(pretrained=True) + timm.list_models()
            raise ConfigError(
                [f"timm has no model {tag!r}.{nearest(tag, known)} See timm.list_models()."]
            )

    def identity(self) -> Identity:
        """Digest of the weights' file, and timm's preprocessing."""
        model = self._model(pretrained=False)
        file = self._file(model)
        digest, files, notes = "none", tuple[str, ...](), tuple[str, ...]()
        if file is not None:
            if self.weights is not None:
                notes = self._load(model, file)  # whether it fits is told when planning
            digest, files = f"sha256:{file_digest(file)}", (str(file),)
        classes: Any = model.num_classes
        preprocess, parts = self._preprocess(model), parts_of(model)
        self._check_side(model, preprocess.size)
        return Identity(digest, preprocess, int(classes), files, parts, notes)

    def build(self) -> Classifier:
        """Encoder = the model up to its pooled features, head = its own classifier."""
        from_hub = self.pretrained and self.weights is None
        model = self._model(pretrained=from_hub)
        if self.pretrained and self.weights is not None:
            self._load(model, self.weights)
        model.eval()
        return _split(model, self._preprocess(model), self.tag)

    def _model(self, *, pretrained: bool) -> nn.Module:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model: nn.Module = timm.create_model(
                    self.tag, pretrained=pretrained, **self.model_args
                )
        except Exception as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None:
                given = ", ".join(f"{k}={v}" for k, v in self.model_args.items()) or "no options"
                raise ConfigError(
                    [f"timm:{self.tag} with {given}: {type(error).__name__}: {error}"]
                ) from error
            own = ["weights", "weights_key", "pretrained", *self.given]
            name = refused.group(1)
            raise ConfigError(
                [
                    f"timm:{self.tag}: timm refuses the option {name!r}.{nearest(name, own)} "
                    f"Options of the harness: {', '.join(own)}; all others go to "
                    "timm.create_model."
                ]
            ) from None
        return model

    def _file(self, model: nn.Module) -> Path | None:
        """The weights' file; from the hub or its cache where no local one is given."""
        if not self.pretrained:
            return None
        if self.weights is not None:
            if not self.weights.exists():
                raise DataError(f"timm:{self.tag}: there is no weights file {self.weights}.")
            return self.weights
        config: Any = model.pretrained_cfg
        repository = config.get("hf_hub_id")
        if not repository:
            tagged = [name for name in timm.list_models(pretrained=True)
                      if name.split(".")[0] == self.tag.split(".")[0]]  # fmt: skip
            has = f" Tags: {', '.join(tagged[:5])}." if tagged else ""
            raise ConfigError(
                [f"timm:{self.tag} has no weights on the hub; give weights=FILE.{has}"]
            )
        given = config.get("hf_hub_filename")
        names = [given] if given else ["model.safetensors", "pytorch_model.bin"]
        return hub_file(str(repository), names, f"timm:{self.tag}")

    def _load(self, model: nn.Module, file: Path) -> tuple[str, ...]:
        return load_weights(model, file, key=self.weights_key, what=f"timm:{self.tag}")

    def _check_side(self, model: nn.Module, side: int) -> None:
        """Raise for images that the net does not take; its weights are lost."""
        refused = refusal_of_side(model, side, partial(self._model, pretrained=False))
        if not refused:
            return
        own = getattr(getattr(model, "patch_embed", None), "img_size", None)
        said = f"timm:{self.tag}: its net does not take images of side {side}: {refused}"
        if own:
            said += f" Its own side is {own[0]}: give input_size={own[0]}"
            said += f", or img_size={side} for a net of that side." if own[0] != side else "."
        raise ConfigError([said])

    def _preprocess(self, model: nn.Module) -> Preprocess:
        given: dict[str, Any] = {k: v for k, v in self.given.items() if v is not None}
        for key in ("mean", "std"):
            if key in given and len(given[key]) == 1:
                given[key] = given[key] * 3
        config = resolve_data_config(given, model=model)
        size = config["input_size"][1:]
        if size[0] != size[1] or config["input_size"][0] != 3:
            raise ConfigError([f"timm:{self.tag}: expected square RGB input, got {size}."])
        if config["crop_mode"] != "center":
            raise ConfigError(
                [
                    f"timm:{self.tag} wants crop mode {config['crop_mode']!r}; only centre crops "
                    "are supported."
                ]
            )
        return Preprocess(
            size=size[0],
            resize=math.floor(size[0] / config["crop_pct"]),
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )


def _split(model: nn.Module, preprocess: Preprocess, tag: str) -> Classifier:
    """Take the head off; check on a random image that nothing else was lost."""
    head = model.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
        raise ConfigError([f"timm:{tag}: expected one classifier layer, got {head!r}."])
    probe = torch.randn(
        2, 3, preprocess.size, preprocess.size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        whole = model(probe)
        model.reset_classifier(0)  # type: ignore[operator]
        classifier = Classifier(model, head, preprocess).eval()
        if not torch.allclose(classifier(probe), whole, rtol=1e-4, atol=1e-4):
            raise ConfigError(
                [f"timm:{tag} is not an encoder and a head: its logits change when it is split."]
            )
    return classifier
