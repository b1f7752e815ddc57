"""Plugins and catalogs for tests: in memory, in a folder, never in what is installed."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from rib_harness.catalog import Catalog, Component, Plugin, load_catalog
from rib_harness.hookspecs import ENTRY_POINT_GROUP, PLUGIN_API, hookimpl
from rib_harness.specs import KINDS, Spec

_COUNTER = itertools.count()


def catalog_with(*offers: tuple[Spec, Any], base: Catalog | None = None) -> Catalog:
    """A catalog that also has these components, without any installed package.

    Args:
        offers: pairs of a spec and the class or function that is its target; what the spec says
            of its target is replaced. A suite has no target: None.
        base: the catalog to add to; None is all installed plugins, `Catalog()` has none.
    """
    base = load_catalog() if base is None else base
    name = f"rib_harness_testing_{next(_COUNTER)}"
    module = _module(name)
    components = [component for kind in KINDS for component in base.list(kind)]
    offered: dict[str, tuple[str, ...]] = {}
    for spec, _ in offers:
        offered[spec.kind] = (*offered.get(spec.kind, ()), f"testing/{spec.name}")
    plugin = Plugin(
        name="testing", distribution="testing", version="0", status="ok", components=offered
    )
    for position, (spec, target) in enumerate(offers):
        if target is not None:
            setattr(module, f"target_{position}", target)
            spec = replace(spec, target=f"{name}:target_{position}")
        components.append(Component(spec, plugin))
    return Catalog([*base.plugins, plugin], components)


def plugin_in_memory(name: str, **hooks: Any) -> metadata.EntryPoint:
    """A plugin that is installed nowhere, for `load_catalog(entry_points=[…])`.

    Args:
        name: of the plugin.
        hooks: functions by the name of their hook, e.g. `register_methods=lambda: [...]`.

    Example:
        >>> point = plugin_in_memory("mine", register_methods=lambda: [])
        >>> [plugin.status for plugin in load_catalog(entry_points=[point]).plugins]
        ['ok']
    """
    module = _module(f"rib_harness_testing_{next(_COUNTER)}")
    module.__dict__["RIB_PLUGIN_API"] = PLUGIN_API
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return metadata.EntryPoint(name=name, value=module.__name__, group=ENTRY_POINT_GROUP)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = module
    return module


class FakeSite:
    """A folder like site-packages, with distributions that have entry points.

    Within `with`, it is on the path, as if they were installed; afterwards their modules are
    forgotten.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        plugin: str,
        files: Mapping[str, str] | str,
        *,
        distribution: str = "",
        version: str = "1.0",
        value: str = "",
    ) -> str:
        """Put a distribution with one plugin there.

        Args:
            plugin: the entry point's name.
            files: path below the folder → text; or the text of a single module.
            distribution: its name; `rib-plugin-PLUGIN` if not given.
            version: of the distribution.
            value: where the entry point leads; the first file if not given.

        Returns:
            the name of the module that the entry point leads to.
        """
        distribution = distribution or f"rib-plugin-{plugin}"
        if isinstance(files, str):
            files = {f"fake_{distribution}_{plugin}.py".replace("-", "_"): files}
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        first = next(iter(files)).removesuffix(".py").replace("/", ".")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(
            f"[{ENTRY_POINT_GROUP}]\n{plugin} = {value or first}\n"
        )
        importlib.invalidate_caches()
        return value or first

    def entry_points(self) -> list[metadata.EntryPoint]:
        """Those of the folder alone."""
        found = metadata.distributions(path=[str(self.folder)])
        return [p for d in found for p in d.entry_points if p.group == ENTRY_POINT_GROUP]

    def load(self, **settings: Any) -> Catalog:
        """A catalog of what is in the folder alone; settings are those of `load_catalog`."""
        return load_catalog(entry_points=self.entry_points(), environ={}, **settings)

    def __enter__(self) -> FakeSite:
        sys.path.insert(0, str(self.folder))
        return self

    def __exit__(self, *error: object) -> None:
        sys.path.remove(str(self.folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(self.folder)):
                del sys.modules[name]
