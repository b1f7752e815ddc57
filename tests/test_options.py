"""References, and options read from source: every text that a user may write or get to see."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rib_harness import ConfigError, MethodSpec, PluginError, load_catalog
from rib_harness.catalog import Component, Plugin
from rib_harness.loading import HEAVY
from rib_harness.options import (
    REQUIRED,
    Reference,
    Signature,
    _aliases,
    _from_object,
    _from_source,
    _readable,
    _UnreadableError,
    argument_docs,
    as_paths,
    load_target,
    members_of,
    signature_of,
    split_outside_brackets,
)

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Write a module; its name, new each time since signatures are cached by it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(source: str) -> str:
        name = f"options_{tmp_path.name}_{len(names)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


# References


@pytest.mark.parametrize(
    ("text", "name", "tag", "options"),
    [
        ("lwf", "lwf", "", {}),
        ("lwf:", "lwf", "", {}),
        ("  lwf ", "lwf", "", {}),
        ("cl-methods/lwf", "cl-methods/lwf", "", {}),
        ("lwf:alpha=0.5", "lwf", "", {"alpha": "0.5"}),
        ("lwf:temperature=4,alpha=0.5", "lwf", "", {"temperature": "4", "alpha": "0.5"}),
        ("lwf: alpha = 0.5 , over=task", "lwf", "", {"alpha": "0.5", "over": "task"}),
        ("lwf:alpha=", "lwf", "", {"alpha": ""}),
        ("timm:resnet50.a1_in1k", "timm", "resnet50.a1_in1k", {}),
        ("timm:r50,weights=a.pt", "timm", "r50", {"weights": "a.pt"}),
        ("clip:hf-hub:org/name", "clip", "hf-hub:org/name", {}),
        ("timm:r50,weights=C:/a=b.pt", "timm", "r50", {"weights": "C:/a=b.pt"}),
        ("wise-ft:base=lwf:alpha=2", "wise-ft", "", {"base": "lwf:alpha=2"}),
        (
            "wise-ft:base=(lwf:alpha=2,over=task),alpha=1",
            "wise-ft",
            "",
            {"base": "(lwf:alpha=2,over=task)", "alpha": "1"},
        ),
        (
            "soup:members=(ft+(wise-ft:base=(lwf:alpha=2,over=task)))",
            "soup",
            "",
            {"members": "(ft+(wise-ft:base=(lwf:alpha=2,over=task)))"},
        ),
    ],
)
def test_parse(text: str, name: str, tag: str, options: dict[str, str]) -> None:
    assert Reference.parse(text) == Reference(name, tag, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lwf:a=1,b", "'lwf:a=1,b': expected option=value behind the colon, got 'b'."),
        ("lwf:=1", "'lwf:=1': expected option=value behind the colon, got '=1'."),
        ("lwf:a=1,", "'lwf:a=1,': expected option=value behind the colon, got ''."),
        ("timm:r50,r101", "'timm:r50,r101': expected option=value behind the colon, got 'r101'."),
        ("lwf:a=1,a=2", "'lwf:a=1,a=2': the option 'a' is given twice."),
    ],
)
def test_parse_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reference.parse(text)
    assert str(caught.value) == said


def test_an_option_given_twice_with_a_blank() -> None:
    with pytest.raises(ConfigError, match="the option 'a' is given twice"):
        Reference.parse("lwf:a=1, a=2")


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", []),
        ("ft", ["ft"]),
        ("pretrained+ft+lwf", ["pretrained", "ft", "lwf"]),
        (" pretrained + ft ", ["pretrained", "ft"]),
        ("ft+(lwf:alpha=2,over=task)", ["ft", "lwf:alpha=2,over=task"]),
        ("(ft)+(lwf)", ["ft", "lwf"]),
        ("(soup:members=(ft+lwf))+ft", ["soup:members=(ft+lwf)", "ft"]),
    ],
)
def test_members_of(text: str, members: list[str]) -> None:
    assert members_of(text) == members


def test_split_outside_brackets() -> None:
    assert split_outside_brackets("a,(b,(c,d)),e", ",") == ["a", "(b,(c,d))", "e"]
    assert split_outside_brackets("a,,", ",") == ["a", "", ""]
    assert split_outside_brackets("", ",") == []


# Binding

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

@dataclass(frozen=True)
class Mine:
    """Does a thing.

    Args:
        lambda_: weight of
            the penalty.
        images: how many.
        weights: a file.
    """

    kind: ClassVar[str] = "no option"
    lambda_: float = 0.1
    images: int | None = 2000
    over: Literal["all", "task"] = "all"
    flag: bool = False
    weights: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    base: str = "ft"
    anything: Any = None
'''


@pytest.fixture
def mine(module: Module) -> Signature:
    return signature_of(f"{module(MINE)}:Mine", "method 'p/mine'")


DEFAULTS = {
    "lambda": 0.1,
    "images": 2000,
    "over": "all",
    "flag": False,
    "weights": None,
    "sizes": (1, 2),
    "base": "ft",
    "anything": None,
}


def test_the_fields_of_a_dataclass_are_its_options(mine: Signature) -> None:
    assert [(o.name, o.parameter, o.annotation, o.default, o.doc) for o in mine.options[:3]] == [
        ("lambda", "lambda_", "float", 0.1, "weight of the penalty."),
        ("images", "images", "int | None", 2000, "how many."),
        ("over", "over", "Literal['all', 'task']", "all", ""),
    ]
    assert [o.name for o in mine.options if o.is_path] == ["weights"]
    assert mine.doc.startswith("Does a thing.")
    assert not mine.extra


def test_what_is_not_given_has_its_default(mine: Signature) -> None:
    assert mine.bind({}, "it") == DEFAULTS
    assert list(mine.bind({"base": "lwf", "lambda": "1"}, "it")) == list(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lambda", "2", 2.0),
        ("lambda", "1e-3", 0.001),
        ("lambda", 3, 3.0),
        ("images", "12", 12),
        ("images", "none", None),
        ("images", "None", None),
        ("images", "null", None),
        ("over", "task", "task"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "1", True),
        ("flag", False, False),
        ("sizes", "3", (3,)),
        ("sizes", "3+4", (3, 4)),
        ("sizes", [3, 4], (3, 4)),
        ("base", "(lwf:alpha=2,over=task)", "lwf:alpha=2,over=task"),
        ("base", "none", "none"),
        ("anything", "4", "4"),
    ],
)
def test_a_text_becomes_what_the_annotation_says(
    name: str, text: Any, value: Any, mine: Signature
) -> None:
    bound = mine.bind({name: text}, "it")[name]
    assert (bound, type(bound)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lambda", "much", "Input should be a valid number, unable to parse string as a number"),
        ("lambda", "none", "Input should be a valid number, unable to parse string as a number"),
        ("images", "1.5", "Input should be a valid integer, unable to parse string as an integer"),
        ("over", "some", "Input should be 'all' or 'task'"),
        ("flag", "maybe", "Input should be a valid boolean, unable to interpret input"),
        ("sizes", "1+x", "Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_value_of_the_wrong_type(name: str, text: str, said: str, mine: Signature) -> None:
    with pytest.raises(ConfigError) as caught:
        mine.bind({name: text}, "method 'p/mine'")
    assert str(caught.value) == f"method 'p/mine': option {name}={text}: {said}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lambda": True}, "option lambda=True: a number or a text is expected, not true"),
        ({"images": False}, "option images=False: a number or a text is expected, not false"),
        ({"sizes": [1, True]}, "a number or a text is expected, not true"),
        ({"images": "1" + "0" * 40}, "a number of at most 9223372036854775807 is expected"),
    ],
)
def test_booleans_are_no_numbers_and_numbers_have_an_end(
    mine: Signature, given: dict[str, Any], said: str
) -> None:
    """As a preset, a suite or Python gives them, since a text has no type."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        mine.bind(given, "it")
    assert mine.bind({"images": np.int64(3), "flag": True}, "it")["images"] == 3


@pytest.mark.parametrize("text", ["[" * 5000, "(" * 3000, "9" * 5000, "{[]: 1}"])
def test_a_value_that_python_cannot_read_is_a_text(text: str) -> None:
    assert Signature((), extra=True).bind({"any": text}, "it") == {"any": text}


def test_an_unknown_option_offers_the_nearest(mine: Signature) -> None:
    with pytest.raises(ConfigError) as caught:
        mine.bind({"lamda": "1"}, "method 'p/mine'")
    assert str(caught.value) == (
        "method 'p/mine' has no option 'lamda'. Did you mean 'lambda'? "
        "It has lambda, images, over, flag, weights, sizes, base, anything."
    )
    with pytest.raises(ConfigError, match=r"has no option 'lambda_'\. Did you mean 'lambda'\?"):
        mine.bind({"lambda_": "1"}, "method 'p/mine'")


def test_a_component_without_options_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        Signature(()).bind({"alpha": "1"}, "method 'p/ft'")
    assert (
        str(caught.value) == "method 'p/ft' has no option 'alpha'. It has no options: leave it out."
    )


def test_all_problems_at_once(mine: Signature) -> None:
    with pytest.raises(ConfigError) as caught:
        mine.bind({"over": "some", "bass": "ft", "images": "x"}, "it")
    assert len(caught.value.problems) == 3
    assert str(caught.value).startswith("3 problems in the configuration:\n  - it: option over=")


def test_a_required_option(module: Module) -> None:
    source = """
class Mine:
    '''Needs one.

    Args:
        tag: which one.
    '''
    def __init__(self, tag: str, *, size: int = 3):
        pass
"""
    signature = signature_of(f"{module(source)}:Mine", "it")
    assert [(o.name, o.default) for o in signature.options] == [("tag", REQUIRED), ("size", 3)]
    assert signature.bind({"tag": "x"}, "it") == {"tag": "x", "size": 3}
    with pytest.raises(ConfigError) as caught:
        signature.bind({"size": "4"}, "backbone 'p/mine'")
    assert str(caught.value) == "backbone 'p/mine' needs the option 'tag': which one."


def test_any_other_option_where_a_target_takes_them(module: Module) -> None:
    source = "def mine(scores, size: int = 3, **rest):\n    pass\n"
    signature = signature_of(f"{module(source)}:mine", "it")
    assert signature.extra
    given = {"scores": "s", "a": "0.5", "b": "true", "c": "text", "d": 7, "e": "none of it"}
    assert signature.bind(given, "it") == {
        "scores": "s",
        "size": 3,
        "a": 0.5,
        "b": True,
        "c": "text",
        "d": 7,
        "e": "none of it",
    }


def test_a_path_is_absolute_and_its_content_is_in_the_key(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Plugin("p", "rib-plugin-p", "1.0", "ok")
    spec = MethodSpec(name="mine", target=f"{module(MINE)}:Mine", summary="")
    bound = Component(spec, plugin).bind(Reference.parse("mine:weights=sub/a.pt,lambda=2"))
    assert bound.options["weights"] == str(tmp_path / "sub" / "a.pt")
    assert bound.label == "mine:weights=a.pt,lambda=2.0"
    with pytest.raises(ConfigError, match=r"There is no file or folder .*sub/a\.pt"):
        bound.key_fields()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pt").write_text("one")
    key = bound.key_fields()["options"]
    assert key["lambda"] == 2.0
    (tmp_path / "moved.pt").write_text("one")
    moved = bound.component.bind(Reference.parse("mine:weights=moved.pt,lambda=2"))
    (tmp_path / "sub" / "a.pt").write_text("two")
    assert moved.key_fields()["options"]["weights"].startswith("sha256:")
    assert bound.key_fields()["options"] != key
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bound.component.bind(Reference.parse("mine:weights=~/a.pt")).options["weights"] == str(
        tmp_path / "home" / "a.pt"
    )


def test_a_bound_component_is_built_with_its_parameters_own_names(module: Module) -> None:
    spec = MethodSpec(name="mine", target=f"{module(MINE)}:Mine", summary="")
    component = Component(spec, Plugin("p", "rib-plugin-p", "1.0", "ok"))
    made = component.bind(Reference.parse("mine:lambda=2,weights=a.pt")).build()
    assert (made.lambda_, made.images, made.over) == (2.0, 2000, "all")


@pytest.mark.parametrize(
    "text",
    [
        "mine",
        "mine:lambda=0.5",
        "mine:images=none",
        "mine:sizes=3+4,flag=true",
        "mine:base=(lwf:alpha=2,over=task),over=task",
    ],
)
def test_an_id_is_a_reference_to_the_same(text: str, module: Module) -> None:
    spec = MethodSpec(name="mine", target=f"{module(MINE)}:Mine", summary="")
    component = Component(spec, Plugin("p", "rib-plugin-p", "1.0", "ok"))
    bound = component.bind(Reference.parse(text))
    assert component.bind(Reference.parse(bound.id)) == bound


# Reading source, or importing


def test_reading_the_source_imports_nothing(module: Module) -> None:
    name = module("raise SystemExit\n" + MINE.replace("from __future__ import annotations", ""))
    assert signature_of(f"{name}:Mine", "it").bind({}, "it") == DEFAULTS
    assert name not in sys.modules


INHERITED = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Base:
    alpha: float = 1.0
    weights: Path | None = None

@dataclass
class Mine(Base):
    beta: int = 2
"""


def test_inherited_fields_are_found_by_importing(module: Module, tmp_path: Path) -> None:
    name = module(INHERITED)
    signature = signature_of(f"{name}:Mine", "it")
    assert name in sys.modules
    assert [o.name for o in signature.options] == ["alpha", "weights", "beta"]
    assert signature.bind({"alpha": "3", "weights": "a.pt"}, "it") == {
        "alpha": 3.0,
        "weights": str(tmp_path / "a.pt"),
        "beta": 2,
    }


def test_so_are_inherited_paths_whose_annotations_are_no_texts(
    module: Module, tmp_path: Path
) -> None:
    name = module(INHERITED.replace("from __future__ import annotations", ""))
    bound = signature_of(f"{name}:Mine", "it").bind({"weights": "a.pt"}, "it")
    assert bound["weights"] == str(tmp_path / "a.pt")


def test_optional_takes_none(module: Module) -> None:
    name = module("from typing import Optional\ndef mine(images: Optional[int] = 3): ...\n")
    assert signature_of(f"{name}:mine", "it").bind({"images": "none"}, "it") == {"images": None}


#: Targets of each shape → their options' names and defaults.
SHAPES: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "function": ("def mine(a, b: int = 1, *, c: str = 'x'): ...", [("a", REQUIRED), ("b", 1),
                                                                 ("c", "x")]),
    "class-with-init": ("class mine:\n    def __init__(self, a: int = 1): ...", [("a", 1)]),
    "class-without-init": ("class mine: ...", []),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass mine:\n    a: int\n    b: int = 2",
        [("a", REQUIRED), ("b", 2)],
    ),
    "dataclass-dotted": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass mine:\n    a: int = -2",
        [("a", -2)],
    ),
    "default-of-another-name": ("N = 3\ndef mine(a: int = N): ...", [("a", 3)]),
    "assigned": ("def other(a: int = 1): ...\nmine = other", [("a", 1)]),
    "imported": ("from json import loads\nfrom textwrap import shorten as mine", [
        ("text", REQUIRED), ("width", REQUIRED)]),
    "conditional": ("if True:\n    def mine(a: int = 1): ...", [("a", 1)]),
    "inherited-init": (
        "class Base:\n    def __init__(self, a: int = 1): ...\nclass mine(Base): ...",
        [("a", 1)],
    ),
    "field-with-default": (
        "from dataclasses import dataclass, field\n@dataclass\nclass mine:\n"
        "    a: int = field(default=1)\n    b: int = field(default=2, init=False)",
        [("a", 1)],
    ),
    "args-and-kwargs": ("def mine(a: int = 1, *more, **rest): ...", [("a", 1)]),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_of_any_shape(shape: str, module: Module) -> None:
    source, options = SHAPES[shape]
    found = signature_of(f"{module(source)}:mine", "it")
    assert [(o.name, o.default) for o in found.options] == options
    assert found.extra == (shape in ("args-and-kwargs", "imported"))


def misread(reason: str, source: str, **options: Any) -> Any:
    """A target whose source says less than the object, and its options' true values."""
    return pytest.param(source, options, id=reason)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        misread(
            "KW_ONLY is no option",
            "from dataclasses import dataclass, KW_ONLY\n@dataclass\nclass mine:\n"
            "    a: int = 1\n    _: KW_ONLY\n    b: int = 2",
            a=1,
            b=2,
        ),
        misread(
            "another decorator makes __init__",
            "def record(cls):\n    def init(self, a: int = 1): ...\n    cls.__init__ = init\n"
            "    return cls\n@record\nclass mine:\n    a: int = 1",
            a=1,
        ),
        misread(
            "default_factory",
            "from dataclasses import dataclass, field\n@dataclass\nclass mine:\n"
            "    a: list[int] = field(default_factory=list)",
            a=[],
        ),
    ],
)
def test_targets_of_rarer_shapes(source: str, options: dict[str, Any], module: Module) -> None:
    assert signature_of(f"{module(source)}:mine", "it").bind({}, "it") == options


def test_a_target_that_is_not_there(module: Module) -> None:
    name = module("x = 1\n")
    with pytest.raises(PluginError, match=f"^it points to {name}:Mine, and Mine is not there"):
        signature_of(f"{name}:Mine", "it")
    near = module("class Mime: ...\nmine = 1\n")
    with pytest.raises(PluginError, match=r"and Mine is not there\. Did you mean .*'Mime'"):
        load_target(f"{near}:Mine", "it")
    with pytest.raises(PluginError, match="and mine is no class or function"):
        load_target(f"{near}:mine", "it")
    broken = module("def broken(:\n")
    with pytest.raises(PluginError, match=r"^it could not be loaded from"):
        load_target(f"{broken}:Mine", "it")
    with pytest.raises(PluginError) as caught:
        signature_of("no_such_package:Mine", "it")
    assert (
        str(caught.value)
        == "it points to no_such_package:Mine, but there is no module no_such_package."
    )


def test_a_target_with_a_syntax_error(module: Module) -> None:
    with pytest.raises(PluginError, match="SyntaxError"):
        signature_of(f"{module('def broken(:')}:Mine", "it")


def test_argument_docs() -> None:
    doc = """One line.

    Args:
        a: first,
            and more: of it.
        b, c: both.
        *rest: others.
        d (int): typed.

    Returns:
        e: no argument.
    """
    docs = argument_docs(doc)
    assert docs["a"] == "first, and more: of it."
    assert docs["rest"] == "others."
    assert docs["d"] == "typed."
    assert "e" not in docs
    assert argument_docs("No arguments.") == {}


# What is installed

CATALOG = load_catalog(environ={})
TARGETS = sorted(
    {
        component.spec.target
        for kind in ("backbone", "dataset", "method", "metric")
        for component in CATALOG.list(kind)
    }
)


def test_the_installed_targets_are_many() -> None:
    assert len(TARGETS) >= 15
    assert "rib_plugin_timm.backbone:TimmBackbone" in TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_source_and_object_say_the_same(target: str) -> None:
    """Two readers that share no code: `ast` here, `inspect.signature` there.

    An object may name a class by its whole path, where the source says `Matrix`.
    """

    def short(signature: Signature) -> Signature:
        options = tuple(
            replace(option, annotation=re.sub(r"(\w+\.)+(?=\w)", "", option.annotation))
            for option in signature.options
        )
        return replace(signature, options=options)

    module_name, _, attribute = target.partition(":")
    found = importlib.util.find_spec(module_name)
    assert found is not None and found.origin is not None
    imported = _from_object(load_target(target, "it"))
    try:
        tree = ast.parse(Path(found.origin).read_text())
        read = _readable(_from_source(tree, attribute), _aliases(tree))
    except _UnreadableError:  # e.g. inherited fields: the object is asked instead
        read = imported
    assert short(read) == short(imported)
    assert signature_of(target, f"the target {target}") == read


def test_reading_options_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from rib_harness import load_catalog\n"
        "catalog = load_catalog()\n"
        "kinds = ('backbone', 'dataset', 'method', 'metric', 'suite')\n"
        "options = [c.signature.options for kind in kinds for c in catalog.list(kind)]\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print(json.dumps([len(list(filter(None, options))), heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with_options, heavy = json.loads(done.stdout)
    assert with_options > 8
    assert heavy == []


def test_a_preset_sets_options_that_the_user_may_set_again() -> None:
    assert CATALOG.bind("method", "lwf").options["over"] == "all"
    paper = CATALOG.bind("method", "lwf", preset="paper")
    assert (paper.options["over"], paper.options["alpha"]) == ("task", 1.0)
    assert paper.label == "lwf:over=task"
    again = CATALOG.bind("method", "lwf:over=all", preset="paper")
    assert again.options["over"] == "all"
    assert again.key_fields() == CATALOG.bind("method", "lwf").key_fields()
    ewc = CATALOG.bind("method", "ewc", preset="paper")
    assert (ewc.options["lambda"], ewc.options["fisher"]) == (2.0, "identity")


def test_every_preset_names_options_that_exist() -> None:
    presets = [(c.id, preset) for c in CATALOG.list("method") for preset in c.spec.presets]
    assert ("cl-methods/lwf", "paper") in presets
    for name, preset in presets:
        assert CATALOG.bind("method", name, preset).explicit


def test_a_family_needs_its_member() -> None:
    with pytest.raises(ConfigError) as caught:
        CATALOG.bind("backbone", "timm")
    assert str(caught.value) == (
        "backbone 'timm/timm' is a family: name its member, as in timm:TAG."
    )
    bound = CATALOG.bind("backbone", "timm:resnet50.a1_in1k,pretrained=false")
    assert (bound.tag, bound.options["tag"]) == ("resnet50.a1_in1k", "resnet50.a1_in1k")
    assert bound.label == "timm:resnet50.a1_in1k,pretrained=False"


def test_what_is_no_family_takes_no_member() -> None:
    with pytest.raises(ConfigError) as caught:
        CATALOG.bind("method", "lwf:alpha")
    assert str(caught.value) == (
        "method 'cl-methods/lwf': expected option=value, got 'alpha'. "
        "Its options: alpha, temperature, over."
    )
    with pytest.raises(ConfigError, match=r"got 'x'\. Its options: none\."):
        CATALOG.bind("method", "ft:x")


ALIAS = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal, TypeAlias

Average = Literal["logits", "probabilities"]
Again: TypeAlias = Average

@dataclass(frozen=True)
class Mine:
    average: Again = "logits"
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_choice_with_a_name_of_its_own_is_checked(elsewhere: bool, module: Module) -> None:
    """Whether the alias stands in the same module, or is imported."""
    source = ALIAS
    if elsewhere:
        types = module("from typing import Literal\nAverage = Literal['logits', 'probabilities']\n")
        source = ALIAS.replace('Average = Literal["logits", "probabilities"]',
                               f"from {types} import Average")  # fmt: skip
    signature = signature_of(f"{module(source)}:Mine", "it")
    assert signature.options[0].annotation == "Literal['logits', 'probabilities']"
    with pytest.raises(ConfigError, match="Input should be 'logits' or 'probabilities'"):
        signature.bind({"average": "foo"}, "it")


@pytest.mark.parametrize(
    ("alias", "annotation"),
    [
        ('Type = Literal["l1", "l2"]', "Type"),
        ('Match = Literal["l1", "l2"]', "Match"),
        ('Mode = Literal["l1", "l2"]', '"Mode"'),
        ("l1 = int", 'Literal["l1", "l2"]'),
    ],
)
def test_a_name_of_the_module_comes_before_that_of_typing(
    alias: str, annotation: str, module: Module
) -> None:
    made = f"class Mine:\n    def __init__(self, kind: {annotation} = 'l1'): ...\n"
    name = module(f"from typing import Literal\n\n{alias}\n\n{made}")
    signature = signature_of(f"{name}:Mine", "it")
    assert signature.bind({"kind": "l2"}, "it") == {"kind": "l2"}
    with pytest.raises(ConfigError, match="Input should be 'l1' or 'l2'"):
        signature.bind({"kind": "l3"}, "it")


def test_a_type_that_only_its_author_knows_is_not_checked(module: Module) -> None:
    own = "class Own:\n    pass\n\nclass Mine:\n    def __init__(self, kind: Own = None): ...\n"
    signature = signature_of(f"{module(own)}:Mine", "it")
    assert signature.bind({"kind": "x"}, "it") == {"kind": "x"}


def test_several_paths_are_kept_as_texts(module: Module, tmp_path: Path) -> None:
    name = module(
        "from pathlib import Path\n\nclass Mine:\n    def __init__(self, one: Path = Path('a'), "
        "files: tuple[Path, ...] = ()): ...\n"
    )
    signature = signature_of(f"{name}:Mine", "it")
    found = signature.bind({"files": f"{tmp_path}/x+{tmp_path}/y"}, "it")
    assert found == {"one": str(Path("a").absolute()),
                     "files": (f"{tmp_path}/x", f"{tmp_path}/y")}  # fmt: skip
    assert as_paths(found["files"]) == (tmp_path / "x", tmp_path / "y")


def test_several_arguments_may_be_said_together() -> None:
    doc = "Do.\n\nArgs:\n    mean, std: a channel,\n        of values.\n    size (int): side.\n"
    docs = argument_docs(doc)
    assert docs["mean"] == docs["std"] == "a channel, of values."
    assert docs["size"] == "side."
    assert argument_docs(doc.replace("Args", "Arguments")) == docs
