"""Every check of a backbone: one that passes all, and for each check some that fail it."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rib_harness import BackboneSpec, Classifier, Identity, LabelSpace, Preprocess, parts_of
from rib_harness.catalog import Catalog
from rib_harness.testing import TINY, Check, catalog_with, checks_of, tiny_classifier
from rib_harness.testing.backbone_checks import BACKBONE_CHECKS

SPEC = BackboneSpec(
    name="net",
    target="",
    summary="A net.",
    license="MIT",
    label_space=LabelSpace("tens", 10),
    input_size=8,
)

COUNTER = itertools.count()


class Good:
    """A tiny classifier, and what the bad ones change of it."""

    classes = 10
    preprocess = TINY
    has: tuple[str, ...] = ("batch-norm",)

    def identity(self) -> Identity:
        return Identity("seed:0", self.preprocess, self.classes, has=self.has)

    def build(self) -> Classifier:
        return tiny_classifier()


class InTrainingMode(Good):
    def build(self) -> Classifier:
        return super().build().train()


class InHalf(Good):
    def build(self) -> Classifier:
        return super().build().bfloat16()


class Downloading(Good):
    def build(self) -> Classifier:
        socket.create_connection(("example.org", 80))
        return super().build()


class DownloadingInSilence(Good):
    def build(self) -> Classifier:
        with suppress(Exception):
            socket.create_connection(("example.org", 80))
        return super().build()


class NoClassifier(Good):
    def build(self) -> Any:
        return nn.Linear(2, 2)


class AnotherEachTime(Good):
    def build(self) -> Classifier:
        return tiny_classifier(seed=next(COUNTER))


class Seeding(Good):
    def build(self) -> Classifier:
        torch.manual_seed(0)
        return super().build()


class Wrapped(nn.Module):
    """An encoder with something behind it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner


class SeedingNumPy(Good):
    def build(self) -> Classifier:
        np.random.seed(0)
        return super().build()


class SeedingPython(Good):
    def build(self) -> Classifier:
        random.seed(0)
        return super().build()


class WithADouble(Good):
    def build(self) -> Classifier:
        good = super().build()
        good.encoder.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        return good


class NoIdentity:
    def identify(self) -> None: ...

    def build(self) -> Classifier:
        return tiny_classifier()


class Unpooled(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)[:, :, None, None]  # type: ignore[no-any-return]


class InATuple(Wrapped):
    def forward(self, images: Tensor) -> Any:
        return (self.inner(images),)


class OverTheBatch(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        features = self.inner(images)
        return features - features.mean(0)  # type: ignore[no-any-return]


class Remembering(Wrapped):
    """Counts what it has seen."""

    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        return self.inner(images)  # type: ignore[no-any-return]


class Infinite(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) / 0  # type: ignore[no-any-return]


class OfSixteen(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.view(len(images), 3, 16, 16))  # type: ignore[no-any-return]


class Detached(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).detach()  # type: ignore[no-any-return]


class NotCopied(Wrapped):
    def __deepcopy__(self, memo: Any) -> NotCopied:
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)  # type: ignore[no-any-return]


class Hidden(Wrapped):
    """With a weight that is in no state dict."""

    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        self.scale = nn.Parameter(torch.ones(32))

    def _save_to_state_dict(self, *_: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * self.scale  # type: ignore[no-any-return]


def behind(wrapper: type[Wrapped], head: nn.Module | None = None) -> type[Good]:
    """A backbone whose encoder is wrapped."""

    class Bad(Good):
        def build(self) -> Classifier:
            good = super().build()
            good.encoder = wrapper(good.encoder)
            if head is not None:
                good.head = head
            return good.eval()

    return Bad


def ending_in(last: nn.Module) -> type[Good]:
    """A backbone whose head has something behind it."""

    class Bad(Good):
        def build(self) -> Classifier:
            good = super().build()
            good.head = nn.Sequential(good.head, last)
            return good.eval()

    return Bad


class Unprepared(Good):
    def build(self) -> Classifier:
        good = super().build()
        good.preprocess = 8  # type: ignore[assignment]
        return good


class Unused(Good):
    def build(self) -> Classifier:
        good = super().build()
        good.encoder.register_parameter("unused", nn.Parameter(torch.ones(2)))
        return good


class OtherClasses(Good):
    classes = 11


class OtherPreprocess(Good):
    preprocess = Preprocess(size=8)


class NoParts(Good):
    has = ("blocks",)


class NoTower(Good):
    has = ("text-tower",)


class NoDigest(Good):
    def identity(self) -> Identity:
        return replace(super().identity(), weights="")


#: Check, what is broken, its spec's changes, and a part of the message.
BAD: list[tuple[str, type[Good], dict[str, Any], str]] = [
    ("protocol", NoIdentity, {}, "NoIdentity has no method identity(). Did you mean 'identify'"),
    ("builds", InTrainingMode, {}, "in training mode: call .eval()"),
    ("builds", InHalf, {}, "is torch.bfloat16 on cpu: build it in float32"),
    ("builds", WithADouble, {}, "encoder.mean is torch.float64 on cpu: build it in float32"),
    ("builds", Downloading, {}, "reaches for example.org on the network. Say network=True"),
    ("builds", DownloadingInSilence, {}, "reaches for example.org on the network"),
    ("builds", NoClassifier, {}, "build() gave Linear: return a rib_harness.Classifier"),
    ("same-twice", AnotherEachTime, {}, "different weights: draw random weights inside"),
    ("same-twice", Seeding, {}, "changes the global random state of torch: "),
    ("same-twice", SeedingNumPy, {}, "changes the global random state of numpy: "),
    ("same-twice", SeedingPython, {}, "changes the global random state of random: "),
    ("shapes", Good, {"label_space": LabelSpace("sevens", 7)}, "(3, 10): expected (3, 7)"),
    ("shapes", behind(Unpooled), {}, "gave (3, 32, 1, 1), expected (3, D): pool in it, or end it"),
    ("shapes", behind(InATuple), {}, "its encoder gave tuple, expected a tensor (N, D)"),
    ("shapes", behind(OfSixteen), {}, "does not take what its preprocessing makes, (N, 3, 8"),
    ("shapes", behind(nn.Sequential, nn.Linear(7, 10)), {}, "its head does not take what its enco"),
    ("shapes", ending_in(nn.Softmax(1)), {}, "Return logits, without softmax: the harness applies"),
    ("shapes", behind(Infinite), {}, "not finite on pictures of noise"),
    ("batch-equals-singles", behind(OverTheBatch), {}, "normalise nothing over the batch"),
    ("preprocess", Good, {"input_size": 16}, "says input_size=16, its preprocessing 8"),
    ("preprocess", Unprepared, {}, "its preprocess is 8: expected a rib_harness.Preprocess"),
    ("copy-save-load", behind(Remembering), {}, "a pass in eval mode changes a buffer of it"),
    ("copy-save-load", behind(NotCopied), {}, "a copy of it shares weights with it"),
    ("copy-save-load", behind(Hidden), {}, "must be a parameter or a buffer"),
    ("gradients", Unused, {}, "1 of its parameters get no gradient from the loss, first ['encoder"),
    ("gradients", behind(Detached), {}, "detach nothing in forward"),
    ("identity", OtherClasses, {}, "identity() says 11 classes, build() gives 10 logits"),
    ("identity", OtherPreprocess, {}, "identity() says Preprocess(size=8, resize=None"),
    ("identity", NoParts, {}, "says that it has blocks, and its encoder has not"),
    ("identity", NoTower, {}, "and a method text_tower() belong together"),
    ("identity", NoDigest, {}, "identity() says no digest of the weights"),
]


def checks_on(target: Any, references: tuple[str, ...] = (), **spec: Any) -> dict[str, Check]:
    """Check → itself, for a backbone that no package offers."""
    catalog = catalog_with((replace(SPEC, **spec), target), base=Catalog())
    checks = checks_of("testing", catalog, references=references)
    return {c.id.rpartition("/")[2]: c for c in checks if c.id.startswith("backbone/")}


def test_a_good_one_passes_every_check() -> None:
    assert {check.outcome()["result"] for check in checks_on(Good).values()} == {"ok"}


@pytest.mark.parametrize(("check", "target", "spec", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(
    check: str, target: type[Good], spec: dict[str, Any], said: str
) -> None:
    """Source: what was broken here."""
    found = checks_on(target, **spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


@pytest.mark.parametrize(
    ("target", "gate"),
    [
        (NoIdentity, "protocol"),
        (Downloading, "builds"),
        (Unprepared, "preprocess"),
        (behind(Unpooled), "shapes"),
        (behind(OfSixteen), "shapes"),
    ],
)
def test_one_cause_is_told_once(target: Any, gate: str) -> None:
    found = {name: check.outcome()["result"] for name, check in checks_on(target).items()}
    assert [name for name, result in found.items() if result == "failed"] == [gate]
    assert found["identity"] == "skipped"


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list; `without-torch` is in the tests of installed plugins."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in BACKBONE_CHECKS}
    assert names == {check for check, *_ in BAD} | {"without-torch"}


def test_log_probabilities_are_logits() -> None:
    """Source: a softmax of them is the one before; and every check of them passes."""
    found = {name: one.outcome() for name, one in checks_on(ending_in(nn.LogSoftmax(1))).items()}
    assert {one["result"] for one in found.values()} == {"ok"}


def test_what_is_not_installed_is_not_asked_in_a_fresh_process() -> None:
    found = checks_on(Good, light=True)["without-torch"].outcome()
    assert found["result"] == "skipped" and "it is not installed" in found["reason"]


def test_parts_are_those_of_the_encoder() -> None:
    """The base of the cases above is what it says."""
    assert set(Good.has) == set(parts_of(tiny_classifier().encoder))


@dataclass
class MayDownload(Good):
    """One with a switch.

    Args:
        pretrained: the switch.
    """

    pretrained: bool = True

    def build(self) -> Classifier:
        if self.pretrained:
            socket.create_connection(("example.org", 80))
        return super().build()


def test_what_may_download_is_built_without_its_weights() -> None:
    assert {
        check.outcome()["result"] for check in checks_on(MayDownload, network=True).values()
    } == {"ok"}


def test_what_needs_the_network_is_skipped_with_a_reason() -> None:
    found = checks_on(Downloading, network=True)["shapes"].outcome()
    assert found["result"] == "skipped"
    assert "may need the network: give it the option pretrained=False" in found["reason"]


@dataclass
class Family(Good):
    """One of which the tag must be known.

    Args:
        tag: it.
        width: an option.
    """

    tag: str
    width: int = 1


def test_a_family_is_checked_where_a_member_is_known() -> None:
    found = checks_on(Family, family=True)["shapes"].outcome()
    assert found["result"] == "skipped"
    assert "needs tag: give references=['net:…']" in found["reason"]
    members = checks_on(Family, ("net:small,width=2",), family=True)
    assert {check.outcome()["result"] for check in members.values()} == {"ok"}
