"""What a suite promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rib_harness.catalog import Bound, Catalog, Component
from rib_harness.config import Recipe
from rib_harness.errors import RibError
from rib_harness.specs import SuiteSpec
from rib_harness.testing.outcome import CheckError, expect


@dataclass
class SuiteTrial:
    """One suite under test.

    Args:
        component: the suite.
        catalog: where its members are.
    """

    component: Component
    catalog: Catalog

    @property
    def spec(self) -> SuiteSpec:
        """What it says."""
        spec = self.component.spec
        if not isinstance(spec, SuiteSpec):
            raise TypeError(spec)
        return spec

    def find(self, kind: str, text: str) -> Bound:
        """A component that it names: its own plugin is asked first, as in a run."""
        own = f"{self.component.plugin.name}/{text}"
        has = {one.id for one in self.catalog.list(kind)}
        try:
            return self.catalog.bind(kind, own if own.partition(":")[0] in has else text)
        except RibError as error:
            raise CheckError(f"its {kind} {text!r} is not to be had: {error}") from error

    def datasets(self) -> Iterator[Bound]:
        """Members and references."""
        for name in (*self.spec.members, *self.spec.references):
            yield self.find("dataset", name)


def check_suite_datasets(trial: SuiteTrial) -> None:
    """Its members and references exist, each once; there are at least two members."""
    names = (*trial.spec.members, *trial.spec.references)
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"it names {', '.join(twice)} twice.")
    expect(
        len(trial.spec.members) > 1,
        "it has one member: RI compares a dataset with the others, so name two or more.",
    )
    list(trial.datasets())


def check_suite_backbone(trial: SuiteTrial) -> None:
    """Its default backbone exists."""
    trial.find("backbone", trial.spec.backbone)


def check_suite_label_spaces(trial: SuiteTrial) -> None:
    """It, its datasets and its default backbone are over one label space."""
    own = trial.spec.label_space
    for one in (*trial.datasets(), trial.find("backbone", trial.spec.backbone)):
        theirs = one.spec.label_space
        expect(
            theirs == own,
            f"it is over {own.name} ({own.size}), its {one.spec.kind} {one.spec.name} over "
            f"{theirs.name} ({theirs.size}).",
        )


def check_suite_shares(trial: SuiteTrial) -> None:
    """Groups that share photographs name its own datasets."""
    known = {*trial.spec.members, *trial.spec.references}
    strangers = sorted({name for group in trial.spec.shares for name in group} - known)
    expect(
        not strangers,
        f"its `shares` name {', '.join(strangers)}: neither a member nor a reference.",
    )


def check_suite_recipe(trial: SuiteTrial) -> None:
    """Its recipe and its presets have settings that there are."""
    for values in (trial.spec.recipe, *trial.spec.presets.values()):
        try:
            Recipe(**{**trial.spec.recipe, **values})
        except ValueError as error:
            raise CheckError(f"its recipe is not valid: {error}") from error


SUITE_CHECKS = (
    check_suite_datasets,
    check_suite_backbone,
    check_suite_label_spaces,
    check_suite_shares,
    check_suite_recipe,
)
