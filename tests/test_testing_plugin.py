"""Every check of a plugin and of its specs: one that passes all, and for each some that fail it."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rib_harness import BackboneSpec, DatasetSpec, LabelSpace, MethodSpec, MetricSpec, Variant
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.errors import AmbiguousComponentError
from rib_harness.testing import (
    Check,
    CheckError,
    FakeSite,
    PluginTrial,
    catalog_with,
    checks_of,
    plugin_in_memory,
)
from rib_harness.testing.plugin_checks import (
    COMPONENT_CHECKS,
    PLUGIN_CHECKS,
    check_plugin_fast,
)
from rib_harness.testing.traces import traced

GOOD = """
from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1

@hookimpl
def register_methods():
    return [MethodSpec(name="mine", target="fake_{name}.mine:Mine", summary="It.", license="MIT")]
"""
HOOK = "@hookimpl\ndef register_methods"

REACH = """
import socket
try:
    socket.getaddrinfo('example.org', 80)
except Exception:
    pass
"""

#: Check, what is added before or changed in the good one, and a part of the message.
BAD: list[tuple[str, str, tuple[str, str], str]] = [
    ("loads", "import no_such_package\n", ("", ""), "it is broken: ModuleNotFoundError: No module"),
    ("loads", "", ("API = 1", "API = 0"), "it is incompatible: "),
    ("loads", "import sys\nsys.exit(3)\n", ("", ""), "it is broken: SystemExit: 3"),
    ("loads", "", ("register_methods", "register_method"), "Did you mean 'register_methods'"),
    ("offers", "", (HOOK, "def _not_yet"), "it offers nothing: implement one of register"),
    ("light", "import pandas\n", ("", ""), "loading it imports pandas. Import them in the modules"),
    ("offline", REACH, ("", ""),
     "loading it reaches for example.org. Listing plugins must work offline"),
    ("environment", "import os\nos.environ['MY_VARIABLE'] = '1'\n", ("", ""),
     "loading it changes MY_VARIABLE in the environment"),
    ("random-state", "import random\nrandom.seed(0)\n", ("", ""), "global random state of random."),
    ("random-state", "import numpy\nnumpy.random.seed(0)\n", ("", ""), "random state of numpy."),
    ("silent", "print('hello')\n", ("", ""), "loading it prints 'hello': on every start"),
    ("silent", "import os\nos.write(1, b'below')\n", ("", ""), "loading it prints 'below'"),
    ("silent", "import os\nos.chdir('/')\n", ("", ""), "changes the working directory to /: "),
    ("silent", "import warnings\nwarnings.simplefilter('ignore')\n", ("", ""),
     "adds the filters of warnings ignore:Warning, for everybody's code"),
]  # fmt: skip

COUNTER = itertools.count()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    monkeypatch.chdir(tmp_path)  # put back: a bad one goes elsewhere
    with FakeSite(tmp_path / "site") as made, warnings.catch_warnings():
        yield made
    os.environ.pop("MY_VARIABLE", None)  # a bad one was loaded in this process, too


def plugin(
    site: FakeSite, before: str = "", change: tuple[str, str] = ("", "")
) -> dict[str, Check]:
    """Check → itself, for a plugin in a folder of its own."""
    name = f"plugin{next(COUNTER)}"
    text = before + (GOOD.replace(*change) if change[0] else GOOD).replace("{name}", name)
    method = "class Mine:\n    def finetune(self, task):\n        ...\n"
    site.add(name, {f"fake_{name}/plugin.py": text, f"fake_{name}/mine.py": method})
    return {c.id: c for c in checks_of(name, site.load())}


def test_a_good_one_passes_every_check(site: FakeSite) -> None:
    checks = plugin(site)
    own = [c for id, c in checks.items() if c.function in PLUGIN_CHECKS or id.endswith("/target")]
    assert {check.outcome()["result"] for check in own} == {"ok"}
    assert len(own) == len(PLUGIN_CHECKS) + 1


@pytest.mark.parametrize(("check", "before", "change", "said"), BAD, ids=lambda value: None)
def test_a_bad_one_fails_its_check(
    check: str, before: str, change: tuple[str, str], said: str, site: FakeSite
) -> None:
    """Source: what was broken here."""
    found = plugin(site, before, change)[f"plugin/{check}"].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


def test_a_slow_one_is_told(site: FakeSite) -> None:
    """Source: a bound that nothing keeps."""
    plugin(site)
    trial = PluginTrial(site.load().plugins[0])
    check_plugin_fast(trial)
    with pytest.raises(CheckError, match=r"more than 0\. Do the work when a component is built"):
        check_plugin_fast(trial, seconds=0)


def test_every_check_has_one_that_fails_it() -> None:
    """Source: the kit's own list; `fast` is above."""
    names = {"-".join(function.__name__.split("_")[2:]) for function in PLUGIN_CHECKS}
    assert names == {check for check, *_ in BAD} | {"fast"}


def test_a_warning_at_import_is_no_print(site: FakeSite) -> None:
    """Source: what libraries do of their own accord."""
    with pytest.warns(UserWarning, match="soon"):
        checks = plugin(site, "import warnings\nwarnings.warn('soon', stacklevel=1)\n")
    assert checks["plugin/silent"].outcome()["result"] == "ok"


def test_of_what_does_not_load_nothing_else_is_said(site: FakeSite) -> None:
    checks = plugin(site, "import no_such_package\n")
    found = {name: check.outcome() for name, check in checks.items()}
    assert found.pop("plugin/loads")["result"] == "failed"
    assert {one["result"] for one in found.values()} == {"skipped"}
    assert {one["reason"] for one in found.values()} == {"plugin/loads failed: mend that first"}


def test_what_a_heavy_import_does_is_not_told_again(site: FakeSite) -> None:
    """Source: PyTorch adds filters of warnings when it is imported."""
    checks = plugin(site, "import torch\n")
    found = {id: check.outcome() for id, check in checks.items() if id.startswith("plugin/")}
    assert [name for name, one in found.items() if one["result"] == "failed"] == ["plugin/light"]
    assert found["plugin/silent"]["reason"] == "plugin/light failed: mend that first"


BACKBONE = (
    GOOD.replace("MethodSpec", "BackboneSpec, Identity, LabelSpace, Preprocess", 1)
    .replace("methods", "backbones")
    .replace("MethodSpec(", "BackboneSpec(label_space=LabelSpace('tens', 10), light=True, ")
)
NET = """
{import_}
from dataclasses import dataclass
from rib_harness import Identity, Preprocess

@dataclass
class Mine:
    '''A net.

    Args:
        width: of it.
    '''

    width: int = 2

    def identity(self):
        assert self.width == 3
        {inside}
        return Identity("seed:0", Preprocess(size=8), 10)

    def build(self):
        import torch
"""


@pytest.mark.parametrize(
    ("import_", "inside", "result"),
    [("", "", "ok"), ("import torch", "", "failed"), ("", "import torch", "failed")],
)
def test_a_backbone_that_says_that_it_is_light_is(
    import_: str, inside: str, result: str, site: FakeSite
) -> None:
    """Source: where torch is imported; the options are those of the reference."""
    name = f"plugin{next(COUNTER)}"
    net = NET.replace("{import_}", import_).replace("{inside}", inside or "pass")
    site.add(
        name,
        {f"fake_{name}/plugin.py": BACKBONE.replace("{name}", name), f"fake_{name}/mine.py": net},
    )
    checks = {c.id: c for c in checks_of(name, site.load(), references=["mine:width=3"])}
    check = checks["backbone/mine:width=3/without-torch"]
    found = replace(check, after=()).outcome()
    assert found["result"] == result
    assert ("imports torch, which makes every plan seconds slower" in found["reason"]) == (
        result == "failed"
    )


def test_an_observer_offers_something(site: FakeSite) -> None:
    observer = "@hookimpl\ndef run_started(event):\n    ...\n"
    change = (GOOD[GOOD.index("@hookimpl") :], observer)
    assert plugin(site, change=change)["plugin/offers"].outcome()["result"] == "ok"


def test_what_is_in_memory_only_is_not_loaded_afresh() -> None:
    spec = replace(METHOD, target="a.b:C")
    point = plugin_in_memory("mine", register_methods=lambda: [spec])
    checks = {c.id: c for c in checks_of("mine", load_catalog(entry_points=[point], environ={}))}
    assert checks["plugin/loads"].outcome()["result"] == "ok"
    found = checks["plugin/light"].outcome()
    assert found["result"] == "skipped" and "it is not installed" in found["reason"]


# Specs

METHOD = MethodSpec(name="mine", target="", summary="A method.", license="MIT")
REACHING = '''
import socket
try:
    socket.create_connection(("example.org", 80))
except Exception:
    pass

class Mine:
    """Imported from afar."""
'''


class Mine:
    """A method.

    Args:
        alpha: an option.
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = alpha


class WithATextForANumber:
    def __init__(self, alpha: float = "much"):  # type: ignore[assignment]
        self.alpha = alpha


class OfATypeNobodyKnows:
    def __init__(self, size: Unknown = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.size = size


class OfAList:
    """A method.

    Args:
        turn: by what.
    """

    def __init__(self, turn: list = [1.0]):  # type: ignore[type-arg]  # noqa: B006
        self.turn = turn


class OfADictOrNone:
    def __init__(self, at: dict | None = None):  # type: ignore[type-arg]
        self.at = at


class OfTuplesOfTuples:
    def __init__(self, at: tuple[tuple, ...] = ()):  # type: ignore[type-arg]
        self.at = at


class SayingNothing:
    """A method.

    Args:
        alpha: an option.
    """

    def __init__(self, alpha: float = 1.0, turn: float = 0.0, lambda_: float = 0.0):
        """Make it.

        Args:
            turn: said where nobody looks.
        """
        self.alpha = alpha


class RefusingItsDefault:
    def __init__(self, alpha: float = -1.0):
        raise ValueError("expected alpha ≥ 0")


class OneOptionNeeded:
    """A method.

    Args:
        old: needed.
        alpha: an option.
    """

    def __init__(self, old: int, alpha: float = 1.0):
        self.old = old


#: Check, the target, its spec's changes, and a part of the message.
BAD_SPECS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("spec", Mine, {"summary": " "}, "its summary is ' ': say in one line what it is"),
    ("spec", Mine, {"summary": "a\nb"}, "say in one line what it is"),
    ("spec", Mine, {"license": ""}, "its spec says no licence"),
    ("spec", Mine, {"citation": " "}, "its citation is ' '"),
    ("target", 3, {}, "is no class or function"),
    ("options", WithATextForANumber, {}, "a default does not fit its option's type"),
    ("options", OfATypeNobodyKnows, {}, "the type of its option 'size', Unknown, cannot be read"),
    ("options", RefusingItsDefault, {}, "ValueError: expected alpha ≥ 0"),
    ("options", OfAList, {}, "'turn', list, does not say what is in it, so that a number stays a"),
    ("options", OfADictOrNone, {}, "'at', dict | None, does not say what is in it"),
    ("options", OfTuplesOfTuples, {}, "stays a text: say tuple[float, ...], for example"),
    ("docs", SayingNothing, {}, "does not say what 'turn', 'lambda_' is: give it a line under Arg"),
]  # fmt: skip


def checks_on(target: Any, spec: Any = METHOD, **changes: Any) -> dict[str, Check]:
    """Check → itself, for a component that no package offers."""
    catalog = catalog_with((replace(spec, **changes), target), base=Catalog())
    return {c.id.rpartition("/")[2]: c for c in checks_of("testing", catalog) if "mine" in c.id}


@pytest.mark.parametrize("target", [Mine, OneOptionNeeded])
def test_a_good_component_passes(target: Any) -> None:
    checks = checks_on(target)
    names = ("spec", "target", "options", "docs")
    assert [checks[n].outcome()["result"] for n in names] == ["ok"] * 4


def test_a_dataset_in_a_place_passes() -> None:
    """A default that is no value of its own type: a place that is not given."""

    class Placed:
        """A dataset.

        Args:
            at: the place.
            kinds: of images.
        """

        def __init__(self, at: Path | None = None, kinds: tuple[str, ...] = ("a",)):
            self.at = at

    spec = DatasetSpec(
        name="mine", target="", summary="It.", license="MIT", label_space=LabelSpace("tens", 10)
    )
    assert checks_on(Placed, spec)["options"].outcome()["result"] == "ok"


def test_a_short_name_of_another_plugin_is_refused() -> None:
    """Source: a catalog in which it is ambiguous; each of the two is told, another kind is none."""
    point = plugin_in_memory("other", register_methods=lambda: [replace(METHOD, target="a.b:C")])
    base = load_catalog(entry_points=[point], environ={})
    metric = MetricSpec(name="mine", target="", summary="It.", license="MIT", level="scores")
    catalog = catalog_with((METHOD, Mine), (metric, len), base=base)
    with pytest.raises(AmbiguousComponentError):
        catalog.get("method", "mine")
    found = {c.id: c.outcome() for c in checks_of("testing", catalog) if c.id.endswith("/spec")}
    assert found["method/mine/spec"]["result"] == "failed"
    assert found["method/mine/spec"]["reason"] == (
        "the plugin other (unknown) has a method called 'mine', too: for whoever has both "
        "installed the short name is ambiguous. Choose another."
    )
    assert found["metric/mine/spec"]["result"] == "ok"


def test_a_short_name_of_a_familys_member_counts_too() -> None:
    """Source: two families with one alias."""
    tens, aliases = LabelSpace("tens", 10), (Variant(tag="x", alias="big"),)

    def family(name: str, target: str = "") -> BackboneSpec:
        return BackboneSpec(
            name=name, target=target, summary="It.", license="MIT", label_space=tens,
            family=True, variants=aliases,
        )  # fmt: skip

    point = plugin_in_memory("other", register_backbones=lambda: [family("theirs", "a.b:C")])
    base = load_catalog(entry_points=[point], environ={})
    catalog = catalog_with((family("mine"), Mine), base=base)
    checks = {c.id: c for c in checks_of("testing", catalog)}
    assert "has a backbone called 'big', too" in checks["backbone/mine/spec"].outcome()["reason"]


@pytest.mark.parametrize(("check", "target", "spec", "said"), BAD_SPECS, ids=lambda value: None)
def test_a_bad_component_fails_its_check(
    check: str, target: Any, spec: dict[str, Any], said: str
) -> None:
    """Source: what was broken here."""
    found = checks_on(target, **spec)[check].outcome()
    assert found["result"] == "failed"
    assert said in found["reason"]


def test_a_target_that_does_not_import_is_told(site: FakeSite) -> None:
    checks = plugin(site, change=(".mine:Mine", ".his:Mine"))
    found = checks["method/mine/target"].outcome()
    assert found["result"] == "failed" and "could not be loaded from fake_plugin" in found["reason"]


def test_a_target_that_reaches_for_the_network_is_told(site: FakeSite) -> None:
    (site.folder / "fake_afar.py").write_text(REACHING)
    spec = replace(METHOD, target="fake_afar:Mine")
    point = plugin_in_memory("afar", register_methods=lambda: [spec])
    checks = {c.id: c for c in checks_of("afar", load_catalog(entry_points=[point], environ={}))}
    found = checks["method/mine/target"].outcome()
    assert found["result"] == "failed"
    assert "importing its target reaches for example.org" in found["reason"]


def test_traces_of_a_targets_import_are_told(site: FakeSite) -> None:
    """Source: what its module does, and what a module that it imports does."""
    (site.folder / "fake_library.py").write_text("import os\nos.environ['MY_VARIABLE'] = '2'\n")
    for name, does, said in [
        ("setting", "os.environ.setdefault('MY_VARIABLE', '1')", "changes MY_VARIABLE in the env"),
        ("seeding", "random.seed(0)", "changes the global random state of random"),
        ("importing", "import fake_library", ""),
    ]:
        text = f"import os, random\n{does}\nclass Mine:\n    pass\n"
        (site.folder / f"fake_{name}.py").write_text(text)
        spec = replace(METHOD, target=f"fake_{name}:Mine")
        point = plugin_in_memory(name, register_methods=lambda spec=spec: [spec])
        catalog = load_catalog(entry_points=[point], environ={})
        checks = {c.id: c for c in checks_of(name, catalog)}
        found = checks["method/mine/target"].outcome()
        os.environ.pop("MY_VARIABLE", None)
        assert found["result"] == ("failed" if said else "ok")
        assert said in found["reason"]


def test_traces_of_random_states_are_put_back() -> None:
    """Source: the states before."""

    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    with traced() as left:
        np.random.random_sample()
        torch.rand(1)
    with suppress(ValueError), traced():
        raise ValueError(random.random(), torch.rand(1))
    assert left.random == ["numpy", "torch"]
    assert states() == before


def test_options_that_do_not_fit_are_told_once() -> None:
    found = {name: check.outcome() for name, check in checks_on(RefusingItsDefault).items()}
    assert [name for name, one in found.items() if one["result"] == "failed"] == ["options"]


def test_a_target_that_is_not_there_is_told_once(site: FakeSite) -> None:
    checks = plugin(site, change=(".mine:Mine", ".his:Mine"))
    found = {name: check.outcome() for name, check in checks.items() if "method/" in name}
    failed = [name for name, one in found.items() if one["result"] == "failed"]
    assert failed == ["method/mine/target"]
    assert found["method/mine/resumes"]["reason"] == "method/mine/target failed: mend that first"


def test_every_check_of_a_spec_has_one_that_fails_it() -> None:
    """Source: the kit's own list."""
    functions = {function for checks in COMPONENT_CHECKS.values() for function in checks}
    names = {"-".join(function.__name__.split("_")[2:]) for function in functions}
    assert names == {check for check, *_ in BAD_SPECS}
