"""Loading plugins: each line of the section "Loading", on plugins made here."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rib_harness import ConfigError, Event, MethodSpec, PluginError
from rib_harness.catalog import Catalog, Component, Plugin, _checkout, load_catalog
from rib_harness.errors import AmbiguousComponentError, UnknownComponentError
from rib_harness.options import Reference

#: What every plugin made here begins with.
HEAD = """
from rib_harness import (
    BackboneSpec, DatasetSpec, Knob, LabelSpace, MethodSpec, MetricSpec, SuiteSpec, Variant,
    hookimpl,
)

RIB_PLUGIN_API = 1
SPACE = LabelSpace("tens", 10)
"""

SPEC = 'MethodSpec(name="mine", target="pkg.mine:Mine", summary="A method.")'


def returning(*specs: str, hook: str = "register_methods") -> str:
    """A plugin whose hook returns these specs."""
    return f"{HEAD}\n@hookimpl\ndef {hook}():\n    return [{', '.join(specs)}]\n"


def methods(*names: str) -> str:
    """A plugin that offers methods of these names."""
    specs = (f"MethodSpec(name={name!r}, target='pkg.mine:Mine', summary='')" for name in names)
    return returning(*specs)


class Site:
    """A site-packages folder in the making."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def add(
        self,
        plugin: str,
        source: str = "",
        *,
        distribution: str = "",
        version: str = "1.0",
        value: str = "",
        origin: Any = None,
    ) -> str:
        """Install a distribution with one plugin; the name of its module."""
        distribution = distribution or f"rib-plugin-{plugin}"
        module = f"fake_{distribution}_{plugin}".replace("-", "_")
        (self.folder / f"{module}.py").write_text(source or methods("mine"))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(
            f"[console_scripts]\nother = x:y\n\n[rib_harness]\n{plugin} = {value or module}\n"
        )
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin))
        importlib.invalidate_caches()
        return module

    def entry_points(self) -> list[metadata.EntryPoint]:
        found = metadata.distributions(path=[str(self.folder)])
        return [p for d in found for p in d.entry_points if p.group == "rib_harness"]

    def load(self, environ: dict[str, str] | None = None, **settings: Any) -> Catalog:
        return load_catalog(entry_points=self.entry_points(), environ=environ or {}, **settings)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.folder))
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(made.folder)):
            del sys.modules[name]


def only(catalog: Catalog) -> Plugin:
    (plugin,) = catalog.plugins
    return plugin


def fates(catalog: Catalog) -> dict[str, str]:
    return {plugin.name: plugin.status for plugin in catalog.plugins}


def ids(catalog: Catalog, kind: str = "method") -> list[str]:
    return [component.id for component in catalog.list(kind)]


# Order, and a plugin that loads


def test_plugins_are_read_by_entry_point_name_then_distribution(site: Site) -> None:
    note = "import fake_order\nfake_order.SEEN.append(__name__)\n"
    (site.folder / "fake_order.py").write_text("SEEN = []\n")
    site.add("b", note + methods("x"), distribution="rib-plugin-1")
    site.add("c", note + methods("x"), distribution="rib-plugin-0")
    site.add("a", note + methods("x"), distribution="rib-plugin-9")
    points = site.entry_points()
    for given in (points, points[::-1]):
        catalog = load_catalog(entry_points=given, environ={})
        assert [plugin.name for plugin in catalog.plugins] == ["a", "b", "c"]
    assert sys.modules["fake_order"].SEEN == [
        "fake_rib_plugin_9_a",
        "fake_rib_plugin_1_b",
        "fake_rib_plugin_0_c",
    ]
    site.add("a", distribution="rib-plugin-8")
    assert [p.distribution for p in site.load().plugins if p.name == "a"] == [
        "rib-plugin-8",
        "rib-plugin-9",
    ]


def test_a_plugin_that_loads_says_what_it_offers(site: Site) -> None:
    site.add(
        "good",
        methods("two", "one")
        + """
@hookimpl
def register_metrics():
    yield MetricSpec(name="ece", target="pkg.ece:ece", summary="", level="scores")

@hookimpl
def register_suites():
    return (SuiteSpec(name="s", summary="", label_space=SPACE, members=("a",), backbone="b"),)

@hookimpl
def register_backbones():
    return [BackboneSpec(name="b", target="pkg.b:B", summary="", label_space=SPACE)]

@hookimpl
def register_datasets():
    return [DatasetSpec(name="a", target="pkg.a:A", summary="", label_space=SPACE)]
""",
        version="2.5",
    )
    catalog = site.load()
    plugin = only(catalog)
    assert (plugin.status, plugin.reason, plugin.heavy) == ("ok", "", ())
    assert (plugin.distribution, plugin.version) == ("rib-plugin-good", "2.5")
    assert plugin.components == {
        "backbone": ("good/b",),
        "dataset": ("good/a",),
        "method": ("good/two", "good/one"),
        "metric": ("good/ece",),
        "suite": ("good/s",),
    }
    assert ids(catalog) == ["good/one", "good/two"]
    assert catalog.get("method", "one") is catalog.get("method", "good/one")


def test_a_plugin_may_have_no_hooks(site: Site) -> None:
    site.add("empty", HEAD)
    assert (only(site.load()).status, only(site.load()).components) == ("ok", {})


def test_no_plugins_make_an_empty_catalog(site: Site) -> None:
    catalog = site.load()
    assert (catalog.plugins, catalog.list("method")) == ((), [])
    with pytest.raises(UnknownComponentError, match=r"^No method is called 'lwf'\. See `rib-"):
        catalog.get("method", "lwf")


def test_catalogs_share_nothing(site: Site) -> None:
    site.add("good")
    assert ids(site.load()) == ids(site.load()) == ["good/mine"]
    assert ids(site.load(block=["good"])) == []


def test_what_is_installed_is_loaded_when_nothing_is_given() -> None:
    installed = {point.name for point in metadata.entry_points(group="rib_harness")}
    assert {plugin.name for plugin in load_catalog(environ={}).plugins} == installed
    assert "cl-methods" in installed


# Broken and incompatible

BROKEN: dict[str, tuple[str, str]] = {
    "import": (
        "import no_such_package\n",
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "syntax": ("def broken(:\n", "SyntaxError: invalid syntax"),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "exit-in-hook": (
        f"import sys{HEAD}\n@hookimpl\ndef register_methods():\n    sys.exit('no licence')\n",
        "SystemExit: no licence",
    ),
    "hook-name": (
        returning(SPEC, hook="register_method"),
        "ValueError: 'register_method' is no hook of rib-harness. Did you mean "
        "'register_methods' or",
    ),
    "hook-name-like-nothing": (
        returning(SPEC, hook="zzz"),
        "ValueError: 'zzz' is no hook of rib-harness. Hooks: register_backbones, "
        "register_datasets, register_methods, register_metrics, register_suites, run_finished, "
        "run_started, step_finished",
    ),
    "hook-argument": (
        f"{HEAD}\n@hookimpl\ndef register_methods(config):\n    return []\n",
        "'config'",
    ),
    "raises": (
        f"{HEAD}\n@hookimpl\ndef register_methods():\n    raise RuntimeError('no GPU')\n",
        "RuntimeError: no GPU",
    ),
    "raises-midway": (
        f"{HEAD}\n@hookimpl\ndef register_methods():\n    yield {SPEC}\n    1 / 0\n",
        "ZeroDivisionError: division by zero",
    ),
    "raises-in-one-of-two": (
        methods("mine") + "\n@hookimpl\ndef register_metrics():\n    return {}['x']\n",
        "KeyError: 'x'",
    ),
    "returns-nothing": (
        f"{HEAD}\n@hookimpl\ndef register_methods():\n    pass\n",
        "TypeError: register_methods must return a list of MethodSpec, got NoneType",
    ),
    "wrong-type": (returning("'mine'"), "register_methods must return MethodSpec, got str"),
    "wrong-spec": (
        returning(SPEC, hook="register_metrics"),
        "TypeError: register_metrics must return MetricSpec, got MethodSpec",
    ),
    "duplicate": (methods("mine", "mine"), "ValueError: two methods are called 'mine'"),
    "name-in-capitals": (
        methods("Mine"),
        "register_methods: MethodSpec 'Mine': a name is lower-case words joined by hyphens",
    ),
    "name-with-slash": (methods("a/b"), "MethodSpec 'a/b': a name is lower-case words"),
    "name-with-colon": (methods("a:b"), "MethodSpec 'a:b': a name is lower-case words"),
    "name-empty": (methods(""), "MethodSpec '': a name is lower-case words"),
    "name-a-number": (
        returning("MethodSpec(name=3, target='a.b:C', summary='')"),
        "MethodSpec 3: a name is lower-case words",
    ),
    "target-without-colon": (
        returning("MethodSpec(name='mine', target='pkg.mine.Mine', summary='')"),
        "expected target 'package.module:attribute', got 'pkg.mine.Mine'",
    ),
    "target-empty": (
        returning("MethodSpec(name='mine', target='', summary='')"),
        "expected target 'package.module:attribute', got ''",
    ),
    "target-an-object": (
        returning("MethodSpec(name='mine', target=print, summary='')"),
        "expected target 'package.module:attribute', got <built-in function print>",
    ),
    "version-zero": (
        returning("MethodSpec(name='mine', target='a.b:C', summary='', version=0)"),
        "MethodSpec 'mine': expected version 1, 2, …, got 0",
    ),
    "version-text": (
        returning("MethodSpec(name='mine', target='a.b:C', summary='', version='1.2')"),
        "expected version 1, 2, …, got '1.2'",
    ),
    "version-true": (
        returning("MethodSpec(name='mine', target='a.b:C', summary='', version=True)"),
        "expected version 1, 2, …, got True",
    ),
    "label-space": (
        returning(
            "DatasetSpec(name='d', target='a.b:C', summary='', label_space='imagenet-1k')",
            hook="register_datasets",
        ),
        "DatasetSpec 'd': expected label_space of type LabelSpace, got 'imagenet-1k'",
    ),
    "members-a-text": (
        returning(
            "SuiteSpec(name='s', summary='', label_space=SPACE, members='a', backbone='b')",
            hook="register_suites",
        ),
        "SuiteSpec 's': expected members of type tuple[str, ...], got 'a'",
    ),
    "needs-a-text": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', needs='ft')"),
        "MethodSpec 'm': expected needs of type tuple[str, ...], got 'ft'",
    ),
    "summary-a-number": (
        returning("MethodSpec(name='m', target='a.b:C', summary=3)"),
        "MethodSpec 'm': expected summary of type str, got 3",
    ),
    "licence-none": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', license=None)"),
        "MethodSpec 'm': expected license of type str, got None",
    ),
    "mergeable-a-text": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', mergeable='no')"),
        "MethodSpec 'm': expected mergeable of type bool, got 'no'",
    ),
    "arguments-a-list": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', arguments=[1])"),
        "MethodSpec 'm': expected arguments of type Mapping[str, Any], got [1]",
    ),
    "arguments-no-json": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', arguments={'x': object})"),
        "MethodSpec 'm': the values of arguments are kept as JSON: ",
    ),
    "level-unknown": (
        returning(
            "MetricSpec(name='m', target='a.b:C', summary='', level='odd')", hook="register_metrics"
        ),
        "MetricSpec 'm': expected level of type Literal['scores', 'matrix', 'drift', 'distance'], ",
    ),
    "range-turned": (
        returning(
            "MetricSpec(name='m', target='a.b:C', summary='', level='scores', range=(1, 0))",
            hook="register_metrics",
        ),
        "MetricSpec 'm': expected range (smallest, largest), got (1, 0)",
    ),
    "knob-turned": (
        returning(
            "MethodSpec(name='m', target='a.b:C', summary='', knobs=(Knob('lr', 1.0, 0.1),))",
            hook="register_methods",
        ),
        "expected values or a range above 0 of the knob 'lr', got 1 … 0.1",
    ),
    "knob-from-zero": (
        returning(
            "MethodSpec(name='m', target='a.b:C', summary='', knobs=(Knob('lr', 0.0, 0.1),))",
            hook="register_methods",
        ),
        "expected values or a range above 0 of the knob 'lr', got 0 … 0.1",
    ),
    "variants-texts": (
        returning(
            "BackboneSpec(name='b', target='a.b:C', summary='', label_space=SPACE, "
            "variants=('x',))",
            hook="register_backbones",
        ),
        "BackboneSpec 'b': expected variants of type tuple[Variant, ...], got ('x',)",
    ),
    "alias-an-id": (
        returning(
            "BackboneSpec(name='b', target='a.b:C', summary='', label_space=SPACE, "
            "variants=(Variant(tag='t', alias='digits/digits-vit'),))",
            hook="register_backbones",
        ),
        "BackboneSpec 'b': an alias is a short name, got 'digits/digits-vit'",
    ),
    "alias-twice": (
        returning(
            "BackboneSpec(name='b', target='a.b:C', summary='', label_space=SPACE, "
            "variants=(Variant(tag='t', alias='aa'), Variant(tag='u', alias='aa')))",
            hook="register_backbones",
        ),
        "two backbones are called 'aa'",
    ),
    "without-hookimpl": (
        methods("mine").replace("@hookimpl\n", ""),
        "'register_methods' is a hook's name, and without @hookimpl it is never called",
    ),
    "pytest-skips": (
        "import pytest\npytest.skip('not here', allow_module_level=True)\n",
        "Skipped: not here",
    ),
    "message-that-raises": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n",
        "Odd, whose message cannot be shown",
    ),
    "unknown-field": (
        returning("MethodSpec(name='m', target='a.b:C', summary='', colour='red')"),
        "unexpected keyword argument 'colour' (fake_rib_plugin_broken_broken.py, line ",
    ),
    "misspelled-field": (
        returning("MethodSpec(name='m', target='a.b:C', sumary='')"),
        "). Did you mean 'summary'?",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_says_why_and_takes_nobody_with_it(case: str, site: Site) -> None:
    source, reason = BROKEN[case]
    site.add("a-good", methods("before"))
    site.add("broken", source)
    site.add("c-good", methods("after"))
    catalog = site.load()
    assert fates(catalog) == {"a-good": "ok", "broken": "broken", "c-good": "ok"}
    broken = catalog.plugins[1]
    assert reason in broken.reason
    assert not broken.components
    assert ids(catalog) == ["a-good/before", "c-good/after"]
    assert not catalog.list("metric") and not catalog.list("dataset")


def test_an_entry_point_that_points_nowhere_is_broken(site: Site) -> None:
    site.add("nowhere", value="no_such_package.plugin")
    site.add("strange", value="not a module")
    assert fates(site.load()) == {"nowhere": "broken", "strange": "broken"}
    assert "No module named 'no_such_package'" in site.load().plugins[0].reason


def test_ctrl_c_is_not_a_broken_plugin(site: Site) -> None:
    site.add("slow", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        site.load()


@pytest.mark.parametrize(
    ("api", "said"),
    [
        ("", "does not say RIB_PLUGIN_API"),
        ("RIB_PLUGIN_API = 2", "is for API 2"),
        ("RIB_PLUGIN_API = '1'", "is for API '1'"),
        ("RIB_PLUGIN_API = True", "is for API True"),
    ],
)
def test_a_plugin_for_another_api_is_incompatible(api: str, said: str, site: Site) -> None:
    module = site.add("other", methods("mine").replace("RIB_PLUGIN_API = 1", api))
    site.add("good", methods("mine"))
    catalog = site.load()
    assert fates(catalog) == {"good": "ok", "other": "incompatible"}
    reason = f"{module} {said}; this rib-harness speaks API 1"
    todo = "" if api else ": write RIB_PLUGIN_API = 1 in it, if it is made for that"
    assert catalog.plugins[1].reason == reason + todo
    assert ids(catalog) == ["good/mine"]


def test_strict_raises_the_plugins_own_exception(site: Site) -> None:
    site.add("broken", f"{HEAD}\n@hookimpl\ndef register_methods():\n    return [][1]\n")
    for relaxed in ({}, {"RIB_STRICT_PLUGINS": "0"}, {"RIB_STRICT_PLUGINS": ""}):
        assert only(site.load(relaxed)).status == "broken"
    with pytest.raises(IndexError) as caught:
        site.load({"RIB_STRICT_PLUGINS": "1"})
    assert "fake_rib_plugin_broken" in str(caught.traceback[-1].path)


# Two distributions, one name


def test_two_distributions_of_one_plugin_name_are_both_refused(site: Site) -> None:
    first = site.add("shared", distribution="rib-plugin-one", version="1.1")
    second = site.add("shared", distribution="rib-plugin-two", version="2.2")
    site.add("other", methods("mine"))
    catalog = site.load()
    assert [(p.distribution, p.status) for p in catalog.plugins] == [
        ("rib-plugin-other", "ok"),
        ("rib-plugin-one", "conflict"),
        ("rib-plugin-two", "conflict"),
    ]
    assert catalog.plugins[1].reason == (
        "the plugin name 'shared' is also claimed by rib-plugin-two 2.2; uninstall one, "
        "or block the name with RIB_PLUGINS_BLOCK=shared"
    )
    assert "also claimed by rib-plugin-one 1.1;" in catalog.plugins[2].reason
    assert ids(catalog) == ["other/mine"]
    assert not {first, second} & set(sys.modules)
    with pytest.raises(PluginError, match="is conflict: the plugin name 'shared' is also claimed"):
        catalog.get("method", "shared/mine")
    assert set(fates(site.load({"RIB_PLUGINS_BLOCK": "shared"})).values()) == {"ok", "blocked"}


def test_a_first_party_distribution_keeps_its_name(site: Site) -> None:
    site.add("digits", methods("theirs"), distribution="a-lookalike")
    site.add("digits", methods("ours"), distribution="rib-plugin-digits")
    catalog = site.load()
    assert [(p.distribution, p.status) for p in catalog.plugins] == [
        ("a-lookalike", "conflict"),
        ("rib-plugin-digits", "ok"),
    ]
    assert catalog.plugins[0].reason.endswith("by rib-plugin-digits 1.0; uninstall a-lookalike")
    assert ids(catalog) == ["digits/ours"]


def test_a_first_party_distribution_has_no_right_to_other_names(site: Site) -> None:
    """Anybody can call a distribution rib-plugin-timm."""
    site.add("shared", distribution="rib-plugin-timm")
    site.add("shared", distribution="rib-plugin-x")
    assert {plugin.status for plugin in site.load().plugins} == {"conflict"}


def test_a_distribution_that_names_a_plugin_twice_is_told_so(site: Site) -> None:
    site.add("mine")
    (point,) = site.entry_points()
    again = metadata.EntryPoint("mine", "other.module", "rib_harness")._for(point.dist)
    catalog = load_catalog(entry_points=[point, again], environ={})
    assert {plugin.reason for plugin in catalog.plugins} == {
        "rib-plugin-mine names the plugin 'mine' twice among its entry points"
    }


@pytest.mark.parametrize("case", ["conflict", "incompatible"])
def test_strict_raises_for_these_too(case: str, site: Site) -> None:
    site.add("mine", methods("x").replace("API = 1", f"API = {1 + (case == 'incompatible')}"))
    if case == "conflict":
        site.add("mine", distribution="rib-plugin-other")
    with pytest.raises(PluginError, match="mine: "):
        site.load({"RIB_STRICT_PLUGINS": "1"})


@pytest.mark.parametrize("name", ["Big Name", "a/b", "a:b", "\x1b[31mred"])
def test_a_plugin_whose_name_cannot_be_asked_for_is_broken(name: str, site: Site) -> None:
    module = site.add("mine")
    point = metadata.EntryPoint(name, module, "rib_harness")
    plugin = only(load_catalog(entry_points=[point], environ={}))
    assert plugin.reason == "ValueError: a plugin's name is lower-case words joined by hyphens"


@pytest.mark.parametrize("damage", ["entry_points.txt", "METADATA"])
def test_a_damaged_distribution_takes_nobody_with_it(
    damage: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: what importlib.metadata itself raises for such files."""
    site.add("good")
    site.add("bad")
    file = site.folder / "rib_plugin_bad-1.0.dist-info" / damage
    file.write_bytes(
        b"[rib_harness]\nno equals sign\n" if damage == "entry_points.txt" else b"\xff"
    )
    found = list(metadata.distributions(path=[str(site.folder)]))
    monkeypatch.setattr(metadata, "distributions", lambda: iter(found))
    fate = {plugin.distribution: plugin.status for plugin in load_catalog(environ={}).plugins}
    assert fate.pop("rib-plugin-good") == "ok"
    assert set(fate.values()) == {"broken"}


def test_what_a_plugin_prints_is_not_among_the_results(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """Below Python too: by a child, or straight to the file descriptor."""
    site.add(
        "loud",
        "import os, subprocess, sys\nprint('one')\nos.write(1, b'two')\n"
        "subprocess.run(['echo', 'three'])\nsys.__stdout__.write('four')\n" + methods("x"),
    )
    assert only(site.load()).status == "ok"
    out, err = capfd.readouterr()
    assert out == ""
    assert all(word in err for word in ("one", "two", "three", "four"))


def test_a_rival_does_not_explain_a_typo_in_the_plugin_that_loaded(site: Site) -> None:
    site.add("digits", methods("theirs"), distribution="a-lookalike")
    site.add("digits", methods("ours"), distribution="rib-plugin-digits")
    with pytest.raises(UnknownComponentError, match="Did you mean 'digits/ours'"):
        site.load().get("method", "digits/oars")


# Aliases

FAMILY = (
    "BackboneSpec(name={name!r}, target='a.b:C', summary='', label_space=SPACE, family=True, "
    "variants=(Variant(tag='t', alias={alias!r}),))"
)
PLAIN = "BackboneSpec(name='tiny', target='a.b:C', summary='', label_space=SPACE)"


def test_an_alias_never_takes_the_place_of_a_component(site: Site) -> None:
    site.add("good", returning(PLAIN, hook="register_backbones"))
    site.add("thief", returning(FAMILY.format(name="fam", alias="tiny"), hook="register_backbones"))
    catalog = site.load()
    for name in ("tiny", "good/tiny"):
        assert catalog._without_alias(Reference(name)) == Reference(name)
    assert catalog._without_alias(Reference("thief/tiny")) == Reference("thief/fam", "t")


def test_an_alias_of_two_families_is_ambiguous(site: Site) -> None:
    for name in ("one", "two"):
        family = FAMILY.format(name=f"fam-{name}", alias="tiny")
        site.add(name, returning(family, hook="register_backbones"))
    with pytest.raises(AmbiguousComponentError, match="2 backbones are called 'tiny': one/tiny"):
        site.load().bind("backbone", "tiny")
    assert site.load()._without_alias(Reference("two/tiny")) == Reference("two/fam-two", "t")


# Names


def test_an_ambiguous_short_name_lists_every_candidate(site: Site) -> None:
    site.add("one", methods("mine", "alone"), version="1.1")
    site.add("two", methods("mine"), version="2.2")
    catalog = site.load()
    with pytest.raises(AmbiguousComponentError) as caught:
        catalog.get("method", "mine")
    assert str(caught.value) == (
        "2 methods are called 'mine': one/mine (rib-plugin-one 1.1), "
        "two/mine (rib-plugin-two 2.2). Use the full id."
    )
    assert catalog.get("method", "two/mine").plugin.name == "two"
    assert catalog.get("method", "alone").id == "one/alone"


def test_kinds_do_not_share_names(site: Site) -> None:
    metric = "MetricSpec(name='mine', target='a.b:c', summary='', level='scores')"
    site.add("one", methods("mine"))
    site.add("two", returning(metric, hook="register_metrics"))
    catalog = site.load()
    assert catalog.get("method", "mine").id == "one/mine"
    assert catalog.get("metric", "mine").id == "two/mine"


def test_an_unknown_name_offers_the_nearest(site: Site) -> None:
    site.add("good", methods("wise-ft"))
    with pytest.raises(UnknownComponentError) as caught:
        site.load().get("method", "wiseft")
    assert str(caught.value) == (
        "No method is called 'wiseft'. Did you mean 'wise-ft'? See `rib-harness list methods`."
    )


def test_a_component_of_a_broken_plugin_fails_with_the_plugins_own_error(site: Site) -> None:
    site.add("hurt", "import no_such_package\n", version="0.4")
    site.add("good", methods("other"))
    catalog = site.load()
    with pytest.raises(PluginError) as caught:
        catalog.get("method", "hurt/mine")
    assert str(caught.value) == (
        "The method 'hurt/mine' belongs to the plugin 'hurt' (rib-plugin-hurt 0.4), which is "
        "broken: ModuleNotFoundError: No module named 'no_such_package' "
        "(fake_rib_plugin_hurt_hurt.py, line 1)"
    )
    with pytest.raises(UnknownComponentError, match=r"may offer it: hurt \(broken: Module"):
        catalog.get("method", "mine")


@pytest.mark.parametrize(
    ("status", "environ", "source"),
    [
        ("blocked", {"RIB_PLUGINS_BLOCK": "hurt"}, methods("mine")),
        ("incompatible", {}, methods("mine").replace("API = 1", "API = 9")),
    ],
)
def test_so_does_one_of_a_plugin_that_may_not_load(
    status: str, environ: dict[str, str], source: str, site: Site
) -> None:
    site.add("hurt", source)
    with pytest.raises(PluginError, match=f"which is {status}: "):
        site.load(environ).bind("method", "hurt/mine:alpha=1")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("json:NoSuchThing", "points to json:NoSuchThing, and NoSuchThing is not there."),
        ("no_such_package:Mine", "points to no_such_package:Mine, but there is no module no_such"),
        ("no_such_package.mine:Mine", "could not be loaded from no_such_package.mine:Mine: Module"),
    ],
)
def test_a_target_that_is_not_there_is_named(target: str, said: str, site: Site) -> None:
    site.add("good", methods("mine").replace("pkg.mine:Mine", target))
    catalog = site.load()
    assert ids(catalog) == ["good/mine"]  # nothing is imported before it is used
    with pytest.raises(PluginError) as caught:
        catalog.bind("method", "mine")
    assert str(caught.value).startswith(f"method 'good/mine' {said}")


# Blocking

BLOCKING: list[tuple[dict[str, str], list[str], dict[str, str]]] = [
    ({"RIB_PLUGINS": "one"}, [], {"two": "not in RIB_PLUGINS"}),
    ({"RIB_PLUGINS": " one , two"}, [], {}),
    ({"RIB_PLUGINS": ""}, [], {"one": "not in RIB_PLUGINS", "two": "not in RIB_PLUGINS"}),
    ({"RIB_PLUGINS_BLOCK": "two"}, [], {"two": "blocked by RIB_PLUGINS_BLOCK"}),
    ({"RIB_PLUGINS_BLOCK": ""}, [], {}),
    ({}, ["one"], {"one": "blocked by --no-plugin"}),
    (
        {"RIB_PLUGINS": "one,two", "RIB_PLUGINS_BLOCK": "one"},
        ["two"],
        {"one": "blocked by RIB_PLUGINS_BLOCK", "two": "blocked by --no-plugin"},
    ),
]


@pytest.mark.parametrize(("environ", "block", "blocked"), BLOCKING)
def test_a_blocked_plugin_is_listed_and_never_imported(
    environ: dict[str, str], block: list[str], blocked: dict[str, str], site: Site
) -> None:
    modules = {name: site.add(name) for name in ("one", "two")}
    catalog = site.load(environ, block=block)
    assert {p.name: p.reason for p in catalog.plugins if p.status == "blocked"} == blocked
    assert {p.name for p in catalog.plugins if p.status == "ok"} == {"one", "two"} - set(blocked)
    for name, module in modules.items():
        assert (module in sys.modules) == (name not in blocked)


def test_the_processs_environment_is_read_when_none_is_given(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("one")
    monkeypatch.setenv("RIB_PLUGINS", "")
    assert fates(load_catalog(entry_points=site.entry_points())) == {"one": "blocked"}


# What is heavy


def test_a_plugin_that_imports_something_heavy_is_reported(site: Site) -> None:
    (site.folder / "jax.py").write_text("")
    site.add("a-light")
    site.add("b-heavy", "import jax\n" + methods("mine"))
    site.add("c-heavy-and-broken", "import tensorflow\nimport no_such_package\n")
    (site.folder / "tensorflow.py").write_text("")
    importlib.invalidate_caches()
    catalog = site.load()
    assert [(p.heavy, p.status) for p in catalog.plugins] == [
        ((), "ok"),
        (("jax",), "ok"),
        (("tensorflow",), "broken"),
    ]


@pytest.mark.slow
def test_torch_at_the_top_of_a_plugin_is_reported(site: Site) -> None:
    site.add("heavy", "import torch\n" + methods("mine"))
    site.add("light")
    code = (
        "import json; from rib_harness import load_catalog\n"
        "print(json.dumps({p.name: p.heavy for p in load_catalog().plugins}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site.folder)},
    )
    assert done.returncode == 0, done.stderr
    heavy = {name: found for name, found in json.loads(done.stdout).items() if found}
    assert list(heavy) == ["heavy"]
    assert "torch" in heavy["heavy"]


# Provenance


def test_an_editable_install_is_known_as_one(site: Site) -> None:
    site.add("edited", origin={"url": "file:///src", "dir_info": {"editable": True}}, version="0.3")
    catalog = site.load()
    assert (only(catalog).editable, only(catalog).commit) == (True, "")
    said = catalog.get("method", "mine").provenance()
    assert len(said.pop("code")) == 64
    assert said == {
        "id": "edited/mine",
        "kind": "method",
        "target": "pkg.mine:Mine",
        "plugin": "edited",
        "distribution": "rib-plugin-edited",
        "version": "0.3",
        "editable": True,
        "commit": "",
    }


@pytest.mark.parametrize(
    ("origin", "editable", "commit"),
    [
        (None, False, ""),
        ({"url": "file:///x.whl", "archive_info": {}}, False, ""),
        ({"url": "file:///src", "dir_info": {}}, False, ""),
        ({"url": "git+x", "vcs_info": {"vcs": "git", "commit_id": "5e1f"}}, False, "5e1f"),
    ],
)
def test_where_a_plugin_was_installed_from(
    origin: Any, editable: bool, commit: str, site: Site
) -> None:
    site.add("p", origin=origin)
    record = site.load().get("method", "mine").provenance()
    assert (record["editable"], record["commit"]) == (editable, commit)


def test_provenance_is_known_of_a_plugin_that_did_not_load(site: Site) -> None:
    site.add("p", "1 / 0\n", origin={"url": "x", "vcs_info": {"commit_id": "5e1f"}})
    assert (only(site.load()).status, only(site.load()).commit) == ("broken", "5e1f")


def test_a_damaged_origin_file_says_nothing(site: Site) -> None:
    site.add("p")
    (info,) = site.folder.glob("*.dist-info")
    (info / "direct_url.json").write_text("{")
    assert (only(site.load()).status, only(site.load()).commit) == ("ok", "")


@pytest.mark.parametrize("origin", [[], {"dir_info": None}], ids=str)
def test_nor_does_one_of_another_shape(origin: Any, site: Site) -> None:
    site.add("p", origin=origin)
    assert only(site.load()).status == "ok"


def git(folder: Path, *arguments: str) -> str:
    """Git as anybody runs it, whatever the repository says."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.ext.allow=always"]
    done = subprocess.run(
        ["git", *own, "-C", str(folder), *arguments],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit, with a submodule; a program beside it leaves a mark when run."""
    folder = tmp_path / "checkout"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'mark'}\nexit 1\n")
    program.chmod(0o755)
    for place in (folder, folder / "inner"):
        git(tmp_path, "init", "-q", str(place))
        (place / "a.py").write_text("1\n")
        (place / ".gitattributes").write_text("*.py filter=x diff=x\n")
        git(place, "add", "a.py", ".gitattributes")
        git(place, "commit", "-qm", "one")
    git(folder, "add", "inner")
    git(folder, "commit", "-qm", "two")
    return folder


def changed(checkout: Path) -> None:
    """So that git has to read a file again."""
    (checkout / "a.py").write_text("2\n")


def post_index_change(checkout: Path) -> None:
    (checkout / ".git" / "hooks" / "post-index-change").symlink_to(checkout.parent / "program")
    os.utime(checkout / "a.py", (1, 1))


def elsewhere(checkout: Path) -> None:
    """Hooks in another folder, and a filter in another file of the configuration."""
    (checkout.parent / "hooks").mkdir()
    program = checkout.parent / "program"
    (checkout.parent / "hooks" / "post-index-change").symlink_to(program)
    git(checkout, "config", "core.hooksPath", str(checkout.parent / "hooks"))
    (checkout.parent / "more").write_text(f'[filter "x"]\nclean = {program}\nrequired = true\n')
    git(checkout, "config", "include.path", str(checkout.parent / "more"))
    changed(checkout)


def submodule(checkout: Path) -> None:
    git(checkout / "inner", "config", "core.fsmonitor", str(checkout.parent / "program"))


def without_a_tree(checkout: Path) -> None:
    """Of a partial clone: what is not there is fetched, by a program."""
    tree = git(checkout, "rev-parse", "HEAD^{tree}")
    (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    for name, value in {
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin",
        "remote.origin.promisor": "true", "core.sshCommand": str(checkout.parent / "program"),
        "remote.origin.url": "ssh://example.invalid/x",
    }.items():  # fmt: skip
        git(checkout, "config", name, value)


@pytest.mark.parametrize(
    ("name", "more", "command"),
    [
        ("core.fsmonitor", None, "status"),
        ("filter.x.clean", changed, "status"),
        ("filter.x.process", changed, "status"),
        ("diff.external", changed, "diff"),
        ("diff.x.textconv", changed, "diff"),
        ("", post_index_change, "status"),
        ("", elsewhere, "status"),
        ("", submodule, "status"),
        ("", without_a_tree, "status"),
    ],
)
def test_no_program_that_a_checkout_names_is_run(
    name: str, more: Callable[[Path], None] | None, command: str, checkout: Path
) -> None:
    """The same command of git, as anybody gives it, runs it."""
    commit = git(checkout, "rev-parse", "HEAD")
    if name:
        git(checkout, "config", name, str(checkout.parent / "program"))
    if more is not None:
        more(checkout)
    found = Plugin("x", "rib-plugin-x", "1.0", "ok", folder=str(checkout)).code["commit"]
    assert not (checkout.parent / "mark").exists()
    expected = commit + "+" * (more in (changed, elsewhere))
    assert found == ("" if more is without_a_tree else expected)
    git(checkout, command)
    assert (checkout.parent / "mark").exists()


def test_a_change_of_a_checkout_is_told(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found() -> str:
        _checkout.cache_clear()
        return _checkout(str(checkout))

    git(checkout, "config", "status.showUntrackedFiles", "no")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "no-such"))  # as a hook of git has it
    assert found() == commit
    (checkout / "b.py").write_text("")
    assert found() == f"{commit}+"
    (checkout / "b.py").unlink()
    (checkout / "a.py").write_text("2\n")
    assert found() == f"{commit}+"
    monkeypatch.delenv("GIT_DIR")
    git(checkout, "config", "filter.a=b.clean", "cat")
    assert found() == ""


@pytest.mark.parametrize("status", ["blocked", "conflict", "broken", "incompatible"])
def test_git_is_not_run_where_a_plugin_did_not_load(
    status: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rib_harness.catalog._checkout", lambda _: pytest.fail("git ran"))
    plugin = Plugin("x", "rib-plugin-x", "1.0", status, folder=str(checkout))
    assert plugin.code["commit"] == ""


# Observers

OBSERVER = f"""{HEAD}
SEEN = []

@hookimpl
def run_started(event):
    SEEN.append(event)

@hookimpl
def step_finished(event):
    SEEN.append(event)

@hookimpl
def run_finished():
    SEEN.append("finished")
"""


def test_observers_are_called_with_the_event(site: Site) -> None:
    module = site.add("watcher", OBSERVER)
    catalog = site.load()
    started = Event("run_started", "store")
    step = Event("step_finished", "store", step="id", key="key", seconds=1.5, error="no")
    for event in (started, step, Event("run_finished", "store")):
        catalog.notify(event, logging.getLogger("test"))
    seen = sys.modules[module].SEEN
    assert seen == [started, step, "finished"]


def test_what_an_observer_raises_is_logged_and_changes_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    raises = f"{HEAD}\n@hookimpl\ndef run_started(event):\n    raise OSError('disk full')\n"
    modules = [site.add("a", OBSERVER)]
    site.add("b", raises)
    modules.append(site.add("c", OBSERVER))
    event = Event("run_started", "store")
    site.load().notify(event, logging.getLogger("test"))
    assert [sys.modules[module].SEEN for module in modules] == [[event], [event]]
    (record,) = caplog.records
    assert record.getMessage() == "the observer b.run_started failed"
    assert "OSError: disk full" in caplog.text


def test_a_broken_or_blocked_plugin_does_not_observe(site: Site) -> None:
    broken = OBSERVER + "\n@hookimpl\ndef register_methods():\n    1 / 0\n"
    module = site.add("broken", broken)
    site.add("blocked", OBSERVER)
    catalog = site.load(block=["blocked"])
    catalog.notify(Event("run_started", "store"), logging.getLogger("test"))
    assert sys.modules[module].SEEN == []


def test_an_empty_catalog_notifies_nobody() -> None:
    Catalog().notify(Event("run_started", "store"), logging.getLogger("test"))


@pytest.mark.slow
def test_an_observer_that_raises_changes_no_number(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rib_harness.config import RunConfig
    from rib_harness.runner import execute, open_session

    raises = "".join(
        f"\n@hookimpl\ndef {name}(event):\n    raise OSError(event.name)\n"
        for name in ("run_started", "step_finished", "run_finished")
    )
    installed = list(metadata.entry_points(group="rib_harness"))
    site.add("watcher", HEAD + raises)

    def numbers(store: str, points: list[metadata.EntryPoint]) -> list[dict[str, Any]]:
        config = RunConfig(dataset=("digits-r",), limit=1, store=tmp_path / store, device="cpu")
        catalog = load_catalog(entry_points=points, environ={})
        rows = execute(open_session(config, catalog=catalog)).rows()
        return [{k: v for k, v in row.items() if k != "run"} for row in rows]

    alone = numbers("alone", installed)
    assert not caplog.records
    assert numbers("watched", [*installed, *site.entry_points()]) == alone
    seen = [record.getMessage() for record in caplog.records if record.exc_info]
    assert seen == [  # each once with its traceback
        f"the observer watcher.{name} failed"
        for name in ("run_started", "step_finished", "run_finished")
    ]
    again = {record.getMessage() for record in caplog.records if not record.exc_info}
    assert again == {"the observer watcher.step_finished failed: OSError: step_finished"}


# Components


@pytest.fixture
def component(site: Site) -> Callable[..., Component]:
    plugin = Plugin("p", "rib-plugin-p", "1.0", "ok")

    def make(source: str, **spec: Any) -> Component:
        (site.folder / "fake_target.py").write_text(source)
        importlib.invalidate_caches()
        spec = {"name": "mine", "target": "fake_target:Mine", "summary": "", **spec}
        return Component(MethodSpec(**spec), plugin)

    return make


def test_fixed_arguments_are_no_options(component: Callable[..., Component]) -> None:
    source = "class Mine:\n    def __init__(self, part, size: int = 3):\n"
    source += "        self.got = (part, size)\n"
    made = component(source, target="fake_target:Mine", name="fixed", arguments={"part": "r"})
    assert [option.name for option in made.signature.options] == ["size"]
    bound = made.bind(Reference.parse("fixed:size=4"))
    assert bound.build().got == ("r", 4)
    assert bound.key_fields() == {
        "id": "p/fixed",
        "version": 1,
        "arguments": {"part": "r"},
        "options": {"size": 4},
    }
    assert (bound.label, bound.id) == ("fixed:size=4", "p/fixed:size=4")
    with pytest.raises(ConfigError, match="method 'p/fixed' has no option 'part'"):
        made.bind(Reference.parse("fixed:part=c"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mean": 0.5}, "option mean=0.5: Input should be a valid tuple"),
        ({"mena": [0.5]}, "has no option 'mena'. Did you mean 'mean'?"),
    ],
)
def test_fixed_arguments_that_do_not_fit_are_named(
    component: Callable[..., Component], arguments: dict[str, Any], said: str
) -> None:
    source = "class Mine:\n    def __init__(self, part, mean: tuple[float, ...] | None = None):\n"
    source += "        self.mean = tuple(mean)\n"
    made = component(source, target="fake_target:Mine", name="misfit", arguments=arguments)
    with pytest.raises(PluginError, match="method 'p/misfit'") as told:
        made.bind(Reference.parse("misfit:part=c"))
    assert said in str(told.value)


def test_a_target_is_given_a_path_where_it_asks_for_one(
    component: Callable[..., Component], tmp_path: Path
) -> None:
    source = "from pathlib import Path\n\nclass Mine:\n"
    source += "    def __init__(self, file: Path | None = None, word: str = ''):\n"
    source += "        self.got = (file, word)\n"
    made = component(source, target="fake_target:Mine", name="reads")
    assert made.bind(Reference.parse("reads")).build().got == (None, "")
    bound = made.bind(Reference.parse(f"reads:file={tmp_path},word=x"))
    assert bound.build().got == (tmp_path, "x")
    assert bound.options["file"] == str(tmp_path)  # as JSON has it


UNTIDY = (
    HEAD
    + """
import os
import torch

@hookimpl
def run_started(event):
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    raise GeneratorExit
"""
)


def test_an_observer_leaves_folder_and_defaults_as_they_were(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    site.add("watcher", UNTIDY)
    before = (Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled())
    site.load().notify(Event("run_started", "store"), logging.getLogger("rib_harness"))
    assert (Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()) == before
    assert [record.getMessage() for record in caplog.records] == [
        "the observer watcher.run_started changed the working directory, torch's default dtype "
        "and torch's grad mode: put back",
        "the observer watcher.run_started failed",
    ]


def test_a_plugin_is_blocked_by_its_distributions_name_too(site: Site) -> None:
    site.add("mine", distribution="rib-plugin-other")
    for environ in ({"RIB_PLUGINS_BLOCK": "rib-plugin-other"}, {"RIB_PLUGINS": "x"}):
        assert only(site.load(environ)).status == "blocked"
    assert only(site.load({"RIB_PLUGINS": "rib-plugin-other"})).status == "ok"
    assert only(site.load(block=["rib-plugin-other"])).reason == "blocked by --no-plugin"


@pytest.mark.parametrize(
    "spec",
    [
        "MethodSpec(name='m', target='a.b:C', summary='', arguments=MappingProxyType({'a': 1}))",
        "MethodSpec(name='m', target='a.b:C', summary='', presets=ChainMap({'paper': {'a': 1}}))",
        "MethodSpec(name='m', target='a.b:C', summary='', needs=['ft'], holds_out=0)",
        "Mine(name='m', target='a.b:C', summary='', tags=['x'])",
    ],
)
def test_a_spec_of_an_unusual_form_is_fine(spec: str, site: Site) -> None:
    site.add(
        "mine",
        "from __future__ import annotations\nfrom collections import ChainMap\n"
        "from dataclasses import dataclass\nfrom types import MappingProxyType\n"
        "from typing import TYPE_CHECKING\n" + HEAD + "if TYPE_CHECKING:\n"
        "    from nowhere import Tags\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(MethodSpec):\n    tags: Tags\n\n@hookimpl\n"
        f"def register_methods():\n    return [{spec}]\n",
    )
    assert (only(site.load()).reason, only(site.load()).status) == ("", "ok")


@pytest.mark.parametrize("text", [b'{"url": "file://[x", "dir_info": {"editable": true}}', b"\xff"])
def test_a_damaged_direct_url_harms_nobody(text: bytes, site: Site) -> None:
    site.add("mine")
    (site.folder / "rib_plugin_mine-1.0.dist-info/direct_url.json").write_bytes(text)
    assert only(site.load()).status == "ok"


def test_a_name_is_blocked_however_it_is_spelled(site: Site) -> None:
    site.add("xp", distribution="Rib_Plugin_XP")
    assert only(site.load({"RIB_PLUGINS_BLOCK": "rib-plugin-xp"})).status == "blocked"
    assert only(site.load({"RIB_PLUGINS": "rib_plugin_xp"})).status == "ok"


def test_an_observer_is_called_in_a_deleted_folder(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(
        "watcher", HEAD + "SEEN = []\n\n@hookimpl\ndef run_started(event):\n    SEEN.append(1)\n"
    )
    catalog = site.load()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    catalog.notify(Event("run_started", "store"), logging.getLogger("rib_harness"))
    assert sys.modules["fake_rib_plugin_watcher_watcher"].SEEN == [1]


# stdout


def test_stdout_that_is_not_a_file_will_do(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tee:
        def write(self, text: str) -> int:
            return len(text)

    site.add("mine")
    monkeypatch.setattr(sys, "stdout", Tee())
    assert only(site.load()).status == "ok"


def test_overlapping_blocks_put_stdout_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Entered one, two, left one, two: as two threads may."""
    from rib_harness.quiet import stdout_to_stderr

    before = sys.stdout
    one, two = stdout_to_stderr(), stdout_to_stderr()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    os.write(1, b"inside")
    two.__exit__(None, None, None)
    os.write(1, b"result")
    assert sys.stdout is before
    assert capfd.readouterr() == ("result", "inside")
