"""What a method is made of: checkpoints of other methods, methods that it runs, data that it reads.

All of it is in the method's spec, filled from its options, and all of it is checked when planning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from rib_harness.catalog import Bound, Catalog, guarded
from rib_harness.errors import ConfigError, nearest
from rib_harness.options import Reference, members_of, split_outside_brackets
from rib_harness.specs import BackboneSpec, LabelSpace

#: `ft@1` is `ft` with the run's seed plus this: no run's own seeds come near.
SEED_STRIDE = 100_000

#: What a method chooses on, where the recipe does not say.
HELD_OUT = 0.2

#: Methods that start from methods that start from methods …: no sensible one goes so far.
MAX_DEPTH = 12

_SEEDED = re.compile(r"([^:@]+)@(\d+)(:.*)?")

#: Part of a backbone → in words.
_PARTS = {
    "blocks": "the blocks of a vision transformer",
    "qkv": "attention with one linear layer `qkv`",
    "batch-norm": "batch normalisation",
    "text-tower": "a text tower",
    "projection": "a linear projection at the end of its image tower",
}


@dataclass(frozen=True)
class Need:
    """A checkpoint that a method starts from.

    Args:
        reference: as the method asks for it, e.g. `ft@1`.
        method: which makes it.
        seed: added to the run's.
    """

    reference: str
    method: Bound
    seed: int


def needs_of(catalog: Catalog, method: Bound, preset: str) -> list[Need]:
    """The checkpoints that a method starts from, each once; `pretrained` is none of them.

    Raises:
        RibError: a member that is empty or that no method is called.
    """
    needs = []
    for reference in dict.fromkeys(_filled(method, "needs")):
        if reference == "pretrained":
            continue
        seeded = _SEEDED.fullmatch(reference)
        text, number = reference, 0
        if seeded:
            text, number = f"{seeded[1]}{seeded[3] or ''}", int(seeded[2])
        needs.append(Need(reference, catalog.bind("method", text, preset), number * SEED_STRIDE))
    return needs


def calls_of(catalog: Catalog, method: Bound, preset: str) -> dict[str, Bound]:
    """The methods that a method runs itself, by reference."""
    return {text: catalog.bind("method", text, preset) for text in _filled(method, "calls")}


def reads_of(method: Bound) -> list[str]:
    """Names of the datasets that a method reads beside the fine-tuning set."""
    return [text for text in _filled(method, "reads") if text != "None"]


def _filled(method: Bound, field: str) -> list[str]:
    """The references in a field of the spec, filled from the method's options."""
    with guarded(f"{method.component.what}: {field}={getattr(method.spec, field)!r}"):
        texts = [text.format_map(method.options) for text in getattr(method.spec, field)]
    references = []
    for text in texts:
        several, given = text.startswith("*"), text.removeprefix("*")
        members = members_of(given)
        if given.count("(") != given.count(")"):
            raise ConfigError([f"{method.component.what}: a bracket is not closed in {given!r}."])
        if not members or not all(members) or (len(members) > 1 and not several):
            one = "one dataset" if field == "reads" else "one method"
            expected = "methods joined by +" if several else one
            raise ConfigError([f"{method.component.what}: expected {expected}, got {given!r}."])
        references += members
    return references


def is_mergeable(catalog: Catalog, method: Bound, preset: str) -> bool:
    """Whether its result is a plain classifier of the backbone's architecture."""
    if not method.spec.chooses:
        return bool(method.spec.mergeable)
    return all(is_mergeable(catalog, n.method, preset) for n in needs_of(catalog, method, preset))


def check_composition(
    catalog: Catalog, method: Bound, preset: str, above: tuple[str, ...] = ()
) -> None:
    """Raise for a cycle, a missing member, or one that does not fit.

    Raises:
        RibError: which, and why.
    """
    if method.id in above:
        raise ConfigError([f"A cycle of methods: {' → '.join([*above, method.id])}."])
    if len(above) == MAX_DEPTH:
        raise ConfigError([f"{above[0]}: methods that need methods, {MAX_DEPTH} deep and more."])
    needs = [need.method for need in needs_of(catalog, method, preset)]
    calls = list(calls_of(catalog, method, preset).values())
    for needed in [*needs, *calls]:
        check_composition(catalog, needed, preset, (*above, method.id))
        if not method.spec.chooses and not is_mergeable(catalog, needed, preset):
            raise ConfigError(
                [
                    f"{method.label} cannot start from {needed.label} or average it: it is not "
                    "mergeable, its result has another architecture than the backbone."
                ]
            )
    for called in calls:
        if needs_of(catalog, called, preset) or reads_of(called) or called.spec.holds_out:
            raise ConfigError(
                [
                    f"{method.label} cannot run {called.label} from another start: that one "
                    "starts from checkpoints, or reads data, of its own."
                ]
            )


def missing_parts(catalog: Catalog, method: Bound, has: Iterable[str], preset: str) -> list[str]:
    """Parts that the method, or one that it is made of, requires and a backbone lacks."""
    missing = []
    for text in method.spec.requires:
        condition = Reference.parse(text)
        applies = all(str(method.options.get(k)) == v for k, v in condition.options.items())
        if applies and condition.name not in has:
            missing.append(condition.name)
    inner = [need.method for need in needs_of(catalog, method, preset)]
    for one in [*inner, *calls_of(catalog, method, preset).values()]:
        missing += missing_parts(catalog, one, has, preset)
    return list(dict.fromkeys(missing))


def describe_missing(
    catalog: Catalog, method: Bound, lacking: str, parts: Sequence[str], space: LabelSpace
) -> str:
    """Why a method refuses a backbone, and which backbones it takes.

    Args:
        lacking: the backbone and a verb, e.g. `digits-conv does not have`.
    """
    words = " and ".join(_PARTS.get(part, part) for part in parts)
    having = list(_backbones_with(catalog, parts, space))
    shown = ", ".join(having[:4]) + (f" and {len(having) - 4} more" if len(having) > 4 else "")
    text = f"{method.label} needs {words}, which {lacking}."
    return f"{text} Backbones that do: {shown or f'none is known over {space.name}'}."


def _backbones_with(catalog: Catalog, parts: Sequence[str], space: LabelSpace) -> Iterator[str]:
    for component in catalog.list("backbone"):
        spec = component.spec
        if isinstance(spec, BackboneSpec) and spec.label_space == space:
            if not spec.family and set(parts) <= set(spec.has):
                yield spec.name
            for one in spec.variants:
                if set(parts) <= set(one.has):
                    yield one.alias or f"{spec.name}:{one.tag}"


@dataclass(frozen=True)
class Knob:
    """Values of an option to try: `lambda=0.01,0.1,1`, or of one method only: `ewc:lambda=…`."""

    method: str
    option: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, what: str) -> Knob:
        """Read `[METHOD:]OPTION=VALUE,VALUE,…`.

        Raises:
            ConfigError: it is not of this form.

        Example:
            >>> Knob.parse("ewc:lambda=0.1,1", "--search").values
            ('0.1', '1')
        """
        name, equals, values = text.partition("=")
        method, _, option = name.rpartition(":")
        tried = tuple(dict.fromkeys(value.strip() for value in split_outside_brackets(values, ",")))
        if not equals or not option.strip() or not all(tried) or len(tried) < 2:
            raise ConfigError(
                [f"{what}: expected [METHOD:]OPTION=VALUE,VALUE,… (two at least), got {text!r}."]
            )
        return cls(method.strip(), option.strip(), tried)

    def turns(self, method: Bound) -> bool:
        """Whether the method has this option, and is meant."""
        names = (method.spec.name, method.component.id)
        options = [option.name for option in method.component.signature.options]
        return self.option in options and (not self.method or self.method in names)


def expand(
    catalog: Catalog,
    methods: Sequence[str],
    preset: str,
    *,
    sweep: Sequence[str] = (),
    search: Sequence[str] = (),
) -> list[Bound]:
    """The methods of a run: one for each value of a sweep, one that chooses for each search.

    Args:
        methods: references.
        sweep: knobs of which every value is a method of its own.
        search: knobs of which the held-out part of the fine-tuning set chooses the value.

    Raises:
        ConfigError: a knob that no method has.
    """
    bound = [catalog.bind("method", text, preset) for text in methods]
    swept = [Knob.parse(text, "--sweep") for text in sweep]
    searched = [Knob.parse(text, "--search") for text in search]
    for what, knobs in (("--sweep", swept), ("--search", searched)):
        for knob in knobs:
            if not any(knob.turns(method) for method in bound):
                raise ConfigError([f"{what} {_unknown(knob, bound)}"])
    made = []
    for method in bound:
        # From its canonical id, so that no spelling decides the keys of what is chosen from.
        for one in _each_value(method.id, method, swept):
            again = catalog.bind("method", one, preset)
            candidates = _each_value(one, again, searched)
            if len(candidates) == 1:
                made.append(again)
                continue
            best = catalog.bind("method", f"best-of:members={_joined(candidates)}", preset)
            turned = "".join(
                f",{knob.option}={'|'.join(knob.values)}" for knob in searched if knob.turns(again)
            )
            made.append(replace(best, title=f"search({again.label}{turned})"))
    return list({method.id: method for method in made}.values())


def _unknown(knob: Knob, methods: Sequence[Bound]) -> str:
    """Why a knob turns nothing."""
    names = [method.spec.name for method in methods]
    meant = [m for m in methods if knob.method in ("", m.spec.name, m.component.id)]
    if not meant:
        return f"{knob.method}:{knob.option}: this run has no method {knob.method!r}." + nearest(
            knob.method, names
        )
    options = sorted({o.name for m in meant for o in m.component.signature.options})
    whose = f"the method {knob.method!r}" if knob.method else "any method of this run"
    return (
        f"{knob.option}: it is no option of {whose}.{nearest(knob.option, options)} "
        f"Options: {', '.join(options) or 'none'}."
    )


def _each_value(text: str, method: Bound, knobs: Sequence[Knob]) -> list[str]:
    """References with every combination of the values of the knobs that the method has."""
    turned = [knob for knob in knobs if knob.turns(method)]
    reference = Reference.parse(text)
    made = []
    for values in product(*(knob.values for knob in turned)):
        chosen = {knob.option: value for knob, value in zip(turned, values, strict=True)}
        options = ",".join(f"{k}={v}" for k, v in {**reference.options, **chosen}.items())
        made.append(f"{reference.name}:{options}" if options else reference.name)
    return made


def _joined(references: Sequence[str]) -> str:
    return "(" + "+".join(f"({text})" for text in references) + ")"
