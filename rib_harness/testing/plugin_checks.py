"""What a plugin as a whole promises, and what each of its components says of itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rib_harness.catalog import Catalog, Component, Plugin
from rib_harness.errors import ConfigError
from rib_harness.hookspecs import REGISTRATION
from rib_harness.options import REQUIRED, Reference, load_target
from rib_harness.specs import BackboneSpec, Spec
from rib_harness.testing.fresh import Fresh, load_fresh
from rib_harness.testing.network import no_network
from rib_harness.testing.outcome import expect
from rib_harness.testing.traces import traced

#: Seconds that loading a plugin may take. A light one takes milliseconds; the bound is generous,
#: so that a busy machine fails nobody.
SLOW = 10.0


@dataclass
class PluginTrial:
    """One plugin under test.

    Args:
        plugin: of a catalog.
    """

    plugin: Plugin

    @cached_property
    def fresh(self) -> Fresh:
        """What loading it in a fresh process does."""
        return load_fresh(self.plugin.name, self.plugin.distribution)


def check_plugin_loads(trial: PluginTrial) -> None:
    """It loads: it imports, speaks this API, and its hooks are marked and named as they must be."""
    plugin = trial.plugin
    expect(plugin.status == "ok", f"it is {plugin.status}: {plugin.reason}")


def check_plugin_offers(trial: PluginTrial) -> None:
    """It offers components or observes runs."""
    expect(
        bool(trial.plugin.components) or trial.fresh.observes,
        f"it offers nothing: implement one of {', '.join(REGISTRATION)}, with @hookimpl.",
    )


def check_plugin_light(trial: PluginTrial) -> None:
    """Loading it imports no heavy package, so that listing and planning stay quick."""
    heavy = trial.fresh.heavy
    expect(
        not heavy,
        f"loading it imports {', '.join(heavy)}. Import them in the modules that its specs' "
        "targets name, or inside functions; the plugin's module only describes.",
    )


def check_plugin_fast(trial: PluginTrial, seconds: float = SLOW) -> None:
    """It loads fast in a fresh process.

    Args:
        trial: of the plugin.
        seconds: what it may take.
    """
    took = trial.fresh.seconds
    expect(
        took <= seconds,
        f"loading it takes {took:.1f} s, more than {seconds:g}. Do the work when a component is "
        "built, not when the plugin is imported.",
    )


def check_plugin_offline(trial: PluginTrial) -> None:
    """Loading it touches no network."""
    reached = trial.fresh.reached
    expect(
        not reached,
        f"loading it reaches for {', '.join(reached)}. Listing plugins must work offline: "
        "go there when a component is built.",
    )


def check_plugin_environment(trial: PluginTrial) -> None:
    """Loading it leaves the environment's variables as they are."""
    changed = trial.fresh.environment
    expect(
        not changed,
        f"loading it changes {', '.join(changed)} in the environment, for every other plugin "
        "too. Pass settings as arguments.",
    )


def check_plugin_random_state(trial: PluginTrial) -> None:
    """Loading it neither seeds nor draws from the global generators."""
    moved = trial.fresh.random
    expect(
        not moved,
        f"loading it changes the global random state of {', '.join(moved)}. Use a generator of "
        "your own: numpy.random.default_rng(seed).",
    )


def check_plugin_silent(trial: PluginTrial) -> None:
    """Loading it prints nothing, and leaves working directory and filters of warnings alone."""
    fresh = trial.fresh
    line = fresh.printed.strip().partition("\n")[0]
    expect(
        not line,
        f"loading it prints {line[:80]!r}: on every start, into what other programs read. Use a "
        "logger, or print when a component is used.",
    )
    expect(
        not fresh.folder,
        f"loading it changes the working directory to {fresh.folder}: every relative path of the "
        "user then leads elsewhere. Use absolute paths.",
    )
    expect(
        not fresh.filters,
        f"loading it adds the filters of warnings {', '.join(fresh.filters)}, for everybody's "
        "code. Use warnings.catch_warnings() around the call that warns.",
    )


@dataclass
class ComponentTrial:
    """What a component says of itself, under test.

    Args:
        component: of a plugin.
        catalog: the components of all plugins that loaded.
    """

    component: Component
    catalog: Catalog


def check_component_spec(trial: ComponentTrial) -> None:
    """Its spec has a one-line summary, a licence, and a short name that no other plugin uses.

    The citation may be empty: what is an author's own has none yet.
    """
    component, spec = trial.component, trial.component.spec
    expect(
        bool(spec.summary.strip()) and "\n" not in spec.summary,
        f"its summary is {spec.summary!r}: say in one line what it is, for lists.",
    )
    expect(
        bool(spec.license.strip()),
        "its spec says no licence: license='MIT', say, or the terms in a few words.",
    )
    expect(
        spec.citation == spec.citation.strip(),
        f"its citation is {spec.citation!r}: 'arXiv:2410.21582', a DOI, or '' for your own work.",
    )
    for other in trial.catalog.list(spec.kind):
        same = sorted(_short_names(spec) & _short_names(other.spec))
        expect(
            other.plugin.name == component.plugin.name or not same,
            f"the plugin {other.plugin.name} ({other.plugin.distribution}) has a {spec.kind} "
            f"called {''.join(same[:1])!r}, too: for whoever has both installed the short name is "
            "ambiguous. Choose another.",
        )


def _short_names(spec: Spec) -> set[str]:
    """Its name, and those of a family's members."""
    variants = spec.variants if isinstance(spec, BackboneSpec) else ()
    return {spec.name, *(variant.alias for variant in variants if variant.alias)}


def check_component_target(trial: ComponentTrial) -> None:
    """Its target imports, without network and traces, and is a class or a function.

    A trace is a variable of the environment that its own code changes, or a global random state.
    Only the first import in a process can leave one.
    """
    component = trial.component
    package = component.spec.target.partition(":")[0].partition(".")[0]
    with traced(package) as left, no_network() as reached:
        load_target(component.spec.target, component.what)
    expect(not reached, f"importing its target reaches for {', '.join(reached)} on the network.")
    expect(
        not left.environment,
        f"importing its target changes {', '.join(left.environment)} in the environment, for "
        "every other plugin too. Pass settings as arguments.",
    )
    expect(
        not left.random,
        f"importing its target changes the global random state of {', '.join(left.random)}. Draw "
        "from a generator of your own, when the component is built.",
    )


def check_component_options(trial: ComponentTrial) -> None:
    """Its options say their types in full; the defaults are of these, and are accepted."""
    component, signature = trial.component, trial.component.signature
    for option in signature.options:
        expect(
            option.is_checked,
            f"the type of its option {option.name!r}, {option.annotation}, cannot be read, so that "
            "no value is checked: write it out, as int | None or Literal['a', 'b'].",
        )
        bare = next(_bare(option.annotation), "")
        expect(
            not bare,
            f"the type of its option {option.name!r}, {option.annotation}, does not say what is "
            f"in it, so that a number stays a text: say {_IN_FULL.get(bare, bare)}, for example.",
        )
    has = {option.name: option.default for option in signature.options}
    required = [name for name, default in has.items() if default == REQUIRED]
    try:
        # As if a user had written them: a default is not converted otherwise.
        signature.bind({**dict.fromkeys(required, "x"), **_free(has)}, component.what)
    except ConfigError as error:
        problems = [p for p in error.problems if not any(f"option {r}=" in p for r in required)]
        expect(not problems, f"a default does not fit its option's type: {'; '.join(problems)}")
    if not required:
        component.bind(Reference(component.spec.name)).build()


#: Types that hold others, and how to say of what.
_IN_FULL = {
    "list": "list[float]", "tuple": "tuple[float, ...]", "set": "set[str]",
    "frozenset": "frozenset[str]", "dict": "dict[str, float]", "Sequence": "Sequence[float]",
    "Mapping": "Mapping[str, float]", "Iterable": "Iterable[float]", "List": "List[float]",
    "Tuple": "Tuple[float, ...]", "Set": "Set[str]", "Dict": "Dict[str, float]",
}  # fmt: skip


def _bare(annotation: str) -> Iterator[str]:
    """The types in an annotation that hold others, and do not say what: `list` of `list | None`."""
    tree = ast.parse(annotation, mode="eval")
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        name = getattr(node, "id", "") or getattr(node, "attr", "")  # list, typing.List
        if name in _IN_FULL and id(node) not in told:
            yield name


def check_component_docs(trial: ComponentTrial) -> None:
    """Its docstring says in Args what each option is."""
    options = trial.component.signature.options
    silent = [repr(option.parameter) for option in options if not option.doc.strip()]
    expect(
        not silent,
        f"its docstring does not say what {', '.join(silent)} is: give it a line under Args (of a "
        "class, in its own docstring); `rib-harness show` and the documentation print it.",
    )


def _free(defaults: dict[str, object]) -> dict[str, object]:
    """The defaults that there are."""
    return {name: value for name, value in defaults.items() if value != REQUIRED}


PLUGIN_CHECKS = (
    check_plugin_loads,
    check_plugin_offers,
    check_plugin_light,
    check_plugin_fast,
    check_plugin_offline,
    check_plugin_environment,
    check_plugin_random_state,
    check_plugin_silent,
)

_WITH_OPTIONS = (
    check_component_spec,
    check_component_target,
    check_component_options,
    check_component_docs,
)

#: Kind → checks of what a component says of itself. A suite has no target; a metric no options.
COMPONENT_CHECKS = {
    "backbone": _WITH_OPTIONS,
    "dataset": _WITH_OPTIONS,
    "method": _WITH_OPTIONS,
    "metric": (check_component_spec, check_component_target),
    "suite": (check_component_spec,),
}
