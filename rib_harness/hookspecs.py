"""Every hook of rib-harness, on one screen: the documentation of record.

A plugin is a module behind an entry point of the group `rib_harness`. It says
`RIB_PLUGIN_API = 1`, imports nothing heavy, and implements any of these with `@hookimpl`:

    from rib_harness import MethodSpec, hookimpl

    RIB_PLUGIN_API = 1

    @hookimpl
    def register_methods():
        return [MethodSpec(name="mine", target="my_package.mine:Mine", summary="...")]

Registration hooks take nothing and return data, so they are called one by one: a plugin that
fails takes nobody with it. Nothing overrides anything: two components of one name are both kept,
under their canonical ids `plugin/name`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from rib_harness.specs import (
    BackboneSpec,
    DatasetSpec,
    Event,
    MethodSpec,
    MetricSpec,
    SuiteSpec,
)

#: The group of entry points in which plugins are found.
ENTRY_POINT_GROUP = "rib_harness"

#: The version of this file's contract; a plugin states the one it was written for.
PLUGIN_API = 1

hookspec = pluggy.HookspecMarker("rib_harness")
hookimpl = pluggy.HookimplMarker("rib_harness")


@hookspec
def register_backbones() -> Iterable[BackboneSpec]:  # type: ignore[empty-body]
    """Pretrained classifiers: `[BackboneSpec(name="tiny", target="pkg.tiny:Tiny", ...)]`.

    The target is a class whose parameters are the options, see `protocols.Backbone`.
    """


@hookspec
def register_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Labelled images: `[DatasetSpec(name="my-shift", target="pkg.shift:Shift", ...)]`.

    The target is a class whose parameters are the options, see `protocols.Dataset`.
    """


@hookspec
def register_methods() -> Iterable[MethodSpec]:  # type: ignore[empty-body]
    """Ways to fine-tune: `[MethodSpec(name="mine", target="pkg.mine:Mine", ...)]`.

    The target is a class whose parameters are the options, see `protocols.Method`.
    """


@hookspec
def register_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Numbers: `[MetricSpec(name="ece", target="pkg.ece:ece", level="scores", ...)]`.

    The target is a function of a `Scores` or of a `Matrix`, see `protocols`.
    """


@hookspec
def register_suites() -> Iterable[SuiteSpec]:  # type: ignore[empty-body]
    """Benchmarks: `[SuiteSpec(name="digits-rib", members=(...), backbone="...", ...)]`."""


@hookspec
def run_started(event: Event) -> None:
    """A run begins. Observers change no result; what they raise is logged, never fatal."""


@hookspec
def step_finished(event: Event) -> None:
    """A step was computed (`event.error` is empty) or failed (it holds the message)."""


@hookspec
def run_finished(event: Event) -> None:
    """A run ends, whole or not."""


#: Hook that registers components → the kind of spec that it returns.
REGISTRATION = {
    "register_backbones": BackboneSpec,
    "register_datasets": DatasetSpec,
    "register_methods": MethodSpec,
    "register_metrics": MetricSpec,
    "register_suites": SuiteSpec,
}
