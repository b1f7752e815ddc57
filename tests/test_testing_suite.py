"""Every check of a suite: one that passes all, and for each check some that fail it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rib_harness import (
    BackboneSpec,
    DataError,
    DatasetSpec,
    ImageSet,
    LabelSpace,
    SuiteSpec,
)
from rib_harness.catalog import Catalog
from rib_harness.testing import Check, catalog_with, checks_of, tiny_images
from rib_harness.testing.suite_checks import SUITE_CHECKS

TENS, ELEVENS = LabelSpace("tens", 10), LabelSpace("elevens", 11)
REST: dict[str, Any] = {"target": "", "summary": "It.", "license": "MIT"}
OTHERS = [
    *(DatasetSpec(name=name, label_space=TENS, **REST) for name in ("a", "b", "val")),
    DatasetSpec(name="past", label_space=TENS, role="train", **REST),
    DatasetSpec(name="of-elevens", label_space=ELEVENS, **REST),
    BackboneSpec(name="net", label_space=TENS, **REST),
    BackboneSpec(name="net-of-elevens", label_space=ELEVENS, **REST),
]
SPEC = SuiteSpec(
    name="suite",
    summary="A suite.",
    license="MIT",
    label_space=TENS,
    members=("a", "b"),
    references=("val",),
    shares=(("a", "val"),),
    backbone="net",
    recipe={"lr": 0.1},
    presets={"paper": {"epochs": 3}},
)

#: Check, the changes of the spec that break it, and a part of the message.
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("datasets", {"members": ("a", "c")}, "its dataset 'c' is not to be had: No dataset is called"),
    ("datasets", {"references": ("vla",)}, "Did you mean 'val'"),
    ("datasets", {"members": ("a",)}, "it has one member: RI compares a dataset with the others"),
    ("datasets", {"members": ("a", "b", "val")}, "testing/val is both a member and a reference"),
    ("datasets", {"references": ("val", "testing/val")}, "it names testing/val twice"),
    ("datasets", {"members": ("a", "testing/a")}, "it names testing/a twice"),
    ("datasets", {"members": ("a", "past")}, "its member past has the role 'train'"),
    ("backbone", {"backbone": "nett"}, "its backbone 'nett' is not to be had"),
    ("backbone", {"backbone": "net:x=1"}, "has no option 'x'"),
    (
        "label-spaces",
        {"members": ("a", "of-elevens")},
        "over tens (10), its dataset of-elevens ove",
    ),
    (
        "label-spaces",
        {"backbone": "net-of-elevens"},
        "its backbone net-of-elevens over elevens (11",
    ),
    ("shares", {"shares": (("a", "x"),)}, "its `shares` name x: neither a member nor a reference"),
    ("recipe", {"recipe": {"lr": -1}}, "its recipe is not valid: recipe.lr: Input should be grea"),
    ("recipe", {"presets": {"paper": {"epoch": 3}}}, "its preset 'paper' is not valid: recipe.ep"),
    ("recipe", {"presets": {"papr": {}}}, "does not know. Did you mean 'paper'? Presets: default"),
]


class Anything:
    """It is a backbone, or a dataset that does not open."""


class OfPhotographs:
    """A dataset of ten of the kit's 24 photographs, from one on.

    Args:
        first: the first.
    """

    def __init__(self, first: int):
        self.first = first

    def open(self, root: Path | None) -> ImageSet:
        return tiny_images().taken(np.arange(self.first, self.first + 10))


class OfFiles(OfPhotographs):
    """Where they are."""

    def open(self, root: Path | None) -> ImageSet:
        if root is None:
            raise DataError("no data")
        return super().open(root)


def checks_on(
    root: Path | None = None, opened: Mapping[str, Any] | None = None, **spec: Any
) -> dict[str, Check]:
    """Check → itself, for a suite that no package offers."""
    offers = [(one, (opened or {}).get(one.name, Anything)) for one in OTHERS]
    catalog = catalog_with((replace(SPEC, **spec), None), *offers, base=Catalog())
    found = checks_of("testing", catalog, data_root=root)
    return {c.id.rpartition("/")[2]: c for c in found if c.id.startswith("suite/")}


def test_a_good_one_passes_every_check() -> None:
    assert {check.outcome()["result"] for check in checks_on().values()} == {"ok"}


@pytest.mark.parametrize(("check", "spec", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(check: str, spec: dict[str, Any], said: str) -> None:
    """Source: what was broken here."""
    found = checks_on(**spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


#: a and val have five photographs in common, b has others; of 24.
OPENED = {
    "a": partial(OfPhotographs, 0), "val": partial(OfPhotographs, 5), "b": partial(OfFiles, 14),
}  # fmt: skip


def test_datasets_of_the_same_photographs_are_in_one_group(tmp_path: Path) -> None:
    """Source: counted by hand; what is not here is left out."""
    assert checks_on(opened=OPENED)["shares"].outcome()["result"] == "ok"
    for shares in ((), (("a", "b"), ("b", "val"))):
        found = checks_on(opened=OPENED, shares=shares)["shares"].outcome()
        assert found["result"] == "failed"
        assert found["reason"].startswith(
            "a and val have photographs in common, 5 of them (ImageSet.source, e.g. 'photo-5'): "
            "put them into one group of `shares`."
        )
    found = checks_on(tmp_path, OPENED)["shares"].outcome()
    assert "b and val have photographs in common, 1 of them" in found["reason"]


def test_one_cause_is_told_once() -> None:
    """Source: the label space of a dataset that is not there."""
    found = checks_on(members=("a", "c"))["label-spaces"].outcome()
    assert found["result"] == "skipped"
    assert "not all that it names is there: its dataset 'c'" in found["reason"]


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in SUITE_CHECKS}
    assert names == {check for check, *_ in BAD}
