"""All checks of one plugin: as a list, and as parameters of a test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rib_harness.catalog import Bound, Catalog, Component, Plugin, load_catalog
from rib_harness.errors import ConfigError, PluginError, RibError, nearest
from rib_harness.given import user_path
from rib_harness.options import REQUIRED, Reference
from rib_harness.specs import KINDS, BackboneSpec
from rib_harness.testing.outcome import Check, CheckError, CheckSkipped
from rib_harness.testing.plugin_checks import (
    COMPONENT_CHECKS,
    PLUGIN_CHECKS,
    ComponentTrial,
    PluginTrial,
)

if TYPE_CHECKING:
    from rib_harness.testing.method_trial import Net

#: Names of checks on which those after them rest: a plugin that does not load offers nothing, what
#: a heavy import leaves behind is not the plugin's, of a method without `finetune` nothing else can
#: be said.
GATES = frozenset(
    {"loads", "light", "target", "options", "protocol", "builds", "preprocess", "shapes", "opens",
     "declares", "signature"}
)  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """A value that a metric's author knows, from another library or by hand.

    Args:
        metric: its name.
        given: what it is given: scores, a matrix, or two sets of features.
        value: what it should give: a number, or dicts of numbers by source and dataset.
        tolerance: absolute and relative.
    """

    metric: str
    given: tuple[Any, ...]
    value: float | Mapping[str, Any]
    tolerance: float = 1e-6


def checks_of(
    plugin: str,
    catalog: Catalog | None = None,
    *,
    references: Sequence[str] = (),
    neutral: Mapping[str, str] | None = None,
    golden: Sequence[Golden] = (),
    nets: Mapping[str, Net] | None = None,
    data_root: Path | None = None,
) -> list[Check]:
    """The checks of a plugin and of each of its components.

    Args:
        plugin: its name.
        catalog: where it is; None is what is installed.
        references: components with options, checked in these instead of their defaults, e.g.
            `"timm:resnet18,pretrained=false"`: what needs an option, or a smaller one.
        neutral: settings of methods → what they should then be: `{"lwf:alpha=0": "ft"}`, see
            `check_method_neutral`.
        golden: known values of metrics.
        nets: name → what makes a backbone, or it and its text tower, over ten classes for images
            as `TINY` prepares them: `{"conv": tiny_classifier, "vit": tiny_vit}`. A method is
            tried on each of them that has what it requires, and the name is in the id:
            `method/mine/vit/resumes`. One that can work on none of them, and with None every
            one, is tried on the first tiny net that has what it requires.
        data_root: the folder that holds datasets; None is what the variable `RIB_DATA_ROOT` says,
            as for every command. Without theirs, datasets are skipped.

    Raises:
        PluginError: there is no such plugin.
        ConfigError: a reference, a neutral setting or a golden value that is not of this plugin.
    """
    catalog = catalog or load_catalog()
    named = os.environ.get("RIB_DATA_ROOT")
    data_root = data_root or (user_path(named) if named else None)
    found = _find(plugin, catalog)
    whole = PluginTrial(found)
    checks = list(_in_turn(found.name, "plugin", PLUGIN_CHECKS, lambda: whole))
    own = [c for kind in KINDS for c in catalog.list(kind) if c.plugin is found]
    asked = [(component, text) for text in references for component in _named(text, own, found)]
    for component in own:
        said = list(_spec_checks(component, catalog))
        checks += said
        for text in [text for one, text in asked if one is component] or [""]:
            checks += _trials(component, text, catalog, data_root, nets or {}, _gates(said))
    checks += _neutral(neutral or {}, own, found, catalog, nets or {})
    checks += _golden(golden, own, found)
    return checks


def parametrize_with_checks(
    plugin: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    slow: Sequence[str] = (),
    **given: Any,
) -> Any:
    """Decorate a test with one parameter, `check`: it is run once for each check of a plugin.

    Args:
        plugin: its name.
        expected_failures: id of a check → why it cannot pass yet. Strict: one that passes, fails.
        slow: patterns of ids that are marked `pytest.mark.slow`, e.g. `"method/*/resumes"`.
        given: arguments of `checks_of`.

    Raises:
        RibError: as `checks_of`; and an expected failure of a check that there is not.

    Example:
        >>> @parametrize_with_checks("digits")
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    checks, expected = checks_of(plugin, **given), dict(expected_failures or {})
    known = [check.id for check in checks]
    strangers = [
        f"expected_failures: {plugin} has no check {id!r}.{nearest(id, known)}"
        for id in expected
        if id not in known
    ]
    if strangers:
        raise ConfigError(strangers)
    parameters = []
    for check in checks:
        marks = [pytest.mark.slow] if any(fnmatch(check.id, one) for one in slow) else []
        if check.id in expected:
            reason = expected[check.id]
            marks.append(pytest.mark.xfail(reason=reason, raises=CheckError, strict=True))
        parameters.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _find(name: str, catalog: Catalog) -> Plugin:
    plugins = [p for p in catalog.plugins if name in (p.name, p.distribution)]
    if not plugins:
        known = [p.name for p in catalog.plugins]
        raise PluginError(
            f"No plugin is called {name!r}.{nearest(name, known)} Is it installed (pip install "
            f"-e .)? Installed: {', '.join(known) or 'none'}."
        )
    return next((p for p in plugins if p.status == "ok"), plugins[0])


def _check(
    component: str,
    where: str,
    function: Callable[..., None],
    trial: Callable[[], Any],
    after: tuple[Check, ...] = (),
    **given: Any,
) -> Check:
    """A check whose id ends in the function's name: `check_method_resumes` → `resumes`."""
    name = "-".join(function.__name__.split("_")[2:])
    return Check(f"{where}/{name}", component, function, lambda: function(trial(), **given), after)


def _in_turn(
    component: str,
    where: str,
    functions: Sequence[Callable[..., None]],
    trial: Callable[[], Any],
    after: tuple[Check, ...] = (),
) -> Iterator[Check]:
    """Checks of which some rest on those before: one cause is told once."""
    for function in functions:
        check = _check(component, where, function, trial, after)
        after += _gates([check])
        yield check


def _gates(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Those without which the later ones make no sense."""
    return tuple(check for check in checks if check.id.rpartition("/")[2] in GATES)


def _named(text: str, own: Sequence[Component], plugin: Plugin) -> list[Component]:
    """The plugin's components that a reference names."""
    name = Reference.parse(text).name
    found = [component for component in own if name in (component.spec.name, component.id)]
    if not found:
        names = [component.spec.name for component in own]
        raise ConfigError([f"The plugin {plugin.name} offers no {name!r}.{nearest(name, names)}"])
    return found


def _spec_checks(component: Component, catalog: Catalog) -> Iterator[Check]:
    """What it says of itself."""
    kind = component.spec.kind
    where, trial = f"{kind}/{component.spec.name}", ComponentTrial(component, catalog)
    yield from _in_turn(component.id, where, COMPONENT_CHECKS[kind], lambda: trial)


def _trials(
    component: Component,
    text: str,
    catalog: Catalog,
    data_root: Path | None,
    nets: Mapping[str, Net],
    after: tuple[Check, ...],
) -> Iterator[Check]:
    """The checks of one component with one set of options."""
    # Of a path only the file's name: an id is the same on every machine.
    where = f"{component.spec.kind}/{re.sub(r'=[^,()]*/', '=', text) or component.spec.name}"
    for name, net in _on(component, text, catalog, nets):
        make, functions = _kit(component, catalog, data_root, net)
        # What several checks share is made with the first of them.
        trial = cache(partial(make, text))
        yield from _in_turn(component.id, where + name, functions, trial, after)


def _on(
    component: Component, text: str, catalog: Catalog, nets: Mapping[str, Net]
) -> list[tuple[str, Net | None]]:
    """On which nets it is tried: what each adds to an id, and the net; None is its own choice."""
    if component.spec.kind == "method" and nets:
        from rib_harness.testing.method_trial import fitting

        # What has no options yet, or names what is not there, is told by a check.
        with suppress(CheckSkipped, RibError):
            found = fitting(catalog, _bound(component, text), nets)
            return [(f"/{name}", net) for name, net in found.items()] or [("", None)]
    return [("", None)]


def _kit(
    component: Component, catalog: Catalog, data_root: Path | None, net: Net | None
) -> tuple[Callable[[str], Any], tuple[Callable[..., None], ...]]:
    """What makes a trial of a reference, a method's on the net, and the checks of that kind."""
    kind = component.spec.kind
    if kind == "backbone":
        from rib_harness.testing.backbone_checks import BACKBONE_CHECKS, BackboneTrial, offline

        def backbone(text: str) -> BackboneTrial:
            bound = _bound(component, text)
            return BackboneTrial(bound if text else offline(bound))

        return backbone, BACKBONE_CHECKS
    if kind == "dataset":
        from rib_harness.testing.dataset_checks import DATASET_CHECKS, DatasetTrial

        return lambda text: DatasetTrial(_bound(component, text), data_root), DATASET_CHECKS
    if kind == "method":
        from rib_harness.testing.method_checks import METHOD_CHECKS
        from rib_harness.testing.method_trial import MethodTrial

        return lambda text: MethodTrial(_bound(component, text), catalog, net), METHOD_CHECKS
    if kind == "metric":
        from rib_harness.testing.metric_checks import MetricTrial, metric_checks

        trial = MetricTrial(component)
        return lambda text: trial, metric_checks(trial.spec)
    from rib_harness.testing.suite_checks import SUITE_CHECKS, SuiteTrial

    return lambda text: SuiteTrial(component, catalog, data_root), SUITE_CHECKS


def _bound(component: Component, text: str) -> Bound:
    """The component with the options of a reference, else with its defaults.

    Raises:
        CheckSkipped: it has no defaults.
    """
    spec = component.spec
    if text:
        return component.bind(Reference.parse(text))
    reference = Reference(spec.name)
    missing = [o.name for o in component.signature.options if o.default == REQUIRED]
    if isinstance(spec, BackboneSpec) and spec.family:
        missing = [name for name in missing if name != "tag"]
        if not spec.variants:
            missing.append("tag")
        else:
            reference = Reference(spec.name, spec.variants[0].tag)
    if missing:
        raise CheckSkipped(
            f"it needs {', '.join(missing)}: give references=['{spec.name}:…'] (--reference)"
        )
    return component.bind(reference)


def _neutral(
    neutral: Mapping[str, str],
    own: Sequence[Component],
    plugin: Plugin,
    catalog: Catalog,
    nets: Mapping[str, Net],
) -> Iterator[Check]:
    """The methods that should be others in some settings."""
    if not neutral:
        return
    from rib_harness.testing.method_checks import check_method_neutral
    from rib_harness.testing.method_trial import MethodTrial

    methods = [component for component in own if component.spec.kind == "method"]
    for text, same_as in neutral.items():
        (method,) = _named(text, methods, plugin)
        for name, net in _on(method, text, catalog, nets):
            trial = partial(MethodTrial, _bound(method, text), catalog, net)
            where = f"method/{text}{name}"
            yield _check(method.id, where, check_method_neutral, trial, same_as=same_as)


def _golden(golden: Sequence[Golden], own: Sequence[Component], plugin: Plugin) -> Iterator[Check]:
    """The metrics whose values are known."""
    from rib_harness.testing.metric_checks import MetricTrial, check_metric_golden

    metrics = [component for component in own if component.spec.kind == "metric"]
    for number, one in enumerate(golden):
        (metric,) = _named(one.metric, metrics, plugin)
        check = _check(
            metric.id,
            f"metric/{one.metric}",
            check_metric_golden,
            partial(MetricTrial, metric),
            given=one.given,
            value=one.value,
            tolerance=one.tolerance,
        )
        yield replace(check, id=f"{check.id}-{number}")
