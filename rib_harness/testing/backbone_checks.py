"""What a backbone promises."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rib_harness.catalog import Bound
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Normalizer
from rib_harness.engine.parts import parts_of
from rib_harness.images import Preprocess
from rib_harness.protocols import Identity
from rib_harness.testing.fresh import needs_torch
from rib_harness.testing.network import no_network
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect, expect_methods
from rib_harness.testing.traces import traced

#: Two passes that differ in the batch only differ by rounding: relative to the largest value.
ROUNDING = 1e-4


@dataclass
class BackboneTrial:
    """One backbone under test, built offline.

    Args:
        bound: it, with its options; where these may need the network, with random weights.
    """

    bound: Bound

    def build(self) -> Classifier:
        """It, built once more, without the network."""
        with no_network() as reached:
            try:
                classifier = self.bound.build().build()
            except Exception as error:
                if not reached:
                    raise
                raise CheckError(self._reached(reached)) from error
        expect(not reached, self._reached(reached))
        if not isinstance(classifier, Classifier):
            raise CheckError(
                f"build() gave {type(classifier).__name__}: return a rib_harness.Classifier."
            )
        return classifier

    @cached_property
    def classifier(self) -> Classifier:
        """It, built."""
        return self.build()

    @cached_property
    def identity(self) -> Identity:
        """What it says of itself."""
        with no_network() as reached:
            identity: Identity = self.bound.build().identity()
        expect(not reached, self._reached(reached))
        return identity

    def _reached(self, reached: list[str]) -> str:
        said = f"building it reaches for {', '.join(reached)} on the network."
        if self.bound.spec.network:
            return f"{said} Check it with options that need none: pretrained=false, or a file."
        return (
            f"{said} Say network=True in its spec, and give it the option `pretrained: bool = "
            "True`: False builds it offline with random weights."
        )

    @cached_property
    def images(self) -> Tensor:
        """(3, 3, S, S): pictures of noise under its preprocessing, normalised."""
        preprocess = self.classifier.preprocess
        rng = np.random.default_rng(0)
        rows = [
            preprocess.pixels(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)))
            for h, w in ((40, 60), (300, 280), (64, 64))
        ]
        normalized: Tensor = Normalizer(preprocess)(torch.from_numpy(np.stack(rows)))
        return normalized


def offline(bound: Bound) -> Bound:
    """The backbone with random weights where its own may have to be downloaded.

    Args:
        bound: it with its defaults; a reference is taken as its author gives it.

    Raises:
        CheckSkipped: it needs the network, and no option avoids that.
    """
    component = bound.component
    if not bound.spec.network or bound.options.get("pretrained") is False:
        return bound
    if not any(option.name == "pretrained" for option in component.signature.options):
        raise CheckSkipped(
            "it may need the network: give it the option pretrained=False, or name one that does "
            "not: references=['name:weights=FILE'] (--reference)"
        )
    return Bound(component, {**bound.options, "pretrained": False}, bound.explicit, bound.tag)


def check_backbone_protocol(trial: BackboneTrial) -> None:
    """It is built from its options, and has a backbone's methods: identity and build."""
    expect_methods(trial.bound.build(), identity="", build="")


def check_backbone_builds(trial: BackboneTrial) -> None:
    """It builds offline, in eval mode, on the CPU, in float32."""
    classifier = trial.classifier
    expect(not classifier.training, "build() gave a classifier in training mode: call .eval().")
    for name, tensor in [*classifier.named_parameters(), *classifier.named_buffers()]:
        expect(
            tensor.device.type == "cpu"
            and (tensor.dtype == torch.float32 or not tensor.is_floating_point()),
            f"{name} is {tensor.dtype} on {tensor.device}: build it in float32 on the CPU; "
            "the harness moves it.",
        )


def check_backbone_same_twice(trial: BackboneTrial) -> None:
    """Built twice, it has the same weights, and the global random states are left alone."""
    with traced() as left:
        again = trial.build()
    seeds = "draw random weights inside torch.random.fork_rng(devices=[]), after a manual_seed"
    expect(
        again.fingerprint() == trial.classifier.fingerprint(),
        f"built twice, it has different weights: {seeds}.",
    )
    expect(
        not left.random,
        f"building it changes the global random state of {', '.join(left.random)}: {seeds}; of the "
        "others use generators of your own, random.Random(0) or numpy.random.default_rng(0).",
    )


def check_backbone_preprocess(trial: BackboneTrial) -> None:
    """Its preprocessing is a Preprocess, of the size that the spec says."""
    preprocess, declared = trial.classifier.preprocess, trial.bound.spec.input_size
    expect(
        isinstance(preprocess, Preprocess),
        f"its preprocess is {preprocess!r}: expected a rib_harness.Preprocess.",
    )
    expect(
        declared in (None, preprocess.size),
        f"its spec says input_size={declared}, its preprocessing {preprocess.size}.",
    )


def check_backbone_shapes(trial: BackboneTrial) -> None:
    """Features are (N, D) and logits (N, label space), finite, before any softmax."""
    features, logits = _answers(trial)
    images, size = trial.images, trial.bound.spec.label_space.size
    expect(
        tuple(logits.shape) == (len(images), size),
        f"its logits are {tuple(logits.shape)}: expected ({len(images)}, {size}), one for each "
        f"id of the label space {trial.bound.spec.label_space.name!r}.",
    )
    expect(
        bool(torch.isfinite(logits).all() and torch.isfinite(features).all()),
        "its logits or features are not finite on pictures of noise.",
    )
    sums = logits.sum(1)
    expect(
        bool((logits < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4),
        "its logits are probabilities: none is below 0, and each image's sum to 1. Return logits, "
        "without softmax: the harness applies its own, and log-sum-exp to classes of several ids.",
    )


def _answers(trial: BackboneTrial) -> tuple[Tensor, Tensor]:
    """Features and logits of the images, the encoder first."""
    classifier, images = trial.classifier, trial.images
    n, side = len(images), trial.classifier.preprocess.size
    with torch.no_grad():
        try:
            features = classifier.features(images)
        except Exception as error:
            raise CheckError(
                "its encoder does not take what its preprocessing makes, (N, 3, "
                f"{side}, {side}): {error}"
            ) from error
        if not isinstance(features, Tensor):
            raise CheckError(
                f"its encoder gave {type(features).__name__}, expected a tensor (N, D)."
            )
        expect(
            features.ndim == 2 and len(features) == n,
            f"its encoder gave {tuple(features.shape)}, expected ({n}, D): pool in it, or end it "
            "with nn.Flatten().",
        )
        try:
            return features, classifier(images)
        except Exception as error:
            raise CheckError(
                f"its head does not take what its encoder gave, {tuple(features.shape)}: {error}"
            ) from error


def check_backbone_batch_equals_singles(trial: BackboneTrial) -> None:
    """What it says of an image does not depend on the others in the batch."""
    with torch.no_grad():
        together = trial.classifier(trial.images)
        alone = torch.cat([trial.classifier(one[None]) for one in trial.images])
    worst = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-30))
    expect(
        worst <= ROUNDING,
        f"its logits of a batch differ from those of its images alone, by {worst:.2g} of the "
        "largest: normalise nothing over the batch, and build it in eval mode.",
    )


def check_backbone_copy_save_load(trial: BackboneTrial) -> None:
    """A copy is independent and says the same; what is saved loads to the bit."""
    classifier, images = trial.classifier, trial.images
    before = classifier.fingerprint()
    copy = classifier.copy().eval()
    with torch.no_grad():
        answers = classifier(images)
        expect(
            classifier.fingerprint() == before,
            "a pass in eval mode changes a buffer of it: what it says must not depend on what it "
            "has seen before.",
        )
        expect(
            torch.equal(copy(images), answers), "a copy of it (copy.deepcopy) gives other logits."
        )
        for parameter in copy.parameters():
            parameter.add_(1.0)
    expect(
        classifier.fingerprint() == before,
        "a copy of it shares weights with it: keep modules and parameters as attributes, so that "
        "copy.deepcopy copies them.",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        classifier.save(file)
        loaded = copy.load(file).eval()
    with torch.no_grad():
        same = torch.equal(loaded(images), classifier(images))
    expect(
        same,
        "saved and loaded into a copy, it gives other logits: what decides them must be a "
        "parameter or a buffer (register_buffer), in the state dict.",
    )


def check_backbone_gradients(trial: BackboneTrial) -> None:
    """Every trainable parameter gets a gradient from a cross-entropy."""
    model = trial.classifier.copy().eval()
    logits = model(trial.images)
    F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    expect(
        not without,
        f"{len(without)} of its parameters get no gradient from the loss, first {without[:1]}: "
        "leave out what the logits do not depend on, and detach nothing in forward.",
    )


def check_backbone_identity(trial: BackboneTrial) -> None:
    """identity() agrees with what build() gives."""
    identity, classifier = trial.identity, trial.classifier
    with torch.no_grad():
        classes = classifier(trial.images).shape[1]
    expect(
        identity.classes == classes,
        f"identity() says {identity.classes} classes, build() gives {classes} logits.",
    )
    expect(
        identity.preprocess == classifier.preprocess,
        f"identity() says {identity.preprocess}, build() gives {classifier.preprocess}.",
    )
    expect(bool(identity.weights), "identity() says no digest of the weights: they are in no key.")
    text = {"text-tower", "projection"}
    absent = set(identity.has) - text - set(parts_of(classifier.encoder))
    expect(
        not absent,
        f"identity() says that it has {', '.join(sorted(absent))}, and its encoder has not: use "
        "has=parts_of(encoder).",
    )
    expect(
        ("text-tower" in identity.has) == hasattr(trial.bound.build(), "text_tower"),
        "'text-tower' in identity().has and a method text_tower() belong together.",
    )


def check_backbone_without_torch(trial: BackboneTrial) -> None:
    """Where its spec says light=True, a plan can ask its identity without importing torch."""
    expect(
        not trial.bound.spec.light or not needs_torch(trial.bound),
        "its spec says light=True, and asking its identity imports torch, which makes every plan "
        "seconds slower: import torch, and what imports it, inside build(), or say light=False.",
    )


BACKBONE_CHECKS = (
    check_backbone_protocol,
    check_backbone_builds,
    check_backbone_same_twice,
    check_backbone_preprocess,
    check_backbone_shapes,
    check_backbone_batch_equals_singles,
    check_backbone_copy_save_load,
    check_backbone_gradients,
    check_backbone_identity,
    check_backbone_without_torch,
)
