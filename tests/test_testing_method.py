"""Every check of a method: some that pass all, and for each check some that fail it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rib_harness import Batch, Classifier, MethodSpec, Task
from rib_harness.catalog import Catalog
from rib_harness.testing import Check, catalog_with, checks_of
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


class OnThePretrained:
    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained)


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

#: Check, what is broken, its spec's changes, and a part of the message.
BAD: list[tuple[str, type, dict[str, Any], str]] = [
    ("evaluates", InTrainingMode, {}, "in training mode: call .eval()"),
    ("evaluates", NoClassifier, {}, "finetune gave Linear: return the Classifier"),
    ("evaluates", Broken, {}, "weight is not finite afterwards"),
    ("evaluates", OfAnotherShape, {}, "logits of shape (4, 3)"),
    ("evaluates", Undeclared, {}, "no checkpoint of 'ft'; declare it in `needs`"),
    ("same-seed", KeepingCount, {}, "a second run with the same seed gives another encoder.0.weig"),
    ("leaves-pretrained", OnThePretrained, {}, "it changes task.pretrained: work on a copy"),
    ("leaves-pretrained", SharingTheHead, {}, "shares weights with task.pretrained: return a copy"),
    ("trains", Good, {"trains": "head"}, "trains='head', and encoder.0.weight is not the pretrain"),
    ("trains", Good, {"trains": "nothing"}, "trains='nothing', and it made 4 updates"),
    ("trains", DoingNothing, {}, "nothing has changed after 4 updates: call task.fit"),
    ("trains", MovingWhatIsFrozen, {}, "changed encoder.0.weight, which does not require grad"),
    ("resumes", Forgetful, {}, "stopped after update 1 of 4 and started again, it ends with anot"),
    ("resumes", ForgetfulBehindAnother, {"needs": ("base",)}, "stopped after update 1 of 4"),
    ("saves-and-loads", WithoutRebuild, {}, "does not load again ("),
    ("saves-and-loads", WithAResidual, {}, "says mergeable=True, and it has a method `rebuild`"),
    ("saves-and-loads", Good, ANY, "says mergeable=False, and it has no method `rebuild`"),
    ("saves-and-loads", NotSaved, {}, "saved and loaded, its result gives other logits"),
]


def checks_on(target: Any, neutral: dict[str, str] | None = None, **spec: Any) -> dict[str, Check]:
    """Check → itself, for a method that no package offers."""
    offers = [(replace(SPEC, **spec), target), (replace(SPEC, name="base"), Good)]
    checks = checks_of("testing", catalog_with(*offers, base=Catalog()), neutral=neutral)
    return {c.id.removeprefix("method/mine/"): c for c in checks if "/mine" in c.id}


GOOD: list[tuple[type, dict[str, Any], set[str]]] = [
    (Good, {}, {"ok"}),
    (HeadOnly, {"trains": "head"}, {"ok"}),
    (WithAResidual, {"mergeable": False}, {"ok"}),
    (Halfway, {"trains": "nothing", "needs": ("base",)}, {"ok", "skipped"}),
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


def test_one_that_needs_what_no_tiny_net_has_is_skipped() -> None:
    found = checks_on(Good, requires=("batch-norm", "blocks"))["evaluates"].outcome()
    assert found["result"] == "skipped"
    assert "no tiny backbone has all that it requires" in found["reason"]
