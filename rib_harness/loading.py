"""Find installed plugins, and load them one by one: one that fails takes nobody with it."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pluggy
from packaging.utils import canonicalize_name

from rib_harness import hookspecs
from rib_harness.catalog import FIRST_PARTY, Component, Plugin, Status
from rib_harness.errors import PluginError, nearest
from rib_harness.guard import as_it_was, told
from rib_harness.spec_checks import NAME, checked
from rib_harness.specs import KINDS, BackboneSpec, LabelSpace, Spec, Variant

#: Imports that make every start slow; a plugin module leaves them to its targets.
HEAVY = ("torch", "torchvision", "timm", "open_clip", "transformers", "datasets", "tensorflow",
         "jax", "sklearn", "scipy", "pandas", "accelerate")  # fmt: skip


def load(
    entry_points: Iterable[metadata.EntryPoint] | None,
    block: Sequence[str],
    environ: Mapping[str, str],
) -> Loader:
    """What `load_catalog` finds, in the order of (entry-point name, distribution)."""
    damaged: list[Plugin] = []
    if entry_points is None:
        entry_points = _installed(damaged)
    points = sorted(entry_points, key=lambda point: (point.name, _distribution(point)[0]))
    by_name: dict[str, list[metadata.EntryPoint]] = defaultdict(list)
    for point in points:
        by_name[point.name].append(point)

    loader = Loader(strict=environ.get("RIB_STRICT_PLUGINS") == "1")
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
    loader.plugins += damaged
    return loader


def _installed(damaged: list[Plugin]) -> list[metadata.EntryPoint]:
    """The entry points of all distributions; of a damaged one that is a plugin, what is wrong."""
    points: list[metadata.EntryPoint] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        text, name = "", "unknown"
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if hookspecs.ENTRY_POINT_GROUP not in text:
                continue
            name = str(distribution.metadata["Name"])
            if canonicalize_name(name) in seen:
                continue  # found twice: it is the one that comes first on the path
            seen.add(canonicalize_name(name))
            found = distribution.entry_points.select(group=hookspecs.ENTRY_POINT_GROUP)
            _ = distribution.version  # read later on, when nothing catches what it raises
            points += found
        except Exception as error:
            if hookspecs.ENTRY_POINT_GROUP in text or _is_plugin(distribution):
                damaged.append(Plugin(name, name, "", "broken", f"what its distribution says of "
                                      f"itself cannot be read: {told(error)}"))  # fmt: skip
    return points


def _is_plugin(distribution: metadata.Distribution) -> bool:
    """Whether one that cannot be read is a plugin: the bytes of its file say so."""
    folder = getattr(distribution, "_path", None)
    with suppress(OSError):
        group = hookspecs.ENTRY_POINT_GROUP.encode()
        return folder is not None and group in (folder / "entry_points.txt").read_bytes()
    return False


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


class Loader:
    """Loads plugins one by one and keeps what came of each."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.plugins: list[Plugin] = []
        self.components: list[Component] = []
        self.manager = pluggy.PluginManager("rib_harness")
        self.manager.add_hookspecs(hookspecs)

    def refuse(self, point: metadata.EntryPoint, status: Status, reason: str, **facts: Any) -> None:
        """Keep why a plugin was not loaded."""
        if self.strict and status in ("incompatible", "conflict"):
            raise PluginError(f"{point.name}: {reason}")
        self.plugins.append(_plugin(point, status, reason=reason, **facts))

    def load(self, point: metadata.EntryPoint) -> None:
        """Import a plugin and collect what it offers, or keep why that failed."""
        start, before = time.perf_counter(), set(sys.modules)

        def facts() -> dict[str, Any]:
            heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
            return {"seconds": time.perf_counter() - start, "heavy": heavy}

        try:
            if not NAME.fullmatch(point.name):
                raise ValueError("a plugin's name is lower-case words joined by hyphens")
            if not metadata.EntryPoint.pattern.match(point.value):
                raise ValueError(f"expected the entry point 'package.module', got {point.value!r}")
            with as_it_was(f"loading the plugin {point.name}"):
                module = point.load()
            api = getattr(module, "RIB_PLUGIN_API", None)
            if isinstance(api, bool) or api != hookspecs.PLUGIN_API:
                speaks = f"this rib-harness speaks API {hookspecs.PLUGIN_API}"
                self.refuse(
                    point,
                    "incompatible",
                    f"{point.value} is for API {api!r}; {speaks}"
                    if api is not None
                    else f"{point.value} does not say RIB_PLUGIN_API; {speaks}: write "
                    f"RIB_PLUGIN_API = {hookspecs.PLUGIN_API} in it, if it is made for that",
                    **facts(),
                )
                return
            with as_it_was(f"loading the plugin {point.name}"):
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
            package = re.split(r"[.:]", point.value)[0]
            self.refuse(point, "broken", told(error) + _hint(error, package), **facts())
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
            variants = spec.variants if isinstance(spec, BackboneSpec) else ()
            for name in (spec.name, *(variant.alias for variant in variants if variant.alias)):
                if (spec.kind, name) in seen:
                    raise ValueError(f"two {spec.kind}s are called {name!r}")
                seen.add((spec.kind, name))
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


def _hint(error: BaseException, package: str) -> str:
    """Where in a package's own code it was raised, and what a misspelled field may have meant."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [f for f in frames if str(f.f_globals.get("__name__")).partition(".")[0] == package]
    place = ""
    if own:
        last = traceback.extract_tb(error.__traceback__)[frames.index(own[-1])]
        place = f" ({Path(last.filename).name}, line {last.lineno})"
    typo = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", told(error))
    classes = [*hookspecs.REGISTRATION.values(), Variant, LabelSpace] if typo else []
    known = {one.__name__: [f.name for f in fields(one)] for one in classes}
    meant = nearest(typo.group(2), known.get(typo.group(1), ())) if typo else ""
    return f"{place}.{meant}" if meant else place


def listed(variable: str, environ: Mapping[str, str]) -> set[str]:
    """The names in `RIB_PLUGINS` or `RIB_PLUGINS_BLOCK`, as PEP 503 spells them."""
    found = map(str.strip, environ.get(variable, "").split(","))
    return {canonicalize_name(name) for name in found if name}


def _blocked(point: metadata.EntryPoint, block: Sequence[str], environ: Mapping[str, str]) -> str:
    """Why a plugin may not load, or nothing. Its distribution's name does as well as its own."""
    names = {canonicalize_name(one) for one in (point.name, _distribution(point)[0])}
    if names & set(map(canonicalize_name, block)):
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


def _plugin(point: metadata.EntryPoint, status: Status, **facts: Any) -> Plugin:
    name, version = _distribution(point)
    return Plugin(name=point.name, distribution=name, version=version, status=status,
                  **_origin(point), **facts)  # fmt: skip


def _origin(point: metadata.EntryPoint) -> dict[str, Any]:
    """Where the distribution was installed from, as its direct_url.json says (PEP 610)."""
    if point.dist is None:
        return {}
    origin: Any = {}
    with suppress(ValueError, OSError):  # damaged: then it is not known
        text = point.dist.read_text("direct_url.json")
        if text is None:  # installed by name
            return {"source": "index"}
        origin = json.loads(text)

    def said(section: str, field: str) -> Any:
        """A field of the file, which installers write and anyone may have edited."""
        inner = origin.get(section) if isinstance(origin, dict) else None
        return inner.get(field) if isinstance(inner, dict) else None

    url = str(origin.get("url", "")) if isinstance(origin, dict) else ""
    folder = ""
    with suppress(ValueError):  # no URL
        folder = url2pathname(urlsplit(url).path)
    editable = bool(said("dir_info", "editable"))
    commit = str(said("vcs_info", "commit_id") or "")
    return {
        "source": _source(url, editable, str(said("vcs_info", "vcs") or ("git" if commit else ""))),
        "url": re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", url),
        "editable": editable,
        "commit": commit,
        "folder": folder if editable else "",
    }


def _source(url: str, editable: bool, vcs: str) -> str:
    """One word for where something was installed from, if not from an index."""
    if editable or vcs or not url:
        return "editable" if editable else vcs or "unknown"
    return "local" if url.startswith("file:") else "url"
