"""References on the command line, and the options of a component, read without importing it.

A reference is `name` or `plugin/name`, with options behind a colon: `lwf:temperature=4,alpha=0.5`,
`timm:resnet50.a1_in1k,weights=FILE`. A value in round brackets may hold commas itself:
`wise-ft:base=(lwf:alpha=2,temperature=3)`.

A component's options are the parameters of its target: the fields of a dataclass, or the
arguments of a function or of `__init__`. They are read from the source, so that listing and
planning stay free of torch; a target whose source cannot be read that way is imported instead.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rib_harness.errors import ConfigError, PluginError, nearest
from rib_harness.given import no_number, plain_values, user_path
from rib_harness.guard import as_it_was, told
from rib_harness.threads import wait_passively

#: Stands for "no default: the option must be given".
REQUIRED = "<required>"

#: Where a dataset's images lie: a file, a folder, or `hf:REPO` on the Hugging Face Hub. An option
#: of this type is in no key, since the images' fingerprint is.
Location = str

#: Which column (of a table) or kind of file is meant where a place holds several. In no key either.
Column = str

#: References that may stand in one reference: each is read, bound and planned inside another.
DEEPEST = 64

#: `hf:` and its like; a single letter would be a drive.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


@dataclass(frozen=True)
class Reference:
    """What a user wrote: `[plugin/]name[:tag][,option=value ...]`."""

    name: str
    tag: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split a reference.

        >>> Reference.parse("timm:resnet50.a1_in1k,pad_type=same").tag
        'resnet50.a1_in1k'
        """
        if max(_depth(text), text.count(":")) > DEEPEST:
            raise ConfigError(
                [
                    f"{text[:40]!r} …: expected a reference of at most {DEEPEST} others in one "
                    "another."
                ]
            )
        name, _, rest = text.strip().partition(":")
        tag, options = "", {}
        for position, item in enumerate(split_outside_brackets(rest, ",")):
            key, equals, value = item.partition("=")
            key = key.strip()
            if not equals and position == 0:
                tag = item
            elif not equals or not key:
                raise ConfigError(
                    [f"{text!r}: expected option=value behind the colon, got {item!r}."]
                )
            elif key in options:
                raise ConfigError([f"{text!r}: the option {key!r} is given twice."])
            else:
                options[key] = value.strip()
        return cls(name.strip(), tag.strip(), options)


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Split at `separator`, not inside round brackets; empty text gives no parts.

    >>> split_outside_brackets("a=(b:c=1,d=2),e=3", ",")
    ['a=(b:c=1,d=2)', 'e=3']
    """
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]] if text else []


def _depth(text: str) -> int:
    """How many round brackets are open at once."""
    return max(itertools.accumulate(((c == "(") - (c == ")") for c in text), initial=0))


def members_of(text: str) -> list[str]:
    """The references in `a+b+(c:x=1)`, without their brackets.

    >>> members_of("pretrained+ft+(lwf:alpha=2)")
    ['pretrained', 'ft', 'lwf:alpha=2']
    """
    return [_without_brackets(part.strip()) for part in split_outside_brackets(text, "+")]


def _without_brackets(text: str) -> str:
    """The text inside the brackets, if one pair holds all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and position < len(text) - 1:
            return text
    return text[1:-1]


def one_reference(text: str) -> str:
    """A single reference, without the brackets that may group it."""
    return _without_brackets(text.strip())


def _unprotected(value: str) -> str:
    """A value without the brackets that protect its commas.

    Those of `(best-of:members=ft+lwf)` stay: they say that the sum is inside the one reference.
    """
    inner = _without_brackets(value)
    parts = split_outside_brackets(inner, "+")
    sum_inside = len(parts) > 1 and any(":" in p and not p.startswith("(") for p in parts)
    return value if sum_inside or inner == value else _unprotected(inner)


@dataclass(frozen=True)
class Option:
    """One option: its type as written, its default, and what its docstring says of it.

    A parameter that had to avoid a word of Python, as `lambda_`, is the option `lambda`.
    """

    parameter: str
    annotation: str
    default: Any
    doc: str = ""

    @property
    def name(self) -> str:
        """What a user writes."""
        return self.parameter.rstrip("_")

    @property
    def is_checked(self) -> bool:
        """Whether values are checked against its type; not where the type cannot be told."""
        return _type_of(self.annotation) is not None

    @property
    def is_path(self) -> bool:
        """Paths say where something lies, not what it is: they stay out of keys."""
        return self.is_location or re.search(r"\bPath\b", self.annotation) is not None

    @property
    def is_location(self) -> bool:
        """Where a dataset's images lie: their fingerprint speaks for them in keys."""
        return re.search(r"\b(Location|Column)\b", self.annotation) is not None

    @property
    def is_given_as_path(self) -> bool:
        """Whether the target is given a `Path`: values are kept as texts, as JSON has them."""
        return re.search(r"\bPath\b", self.annotation) is not None


@dataclass(frozen=True)
class Signature:
    """The options of one target; `extra` where it takes any others too (`**kwargs`)."""

    options: tuple[Option, ...]
    extra: bool = False
    doc: str = ""

    def bind(self, given: Mapping[str, Any], what: str) -> dict[str, Any]:
        """All options with their values; texts become what the annotation says.

        Raises:
            ConfigError: for an unknown option (with the nearest name), a value of the wrong
                type, or a missing option. All problems at once.
        """
        known = {option.name: option for option in self.options}
        problems: list[str] = []
        bound: dict[str, Any] = {}
        for name, value in given.items():
            if name in known:
                try:
                    bound[name] = _convert(known[name], value)
                except ValueError as error:
                    problems.append(f"{what}: option {name}={value}: {error}")
            elif self.extra:
                bound[name] = _guess(value)
            else:
                has = f"It has {', '.join(known)}." if known else "It has no options: leave it out."
                problems.append(f"{what} has no option {name!r}.{nearest(name, known)} {has}")
        for option in self.options:
            if option.name in given:
                continue
            if option.default == REQUIRED:
                problems.append(f"{what} needs the option {option.name!r}: {option.doc}")
            else:
                bound[option.name] = option.default
        if problems:
            raise ConfigError(problems)
        order = [*known, *(name for name in bound if name not in known)]
        return {name: bound[name] for name in order}


def load_target(target: str, what: str) -> Any:
    """Import `package.module:attribute`."""
    module_name, _, attribute = target.partition(":")
    try:
        with _importing(module_name, what):
            module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{what} could not be loaded from {target}: {told(error)}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        said = "is no class or function" if hasattr(module, attribute) else "is not there"
        raise PluginError(
            f"{what} points to {target}, and {attribute} {said}."
            f"{nearest(attribute, filter(str.isidentifier, vars(module)))}"
        )
    return found


def _importing(module: str, what: str) -> AbstractContextManager[None]:
    """Around an import; what is there already, or nothing, needs no guard."""
    there = not module or module in sys.modules
    if not there:
        wait_passively()  # the module may import torch, and what we set is not its doing
    return nullcontext() if there else as_it_was(f"loading {what}")


@lru_cache(maxsize=256)
def signature_of(target: str, what: str) -> Signature:
    """The options of a target, from its source where that suffices, else by importing it."""
    module_name, _, attribute = target.partition(":")
    try:
        with _importing(module_name.rpartition(".")[0], what):  # find_spec does
            found = importlib.util.find_spec(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{what} could not be loaded from {target}: {told(error)}") from error
    if found is None:
        raise PluginError(f"{what} points to {target}, but there is no module {module_name}.")
    if found.origin and found.origin.endswith(".py"):
        try:
            tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
            return _readable(_from_source(tree, attribute), _aliases(tree))
        except SyntaxError as error:
            raise PluginError(
                f"{what} could not be loaded from {target}: SyntaxError: {error}"
            ) from error
        except _UnreadableError:
            pass
    return _from_object(load_target(target, what))


class _UnreadableError(Exception):
    """The source alone does not say; import it."""


def _from_source(tree: ast.Module, attribute: str) -> Signature:
    """Read a top-level dataclass, class or function of a module's syntax tree."""
    definitions = {
        node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    node = definitions.get(attribute)
    if node is None:
        raise _UnreadableError
    if isinstance(node, ast.FunctionDef):
        return _from_arguments(node, ast.get_docstring(node) or "", skip_self=False)
    doc = ast.get_docstring(node) or ""
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    if init is not None:
        return _from_arguments(init, doc, skip_self=True)
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    is_dataclass = any("dataclass" in text for text in decorators)
    if decorators and not (is_dataclass and len(decorators) == 1):
        raise _UnreadableError  # a decorator may make the fields
    if node.bases and not all(ast.unparse(b).split("[")[0] == "Protocol" for b in node.bases):
        raise _UnreadableError  # fields may be inherited
    if not is_dataclass:
        return Signature((), doc=doc)
    docs = argument_docs(doc)
    options = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = ast.unparse(item.annotation)
            if "ClassVar" not in annotation and "KW_ONLY" not in annotation:
                name = item.target.id
                options.append(Option(name, annotation, _literal(item.value), docs.get(name, "")))
    return Signature(tuple(options), doc=doc)


def _from_arguments(node: ast.FunctionDef, doc: str, *, skip_self: bool) -> Signature:
    docs = argument_docs(doc)
    positional = [*node.args.posonlyargs, *node.args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    pairs = list(zip(positional, [*missing, *node.args.defaults], strict=True))[skip_self:]
    pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    options = tuple(
        Option(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "Any",
            _literal(default),
            docs.get(argument.arg, ""),
        )
        for argument, default in pairs
    )
    return Signature(options, extra=node.args.kwarg is not None, doc=doc)


def _aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """Module-level names, as `Average` of `Average = Literal["logits", "probabilities"]`."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: Any = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:  # `type X = …`, since Python 3.12
            target = getattr(node, "name", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr):
            found[target.id] = value
    return found


class _Written(ast.NodeTransformer):
    """Writes aliases out. What stands in a `Literal` are values, not types."""

    def __init__(self, aliases: Mapping[str, ast.expr]):
        self.aliases = dict(aliases)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """An alias, in whose own text it stands for itself."""
        meant = self.aliases.get(node.id)
        if meant is None:
            return node
        rest = {name: value for name, value in self.aliases.items() if name != node.id}
        made: ast.expr = _Written(rest).visit(copy.deepcopy(meant))
        return made

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """`tuple[Average, ...]`, but not `Literal["Average"]`."""
        if ast.unparse(node.value).split(".")[-1] == "Literal":
            return node
        self.generic_visit(node)
        return node


def _readable(signature: Signature, aliases: Mapping[str, ast.expr]) -> Signature:
    """The signature with every type written out, so that values can be checked against it.

    Raises:
        _UnreadableError: a type is neither known nor an alias of the same module.
    """
    options = []
    for option in signature.options:
        text = option.annotation
        with suppress(SyntaxError):
            tree = ast.parse(text, mode="eval").body
            if isinstance(tree, ast.Constant) and isinstance(tree.value, str):  # in quotes
                tree = ast.parse(tree.value, mode="eval").body
            text = ast.unparse(_Written(aliases).visit(tree))
        if _type_of(text) is not None:
            option = replace(option, annotation=text)
        elif option.default != REQUIRED:  # what has no default may be no option: a metric's inputs
            raise _UnreadableError
        options.append(option)
    return replace(signature, options=tuple(options))


def _type_of(annotation: str) -> Any:
    """What an annotation means; None where a name in it is not known."""
    try:
        meant = eval(annotation, _names())
    except Exception:
        return None
    return None if isinstance(meant, str) else meant


def as_paths(value: Any) -> Any:
    """Texts as a target is given them whose option is of `Path`s: one, or several."""
    if isinstance(value, list | tuple):
        return tuple(map(as_paths, value))
    return Path(value) if isinstance(value, str) else value


def as_texts(value: Any) -> Any:
    """Paths as they are kept, absolute, so that a saved configuration means the same anywhere."""
    if isinstance(value, list | tuple):
        return type(value)(map(as_texts, value))
    return str(user_path(value).absolute()) if isinstance(value, Path) else value


def _literal(value: ast.expr | None) -> Any:
    if value is None:
        return REQUIRED
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise _UnreadableError from None


def _from_object(target: Any) -> Signature:
    doc = inspect.getdoc(target) or ""
    docs = argument_docs(doc)
    options, extra = [], False
    fields = getattr(target, "__dataclass_fields__", {})
    factories = {name: field.default_factory for name, field in fields.items()}
    hints: dict[str, Any] = {}
    with suppress(Exception):  # a name that is imported for type checkers only
        made = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
        hints = typing.get_type_hints(made)
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            empty = inspect.Parameter.empty
            annotation = "Any" if parameter.annotation is empty else parameter.annotation
            if not isinstance(annotation, str):
                annotation = inspect.formatannotation(annotation)
            annotation = re.sub(r"\b(typing|pathlib)\.", "", annotation)
            if _type_of(annotation) is None and parameter.name in hints:
                written = inspect.formatannotation(hints[parameter.name])
                written = re.sub(r"\b(typing|pathlib)\.", "", written)
                annotation = written if _type_of(written) is not None else annotation
            default = REQUIRED if parameter.default is empty else parameter.default
            if repr(default) == "<factory>":  # of a dataclass's field
                default = factories[parameter.name]()
            if re.search(r"\bPath\b", annotation):
                default = as_texts(default)
            options.append(
                Option(parameter.name, annotation, default, docs.get(parameter.name, ""))
            )
    return Signature(tuple(options), extra, doc)


def argument_docs(doc: str) -> dict[str, str]:
    """What the `Args:` section of a docstring says, name by name."""
    found = re.search(
        r"^(?:Args|Arguments):\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(doc) + "\n", re.MULTILINE
    )
    if not found:
        return {}
    docs: dict[str, str] = {}
    body = found.group(1).rstrip("\n").split("\n")
    indent = len(body[0]) - len(body[0].lstrip())
    names: list[str] = []
    for line in body:
        if len(line) - len(line.lstrip()) == indent and ":" in line:
            head, _, text = line.strip().partition(":")
            # Several that are said together: `mean, std: …`
            names = [one.split(" ")[0].lstrip("*") for one in head.split(", ")]
            docs |= dict.fromkeys(names, text.strip())
        elif line.strip():
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
    return docs


def _names() -> dict[str, Any]:
    names = {name: getattr(typing, name) for name in typing.__all__}
    return {**names, "Path": Path, "Location": Location, "Column": Column}


def _convert(option: Option, value: Any) -> Any:
    """A value of the option's type, from a text or from a TOML value."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    annotation = _type_of(option.annotation)
    annotation = Any if annotation is None else annotation
    if isinstance(value, str):
        value = _unprotected(value)
        if value.lower() in ("none", "null") and re.search(r"None|Optional", option.annotation):
            return None
        if re.match(r"(tuple|list|Sequence)\b", option.annotation):
            value = value.split("+")
    value = plain_values(value)
    numbers = not re.search(r"\b(bool|Any)\b", option.annotation)
    if numbers and (wrong := no_number(value)):
        raise ValueError(wrong)
    try:
        try:
            adapter = TypeAdapter(annotation)
        except PydanticUserError:  # a type of somebody's own: the target knows
            adapter = TypeAdapter(Any)
        converted = adapter.validate_python(value)
        if numbers and (wrong := no_number(converted)):  # a text of many digits
            raise ValueError(wrong)
        json.dumps(converted, allow_nan=False, default=str)  # a key can hold it
    except ValidationError as error:
        raise ValueError("; ".join(e["msg"] for e in error.errors())) from None
    place = re.search(r"\bLocation\b", option.annotation) is not None
    if place and isinstance(converted, str) and not _SCHEME.match(converted):
        converted = Path(converted)
    return as_texts(converted)


def _guess(value: Any) -> Any:
    """The type of a value that no annotation speaks of: a Python literal, else text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return value


def spelled(options: Mapping[str, Any]) -> Iterator[str]:
    """`name=value` texts that `Reference.parse` reads back."""
    for name, value in options.items():
        text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield f"{name}=({text})" if "," in text else f"{name}={text}"
