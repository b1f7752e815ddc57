"""Every check of a method: some that pass all, and for each check some that fail it."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rib_harness import Batch, Classifier, DatasetSpec, Knob, LabelSpace, MethodSpec, Task
from rib_harness.catalog import Catalog
from rib_harness.testing import (
    Check,
    catalog_with,
    checks_of,
    tiny_classifier,
    tiny_clip,
    tiny_vit,
)
from rib_harness.testing.method_checks import METHOD_CHECKS, check_method_neutral

SPEC = MethodSpec(name="mine", target="", summary="A method.", license="MIT")
COUNTER = itertools.count(1)


class Good:
    """Plain fine-tuning."""

    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained.copy())


class HeadOnly:
    """A head on features that are computed once."""

    def finetune(self, task: Task) -> Classifier:
        return task.fit_head(task.pretrained.copy())


class Halfway:
    """Half the way back: no update of its own."""

    def finetune(self, task: Task) -> Classifier:
        model = task.checkpoint("base")
        with torch.no_grad():
            for now, before in zip(model.parameters(), task.pretrained.parameters(), strict=True):
                now.lerp_(before, 0.5)
        return model.eval()


class WithAResidual:
    """Another architecture, which it can make again."""

    def rebuild(self, pretrained: Classifier) -> Classifier:
        model = pretrained.copy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.head = nn.Sequential(nn.Linear(32, 32), model.head)
        return model

    def finetune(self, task: Task) -> Classifier:
        return task.fit(self.rebuild(task.pretrained))


class InTrainingMode:
    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained.copy()).train()


class NoClassifier:
    def finetune(self, task: Task) -> Any:
        return task.fit(task.pretrained.copy()).head


class Broken:
    def finetune(self, task: Task) -> Classifier:
        model = task.fit(task.pretrained.copy())
        with torch.no_grad():
            next(model.head.parameters()).fill_(torch.nan)
        return model


class OfAnotherShape:
    def finetune(self, task: Task) -> Classifier:
        model = task.fit(task.pretrained.copy())
        model.head = nn.Linear(32, 3)
        return model.eval()


class KeepingCount:
    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained.copy(), lr=0.01 * next(COUNTER))


class Cached:
    """Made once, and given again whatever was asked for."""

    made: Classifier | None = None

    def finetune(self, task: Task) -> Classifier:
        if Cached.made is None:
            Cached.made = task.fit(task.pretrained.copy())
        return Cached.made.copy().eval()


class OnThePretrained:
    def finetune(self, task: Task) -> Classifier:
        with torch.no_grad():
            next(task.pretrained.head.parameters()).add_(1.0)
        return task.fit(task.pretrained.copy())


class SharingTheHead:
    def finetune(self, task: Task) -> Classifier:
        model = task.fit(task.pretrained.copy())
        model.head = task.pretrained.head
        return model


class MovingWhatIsFrozen:
    def finetune(self, task: Task) -> Classifier:
        model = task.pretrained.copy()
        model.encoder.requires_grad_(False)

        def push() -> None:
            with torch.no_grad():
                next(model.encoder.parameters()).add_(0.1)

        return task.fit(model, after_step=push)


class MovingBehindTheLoop:
    """Frozen in the fit, and changed after it."""

    def finetune(self, task: Task) -> Classifier:
        model = task.pretrained.copy()
        first = next(model.encoder.parameters()).requires_grad_(False)
        task.fit(model)
        with torch.no_grad():
            first.add_(0.1)
        return model


class MovingInItsOwnLoop:
    """Frozen for its own optimizer, and shrunk beside it."""

    def finetune(self, task: Task) -> Classifier:
        model = task.pretrained.copy()
        first = next(model.encoder.parameters()).requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.01)
        for batch in task.batches():
            optimizer.zero_grad()
            task.cross_entropy(model, batch).backward()
            optimizer.step()
            with torch.no_grad():
                first.mul_(0.9)
        return model.eval()


class Merging(Good):
    """Changes what was frozen in the fit, and says that it is no longer."""

    def finetune(self, task: Task) -> Classifier:
        return MovingBehindTheLoop().finetune(task).requires_grad_(True)


class Frozen(Good):
    """Frozen as a whole, for whoever comes next."""

    def finetune(self, task: Task) -> Classifier:
        return super().finetune(task).frozen()


class Choosing:
    """One of its needs as it is."""

    said: str | None = "base"

    def finetune(self, task: Task) -> Classifier:
        task.report(same_as=self.said)
        return task.checkpoint("base").eval()


class ChoosingInSilence(Choosing):
    said = None


class Downloading:
    def finetune(self, task: Task) -> Classifier:
        with suppress(Exception):
            socket.create_connection(("example.org", 80))
        return task.fit(task.pretrained.copy())


class DownloadingOrNothing:
    def finetune(self, task: Task) -> Classifier:
        socket.create_connection(("example.org", 80))
        return task.pretrained


class InDouble(Good):
    def finetune(self, task: Task) -> Classifier:
        return super().finetune(task).double()


class PreparedOtherwise(Good):
    def finetune(self, task: Task) -> Classifier:
        model = super().finetune(task)
        model.preprocess = replace(model.preprocess, mean=(0.1, 0.1, 0.1))
        return model


class Misspelled:
    def fine_tune(self, task: Task) -> Classifier:
        return task.pretrained.copy()


@dataclass
class WithOptions(Good):
    """Options that the spec may name.

    Args:
        over: one.
        strength: another.
    """

    over: str = "base"
    strength: float = 1.0


class DoingNothing:
    def finetune(self, task: Task) -> Classifier:
        return task.pretrained.copy().eval()


class Forgetful:
    """Its loss depends on a count that a fit does not save."""

    def finetune(self, task: Task) -> Classifier:
        seen = itertools.count(1)

        def loss(model: Classifier, batch: Batch) -> Tensor:
            return task.cross_entropy(model, batch) * next(seen)

        return task.fit(task.pretrained.copy(), loss)


class ForgetfulBehindAnother(Forgetful):
    """Likewise, from another method's checkpoint: it is this one that is interrupted."""

    def finetune(self, task: Task) -> Classifier:
        assert task.checkpoint("base") is not None
        return super().finetune(task)


class StartingAgain:
    """Its fit has no folder for its state."""

    def finetune(self, task: Task) -> Classifier:
        return replace(task, work=None).fit(task.pretrained.copy())


class OnTheTextTower:
    """It trains the text tower that it was given."""

    def finetune(self, task: Task) -> Classifier:
        with torch.no_grad():
            next(task.text().parameters()).add_(1.0)
        return task.fit(task.pretrained.copy())


class DrawingInRebuild(WithAResidual):
    """Its new layer begins with whatever the global generator gives."""

    def rebuild(self, pretrained: Classifier) -> Classifier:
        model = super().rebuild(pretrained)
        torch.nn.init.normal_(model.head[0].weight)
        return model


class OnTransformersOnly(Good):
    """It keeps count of its steps where the net has no batch-norm."""

    def finetune(self, task: Task) -> Classifier:
        normed = any(isinstance(m, nn.BatchNorm2d) for m in task.pretrained.modules())
        return (Good if normed else Forgetful)().finetune(task)


class WithoutRebuild(WithAResidual):
    rebuild = None  # type: ignore[assignment]

    def finetune(self, task: Task) -> Classifier:
        return task.fit(WithAResidual().rebuild(task.pretrained))


class Turned(nn.Module):
    """A head with a sign that is in no state dict."""

    def __init__(self, inner: nn.Module, sign: float):
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias
        self.sign = sign

    def forward(self, features: Tensor) -> Tensor:
        return self.sign * nn.functional.linear(features, self.weight, self.bias)  # type: ignore[arg-type]


class NotSaved:
    def finetune(self, task: Task) -> Classifier:
        model = task.fit(task.pretrained.copy())
        model.head = Turned(model.head, -1.0)
        return model.eval()


class Undeclared:
    def finetune(self, task: Task) -> Classifier:
        return task.checkpoint("ft")


ANY = {"mergeable": False}
CHOOSES: dict[str, Any] = {"chooses": True, "trains": "nothing", "needs": ("base",)}

#: Check, what is broken, its spec's changes, and a part of the message.
BAD: list[tuple[str, type, dict[str, Any], str]] = [
    ("evaluates", InTrainingMode, {}, "in training mode: call .eval()"),
    ("declares", Good, {"presets": {"papr": {}}}, "does not know. Did you mean 'paper'"),
    ("declares", WithOptions, {"presets": {"paper": {"strenth": 2}}}, "has no option 'strenth'"),
    (
        "declares",
        WithOptions,
        {"presets": {"paper": {"strength": "x"}}},
        "option strength=x: Input should be",
    ),
    ("declares", WithOptions, {"knobs": (Knob("strenth", 0.1, 1),)}, "has no option 'strenth'"),
    ("declares", Good, {"knobs": (Knob("recipe.rl", 0.1, 1),)}, "recipe.rl is no setting"),
    (
        "declares",
        Good,
        {"knobs": (Knob("recipe.lr", 0.1, 1),), "fixes": ("lr",)},
        "knob 'recipe.lr' at 0.1: mine:recipe.lr=0.1: recipe.lr changes nothing",
    ),
    ("declares", Good, {"requires": ("bloks",)}, "no part of a backbone. Did you mean 'blocks'?"),
    (
        "declares",
        WithOptions,
        {"requires": ("qkv:ovr=base",)},
        "no option 'ovr'. Did you mean 'ove",
    ),
    ("declares", Good, {"needs": ("bas",)}, "No method is called 'bas'. Did you mean 'base'"),
    ("declares", Good, {"calls": ("bas",)}, "No method is called 'bas'. Did you mean 'base'"),
    ("declares", Good, {"reads": ("olds",)}, "No dataset is called 'olds'. Did you mean 'old'"),
    ("declares", WithOptions, {"reads": ("{over}",)}, "No dataset is called 'base'"),
    ("protocol", Misspelled, {}, "has no method finetune(task). Did you mean 'fine_tune'"),
    ("protocol", Undeclared, {}, "no checkpoint of 'ft'; declare it in `needs`"),
    ("protocol", Downloading, {}, "finetune reaches for example.org on the network: a step must"),
    ("protocol", DownloadingOrNothing, {}, "finetune reaches for example.org on the network"),
    ("protocol", NoClassifier, {}, "finetune gave Linear: return the Classifier"),
    ("evaluates", Broken, {}, "weight is not finite afterwards"),
    ("evaluates", OfAnotherShape, {}, "logits of shape (4, 3)"),
    ("evaluates", InDouble, {}, "is torch.float64 afterwards: return the classifier in float32"),
    ("evaluates", PreparedOtherwise, {}, "images are prepared for the backbone, so change them"),
    ("same-seed", KeepingCount, {}, "a second run with the same seed gives another encoder.0.weig"),
    ("same-seed", Cached, {}, "with another seed it looks at no image, where its first run did"),
    ("leaves-pretrained", OnThePretrained, {}, "it changes task.pretrained: work on a copy"),
    ("leaves-pretrained", SharingTheHead, {}, "shares weights with task.pretrained: return a copy"),
    (
        "leaves-pretrained",
        OnTheTextTower,
        {"requires": ("text-tower",)},
        "it changes the text tower: work on a copy",
    ),
    ("trains", Good, {"trains": "head"}, "trains='head', and encoder.0.weight is not the pretrain"),
    ("trains", Good, {"trains": "nothing"}, "trains='nothing', and it made 4 updates"),
    ("trains", DoingNothing, {}, "nothing has changed after 4 updates: call task.fit"),
    ("trains", MovingWhatIsFrozen, {}, "changed encoder.0.weight, which does not require grad"),
    ("trains", MovingBehindTheLoop, {}, "encoder.0.weight does not require gradients, as if it w"),
    ("trains", MovingInItsOwnLoop, {}, "encoder.0.weight does not require gradients, as if it we"),
    ("resumes", Forgetful, {}, "stopped after update 1 of 4 and started again, it ends with anot"),
    ("resumes", StartingAgain, {}, "started again, it makes 4 updates where 3 are left: make the"),
    ("resumes", ForgetfulBehindAnother, {"needs": ("base",)}, "stopped after update 1 of 4"),
    ("saves-and-loads", ChoosingInSilence, CHOOSES, "reported same_as=None: call task.report(sam"),
    ("saves-and-loads", WithoutRebuild, {}, "does not load again ("),
    ("saves-and-loads", WithAResidual, {}, "says mergeable=True, and it has a method `rebuild`"),
    ("saves-and-loads", Good, ANY, "says mergeable=False, and it has no method `rebuild`"),
    ("saves-and-loads", DrawingInRebuild, ANY, "its rebuild draws random numbers, which changes"),
    ("saves-and-loads", NotSaved, {}, "saved and loaded, its result gives other logits"),
]


def checks_on(
    target: Any,
    neutral: dict[str, str] | None = None,
    references: Sequence[str] = (),
    nets: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Check]:
    """Check → itself, for a method that no package offers."""
    old = DatasetSpec(
        name="old", target="", summary="It.", license="MIT", label_space=LabelSpace("tens", 10)
    )
    offers = [(replace(SPEC, **spec), target), (replace(SPEC, name="base"), Good), (old, Good)]
    catalog = catalog_with(*offers, base=Catalog())
    checks = checks_of("testing", catalog, neutral=neutral, references=references, nets=nets)
    return {c.id.removeprefix("method/mine/"): c for c in checks if "/mine" in c.id}


GOOD: list[tuple[type, dict[str, Any], set[str]]] = [
    (Good, {}, {"ok"}),
    (HeadOnly, {"trains": "head"}, {"ok"}),
    (WithAResidual, {"mergeable": False}, {"ok"}),
    (Halfway, {"trains": "nothing", "needs": ("base",)}, {"ok", "skipped"}),
    (Merging, {}, {"ok"}),
    (Frozen, {}, {"ok"}),
    (Choosing, CHOOSES, {"ok", "skipped"}),
    (WithOptions, {"calls": ("{over}",), "reads": ("old",)}, {"ok"}),
    (WithOptions, {"requires": ("blocks:over=other",)}, {"ok"}),
    (WithOptions, {"presets": {"paper": {"strength": 2.0}}}, {"ok"}),
    (Good, {"requires": ("blocks",)}, {"ok"}),
    (Good, {"requires": ("text-tower",)}, {"ok"}),
]


@pytest.mark.parametrize(("target", "spec", "results"), GOOD, ids=lambda value: None)
def test_a_good_one_passes_every_check(
    target: type, spec: dict[str, Any], results: set[str]
) -> None:
    found = {name: check.outcome() for name, check in checks_on(target, **spec).items()}
    assert {one["result"] for one in found.values()} == results
    skipped = [name for name, one in found.items() if one["result"] == "skipped"]
    assert skipped == (["resumes"] if "skipped" in results else [])


@pytest.mark.parametrize(("check", "target", "spec", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(
    check: str, target: type, spec: dict[str, Any], said: str
) -> None:
    """Source: what was broken here."""
    found = checks_on(target, **spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in METHOD_CHECKS}
    assert names == {check for check, *_ in BAD}


@pytest.mark.parametrize("target", [Misspelled, Undeclared, Downloading])
def test_one_cause_is_told_once(target: type) -> None:
    found = {name: check.outcome()["result"] for name, check in checks_on(target).items()}
    assert [name for name, result in found.items() if result == "failed"] == ["protocol"]
    assert found["resumes"] == "skipped"


def test_a_dataset_that_only_a_reference_names_is_its_users() -> None:
    """Source: `old`, which no plugin need offer."""
    checks = checks_on(WithOptions, references=["mine:over=mine-alone"], reads=("{over}",))
    found = {name.rpartition("/")[2]: check.outcome()["result"] for name, check in checks.items()}
    assert found["declares"] == found["protocol"] == "ok"


@dataclass
class Scaled:
    """A leash; at weight 0 it must be plain fine-tuning, and is not if it shifts the loss.

    Args:
        weight: of the leash.
        stray: what stays of it at weight 0.
    """

    weight: float = 1.0
    stray: float = 0.0

    def finetune(self, task: Task) -> Classifier:
        start = [p.detach().clone() for p in task.pretrained.parameters()]

        def loss(model: Classifier, batch: Batch) -> Tensor:
            pairs = zip(model.parameters(), start, strict=True)
            moved = torch.stack([(p - s).square().sum() for p, s in pairs]).sum()
            return task.cross_entropy(model, batch) + (self.weight + self.stray) * moved

        return task.fit(task.pretrained.copy(), loss)


@pytest.mark.parametrize("same_as", ["ft", "base"])
def test_a_neutral_setting_holds(same_as: str) -> None:
    """Source: plain fine-tuning, built in and as another method of the plugin."""
    found = checks_on(Scaled, neutral={"mine:weight=0": same_as})
    assert found["method/mine:weight=0/neutral"].outcome()["result"] == "ok"


@pytest.mark.parametrize("same_as", ["ft", "base", "pretrained"])
def test_a_neutral_setting_that_does_not_hold_is_told(same_as: str) -> None:
    """Source: the stray part of the penalty."""
    found = checks_on(Scaled, neutral={"mine:weight=0,stray=0.5": same_as})
    (one,) = [check.outcome() for name, check in found.items() if name.endswith("neutral")]
    assert one["result"] == "failed"
    assert f"should give what {same_as} gives, and encoder.0.weight differs" in one["reason"]
    assert check_method_neutral.__doc__


NETS = {"conv": tiny_classifier, "vit": tiny_vit, "clip": tiny_clip}


def test_one_that_fails_on_one_net_only_is_told() -> None:
    """Source: `OnTransformersOnly`, right where there is batch-norm, and wrong elsewhere."""
    found = checks_on(OnTransformersOnly, nets={"conv": NETS["conv"], "vit": NETS["vit"]})
    failed = {name for name, check in found.items() if check.outcome()["result"] == "failed"}
    assert failed == {"vit/resumes"}
    assert len(found) == 2 * len(METHOD_CHECKS) + len(checks_on(Good)) - len(METHOD_CHECKS)
    assert checks_on(OnTransformersOnly)["resumes"].outcome()["result"] == "ok"


def test_a_neutral_setting_is_tried_on_every_net() -> None:
    """Source: the stray part of the penalty."""
    found = checks_on(Scaled, neutral={"mine:weight=0,stray=0.5": "ft"}, nets=NETS)
    tried = {name: check for name, check in found.items() if name.endswith("neutral")}
    assert list(tried) == [f"method/mine:weight=0,stray=0.5/{net}/neutral" for net in NETS]
    assert {check.outcome()["result"] for check in tried.values()} == {"failed"}


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        ((), {"conv/", "vit/", "clip/"}),
        (("batch-norm",), {"conv/"}),
        (("blocks", "qkv"), {"vit/"}),
        (("text-tower", "projection"), {"clip/"}),
        (("batch-norm", "blocks"), {""}),
        (("bloks",), {""}),
    ],
)
def test_a_method_is_tried_on_the_nets_that_have_what_it_requires(
    requires: tuple[str, ...], expected: set[str]
) -> None:
    """Source: what the three nets are made of; one that fits none has its checks all the same."""
    found = checks_on(Good, nets=NETS, requires=requires)
    assert {name.removesuffix("resumes") for name in found if "resumes" in name} == expected


def test_one_that_needs_what_no_tiny_net_has_is_skipped() -> None:
    found = checks_on(Good, requires=("batch-norm", "blocks"))["evaluates"].outcome()
    assert found["result"] == "skipped"
    assert "no tiny backbone has all that it requires" in found["reason"]
