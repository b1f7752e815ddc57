"""What a suite promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import get_args

from rib_harness.catalog import Bound, Catalog, Component
from rib_harness.config import Preset, make_recipe
from rib_harness.errors import ConfigError, RibError, nearest
from rib_harness.specs import SuiteSpec
from rib_harness.testing.dataset_checks import DatasetTrial
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect


def expect_presets(presets: Iterable[str]) -> None:
    """Fail the check where a preset has a name that nobody can ask for."""
    known = get_args(Preset)
    for name in presets:
        expect(
            name in known,
            f"it has a preset {name!r}, which --preset does not know.{nearest(name, known)} "
            f"Presets: {', '.join(known)}.",
        )


@dataclass
class SuiteTrial:
    """One suite under test.

    Args:
        component: the suite.
        catalog: where its members are.
        data_root: the folder that holds datasets.
    """

    component: Component
    catalog: Catalog
    data_root: Path | None = None

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

    def photographs(self) -> Iterator[tuple[str, frozenset[str]]]:
        """The datasets whose data are here, and the photographs that their images are of."""
        for name in dict.fromkeys((*self.spec.members, *self.spec.references)):
            try:
                images = DatasetTrial(self.find("dataset", name), self.data_root).open()
            except Exception:  # what does not open is told elsewhere
                continue
            yield name, frozenset(map(str, images.source.tolist()))


def check_suite_datasets(trial: SuiteTrial) -> None:
    """Its members and references exist, each once; there are two members or more, none to train."""
    ids = [one.id for one in trial.datasets()]
    members = len(trial.spec.members)
    both = sorted({*ids[:members]} & {*ids[members:]})
    expect(
        not both,
        f"{', '.join(both)} is both a member and a reference: forgetting is measured on datasets "
        "that are no members.",
    )
    twice = sorted({one for one in ids if ids.count(one) > 1})
    expect(not twice, f"it names {', '.join(twice)} twice.")
    expect(
        members > 1,
        "it has one member: RI compares a dataset with the others, so name two or more.",
    )
    for name, one in zip(trial.spec.members, trial.datasets(), strict=False):
        expect(
            one.spec.role != "train",
            f"its member {name} has the role 'train': that is for pretraining; a member is "
            "fine-tuned on and scored, with the role 'shifted'.",
        )


def check_suite_backbone(trial: SuiteTrial) -> None:
    """Its default backbone exists."""
    trial.find("backbone", trial.spec.backbone)


def check_suite_label_spaces(trial: SuiteTrial) -> None:
    """It, its datasets and its default backbone are over one label space."""
    own = trial.spec.label_space
    try:
        named = [*trial.datasets(), trial.find("backbone", trial.spec.backbone)]
    except CheckError as error:
        raise CheckSkipped(f"not all that it names is there: {error}") from error
    for one in named:
        theirs = one.spec.label_space
        expect(
            theirs == own,
            f"it is over {own.name} ({own.size}), its {one.spec.kind} {one.spec.name} over "
            f"{theirs.name} ({theirs.size}).",
        )


def check_suite_shares(trial: SuiteTrial) -> None:
    """Groups that share photographs name its own datasets, and all that do share are in one.

    Datasets whose data are not here are left out.
    """
    known = {*trial.spec.members, *trial.spec.references}
    strangers = sorted({name for group in trial.spec.shares for name in group} - known)
    expect(
        not strangers,
        f"its `shares` name {', '.join(strangers)}: neither a member nor a reference.",
    )
    for (one, left), (other, right) in combinations(trial.photographs(), 2):
        common = left & right
        together = any(one in group and other in group for group in trial.spec.shares)
        expect(
            together or not common,
            f"{one} and {other} have photographs in common, {len(common)} of them "
            f"(ImageSet.source, e.g. {min(common, default='')!r}): put them into one group of "
            "`shares`. Where they are of different photographs, their datasets must not give these "
            "the same text.",
        )


def check_suite_recipe(trial: SuiteTrial) -> None:
    """Its recipe and its presets are settings that there are, under names that there are."""
    expect_presets(trial.spec.presets)
    for name, values in {"": {}, **trial.spec.presets}.items():
        try:
            make_recipe(trial.spec.recipe, values)
        except ConfigError as error:
            where = f"preset {name!r}" if name else "recipe"
            raise CheckError(f"its {where} is not valid: {'; '.join(error.problems)}") from error


SUITE_CHECKS = (
    check_suite_datasets,
    check_suite_backbone,
    check_suite_label_spaces,
    check_suite_shares,
    check_suite_recipe,
)
