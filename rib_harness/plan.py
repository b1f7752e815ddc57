"""Configuration and catalog → the steps that a run needs. Pure: no torch, nothing is computed.

Three kinds of step. `finetune` makes a checkpoint; `evaluate` scores one model on one dataset;
`features` keeps what one model makes of a sample of one dataset.
A step's key is a hash of all that can change its result, so a step that any earlier run has
done is found done here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from rib_harness.catalog import Bound, Catalog, Component, guarded
from rib_harness.composition import (
    HELD_OUT,
    calls_of,
    check_composition,
    describe_missing,
    expand,
    missing_parts,
    needs_of,
    reads_of,
    teachers_of,
)
from rib_harness.config import Recipe, RunConfig, make_recipe
from rib_harness.errors import ConfigError, DataError, PluginError, RibError, nearest
from rib_harness.identify import identity_of
from rib_harness.images import ImageSet, Preprocess
from rib_harness.known_answers import Expected
from rib_harness.options import Reference, spelled
from rib_harness.protocols import Identity
from rib_harness.pruning import held_out, is_pruned, kept_count, needs_scores
from rib_harness.specs import SuiteSpec
from rib_harness.store import RUN_FORMAT, Store, key_of

#: Version of the steps' own code: raise it when the engine changes a number.
ENGINE = 1


@dataclass(frozen=True)
class PlannedBackbone:
    """A backbone of the run, with its identity."""

    bound: Bound
    identity: Identity

    def inputs(self) -> dict[str, Any]:
        """Its part of a key."""
        return {**self.bound.key_fields(), "identity": self.identity.to_json()}


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset of the run, opened: its labels are known, no picture is decoded."""

    name: str
    bound: Bound
    images: ImageSet

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Its part of a key: asked for by every step, and made once, since C has millions."""
        images = self.images
        # The fingerprint is the plugin's word; labels and class map are hashed here as well, and
        # which photographs these are, since statistics pair images by it.
        labels = hashlib.sha256(json.dumps(images.class_map).encode())
        labels.update(images.labels.tobytes())
        labels.update("\n".join(images.group.tolist()).encode())
        labels.update("\n".join(images.source.tolist()).encode())
        return {
            **self.bound.key_fields(),
            "fingerprint": images.fingerprint,
            "labels": labels.hexdigest(),
            "limit": images.limit,
        }


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Args:
        kind: `"finetune"`, `"evaluate"` or `"features"`.
        id: for people: kind, backbone, method, source, seed, dataset.
        key: hash of `inputs`.
        inputs: all that can change the result.
        done: whether the store has it, whole, and it need not be done again.
        backbone: what it starts from.
        dataset: what it trains on, or what it is scored on.
        preprocess: what its pictures go through: the backbone's, but for sets of crops.
        images: images to score, or to keep the features of.
        updates: optimizer steps at most.
        split: seed of which images are trained on: the run's, also for a checkpoint of another
            seed.
        needs: for a fine-tuning step, reference → step of the checkpoint that it starts from.
        calls: reference → method that it runs itself.
        reads: datasets that it reads beside the fine-tuning set, each with its preprocessing.
        teachers: other backbones that it learns from, each with its own preprocessing of the
            fine-tuning set.
        model: the step that made the checkpoint that is evaluated; None is the untouched one.
        probes: datasets that are measured while it trains, each with its preprocessing.
    """

    kind: str
    id: str
    key: str
    inputs: Mapping[str, Any] = field(repr=False)
    backbone: PlannedBackbone = field(repr=False)
    dataset: PlannedDataset = field(repr=False)
    preprocess: Preprocess = field(repr=False)
    images: int = 0
    updates: int = 0
    method: Bound | None = field(default=None, repr=False)
    recipe: Recipe | None = field(default=None, repr=False)
    seed: int = 0
    split: int = 0
    done: bool = False
    needs: Mapping[str, Step] = field(default_factory=dict, repr=False)
    calls: Mapping[str, Bound] = field(default_factory=dict, repr=False)
    reads: Mapping[str, tuple[PlannedDataset, Preprocess]] = field(default_factory=dict, repr=False)
    teachers: Mapping[str, tuple[PlannedBackbone, Preprocess]] = field(
        default_factory=dict, repr=False
    )
    pre: Step | None = field(default=None, repr=False)
    model: Step | None = field(default=None, repr=False)
    probes: Mapping[str, tuple[PlannedDataset, Preprocess]] = field(
        default_factory=dict, repr=False
    )

    @property
    def rests_on(self) -> list[Step]:
        """The steps whose results it reads."""
        read = [*self.needs.values(), self.model]
        if self.recipe is not None and needs_scores(self.recipe):
            read.append(self.pre)
        return [step for step in read if step is not None]

    @property
    def names(self) -> set[str]:
        """What may name it in `rerun`: its id, and its components, as label, name or id."""
        bound = [self.backbone.bound, self.dataset.bound, self.method]
        parts = [(b.label, b.spec.name, b.component.id) for b in bound if b is not None]
        return {self.id, self.dataset.name, *(name for part in parts for name in part)}

    @property
    def is_baseline(self) -> bool:
        """Whether it scores an untouched backbone."""
        return self.kind == "evaluate" and self.model is None

    def to_json(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        return {
            "kind": self.kind,
            "id": self.id,
            "key": self.key,
            "done": self.done,
            "images": self.images,
            "updates": self.updates,
        }


@dataclass(frozen=True)
class Plan:
    """All steps in an order in which they can be done, and the matrices that they make.

    Args:
        steps: each once; what a step needs comes before it.
        records: one a matrix: what it is, and which step's key is in which cell.
        expected: backbone's id → dataset → its known accuracy.
        notes: what a user should know before the work starts.
        resolved: settings of the configuration in which nothing is left to a default or to the
            current folder.
        again: keys of the steps that are done again, though the store may have them.
    """

    suite: Component
    steps: tuple[Step, ...]
    records: tuple[dict[str, Any], ...]
    expected: Mapping[str, Mapping[str, Expected]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    resolved: Mapping[str, Any] = field(default_factory=dict)
    again: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[Step]:
        """Steps that the store does not have."""
        return [step for step in self.steps if not step.done]

    @cached_property
    def trials(self) -> frozenset[str]:
        """Keys of the steps that are in no matrix but of trials: one that diverges is an answer."""
        keys: dict[bool, set[str]] = {True: set(), False: set()}
        for record in self.records:
            rows = (record["finetune"], *record["cells"]["post"].values())
            keys["trial_of" in record] |= {key for row in rows for key in row.values()}
        return frozenset(keys[True] - keys[False])

    def totals(self) -> dict[str, int]:
        """How much there is, and how much of it is left."""
        left = self.missing
        return {
            "steps": len(self.steps),
            "done": len(self.steps) - len(left),
            "images": sum(step.images for step in left),
            "updates": sum(step.updates for step in left),
        }


def make_plan(
    config: RunConfig,
    catalog: Catalog,
    store: Store,
    *,
    identify: Callable[[Bound], Identity] = identity_of,
) -> Plan:
    """Which steps the configuration needs, and which of them the store has.

    Raises:
        RibError: an unknown component, missing data, or a choice that cannot work; before any
            work is done.
    """
    return _Planner(config, catalog, store, identify).plan()


class _Planner:
    """Collects steps; one of each key."""

    def __init__(
        self,
        config: RunConfig,
        catalog: Catalog,
        store: Store,
        identify: Callable[[Bound], Identity],
    ):
        self.config, self.catalog, self.store, self.identify = config, catalog, store, identify
        self.suite = catalog.get("suite", config.suite)
        if not isinstance(self.suite.spec, SuiteSpec):
            raise TypeError(self.suite.spec)
        self.spec: SuiteSpec = self.suite.spec
        self.recipe = make_recipe(
            self.spec.recipe, self.spec.presets.get(config.preset, {}), config.recipe
        )
        if config.search and config.trials:
            raise ConfigError(["Give --search or --trials: each chooses values on its own."])
        if (config.search or config.trials) and not self.recipe.held_out:
            if "held_out" in config.recipe:
                raise ConfigError(
                    [
                        "recipe.held_out=0 leaves nothing to choose on: leave it out, or give the "
                        "share that --search and --trials choose on, e.g. recipe.held_out=0.2."
                    ]
                )
            # Of all methods, so that those which choose are compared with equals.
            self.recipe = self.recipe.model_copy(update={"held_out": HELD_OUT})
        self.steps: dict[str, Step] = {}
        self.notes: list[str] = []

    def plan(self) -> Plan:
        members = self._chosen_members()
        # Names first: a typo is told before anything is read from disk.
        backbones = [
            self._bind("backbone", text) for text in self.config.backbone or (self.spec.backbone,)
        ]
        entries = expand(
            self.catalog,
            self.config.method,
            self.config.preset,
            self.recipe,
            sweep=self.config.sweep,
            search=self.config.search,
            trials=self.config.trials,
        )
        methods = [entry.method for entry in entries]
        for bound in backbones:
            self._check_classes(bound)
        self._check_suite(members)
        for method in methods:
            check_composition(self.catalog, method, self.config.preset)
        teachers = {
            text: self._bind("backbone", text)
            for method in methods
            for text in self._all_teachers(method)
        }
        for bound in teachers.values():
            self._check_classes(bound)
        self.options = self._dataset_options(
            [name for method in methods for name in self._all_reads(method)]
        )
        self._check_licenses()
        scoring = [*members, *self.spec.references]
        self.read = self._read_too(methods, scoring)
        self.datasets = self._open(scoring)
        planned = [PlannedBackbone(bound, self._identify(bound)) for bound in backbones]
        self.teachers = {
            text: PlannedBackbone(bound, self._identify(bound)) for text, bound in teachers.items()
        }
        self._check_parts(planned, methods)
        accepted = self.config.accept_license
        free = [m for m in members if self.datasets[m].bound.spec.may_train]
        sources = [m for m in members if m in free or m in accepted]
        for member in members if methods else ():
            if member not in sources:
                self.notes.append(
                    f"{member} is not a source: its licence forbids to tune a model on it "
                    f"(--accept-license {member})."
                )
            elif member not in free:
                self.notes.append(
                    f"{member} is a source: its licence was accepted, which forbids to tune a "
                    "model on it."
                )
        for method in (entry.method for entry in entries if not entry.trial_of):
            recipe = self._recipe_of(method, self.recipe)
            if recipe.held_out:
                self.notes.append(
                    f"{method.label}: {recipe.held_out:.0%} of each fine-tuning set is held out, "
                    "and not trained on."
                )
        records = []
        expected = {one.bound.id: self._expected(one) for one in planned}
        for backbone in planned:
            pre = {name: self._evaluate(backbone, None, name) for name in self.datasets}
            if not methods:
                records.append(self._record(backbone, None, 0, members, [], pre, {}, {}))
            for method, trial_of in ((entry.method, entry.trial_of) for entry in entries):
                for seed in self.config.seed:
                    recipe = self._recipe_of(method, self.recipe)
                    made = {
                        i: self._finetune(backbone, method, i, seed, pre[i], recipe, seed)
                        for i in sources
                    }
                    post = {
                        i: {j: self._evaluate(backbone, made[i], j) for j in self.datasets}
                        for i in sources
                    }
                    record = self._record(backbone, method, seed, members, sources, pre, made, post)
                    if trial_of:
                        run_recipe = self.recipe.model_dump(mode="json")
                        record |= {"trial_of": trial_of, "run_recipe": run_recipe}
                    records.append(record)
        again = self._again()
        done = self._done(again)
        steps = tuple(
            replace(step, done=step.key in done)
            for step in sorted(self.steps.values(), key=lambda step: step.kind != "finetune")
        )
        baseline = tuple(s for s in steps if s.is_baseline)
        others = tuple(s for s in steps if s not in baseline)
        resolved: dict[str, Any] = {
            "suite": self.suite.id,
            "backbone": tuple(bound.id for bound in backbones),
            # Before sweeps and searches, which are kept as they are.
            "method": tuple(
                self.catalog.bind("method", text, self.config.preset).id
                for text in self.config.method
            ),
            "data": tuple(self._spelled(name) for name in self.options),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        return Plan(
            self.suite, (*baseline, *others), tuple(records), expected, tuple(self.notes), resolved,
            again,
        )  # fmt: skip

    def _again(self) -> frozenset[str]:
        """Keys of the steps that `rerun` names, and of those that rest on them.

        Raises:
            ConfigError: it names nothing of this run.
        """
        again: set[str] = set()
        names: set[str] = set()
        problems = []
        for step in self.steps.values():
            names |= step.names
        for text in self.config.rerun:
            found = {
                key
                for key, step in self.steps.items()
                if text in step.names or (len(text) >= 8 and key.startswith(text))
            }
            if not found:
                problems.append(
                    f"rerun: {text!r} is no method, backbone, dataset or step of this run."
                    f"{nearest(text, names)} `rib-harness plan` prints ids and keys of steps."
                )
            again |= found
        if problems:
            raise ConfigError(problems)
        for key, step in self.steps.items():  # what a step needs comes before it
            if any(one.key in again for one in step.rests_on):
                again.add(key)
        return frozenset(again)

    def _done(self, again: Collection[str]) -> set[str]:
        """Keys of the steps that need not be done."""
        done = {key for key in self.steps if key not in again and self.store.done(key) is not None}
        # What a missing step starts from is looked at as a whole; a file of weights that does not
        # verify is made again, and what that one starts from is looked at in turn.
        for key, step in reversed(self.steps.items()):
            if key not in done:
                done -= {one.key for one in step.rests_on if not self.store.whole(one.key)}
        return done

    def _bind(self, kind: str, text: str) -> Bound:
        """A suite's own plugin is asked first for the names that the suite uses."""
        own = f"{self.suite.plugin.name}/{text}"
        name = own.partition(":")[0]
        if any(component.id == name for component in self.catalog.list(kind)):
            return self.catalog.bind(kind, own)
        return self.catalog.bind(kind, text)

    def _dataset_options(self, reads: Sequence[str]) -> dict[str, str]:
        """Dataset → its reference with options, of those that the configuration names.

        Raises:
            ConfigError: one that is not in the suite, or twice; its options are checked later.
        """
        known = [*self.spec.members, *self.spec.references, *reads]
        options: dict[str, str] = {}
        problems = []
        for text in self.config.data:
            name = Reference.parse(text).name
            if name not in known:
                problems.append(
                    f"--data {text}: the suite {self.spec.name} has no dataset {name!r}."
                    f"{nearest(name, known)} Datasets: {', '.join(known)}."
                )
            elif name in options:
                problems.append(f"--data: {name} is given twice; join its options: {name}:a=1,b=2.")
            options[name] = text
        if problems:
            raise ConfigError(problems)
        return options

    def _spelled(self, name: str) -> str:
        """The dataset with its options, of which no path depends on the current folder."""
        opened = {**self.read, **self.datasets}[name]
        return f"{name}:{','.join(spelled(opened.bound.explicit))}"

    def _check_licenses(self) -> None:
        problems = []
        for name in self.config.accept_license:
            if name not in self.spec.members:
                problems.append(
                    f"--accept-license: the suite {self.spec.name} has no member {name!r}."
                    f"{nearest(name, self.spec.members)}"
                )
            elif self._bind("dataset", name).spec.may_train:
                problems.append(f"--accept-license: {name} may be trained on anyway.")
        if problems:
            raise ConfigError(problems)

    def _expected(self, backbone: PlannedBackbone) -> dict[str, Expected]:
        """Known accuracies: those that the user gives, else the published ones that apply."""
        problems = [
            f"--expect: this run has no dataset {name!r}.{nearest(name, self.datasets)}"
            for name in self.config.expect
            if name not in self.datasets
        ]
        if problems:
            raise ConfigError(problems)
        bound = backbone.bound
        facts = bound.spec.facts(bound.tag)
        expected = {}
        for name, dataset in self.datasets.items():
            if name in self.config.expect:
                expected[name] = Expected.parse(self.config.expect[name], "--expect")
            # Another net, other weights or another variant of the dataset: no published answer.
            # A mean or std of one's own is no other model; it may be the mistake to find.
            elif (
                name in facts.accuracy
                and not set(bound.explicit) - {"weights", "weights_key", "mean", "std"}
                and not set(dataset.bound.explicit) - dataset.bound.locations()
            ):
                whole = dataset.images.expected if self.config.limit is None else None
                expected[name] = Expected(facts.accuracy[name], whole, source=facts.source)
        return expected

    def _check_classes(self, bound: Bound) -> None:
        """A backbone must be over the suite's classes."""
        space, family = bound.spec.label_space, getattr(bound.spec, "family", False)
        if space != self.spec.label_space:
            raise ConfigError(
                [
                    f"The backbone {bound.label} is over {space.name} ({space.size} classes); "
                    f"the suite {self.spec.name} is over {self.spec.label_space.name} "
                    f"({self.spec.label_space.size} classes)."
                    + (" Another set of classes needs a backbone plugin." if family else "")
                ]
            )

    def _check_suite(self, members: Sequence[str]) -> None:
        """What a suite names twice would be counted twice.

        Args:
            members: those of this run: of the others the plugins may not be here.

        Raises:
            PluginError: its author has to mend it.
        """
        names = [*members, *self.spec.references]
        ids = [self._bind("dataset", name).id for name in names]
        problems = [
            f"{name} is both a member and a reference"
            if k < len(members) and id in ids[len(members) :]
            else f"{name} is named twice"
            for k, (name, id) in enumerate(zip(names, ids, strict=True))
            if id in ids[k + 1 :]
        ]
        if problems:
            raise PluginError(
                f"{self.suite.what}: {'; '.join(problems)}. That is for its author to mend."
            )

    def _check_space(self, dataset: Bound) -> None:
        """Before its images are looked for: they would be of no use."""
        theirs, own = dataset.spec.label_space, self.spec.label_space
        if theirs != own:
            raise ConfigError(
                [
                    f"it is over {theirs.name} ({theirs.size} classes), the suite "
                    f"{self.spec.name} over {own.name} ({own.size} classes)."
                ]
            )

    def _chosen_members(self) -> list[str]:
        known = list(self.spec.members)
        problems = [
            f"The suite {self.spec.name} has no member {name!r}."
            f"{self._elsewhere(name) or nearest(name, known)} Members: {', '.join(known)}."
            for name in self.config.dataset
            if name not in known
        ]
        if problems:
            raise ConfigError(problems)
        chosen = [name for name in known if name in (self.config.dataset or known)]
        if self.config.method and len(chosen) < 2:
            raise ConfigError(
                [
                    "RI compares one dataset with the others: name at least two members with "
                    f"--dataset, or none for all {len(known)}."
                ]
            )
        return chosen

    def _elsewhere(self, name: str) -> str:
        """How to use a dataset that is no member of this suite; empty if it is none."""
        found = {
            c.id: c.spec.role  # type: ignore[attr-defined]
            for c in self.catalog.list("dataset")
            if name in (c.id, c.spec.name)
        }
        if not found:
            return ""
        suites = [
            suite.spec.name
            for suite in self.catalog.list("suite")
            if {name, *found} & set(suite.spec.members)  # type: ignore[attr-defined]
        ]
        if suites:
            return f" It is a member of {', '.join(suites)}: --suite {suites[0]}."
        if "shifted" in found.values():
            return " It is a dataset; a suite of your own may have it as a member."
        return f" It is a dataset with the role {next(iter(found.values()))!r}."

    def _open(self, names: Sequence[str]) -> dict[str, PlannedDataset]:
        opened, problems = {}, []
        for name in names:
            bound = self._bind("dataset", self.options.get(name, name))
            if told := sorted(set(bound.explicit) - bound.locations()):
                options = ", ".join(f"{one}={bound.explicit[one]}" for one in told)
                self.notes.append(f"{name}: {options}")
            try:
                self._check_space(bound)
                images = bound.images(self.config.data_root).limited(self.config.limit)
                self._check_labels(name, images)
                opened[name] = PlannedDataset(name, bound, images)
                self.notes += [f"{name}: {note}" for note in images.notes]
            except RibError as error:
                problems.append(f"{name}: {error}")
        if problems:
            text = f"{len(problems)} of {len(names)} datasets cannot be used:\n"
            text += "\n".join(f"  - {problem}" for problem in problems)
            readable = [name for name in self.spec.members if name in opened]
            if len(readable) > 1 and not self.config.dataset:
                chosen = " ".join(f"--dataset {name}" for name in readable)
                text += f"\nTo run over the members that are there: {chosen}"
            raise DataError(text)
        return opened

    def _check_labels(self, name: str, images: ImageSet) -> None:
        size = self.spec.label_space.size
        worst = max(i for ids in images.class_map for i in ids)
        if worst >= size or min(i for ids in images.class_map for i in ids) < 0:
            raise ConfigError(
                [
                    f"its class map has the id {worst}; {self.spec.label_space.name} has the ids "
                    f"0 … {size - 1}."
                ]
            )

    def _identify(self, bound: Bound) -> Identity:
        with guarded(bound.component.what):
            identity = self.identify(bound)
        if identity.classes != self.spec.label_space.size:
            raise ConfigError(
                [
                    f"The backbone {bound.label} has {identity.classes} logits; "
                    f"{self.spec.label_space.name} has {self.spec.label_space.size} classes."
                ]
            )
        self.notes += [f"{bound.label}: {note}" for note in identity.notes]
        return identity

    def _read_too(
        self, methods: Sequence[Bound], scoring: Sequence[str]
    ) -> dict[str, PlannedDataset]:
        """The datasets that methods read beside the fine-tuning set, opened.

        Raises:
            RibError: one that scores the run, that may not be trained on, or of other classes.
        """
        wanted = {}
        for method in methods:
            for name in self._all_reads(method):
                wanted[name] = method
        for name, method in wanted.items():
            spec = self._bind("dataset", name).spec
            same = {one for group in self.spec.shares if spec.name in group for one in group}
            if scored := sorted(({spec.name} | same) & set(scoring)):
                why = "it scores this run" if spec.name in scored else (
                    f"it is made from the photographs of {', '.join(scored)}, which scores this run"
                )  # fmt: skip
                raise ConfigError(
                    [
                        f"{method.label} may not read {name}: {why}. See `imagenet-train` and its "
                        "like: rib-harness list datasets."
                    ]
                )
            if not spec.may_train:
                raise ConfigError([f"{method.label} may not read {name}: its licence forbids it."])
            if spec.label_space != self.spec.label_space:
                raise ConfigError(
                    [
                        f"{method.label} cannot read {name}: it is over {spec.label_space.name}, "
                        f"the suite over {self.spec.label_space.name}."
                    ]
                )
        return self._open(list(wanted)) if wanted else {}

    def _all_reads(self, method: Bound) -> list[str]:
        inner = [need.method for need in needs_of(self.catalog, method, self.config.preset)]
        return [*reads_of(method), *(name for one in inner for name in self._all_reads(one))]

    def _all_teachers(self, method: Bound) -> list[str]:
        inner = [need.method for need in needs_of(self.catalog, method, self.config.preset)]
        return [*teachers_of(method), *(t for one in inner for t in self._all_teachers(one))]

    def _check_parts(self, backbones: Sequence[PlannedBackbone], methods: Sequence[Bound]) -> None:
        """Raise for every method that needs what a backbone does not have."""
        problems = []
        for backbone in backbones:
            for method in methods:
                has = backbone.identity.has
                parts = missing_parts(self.catalog, method, has, self.config.preset)
                if parts:
                    space = self.spec.label_space
                    lacks = "does not have" if has else "does not say that it has (`Identity.has`)"
                    problems.append(
                        describe_missing(
                            self.catalog, method, f"{backbone.bound.label} {lacks}", parts, space
                        )
                    )
        if problems:
            raise ConfigError(problems)

    def _recipe_of(self, method: Bound, recipe: Recipe) -> Recipe:
        """The recipe with the method's own values, and a held-out part where it chooses on one."""
        recipe = _with_own(recipe, method)
        inner = [need.method for need in needs_of(self.catalog, method, self.config.preset)]
        share = max([method.spec.holds_out, *(self._recipe_of(m, recipe).held_out for m in inner)])
        if recipe.held_out or not share:
            return recipe
        return recipe.model_copy(update={"held_out": share})

    def _finetune(
        self,
        backbone: PlannedBackbone,
        method: Bound,
        source: str,
        seed: int,
        pre: Step,
        recipe: Recipe,
        split: int,
    ) -> Step:
        preset = self.config.preset
        recipe = _with_own(recipe, method)
        needs = {
            need.reference: self._finetune(
                backbone, need.method, source, seed + need.seed, pre, recipe, split
            )
            for need in needs_of(self.catalog, method, preset)
        }
        calls = calls_of(self.catalog, method, preset)
        reads = {
            name: (self.read[name], self._preprocess(backbone, self.read[name]))
            for name in reads_of(method)
        }
        dataset = self.datasets[source]
        teachers = {
            text: (self.teachers[text], self._preprocess(self.teachers[text], dataset))
            for text in teachers_of(method)
        }
        inputs = {
            "kind": "finetune",
            "engine": ENGINE,
            "backbone": backbone.inputs(),
            "dataset": dataset.inputs,
            "method": method.key_fields(),
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "split": split if recipe.held_out or is_pruned(recipe) else None,
            "needs": {reference: step.key for reference, step in needs.items()},
            "calls": {reference: one.key_fields() for reference, one in calls.items()},
            "reads": {
                name: {**one.inputs, "preprocess": preprocess.to_json()}
                for name, (one, preprocess) in reads.items()
            },
        }
        if teachers:
            inputs["teachers"] = {
                text: {**one.inputs(), "preprocess": preprocess.to_json()}
                for text, (one, preprocess) in teachers.items()
            }
        probes = self._probes(backbone)
        if probes:
            inputs["probe"] = {
                "every": self.config.probe_every,
                "images": self.config.probe_images,
                "datasets": {name: one.inputs for name, (one, _) in probes.items()},
            }
        trains = method.spec.trains != "nothing"
        updates = self._updates(dataset.images, recipe, split) if trains else 0
        parts = ["finetune", backbone.bound.label, method.label, source, f"seed{seed}"]
        return self._add(
            "finetune", parts, inputs, backbone, dataset,
            updates=updates, method=method, recipe=recipe, seed=seed, split=split, needs=needs,
            calls=calls, reads=reads, teachers=teachers, pre=pre, probes=probes,
        )  # fmt: skip

    def _probes(self, backbone: PlannedBackbone) -> dict[str, tuple[PlannedDataset, Preprocess]]:
        """The datasets that are looked at during training, if any: part of its key only then."""
        if self.config.probe_every is None:
            return {}
        return {name: (one, self._preprocess(backbone, one)) for name, one in self.datasets.items()}

    def _evaluate(self, backbone: PlannedBackbone, model: Step | None, name: str) -> Step:
        return self._scored("evaluate", backbone, model, name, len(self.datasets[name].images))

    def _features(self, backbone: PlannedBackbone, model: Step | None) -> dict[str, Step]:
        """For each dataset the step that keeps features, if they are asked for."""
        wanted = self.config.features
        if wanted is None:
            return {}
        steps = {}
        for name, dataset in self.datasets.items():
            images = min(wanted, len(dataset.images))
            steps[name] = self._scored("features", backbone, model, name, images, sample=images)
        return steps

    def _scored(
        self,
        kind: str,
        backbone: PlannedBackbone,
        model: Step | None,
        name: str,
        images: int,
        **more: Any,
    ) -> Step:
        dataset = self.datasets[name]
        inputs: dict[str, Any] = {
            "kind": kind,
            "engine": ENGINE,
            "dataset": dataset.inputs,
            "precision": "fp32",
            **more,
        }
        if model is None or model.method is None:
            inputs["backbone"] = backbone.inputs()
            parts = [kind, backbone.bound.label, "pretrained"]
        else:
            inputs["checkpoint"] = model.key
            source = model.dataset.name
            parts = [kind, backbone.bound.label, model.method.label, source, f"seed{model.seed}"]
        return self._add(
            kind, [*parts, name], inputs, backbone, dataset,
            images=images, model=model, seed=model.seed if model else 0,
        )  # fmt: skip

    def _add(
        self,
        kind: str,
        parts: list[str],
        inputs: dict[str, Any],
        backbone: PlannedBackbone,
        dataset: PlannedDataset,
        **rest: Any,
    ) -> Step:
        preprocess = self._preprocess(backbone, dataset)
        inputs["preprocess"] = preprocess.to_json()
        key = key_of(inputs)
        if key not in self.steps:
            self.steps[key] = Step(
                kind, "/".join(parts), key, inputs, backbone, dataset, preprocess, **rest
            )
        return self.steps[key]

    def _preprocess(self, backbone: PlannedBackbone, dataset: PlannedDataset) -> Preprocess:
        preprocess, cropped = backbone.identity.preprocess, dataset.images.cropped
        # The reference code resizes crops again: its preset does so too.
        if cropped is not None and self.config.preset != "paper":
            return preprocess.for_crops(cropped)
        return preprocess

    def _updates(self, images: ImageSet, recipe: Recipe, split: int) -> int:
        apart = held_out(images.labels, images.source, recipe.held_out, split)
        labels = np.delete(images.labels, apart)
        per_epoch = math.ceil(kept_count(labels, recipe) / recipe.batch_size)
        steps = recipe.epochs * per_epoch
        return steps if recipe.max_steps is None else min(steps, recipe.max_steps)

    def _record(
        self,
        backbone: PlannedBackbone,
        method: Bound | None,
        seed: int,
        members: list[str],
        sources: list[str],
        pre: Mapping[str, Step],
        made: Mapping[str, Step],
        post: Mapping[str, Mapping[str, Step]],
    ) -> dict[str, Any]:
        facts = backbone.bound.spec.facts(backbone.bound.tag)
        return {
            "format": RUN_FORMAT,
            "suite": self.spec.name,
            "suite_id": self.suite.id,
            "backbone": backbone.bound.label,
            "backbone_id": backbone.bound.component.id,
            "weights": backbone.identity.weights,
            "pretraining": facts.pretraining,
            "pretraining_images": facts.pretraining_images,
            "data": {
                name: ",".join(
                    spelled(
                        {
                            k: v
                            for k, v in one.bound.explicit.items()
                            if k not in one.bound.locations()
                        }
                    )
                )
                for name, one in self.datasets.items()
                if set(one.bound.explicit) - one.bound.locations()
            },
            "method": method.label if method else None,
            "method_id": method.component.id if method else None,
            "options": dict(method.options) if method else {},
            "seed": seed if method else None,
            "preset": self.config.preset,
            "recipe": (
                self._recipe_of(method, self.recipe).model_dump(mode="json") if method else None
            ),
            "limit": self.config.limit,
            "accepted_licenses": [s for s in sources if s in self.config.accept_license],
            "expected": {n: e.to_json() for n, e in self._expected(backbone).items()},
            "suite_members": list(self.spec.members),
            "members": members,
            "references": list(self.spec.references),
            "sources": sources,
            "shares": [list(group) for group in self.spec.shares],
            "notes": self.notes,
            "versions": {"engine": ENGINE, "method": method.spec.version if method else None},
            "components": [
                self.suite.provenance(),
                backbone.bound.component.provenance(),
                *([method.component.provenance()] if method else []),
                *(
                    self.teachers[text].bound.component.provenance()
                    for text in dict.fromkeys(self._all_teachers(method) if method else [])
                ),
                *(self.datasets[name].bound.component.provenance() for name in self.datasets),
            ],
            **(
                {"probe_every": self.config.probe_every} if made and self.config.probe_every else {}
            ),
            **self._feature_keys(backbone, made),
            "finetune": {source: step.key for source, step in made.items()},
            "cells": {
                "pre": {name: step.key for name, step in pre.items()},
                "post": {i: {j: s.key for j, s in row.items()} for i, row in post.items()},
            },
        }

    def _feature_keys(self, backbone: PlannedBackbone, made: Mapping[str, Step]) -> dict[str, Any]:
        """Which step's key has which features, if they are asked for."""
        if self.config.features is None:
            return {}
        of = {i: self._features(backbone, step) for i, step in made.items()}
        pre = self._features(backbone, None)
        return {
            "features": {
                "pre": {j: step.key for j, step in pre.items()},
                "post": {i: {j: step.key for j, step in row.items()} for i, row in of.items()},
            }
        }


def _with_own(recipe: Recipe, method: Bound) -> Recipe:
    """The recipe with the values that hold for this method only."""
    return make_recipe(recipe.model_dump(), method.recipe) if method.recipe else recipe
