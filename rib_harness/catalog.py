"""An immutable `Catalog` of components: what plugins offer, under names that nothing overrides.

There is no global manager: `load_catalog()` builds a catalog, and tests build their own.
"""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from rib_harness.errors import (
    AmbiguousComponentError,
    ConfigError,
    PluginError,
    UnknownComponentError,
    nearest,
)
from rib_harness.guard import as_it_was, guarded, told
from rib_harness.options import (
    Reference,
    Signature,
    as_paths,
    load_target,
    signature_of,
    spelled,
)
from rib_harness.provenance import code_of
from rib_harness.specs import KINDS, BackboneSpec, Event, MetricSpec, Spec, Variant

if TYPE_CHECKING:
    from rib_harness.images import ImageSet

#: Before a key of the recipe, in a reference of a method: `ft:recipe.lr=0.003`.
RECIPE = "recipe."

Status = Literal["ok", "broken", "incompatible", "conflict", "blocked"]

#: Distributions of this repository; nobody else may take their plugins' names.
FIRST_PARTY = frozenset(
    {
        "rib-plugin-cl-methods",
        "rib-plugin-digits",
        "rib-plugin-imagenet-ood",
        "rib-plugin-metrics",
        "rib-plugin-open-clip",
        "rib-plugin-runlog",
        "rib-plugin-timm",
        "rib-plugin-torchvision",
    }
)


@dataclass(frozen=True)
class Plugin:
    """One plugin as found: whether it loaded, and where it came from.

    Args:
        name: the entry point's name; the first half of canonical ids.
        distribution: the installed package, and its `version`.
        status: ok, broken, incompatible, conflict or blocked; `reason` says why if not ok.
        components: canonical ids of what it offers, by kind.
        seconds: time to load.
        heavy: heavy packages that loading it imported.
        editable: whether it is installed in editable mode.
        commit: the VCS commit it was installed from, if known.
        folder: where it lies, if it is editable.
        source: how it was installed: index, editable, local, url, git (or another VCS), unknown.
        url: of what was installed, if it came from no index; without user name and password.
    """

    name: str
    distribution: str
    version: str
    status: Status
    reason: str = ""
    components: Mapping[str, tuple[str, ...]] | None = None
    seconds: float = 0.0
    heavy: tuple[str, ...] = ()
    editable: bool = False
    commit: str = ""
    folder: str = ""
    source: str = "unknown"
    url: str = ""

    @property
    def origin(self) -> str:
        """Its source for tables: `index`, `editable`, `git 5e1f0ab`."""
        return f"{self.source} {self.commit[:7]}" if self.commit else self.source

    @property
    def code(self) -> dict[str, Any]:
        """Which code this is: distribution, version, editable or not, commit."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "editable": self.editable,
            # Nothing is run in the folder of one that was not loaded, not even git.
            "commit": self.commit or (_checkout(self.folder) if self.status == "ok" else ""),
        }


@dataclass(frozen=True)
class Component:
    """One registered component and the plugin that offers it."""

    spec: Spec
    plugin: Plugin

    @property
    def id(self) -> str:
        """The canonical id `plugin/name`."""
        return f"{self.plugin.name}/{self.spec.name}"

    @property
    def what(self) -> str:
        """For messages: `method 'cl-methods/lwf'`."""
        return f"{self.spec.kind} {self.id!r}"

    @property
    def signature(self) -> Signature:
        """Its options. A suite has none, nor has a metric: a run gives it its inputs."""
        if not self.spec.target:
            return Signature((), doc=self.spec.summary)
        whole = signature_of(self.spec.target, self.what)
        if isinstance(self.spec, MetricSpec):
            return Signature((), doc=whole.doc)
        fixed = self.spec.arguments
        return replace(whole, options=tuple(o for o in whole.options if o.parameter not in fixed))

    def check_arguments(self) -> None:
        """Raise where what the spec fixes is nothing that its target takes.

        Raises:
            PluginError: an unknown argument, with the nearest name, or a value of another type.
        """
        if not self.spec.arguments:
            return
        whole = signature_of(self.spec.target, self.what)
        names = {option.parameter: option.name for option in whole.options}
        given = {names.get(name, name): value for name, value in self.spec.arguments.items()}
        others = tuple(replace(option, default=None) for option in whole.options)  # none is needed
        try:
            replace(whole, options=others).bind(given, self.what)
        except ConfigError as error:
            raise PluginError(f"The spec's `arguments` do not fit its target: {error}") from None

    def bind(self, reference: Reference, presets: Mapping[str, Any] | None = None) -> Bound:
        """This component with all its options resolved and checked."""
        self.check_arguments()
        given: dict[str, Any] = {**(presets or {}), **reference.options}
        signature, family = self.signature, isinstance(self.spec, BackboneSpec) and self.spec.family
        if reference.tag and not family:
            has = ", ".join(option.name for option in signature.options) or "none"
            raise ConfigError(
                [f"{self.what}: expected option=value, got {reference.tag!r}. Its options: {has}."]
            )
        if family:
            if not reference.tag:
                raise ConfigError(
                    [f"{self.what} is a family: name its member, as in {self.spec.name}:TAG."]
                )
            given = {"tag": reference.tag, **given}
        options = signature.bind(given, self.what)
        explicit = {
            name: options[name]
            for name in given
            if name != "tag"
            and options[name] != next((o.default for o in signature.options if o.name == name), ...)
        }
        return Bound(self, options, explicit, reference.tag)

    def provenance(self) -> dict[str, Any]:
        """What a result records of where this code came from."""
        plugin = self.plugin
        return {
            "id": self.id,
            "kind": self.spec.kind,
            "target": self.spec.target,
            "plugin": plugin.name,
            **plugin.code,
            "code": code_of(self.spec),
        }


@dataclass(frozen=True)
class Bound:
    """A component with its options: what a step is made of.

    Args:
        component: which one.
        options: every option with its value.
        explicit: those that differ from their defaults.
        tag: the member of a family.
        unique: whether no other component of the kind has its short name.
        recipe: values of the recipe that hold for this method only.
        title: for tables and step ids, instead of name and options.
    """

    component: Component
    options: Mapping[str, Any]
    explicit: Mapping[str, Any]
    tag: str = ""
    unique: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def spec(self) -> Any:
        """The component's spec."""
        return self.component.spec

    @property
    def label(self) -> str:
        """Short, for tables and step ids: `lwf:alpha=0.5`; of a path only the file's name."""
        if self.title:
            return self.title
        short = {k: _short(v) if k in self._paths() else v for k, v in self.explicit.items()}
        return self._spell(self.spec.name if self.unique else self.component.id, short)

    @property
    def id(self) -> str:
        """Canonical and complete: `cl-methods/lwf:alpha=0.5`."""
        return self._spell(self.component.id, self.explicit)

    def _spell(self, name: str, options: Mapping[str, Any]) -> str:
        options = {**options, **{RECIPE + key: value for key, value in self.recipe.items()}}
        tail = ",".join(([self.tag] if self.tag else []) + list(spelled(options)))
        return f"{name}:{tail}" if tail else name

    def _paths(self) -> set[str]:
        return {option.name for option in self.component.signature.options if option.is_path}

    def locations(self) -> set[str]:
        """Options that say where it lies, and nothing of what it is."""
        return {o.name for o in self.component.signature.options if o.is_location}

    def build(self) -> Any:
        """Import the target and call it with the options."""
        target = load_target(self.spec.target, self.component.what)
        arguments = self.arguments()
        for option in self.component.signature.options:
            if option.is_given_as_path and option.parameter in arguments:
                arguments[option.parameter] = as_paths(arguments[option.parameter])
        with guarded(self.component.what):
            return target(**arguments)

    def images(self, root: Path | None) -> ImageSet:
        """The images of a dataset, opened.

        Args:
            root: the folder that holds datasets.

        Raises:
            DataError: its data are not there, or wrong.
            PluginError: its code failed, or gave something else.
        """
        from rib_harness.images import ImageSet

        dataset, what = self.build(), self.component.what
        with guarded(what):
            images = dataset.open(root)
        if not isinstance(images, ImageSet):
            raise PluginError(
                f"{what}: open() gave {type(images).__name__}: return a rib_harness.ImageSet."
            )
        return images

    def location(self, root: Path | None) -> str | None:
        """Where a dataset's files lie, opening none; None if it does not say.

        Raises:
            DataError: they are not there.
            PluginError: its code failed.
        """
        dataset = self.build()
        if not hasattr(dataset, "locate"):
            return None
        with guarded(self.component.what):
            there = dataset.locate(root)
        return None if there is None else str(there)

    def arguments(self) -> dict[str, Any]:
        """The options under the names of the target's parameters, as copies of one's own."""
        parameters = {o.name: o.parameter for o in self.component.signature.options}
        named = {parameters.get(name, name): value for name, value in self.options.items()}
        return copy.deepcopy({**self.spec.arguments, **named})

    def key_fields(self) -> dict[str, Any]:
        """What of it goes into a key: all options; of a path the content, not the place."""
        options = {k: v for k, v in self.options.items() if k not in self._paths()}
        if not isinstance(self.spec, BackboneSpec):  # whose identity has the weights' digest
            paths = sorted((self._paths() - self.locations()) & set(self.options))
            options |= {name: _content(self.options[name]) for name in paths}
        elif options.get("weights_key") is None:  # results from before there was this option stay
            options.pop("weights_key", None)
        return {
            "id": self.component.id,
            "version": self.spec.version,
            "arguments": dict(self.spec.arguments),
            "options": options,
        }


def _short(path: Any) -> Any:
    """Of a path its last part; likewise of several."""
    return tuple(map(_short, path)) if isinstance(path, list | tuple) else Path(path).name


def _content(path: Any) -> Any:
    """Digest of a file, or of all files of a folder; None where no path was given."""
    if path is None:
        return None
    if isinstance(path, list | tuple):
        return [_content(one) for one in path]
    root = Path(path)
    if not root.exists():
        raise ConfigError([f"There is no file or folder {root}."])
    digest = hashlib.sha256()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(root)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _recipe_apart(reference: Reference) -> tuple[Reference, dict[str, Any]]:
    """The values of the recipe in a reference of a method, checked, and the reference without.

    Raises:
        ConfigError: no key of a recipe, or a wrong value of one.
    """
    options = dict(reference.options)
    given = {
        name.removeprefix(RECIPE).replace("-", "_"): options.pop(name)
        for name in reference.options
        if name.startswith(RECIPE)
    }
    if not given:
        return reference, {}
    from rib_harness.config import make_recipe

    # How it keeps needs a share that is kept, which the run may give.
    read = make_recipe({"keep": 0.5, **given})
    return replace(reference, options=options), {key: getattr(read, key) for key in given}


class Catalog:
    """Every component of every plugin that loaded, and the fate of those that did not.

    Args:
        plugins: all plugins found, loaded or not.
        components: what the loaded ones offer.
        manager: calls the observer hooks; None calls nobody.
    """

    def __init__(
        self,
        plugins: Iterable[Plugin] = (),
        components: Iterable[Component] = (),
        manager: pluggy.PluginManager | None = None,
    ):
        self.plugins = tuple(plugins)
        self._manager = manager
        self._failed: set[str] = set()
        self._components: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        for component in components:
            self._components[component.spec.kind][component.id] = component

    def list(self, kind: str) -> list[Component]:
        """All components of one kind, by canonical id."""
        return [self._components[kind][key] for key in sorted(self._components[kind])]

    def get(self, kind: str, name: str) -> Component:
        """The component of a short name or a canonical id.

        Raises:
            UnknownComponentError: with the nearest names, or with the plugin to install.
            AmbiguousComponentError: a short name that several plugins use.
            PluginError: the plugin that the name points to did not load.
        """
        components = self._components[kind]
        if name in components:
            return components[name]
        matches = [c for c in components.values() if c.spec.name == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(
                f"{c.id} ({c.plugin.distribution} {c.plugin.version})" for c in matches
            )
            raise AmbiguousComponentError(
                f"{len(matches)} {kind}s are called {name!r}: {listed}. Use the full id."
            )
        self._explain_missing_plugin(kind, name)
        # Read when needed only: most starts never look into it.
        from rib_harness.registry import known_plugins

        known = set(components) if "/" in name else {c.spec.name for c in components.values()}
        if kind == "backbone":
            known |= {variant.alias for _, variant in self.aliases()}
        away = known_plugins().install_hint(kind, name, {p.distribution for p in self.plugins})
        message = f"No {kind} is called {name!r}.{'' if away else nearest(name, known)}"
        hurt = [p for p in self.plugins if p.status != "ok"]
        if hurt:
            listed = ", ".join(f"{p.name} ({p.status}: {p.reason})" for p in hurt)
            message += f" These plugins did not load and may offer it: {listed}."
        message += f" See `rib-harness list {kind}s`."
        raise UnknownComponentError(f"{message} It is {away}" if away else message)

    def _explain_missing_plugin(self, kind: str, name: str) -> None:
        plugin_name, slash, _ = name.partition("/")
        rivals = [plugin for plugin in self.plugins if slash and plugin.name == plugin_name]
        if any(plugin.status == "ok" for plugin in rivals):
            return
        for plugin in rivals:
            raise PluginError(
                f"The {kind} {name!r} belongs to the plugin {plugin.name!r} "
                f"({plugin.distribution} {plugin.version}), which is {plugin.status}: "
                f"{plugin.reason}"
            )

    def bind(self, kind: str, text: str, preset: str = "default") -> Bound:
        """The component that a reference names, with its options resolved.

        The alias of a family's member stands for `family:tag`, in keys too.
        """
        reference = Reference.parse(text)
        if kind == "backbone":
            reference = self._without_alias(reference)
        component = self.get(kind, reference.name)
        recipe: dict[str, Any] = {}
        if kind == "method":
            reference, recipe = _recipe_apart(reference)
        presets = getattr(component.spec, "presets", {}).get(preset, {})
        bound = component.bind(reference, None if kind == "suite" else presets)
        namesakes = [c for c in self._components[kind].values() if c.spec.name == bound.spec.name]
        return replace(bound, unique=len(namesakes) == 1, recipe=recipe)

    def _without_alias(self, reference: Reference) -> Reference:
        """A member's short name as `family:tag`. A component's own name comes first."""
        name = reference.name
        if any(name in (one.id, one.spec.name) for one in self.list("backbone")):
            return reference
        meant = [
            (family, variant)
            for family, variant in self.aliases()
            if name in (variant.alias, f"{family.plugin.name}/{variant.alias}")
        ]
        if len(meant) > 1:
            listed = ", ".join(
                f"{family.plugin.name}/{variant.alias} ({family.plugin.distribution})"
                for family, variant in meant
            )
            raise AmbiguousComponentError(
                f"{len(meant)} backbones are called {name!r}: {listed}. Use the full id."
            )
        for family, variant in meant:
            if reference.tag:
                raise ConfigError(
                    [
                        f"{name} stands for {family.spec.name}:{variant.tag}: expected "
                        f"option=value behind the colon, got {reference.tag!r}."
                    ]
                )
            return replace(reference, name=family.id, tag=variant.tag)
        return reference

    def aliases(self) -> Iterator[tuple[Component, Variant]]:
        """Members of families of backbones that have a short name."""
        for component in self.list("backbone"):
            if isinstance(component.spec, BackboneSpec):
                for variant in component.spec.variants:
                    if variant.alias:
                        yield component, variant

    def notify(self, event: Event, log: Any) -> None:
        """Call the observers; what one raises is logged and changes nothing, `sys.exit` too."""
        if self._manager is None:
            return
        for impl in getattr(self._manager.hook, event.name).get_hookimpls():
            try:
                with as_it_was(f"the observer {impl.plugin_name}.{event.name}"):
                    impl.function(**({"event": event} if "event" in impl.argnames else {}))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                name = f"{impl.plugin_name}.{event.name}"
                if name in self._failed:  # once with its traceback is enough
                    log.error("the observer %s failed: %s", name, told(error))
                else:
                    self._failed.add(name)
                    log.exception("the observer %s failed", name)


def load_catalog(
    *,
    block: Sequence[str] = (),
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Catalog:
    """Load every installed plugin.

    Args:
        block: names of plugins not to load, beside those in `RIB_PLUGINS_BLOCK`.
        entry_points: what to load instead of what is installed (for tests).
        environ: environment to read instead of the process's.

    Environment:
        RIB_PLUGINS: comma-separated allowlist; set and empty means none.
        RIB_PLUGINS_BLOCK: comma-separated blocklist.
        RIB_STRICT_PLUGINS: `1` raises a plugin's own exception.
    """
    from rib_harness.loading import load

    found = load(entry_points, block, os.environ if environ is None else environ)
    return Catalog(found.plugins, found.components, found.manager)


@lru_cache(maxsize=64)
def _checkout(folder: str) -> str:
    """The commit of an editable install's checkout, with `+` where it has changes; else nothing.

    Git runs no program that the checkout's own configuration names, nor one that it fetches with.
    Without its filters, a file that one would convert and that was touched counts as a change.
    """
    if not folder:
        return ""
    off = ["core.fsmonitor=", f"core.hooksPath={os.devnull}", "diff.external="]
    # Set where a hook of git runs us, these would name another repository.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "no"}

    def git(*arguments: str, may_fail: bool = False) -> str:
        options = [part for one in off for part in ("-c", one)]
        done = subprocess.run(
            ["git", "--no-pager", "-C", folder, *options, *arguments],
            capture_output=True, text=True, errors="surrogateescape", env=environment,
            check=not may_fail,
        )  # fmt: skip
        return done.stdout

    try:
        filters = git("config", "-z", "--name-only", "--get-regexp", r"^filter\.", may_fail=True)
        for name in filter(None, filters.split("\0")):
            if "=" in name:  # `-c` would set another
                return ""
            off.append(f"{name}={'false' if name.endswith('.required') else ''}")
        commit = git("rev-parse", "HEAD").strip()
        # A submodule has a configuration of its own: its commit is compared, its files are not.
        changes = git("status", "--porcelain", "--untracked-files=normal",
                      "--ignore-submodules=dirty", ".")  # fmt: skip
    except (OSError, ValueError, subprocess.CalledProcessError):
        return ""
    return commit + "+" * bool(changes)
