"""Is a spec what a plugin's hook promises? Checked on loading, so that no verb trips on it."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rib_harness.specs import BackboneSpec, MethodSpec, MetricSpec, Spec, SuiteSpec

#: Of plugins, components, and short names of a family's members.
NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def checked(spec: Any, expected: type[Spec], hook: str) -> Spec:
    """The spec, if it is what the hook promises.

    Raises:
        TypeError: it is another thing, or a field is of another type.
        ValueError: a field has a value that cannot be meant.
    """
    if not isinstance(spec, expected):
        raise TypeError(f"{hook} must return {expected.__name__}, got {type(spec).__name__}")
    what = f"{hook}: {expected.__name__} {spec.name!r}"
    if not (isinstance(spec.name, str) and NAME.fullmatch(spec.name)):
        raise ValueError(f"{what}: a name is lower-case words joined by hyphens")
    needs_target = not isinstance(spec, SuiteSpec)
    if needs_target and not (isinstance(spec.target, str) and _TARGET.fullmatch(spec.target)):
        raise ValueError(f"{what}: expected target 'package.module:attribute', got {spec.target!r}")
    if isinstance(spec.version, bool) or not isinstance(spec.version, int) or spec.version < 1:
        raise ValueError(f"{what}: expected version 1, 2, …, got {spec.version!r}")
    for name, value, hint in _misfits(spec, expected):
        raise TypeError(f"{what}: expected {name} of type {_said(hint)}, got {value!r}")
    for name in ("arguments", "recipe", "presets"):
        try:
            json.dumps(getattr(spec, name, None), default=_plain)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{what}: the values of {name} are kept as JSON: {error}") from None
    if isinstance(spec, MethodSpec) and not 0 <= spec.holds_out < 1:
        raise ValueError(f"{what}: expected holds_out in 0 … 1, got {spec.holds_out!r}")
    for knob in spec.knobs if isinstance(spec, MethodSpec) else ():
        low, high = knob.low, knob.high
        if not knob.values and (low >= high or (knob.log and low <= 0)):
            raise ValueError(
                f"{what}: expected values or a range{' above 0' if knob.log else ''} of the knob "
                f"{knob.name!r}, got {low:g} … {high:g}"
            )
    if isinstance(spec, MetricSpec) and not spec.range[0] < spec.range[1]:
        raise ValueError(f"{what}: expected range (smallest, largest), got {spec.range!r}")
    for variant in spec.variants if isinstance(spec, BackboneSpec) else ():
        if variant.alias and not NAME.fullmatch(variant.alias):
            raise ValueError(f"{what}: an alias is a short name, got {variant.alias!r}")
    return spec


def _plain(value: Any) -> Any:
    """A mapping of another type as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def _misfits(data: Any, cls: Any) -> list[tuple[str, Any, Any]]:
    """Fields of a dataclass whose value is not of the annotated type: name, value, type.

    Args:
        data: of the class, or of a subclass, whose own fields are its author's.
        cls: a dataclass.
    """
    hints = get_type_hints(cls)
    found = [(f.name, getattr(data, f.name), hints[f.name]) for f in fields(cls)]
    return [(name, value, hint) for name, value, hint in found if not _fits(value, hint)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A list does for a tuple, an int for a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        pairs = zip(value, wanted, strict=False)
        return len(value) == len(wanted) and all(_fits(one, each) for one, each in pairs)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    if hint in (int, float):
        number = (int, float) if hint is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, hint) and not (is_dataclass(hint) and _misfits(value, hint))


def _said(hint: Any) -> str:
    """A type as a person writes it."""
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b[\w.]+\.", "", text)
