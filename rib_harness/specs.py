"""What a plugin says about each of its components: frozen data, no torch, nothing imported.

A spec names a component and where it lives (`target = "package.module:attribute"`). The target is
imported on first use; its parameters are the component's options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a backbone's logits are over.

    Args:
        name: e.g. `"imagenet-1k"`. A suite runs backbones and datasets of one label space.
        size: number of classes; ids are 0 … size−1.
    """

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every component says.

    Args:
        name: short name, lower case with hyphens; the canonical id is `plugin/name`.
        target: `"package.module:attribute"`, imported on first use.
        summary: one line for lists.
        citation: where it comes from, e.g. `"arXiv:1606.09282"`.
        license: SPDX id, or the terms in a few words.
        version: raise it when results change for the same options; it is part of every key (a
            metric, which is computed anew each time, is in none).
        arguments: parameters of the target that this spec fixes, so that one target can serve
            several components; they are no options.
    """

    kind: ClassVar[str] = ""

    name: str
    target: str
    summary: str
    citation: str = ""
    license: str = ""
    version: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is known of one member of a family of backbones.

    Args:
        tag: the member, as in `timm:TAG`.
        alias: a short name under which it can be asked for too.
        pretraining: what it was pretrained on, in the words of the field.
        pretraining_images: how many images that is.
        accuracy: dataset → published top-1 accuracy in %, as that dataset is scored here.
        source: who published these accuracies.
        has: parts that methods may require, as of a backbone.
    """

    tag: str = ""
    alias: str = ""
    pretraining: str = ""
    pretraining_images: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    has: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A pretrained classifier, or a family of them.

    Args:
        label_space: the classes of its logits.
        pretraining: what it was pretrained on, in the words of the field.
        pretraining_images: how many images that is.
        accuracy: dataset → published top-1 accuracy in %; an untouched backbone that misses one
            stops a run.
        accuracy_source: who published these accuracies.
        variants: the same facts for members of a family, and their short names.
        input_size: side of its input in pixels; None where the options decide.
        network: whether building it may download weights.
        family: whether a tag follows the name, as in `timm:resnet50.a1_in1k`.
        light: whether its module imports without torch, so that a plan can ask it directly.
        has: parts that methods may require, see `MethodSpec.requires`; for suggestions, since
            its identity is what counts.
    """

    kind: ClassVar[str] = "backbone"

    label_space: LabelSpace
    pretraining: str = ""
    pretraining_images: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    accuracy_source: str = ""
    variants: tuple[Variant, ...] = ()
    input_size: int | None = None
    network: bool = False
    family: bool = False
    light: bool = False
    has: tuple[str, ...] = ()

    def facts(self, tag: str = "") -> Variant:
        """What is known of the backbone, or of the family's member `tag`."""
        for variant in self.variants:
            if tag and variant.tag == tag:
                return variant
        return Variant(
            tag=tag,
            pretraining=self.pretraining,
            pretraining_images=self.pretraining_images,
            accuracy={} if self.family else self.accuracy,
            source=self.accuracy_source,
            has=self.has,
        )


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file in which a dataset is published.

    Args:
        name: its file name.
        urls: where it can be fetched, in the order to try; none where a person must log in.
        size: in bytes; None if not known.
        md5, sha256: of the file, in hex; empty if not known.
        get: how a person gets it where no address serves.
        unpack: whether `data prepare` unpacks it; False reads its files from inside.
        images: False for one that holds no images, but says something of the others'.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    md5: str = ""
    sha256: str = ""
    get: str = ""
    unpack: bool = True
    images: bool = True


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A labelled set of images.

    Args:
        label_space: the classes that its class map points into.
        role: `"shifted"` (a member of a suite), `"reference"` or `"train"`.
        images: how many the published set holds; None if not fixed.
        classes: how many classes it holds; None if not fixed.
        may_train: False where the licence forbids to tune a model on it.
        homepage: where a person gets it.
        archives: the files in which it is published, for `rib-harness data prepare`. An option
            of the dataset may choose: see `Dataset.archives` in `protocols`.
    """

    kind: ClassVar[str] = "dataset"

    label_space: LabelSpace
    role: Literal["shifted", "reference", "train"] = "shifted"
    images: int | None = None
    classes: int | None = None
    may_train: bool = True
    homepage: str = ""
    archives: tuple[Archive, ...] = ()


@dataclass(frozen=True)
class Knob:
    """One setting that a method is tuned by, and where sensible values of it lie.

    Args:
        name: an option of the method, or `"recipe.lr"` and its like. A range of `recipe.lr` is of
            multiples of the run's own rate, which is right for the backbone and the optimizer.
        low, high: the range, ends included.
        log: whether it is drawn from evenly in the logarithm, as scales are.
        values: what to draw from instead of a range.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = True
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """`alpha 0.1 … 10`."""
        if self.values:
            return f"{self.name} {' | '.join(map(str, self.values))}"
        times = " × the run's" if self.name.startswith("recipe.") else ""
        return f"{self.name} {self.low:g} … {self.high:g}{times}"


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """A way to fine-tune.

    Args:
        trains: what it changes, e.g. `"all"`, `"head"`; `"nothing"` for a fusion of checkpoints.
        needs: references of methods whose checkpoints it starts from; `"{base}"` is filled from
            the method's own option `base`; of `"*{members}"` the option names several, joined by
            `+`. `pretrained` is always there, and `ft@1` is what `ft` makes with another seed.
        calls: references of methods that it runs itself, from a start of its own.
        reads: names of datasets that it reads beside the fine-tuning set; none of those that
            score the run may be among them.
        teachers: references of other backbones that it learns from; `"{teacher}"` is filled from
            its own option.
        requires: parts that the backbone must have: `"blocks"`, `"qkv"`, `"batch-norm"` (see
            `parts_of`), `"text-tower"` or `"projection"` (see `TextTower`);
            `"qkv:layers=q-v"` only with that option.
        holds_out: share of the fine-tuning set on which neither it nor what it needs is trained,
            for choices; a recipe's own `held_out` wins.
        mergeable: whether the result is a plain classifier of the backbone's architecture.
        chooses: whether the result is one of its needs as it is, which it then reports as
            `same_as` (see `Task.report`).
        presets: options that a named preset sets, e.g. `{"paper": {"over": "task"}}`.
        fixes: keys of the recipe that it sets itself, as `("lr", "optimizer")`.
        knobs: what it is tuned by, the learning rate among them; `--trials` draws from it. None
            declared: it cannot be tuned so.
    """

    kind: ClassVar[str] = "method"

    trains: str = "all"
    needs: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    holds_out: float = 0.0
    mergeable: bool = True
    chooses: bool = False
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixes: tuple[str, ...] = ()
    knobs: tuple[Knob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A number from what a run keeps: a function of it, no model is run again.

    Args:
        level: what the target is given and gives: `"scores"`, a `Scores` → a number; `"matrix"`,
            a `Matrix` → a number, or source → number, or source → dataset → number; `"drift"`,
            the `Features` of one dataset before and after → a number; `"distance"`, the `Features`
            of two datasets under the untouched backbone, the fine-tuning set first → a number.
            One that does not apply raises `InapplicableError`.
        higher_is_better: its direction.
        range: smallest and largest possible value.
        unit: `"%"` or `"points"` or `""`.
    """

    kind: ClassVar[str] = "metric"

    level: Literal["scores", "matrix", "drift", "distance"]
    higher_is_better: bool = True
    range: tuple[float, float] = (float("-inf"), float("inf"))
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class SuiteSpec(Spec):
    """Datasets and defaults that make one benchmark.

    Args:
        label_space: shared by its backbones and datasets.
        members: the shifted datasets 𝔻, in the order of the table.
        references: datasets outside 𝔻 on which forgetting is measured.
        shares: groups of datasets made from the same photographs.
        backbone: used when none is asked for.
        recipe: defaults for fine-tuning, by the names of `config.Recipe`.
        presets: recipe values that a named preset changes.
    """

    kind: ClassVar[str] = "suite"

    target: str = ""
    label_space: LabelSpace
    members: tuple[str, ...]
    references: tuple[str, ...] = ()
    shares: tuple[tuple[str, ...], ...] = ()
    backbone: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


KINDS: dict[str, type[Spec]] = {
    spec.kind: spec for spec in (BackboneSpec, DatasetSpec, MethodSpec, MetricSpec, SuiteSpec)
}


@dataclass(frozen=True)
class Event:
    """What an observer hook receives.

    Args:
        name: `"run_started"`, `"step_finished"` or `"run_finished"`.
        store: path of the store, as text.
        step: id of the step, for `step_finished`.
        key: its key.
        seconds: how long it took.
        error: the message, if it failed.
    """

    name: str
    store: str
    step: str = ""
    key: str = ""
    seconds: float = 0.0
    error: str = ""
