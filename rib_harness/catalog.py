"""Find, load, isolate, name and block plugins: an immutable `Catalog` of components.

There is no global manager: `load_catalog()` builds a catalog, and tests build their own. Plugins
are read in the order of (entry-point name, distribution); one that fails takes nobody with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pluggy
from packaging.utils import canonicalize_name

from rib_harness import hookspecs
from rib_harness.errors import (
    AmbiguousComponentError,
    ConfigError,
    PluginError,
    RibError,
    UnknownComponentError,
    nearest,
)
from rib_harness.options import Reference, Signature, load_target, signature_of, spelled
from rib_harness.quiet import stdout_to_stderr
from rib_harness.spec_checks import NAME, checked
from rib_harness.specs import KINDS, BackboneSpec, Event, Spec, Variant

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

#: Imports that make every start slow; a plugin module leaves them to its targets.
HEAVY = ("torch", "torchvision", "timm", "open_clip", "transformers", "datasets", "tensorflow",
         "jax", "sklearn", "scipy", "pandas", "accelerate")  # fmt: skip


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
            "commit": self.commit or _checkout(self.folder),
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
        """Its options. A suite has none."""
        if not self.spec.target:
            return Signature((), doc=self.spec.summary)
        whole = signature_of(self.spec.target, self.what)
        fixed = self.spec.arguments
        return replace(whole, options=tuple(o for o in whole.options if o.parameter not in fixed))

    def bind(self, reference: Reference, presets: Mapping[str, Any] | None = None) -> Bound:
        """This component with all its options resolved and checked."""
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
        title: for tables and step ids, instead of name and options.
    """

    component: Component
    options: Mapping[str, Any]
    explicit: Mapping[str, Any]
    tag: str = ""
    unique: bool = True
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
        short = {k: Path(v).name if k in self._paths() else v for k, v in self.explicit.items()}
        return self._spell(self.spec.name if self.unique else self.component.id, short)

    @property
    def id(self) -> str:
        """Canonical and complete: `cl-methods/lwf:alpha=0.5`."""
        return self._spell(self.component.id, self.explicit)

    def _spell(self, name: str, options: Mapping[str, Any]) -> str:
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
            if option.is_given_as_path and isinstance(arguments.get(option.parameter), str):
                arguments[option.parameter] = Path(arguments[option.parameter])
        with guarded(self.component.what):
            return target(**arguments)

    def arguments(self) -> dict[str, Any]:
        """The options under the names of the target's parameters."""
        parameters = {o.name: o.parameter for o in self.component.signature.options}
        named = {parameters.get(name, name): value for name, value in self.options.items()}
        return {**self.spec.arguments, **named}

    def key_fields(self) -> dict[str, Any]:
        """What of it goes into a key: all options; of a path the content, not the place."""
        options = {k: v for k, v in self.options.items() if k not in self._paths()}
        if not isinstance(self.spec, BackboneSpec):  # whose identity has the weights' digest
            paths = sorted((self._paths() - self.locations()) & set(self.options))
            options |= {name: _content(self.options[name]) for name in paths}
        return {
            "id": self.component.id,
            "version": self.spec.version,
            "arguments": dict(self.spec.arguments),
            "options": options,
        }


def _said(error: BaseException) -> str:
    """Type and message of whatever a plugin raised."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose message cannot be shown"


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """A component that raises is a `PluginError` that names it; its own `RibError`s go through.

    `RIB_STRICT_PLUGINS=1` keeps the traceback, for authors.
    """
    try:
        yield
    except RibError:
        raise
    except (Exception, SystemExit) as error:
        if os.environ.get("RIB_STRICT_PLUGINS") == "1":
            raise
        raise PluginError(
            f"{what} failed: {_said(error)} (RIB_STRICT_PLUGINS=1 shows the traceback)"
        ) from error


def _content(path: Any) -> str | None:
    """Digest of a file, or of all files of a folder; None where no path was given."""
    if path is None:
        return None
    root = Path(path)
    if not root.exists():
        raise ConfigError([f"There is no file or folder {root}."])
    digest = hashlib.sha256()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(root)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


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
        presets = getattr(component.spec, "presets", {}).get(preset, {})
        bound = component.bind(reference, None if kind == "suite" else presets)
        namesakes = [c for c in self._components[kind].values() if c.spec.name == bound.spec.name]
        return replace(bound, unique=len(namesakes) == 1)

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
                with stdout_to_stderr(), _as_it_was():
                    impl.function(**({"event": event} if "event" in impl.argnames else {}))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                name = f"{impl.plugin_name}.{event.name}"
                if name in self._failed:  # once with its traceback is enough
                    log.error("the observer %s failed: %s", name, _said(error))
                else:
                    self._failed.add(name)
                    log.exception("the observer %s failed", name)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back what an observer may change for everyone: the folder, and torch's defaults."""
    folder, torch = Path.cwd(), sys.modules.get("torch")
    before = (torch.get_default_dtype(), torch.is_grad_enabled()) if torch else None
    try:
        yield
    finally:
        os.chdir(folder)
        if torch and before:
            torch.set_default_dtype(before[0])
            torch.set_grad_enabled(before[1])


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
    environ = os.environ if environ is None else environ
    damaged: list[Plugin] = []
    if entry_points is None:
        entry_points = _installed(damaged)
    points = sorted(entry_points, key=lambda point: (point.name, _distribution(point)[0]))
    by_name: dict[str, list[metadata.EntryPoint]] = defaultdict(list)
    for point in points:
        by_name[point.name].append(point)

    loader = _Loader(strict=environ.get("RIB_STRICT_PLUGINS") == "1")
    for point in points:
        reason = _blocked(point, block, environ)
        if reason:
            loader.refuse(point, "blocked", reason)
            continue
        rivals = [p for p in by_name[point.name] if p is not point]
        if rivals and not _is_first_party(point):
            loader.refuse(point, "conflict", _clash(point, rivals))
            continue
        loader.load(point)
    return Catalog([*loader.plugins, *damaged], loader.components, loader.manager)


def _installed(damaged: list[Plugin]) -> list[metadata.EntryPoint]:
    """The entry points of all distributions; of a damaged one that is a plugin, what is wrong."""
    points: list[metadata.EntryPoint] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        text, name = "", "unknown"
        try:
            text = distribution.read_text("entry_points.txt") or ""
            name = str(distribution.metadata["Name"])
            if hookspecs.ENTRY_POINT_GROUP not in text or canonicalize_name(name) in seen:
                continue  # a distribution found twice is the one that comes first on the path
            seen.add(canonicalize_name(name))
            found = distribution.entry_points.select(group=hookspecs.ENTRY_POINT_GROUP)
            points += [point for point in found if _distribution(point)]
        except Exception as error:
            if hookspecs.ENTRY_POINT_GROUP in text or not text:
                damaged.append(Plugin(name, name, "", "broken", f"what its distribution says of "
                                      f"itself cannot be read: {_said(error)}"))  # fmt: skip
    return points


def _is_first_party(point: metadata.EntryPoint) -> bool:
    """By distribution and name: nobody else gets a right to a name by calling itself so."""
    return _distribution(point)[0] == f"rib-plugin-{point.name}" in FIRST_PARTY


def _clash(point: metadata.EntryPoint, rivals: Sequence[metadata.EntryPoint]) -> str:
    own, listed = _distribution(point)[0], [" ".join(_distribution(p)) for p in rivals]
    if own in {_distribution(rival)[0] for rival in rivals}:
        return f"{own} names the plugin {point.name!r} twice among its entry points"
    way = f"uninstall one, or block the name with RIB_PLUGINS_BLOCK={point.name}"
    if any(map(_is_first_party, rivals)):
        way = f"uninstall {own}"
    return f"the plugin name {point.name!r} is also claimed by {', '.join(listed)}; {way}"


class _Loader:
    """Loads plugins one by one and keeps what came of each."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.plugins: list[Plugin] = []
        self.components: list[Component] = []
        self.manager = pluggy.PluginManager("rib_harness")
        self.manager.add_hookspecs(hookspecs)

    def refuse(self, point: metadata.EntryPoint, status: Status, reason: str, **facts: Any) -> None:
        if self.strict and status in ("incompatible", "conflict"):
            raise PluginError(f"{point.name}: {reason}")
        self.plugins.append(_plugin(point, status, reason=reason, **facts))

    def load(self, point: metadata.EntryPoint) -> None:
        start, before = time.perf_counter(), set(sys.modules)

        def facts() -> dict[str, Any]:
            heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
            return {"seconds": time.perf_counter() - start, "heavy": heavy}

        try:
            if not NAME.fullmatch(point.name):
                raise ValueError("a plugin's name is lower-case words joined by hyphens")
            if not metadata.EntryPoint.pattern.match(point.value):
                raise ValueError(f"expected the entry point 'package.module', got {point.value!r}")
            with stdout_to_stderr():
                module = point.load()
            api = getattr(module, "RIB_PLUGIN_API", None)
            if isinstance(api, bool) or api != hookspecs.PLUGIN_API:
                said = "does not say RIB_PLUGIN_API" if api is None else f"is for API {api!r}"
                self.refuse(
                    point,
                    "incompatible",
                    f"{point.value} {said}; this rib-harness speaks API {hookspecs.PLUGIN_API}",
                    **facts(),
                )
                return
            with stdout_to_stderr():
                specs = self._collect(point.name, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pytest's Skipped is one, and a GeneratorExit
            if self.manager.has_plugin(point.name):
                self.manager.unregister(name=point.name)
            if self.strict:
                if isinstance(error, SystemExit):
                    raise RuntimeError(f"{point.value} called sys.exit at import") from error
                raise
            self.refuse(point, "broken", _said(error), **facts())
            return
        offered: dict[str, tuple[str, ...]] = {}
        for kind in KINDS:
            names = tuple(f"{point.name}/{spec.name}" for spec in specs if spec.kind == kind)
            if names:
                offered[kind] = names
        plugin = _plugin(point, "ok", components=offered, **facts())
        self.plugins.append(plugin)
        self.components += [Component(spec, plugin) for spec in specs]

    def _collect(self, name: str, module: ModuleType) -> list[Spec]:
        self._check_hook_names(module)
        self.manager.register(module, name=name)
        specs: list[Spec] = []
        for hook, expected in hookspecs.REGISTRATION.items():
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != name:
                    continue
                offered = impl.function()
                if isinstance(offered, str) or not isinstance(offered, Iterable):
                    raise TypeError(
                        f"{hook} must return a list of {expected.__name__}, "
                        f"got {type(offered).__name__}"
                    )
                specs += [checked(spec, expected, hook) for spec in offered]
        seen: set[tuple[str, str]] = set()
        for spec in specs:
            if (spec.kind, spec.name) in seen:
                raise ValueError(f"two {spec.kind}s are called {spec.name!r}")
            seen.add((spec.kind, spec.name))
        return specs

    def _check_hook_names(self, module: ModuleType) -> None:
        known = [n for n in dir(hookspecs) if self.manager.parse_hookspec_opts(hookspecs, n)]
        for attribute in dir(module):
            if attribute not in known and self.manager.parse_hookimpl_opts(module, attribute):
                raise ValueError(
                    f"{attribute!r} is no hook of rib-harness.{nearest(attribute, known)} "
                    f"Hooks: {', '.join(known)}"
                )
        for name in known:
            found = getattr(module, name, None)
            own = getattr(found, "__module__", None) == module.__name__
            if own and callable(found) and not self.manager.parse_hookimpl_opts(module, name):
                raise ValueError(
                    f"{name!r} is a hook's name, and without @hookimpl it is never called: put "
                    "@hookimpl (from rib_harness) above it"
                )


def listed(variable: str, environ: Mapping[str, str]) -> set[str]:
    """The names in `RIB_PLUGINS` or `RIB_PLUGINS_BLOCK`."""
    return set(filter(None, map(str.strip, environ.get(variable, "").split(","))))


def _blocked(point: metadata.EntryPoint, block: Sequence[str], environ: Mapping[str, str]) -> str:
    """Why a plugin may not load, or nothing. Its distribution's name does as well as its own."""
    names = {point.name, _distribution(point)[0]}
    if names & set(block):
        return "blocked by --no-plugin"
    if names & listed("RIB_PLUGINS_BLOCK", environ):
        return "blocked by RIB_PLUGINS_BLOCK"
    if "RIB_PLUGINS" in environ and not names & listed("RIB_PLUGINS", environ):
        return "not in RIB_PLUGINS"
    return ""


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution, without importing it."""
    if point.dist is None:
        return ("unknown", "")
    return (str(point.dist.name or "unknown"), str(point.dist.version or ""))


@lru_cache(maxsize=64)
def _checkout(folder: str) -> str:
    """The commit of an editable install's checkout, with `+` where it has changes; else nothing."""
    if not folder:
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _plugin(point: metadata.EntryPoint, status: Status, **facts: Any) -> Plugin:
    name, version = _distribution(point)
    return Plugin(name=point.name, distribution=name, version=version, status=status,
                  **_origin(point), **facts)  # fmt: skip


def _origin(point: metadata.EntryPoint) -> dict[str, Any]:
    """Where the distribution was installed from, as its direct_url.json says (PEP 610)."""
    if point.dist is None:
        return {}
    text = point.dist.read_text("direct_url.json")
    if text is None:  # installed by name
        return {"source": "index"}
    origin: Any = {}
    with suppress(ValueError):
        origin = json.loads(text)

    def said(section: str, field: str) -> Any:
        """A field of the file, which installers write and anyone may have edited."""
        inner = origin.get(section) if isinstance(origin, dict) else None
        return inner.get(field) if isinstance(inner, dict) else None

    url = str(origin.get("url", "")) if isinstance(origin, dict) else ""
    editable = bool(said("dir_info", "editable"))
    commit = str(said("vcs_info", "commit_id") or "")
    return {
        "source": _source(url, editable, str(said("vcs_info", "vcs") or ("git" if commit else ""))),
        "url": re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", url),
        "editable": editable,
        "commit": commit,
        "folder": url2pathname(urlsplit(url).path) if editable else "",
    }


def _source(url: str, editable: bool, vcs: str) -> str:
    """One word for where something was installed from, if not from an index."""
    if editable or vcs or not url:
        return "editable" if editable else vcs or "unknown"
    return "local" if url.startswith("file:") else "url"
