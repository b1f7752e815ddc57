"""The family `torchvision:NAME.WEIGHTS`."""

from __future__ import annotations

import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision.models
from torch import Tensor, nn

from rib_harness import (
    Classifier,
    ConfigError,
    DataError,
    Identity,
    Preprocess,
    file_digest,
    load_weights,
    parts_of,
)
from rib_harness.engine.classifier import refusal_of_side
from rib_harness.errors import nearest
from rib_harness.files.download import is_offline

#: Trained with auxiliary heads, and with a normalisation of their own inside the model.
_AUXILIARY = ("googlenet", "inception_v3")

#: Names in the published densenets, from before torch forbade dots in the names of modules.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")

#: Families with position embeddings of the size of their input, which so is fixed.
_SIZED = ("vit_", "maxvit_")

#: torch.hub's convention: a published file's name ends with the start of its sha256.
_PUBLISHED = re.compile(r"-([a-f0-9]+)\.")


class TorchvisionBackbone:
    """A torchvision classifier over ImageNet-1k, with published weights or from a local file.

    Input size, resize, mean, std and interpolation are those of the weights' own transforms,
    unless given. A name without weights takes those of the first weights that the model has.

    Args:
        tag: model and weights, as in `resnet50.IMAGENET1K_V2`; the model alone with `weights` or
            `pretrained=false`.
        weights: a local file, safetensors or a torch file (loaded with weights_only); None
            takes the published one from torch's hub cache, or downloads it there.
        weights_key: which set of weights, of a file with several, e.g. model_ema.
        pretrained: False keeps the initial, random weights (seed 0).
        input_size: side of the input, in pixels.
        resize: what the shorter side becomes before the centre crop, in pixels; None keeps the
            proportion to the input that the transforms have.
        mean: of each channel in 0 … 1; one value for all, or three joined by `+`.
        std: likewise.
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
        resize: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
    ):
        self.tag, self.pretrained = tag, pretrained
        self.weights, self.weights_key = weights, weights_key
        self.given = {
            "input_size": input_size,
            "resize": resize,
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
        }
        checks = {
            "input_size": (input_size is None or input_size > 0, "an integer above 0"),
            "resize": (
                resize is None or resize >= (input_size or 1),
                "an integer above 0, and at least input_size",
            ),
            "mean": (mean is None or len(mean) in (1, 3), "one value or three, as 0.5+0.5+0.5"),
            "std": (std is None or (len(std) in (1, 3) and min(std) > 0), "one value or three > 0"),
            "interpolation": (
                interpolation in (None, "nearest", "bilinear", "bicubic", "lanczos"),
                "nearest, bilinear, bicubic or lanczos",
            ),
        }
        problems = [
            f"{self.what}: {name}: expected {expected}, got {self.given[name]!r}."
            for name, (fine, expected) in checks.items()
            if not fine
        ]
        if problems:
            raise ConfigError(problems)
        self.name, _, entry = tag.partition(".")
        self.entry = self._entry(entry)

    @property
    def what(self) -> str:
        """For messages: `torchvision:resnet50.IMAGENET1K_V2`."""
        return f"torchvision:{self.tag}"

    def identity(self) -> Identity:
        """Digest of the weights' file, and the preprocessing of torchvision's transforms."""
        preprocess, file, model = self._preprocess(), self._file(), self._model()
        parts, notes = parts_of(model), tuple[str, ...]()
        if file is not None and self.weights is not None:
            notes = self._load(model, file)  # whether it fits is told when planning
        if refused := refusal_of_side(model, preprocess.size, self._model):
            raise _refused(self.what, preprocess.size, refused)
        if file is None:
            return Identity("none", preprocess, 1000, (), parts)
        digest = file_digest(file)
        if self.weights is None and not digest.startswith(_published_digest(file)):
            raise DataError(
                f"{file} is not the file that torchvision publishes for {self.what}: its sha256 "
                f"starts with {digest[:10]}. Delete it, and it is downloaded anew."
            )
        return Identity(f"sha256:{digest}", preprocess, 1000, (str(file),), parts, notes)

    def build(self) -> Classifier:
        """Encoder = the model up to its last linear layer, which is the head."""
        model, file = self._model(), self._file()
        if file is not None:
            self._load(model, file)
        return _split(model.eval(), self._preprocess(), self.what)

    def _entry(self, entry: str) -> Any:
        """The weights that the tag names, or else the model's first, for its transforms."""
        classifiers = torchvision.models.list_models(module=torchvision.models)
        if self.name not in classifiers:
            if self.name in torchvision.models.list_models():
                raise ConfigError([f"{self.what}: {self.name} is no image classifier."])
            raise ConfigError(
                [
                    f"torchvision has no model {self.name!r}.{nearest(self.name, classifiers)} "
                    "See torchvision.models.list_models()."
                ]
            )
        if self.name in _AUXILIARY:
            raise ConfigError(
                [f"{self.what}: models with auxiliary heads ({self.name}) are not supported."]
            )
        entries = {one.name: one for one in torchvision.models.get_model_weights(self.name)}
        listed = f"The weights of {self.name}: {', '.join(entries)}."
        if not entry:
            if self.pretrained and self.weights is None:
                raise ConfigError(
                    [
                        f"{self.what} names no weights: expected {self.name}.WEIGHTS, or "
                        f"weights=FILE, or pretrained=false. {listed}"
                    ]
                )
            return next(iter(entries.values()))
        # DEFAULT is another name for an entry, and for another one in another torchvision.
        if entry not in entries:
            raise ConfigError(
                [f"{self.what}: there are no weights {entry!r}.{nearest(entry, entries)} {listed}"]
            )
        if len(entries[entry].meta["categories"] or ()) != 1000:
            raise ConfigError([f"{self.what}: these weights do not classify ImageNet-1k. {listed}"])
        return entries[entry]

    def _model(self) -> nn.Module:
        """The architecture that the weights are for, untrained."""
        side = self.entry.meta["min_size"]
        sized: dict[str, Any] = {}
        if self.name.startswith("vit_"):
            sized = {"image_size": side[0]}
        elif self.name.startswith("maxvit_"):
            sized = {"input_size": side}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = torchvision.models.get_model(self.name, weights=None, **sized)
        return model

    def _file(self) -> Path | None:
        """The weights' file; from torch's hub cache or downloaded where no local one is given."""
        if not self.pretrained:
            return None
        if self.weights is not None:
            if not self.weights.exists():
                raise DataError(f"{self.what}: there is no weights file {self.weights}.")
            return self.weights
        url = self.entry.url
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if file.is_file():
            return file
        try:
            if is_offline():
                raise OSError("offline, as asked")
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(file), _published_digest(file), progress=sys.stderr.isatty()
            )
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another sha256
            raise DataError(
                f"{self.what}: its weights ({url}) are neither in torch's hub cache "
                f"({file.parent}) nor could they be downloaded ({type(error).__name__}: {error}). "
                "Download them where there is a network, or give weights=FILE."
            ) from error
        return file

    def _load(self, model: nn.Module, file: Path) -> tuple[str, ...]:
        old = _new_name if self.name.startswith("densenet") else str
        return load_weights(model, file, key=self.weights_key, what=self.what, rename=old)

    def _preprocess(self) -> Preprocess:
        # Its `antialias` is about tensors: PIL, which the harness resizes with, always does.
        own = self.entry.transforms()
        given = {name: value for name, value in self.given.items() if value is not None}
        mean, std = given.get("mean", own.mean), given.get("std", own.std)
        size = given.get("input_size", own.crop_size[0])
        resize = given.get("resize", size * own.resize_size[0] // own.crop_size[0])
        fixed = self.entry.meta["min_size"][0]
        if self.name.startswith(_SIZED) and size != fixed:
            raise ConfigError(
                [f"{self.what}: input_size: {self.name} takes {fixed} only, got {size}."]
            )
        if resize < size:
            raise ConfigError(
                [f"{self.what}: resize: expected at least the input's side {size}, got {resize}."]
            )
        return Preprocess(
            size=size,
            resize=resize,
            interpolation=given.get("interpolation", own.interpolation.value),
            mean=tuple(mean) * (3 // len(mean)),
            std=tuple(std) * (3 // len(std)),
        )


def _new_name(name: str) -> str:
    """Of a tensor of a densenet, as published or as torchvision has it now."""
    old = _OLD_DENSENET.fullmatch(name)
    return old.group(1) + old.group(2) if old else name


def _published_digest(file: Path) -> str:
    """The start of the sha256 that a published file's name gives; empty if it gives none."""
    found = _PUBLISHED.search(file.name)
    return found.group(1) if found else ""


def _split(model: nn.Module, preprocess: Preprocess, what: str) -> Classifier:
    """Take the head off; check on a random image that nothing else was lost."""
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    path, head = layers[-1] if layers else ("", None)
    if head is None or head.out_features != 1000:
        raise ConfigError(
            [f"{what}: expected a linear layer with 1000 outputs at its end, got {head}."]
        )
    probe = torch.randn(
        2, 3, preprocess.size, preprocess.size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        whole = _logits(model, probe, what)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
        classifier = Classifier(model, head, preprocess).eval()
        if not torch.allclose(classifier(probe), whole, rtol=1e-4, atol=1e-4):
            raise ConfigError(
                [f"{what} is not an encoder and a head: its logits change when it is split."]
            )
    return classifier


def _logits(model: nn.Module, probe: Tensor, what: str) -> Tensor:
    try:
        logits: Tensor = model(probe)
    except RuntimeError as error:  # too small for the model's pooling
        raise _refused(what, probe.shape[-1], error) from error
    return logits


def _refused(what: str, side: int, why: object) -> ConfigError:
    return ConfigError([f"{what} does not take input of side {side}: {why}"])
