"""What a method is made of: checkpoints of other methods, methods that it runs, data that it reads.

All of it is in the method's spec, filled from its options, and all of it is checked when planning.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from rib_harness.catalog import RECIPE, Bound, Catalog, guarded
from rib_harness.errors import ConfigError, nearest
from rib_harness.options import Reference, members_of, split_outside_brackets
from rib_harness.specs import BackboneSpec, Knob, LabelSpace

if TYPE_CHECKING:
    from rib_harness.config import Recipe

#: `ft@1` is `ft` with the run's seed plus this: no run's own seeds come near.
SEED_STRIDE = 100_000

#: What a method chooses on, where the recipe does not say.
HELD_OUT = 0.2

#: Methods that start from methods that start from methods …: no sensible one goes so far.
MAX_DEPTH = 12

#: Keys of the recipe that say which images are trained on.
SPLIT = ("held_out", "per_class", "keep", "keep_by")

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


def teachers_of(method: Bound) -> list[str]:
    """References of the other backbones that a method learns from."""
    return [text for text in _filled(method, "teachers") if text != "None"]


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
            one = {"reads": "one dataset", "teachers": "one backbone"}.get(field, "one method")
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
        if wrong := _split_of_its_own(needed):
            raise ConfigError(
                [
                    f"{method.label}: {needed.label} sets {wrong}, which is the same for all that "
                    f"one method is made of. Give it to {method.spec.name}, or with --set."
                ]
            )
        if not method.spec.chooses and not is_mergeable(catalog, needed, preset):
            raise ConfigError(
                [
                    f"{method.label} cannot start from {needed.label} or average it: it is not "
                    "mergeable, its result has another architecture than the backbone."
                ]
            )
    for key in method.recipe:
        if not _heeds(catalog, method, key, preset):
            own = [o.name for o in method.component.signature.options if o.name.startswith(key)]
            how = f": set its option {own[0]}" if own else ""
            raise ConfigError(
                [f"{method.label}: recipe.{key} changes nothing, the method sets it itself{how}."]
            )
    for called in calls:
        if called.recipe:
            raise ConfigError(
                [
                    f"{method.label} runs {called.label} with a recipe of its own: give the values "
                    f"to {method.spec.name}."
                ]
            )
        inputs: list[object] = [*needs_of(catalog, called, preset)]
        inputs += [*reads_of(called), *teachers_of(called)]
        if inputs or called.spec.holds_out:
            raise ConfigError(
                [
                    f"{method.label} cannot run {called.label} from another start: that one "
                    "starts from checkpoints, learns from backbones, or reads data, of its own."
                ]
            )


def _split_of_its_own(method: Bound) -> str:
    """A recipe key of the method that says which images are trained on; empty if it has none."""
    keys = [key for key in SPLIT if key in method.recipe]
    return f"recipe.{keys[0]}" if keys else ""


def _heeds(catalog: Catalog, method: Bound, key: str, preset: str) -> bool:
    """Whether a value of the recipe reaches a fit of the method, or of what it starts from."""
    own = method.spec.trains != "nothing" and key not in method.spec.fixes
    needs = needs_of(catalog, method, preset)
    return own or key in SPLIT or any(_heeds(catalog, one.method, key, preset) for one in needs)


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
class Values:
    """Values of an option to try: `lambda=0.01,0.1,1`, or of one method only: `ewc:lambda=…`.

    `recipe.lr=0.01,0.001` are values of the recipe.
    """

    method: str
    option: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, what: str) -> Values:
        """Read `[METHOD:]OPTION=VALUE,VALUE,…`.

        Raises:
            ConfigError: it is not of this form.

        Example:
            >>> Values.parse("ewc:lambda=0.1,1", "--search").values
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

    def means(self, method: Bound) -> bool:
        """Whether the method is meant."""
        return self.method in ("", method.spec.name, method.component.id)

    def are_of(self, method: Bound) -> bool:
        """Whether the method has this option, and is meant."""
        options = [option.name for option in method.component.signature.options]
        return self.means(method) and (self.option in options or self.option.startswith(RECIPE))


@dataclass(frozen=True)
class Entry:
    """A method of a run.

    Args:
        method: which.
        trial_of: label of the method that chooses among this one and others; empty if none does.
    """

    method: Bound
    trial_of: str = ""


def expand(
    catalog: Catalog,
    methods: Sequence[str],
    preset: str,
    recipe: Recipe,
    *,
    sweep: Sequence[str] = (),
    search: Sequence[str] = (),
    trials: int | None = None,
) -> list[Entry]:
    """The methods of a run: one for each value of a sweep, one that chooses for each search.

    Of `trials`, each is a method of the run too: what it does to the other datasets is what the
    choice is judged by.

    Args:
        methods: references.
        recipe: of the run, whose learning rate a knob's range is relative to.
        sweep: values of which each is a method of its own.
        search: values among which the held-out part of the fine-tuning set chooses.
        trials: settings of each method that are tried, drawn from its knobs.

    Raises:
        ConfigError: an option that no method has; a method without knobs.
    """
    bound = [catalog.bind("method", text, preset) for text in methods]
    swept = [Values.parse(text, "--sweep") for text in sweep]
    searched = [Values.parse(text, "--search") for text in search]
    for what, tried in (("--sweep", swept), ("--search", searched)):
        for values in tried:
            if not any(values.are_of(method) for method in bound):
                raise ConfigError([f"{what} {_unknown(values, bound)}"])
    made = []
    for reference, method in zip(methods, bound, strict=True):
        given = {*Reference.parse(reference).options}
        given |= {values.option for values in swept if values.are_of(method)}
        # From its canonical id, so that no spelling decides the keys of what is chosen from.
        for text in _each_value(method.id, method, swept):
            one = catalog.bind("method", text, preset)
            if trials is not None:
                made += _trials(catalog, one, given, preset, recipe, trials)
                continue
            candidates = _each_value(text, one, searched)
            if len(candidates) == 1:
                made.append(Entry(one))
                continue
            turned = "".join(f",{v.option}={'|'.join(v.values)}" for v in searched if v.are_of(one))
            title = f"search({one.label}{turned})"
            made.append(Entry(_best_of(catalog, candidates, preset, title)))
    return list({(one.method.id, one.trial_of): one for one in made}.values())


def _best_of(catalog: Catalog, candidates: Sequence[str], preset: str, title: str) -> Bound:
    joined = "(" + "+".join(f"({text})" for text in candidates) + ")"
    return replace(catalog.bind("method", f"best-of:members={joined}", preset), title=title)


def _trials(
    catalog: Catalog,
    method: Bound,
    given: set[str],
    preset: str,
    recipe: Recipe,
    number: int,
) -> list[Entry]:
    """The method that chooses among `number` settings of a method, then these.

    The first is the method as it is, the others are drawn from its knobs, except from those whose
    option or value of the recipe is given. What is drawn for a knob depends on its name and on the
    number of the trial only: more trials begin with the same ones, and where two methods have a
    knob in common (the learning rate, above all) they share the value, and with it what they start
    from.
    """
    knobs = [knob for knob in method.spec.knobs if knob.name not in given]
    if not knobs:
        why = "declares no knobs" if not method.spec.knobs else "has a value for each of its knobs"
        raise ConfigError(
            [
                f"--trials: {method.label} {why}, so there is nothing to draw. Leave it out, or "
                "name values with --search."
            ]
        )
    reference = Reference.parse(method.id)
    texts = [method.id]
    for k in range(1, number):
        drawn = {knob.name: _drawn(knob, k, recipe) for knob in knobs}
        texts.append(_with(reference, drawn))
    bound = [catalog.bind("method", text, preset) for text in dict.fromkeys(texts)]
    title = f"trials({method.label},{number})"
    best = _best_of(catalog, [one.id for one in bound], preset, title)
    return [Entry(best), *(Entry(one, title) for one in bound)]


def _drawn(knob: Knob, trial: int, recipe: Recipe) -> str:
    """A value of the knob, to two digits; uniform, by its name and the number of the trial."""
    digest = hashlib.sha256(f"{knob.name}/{trial}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if knob.values:
        return str(knob.values[int(share * len(knob.values))])
    if knob.log:
        value = knob.low * (knob.high / knob.low) ** share
    else:
        value = knob.low + (knob.high - knob.low) * share
    if knob.name.startswith(RECIPE):
        value *= getattr(recipe, knob.name.removeprefix(RECIPE))
    return f"{value:.2g}"


def _unknown(values: Values, methods: Sequence[Bound]) -> str:
    """Why values are of no method."""
    names = [method.spec.name for method in methods]
    meant = [method for method in methods if values.means(method)]
    if not meant:
        name = f"{values.method}:{values.option}"
        return f"{name}: this run has no method {values.method!r}." + nearest(values.method, names)
    options = sorted({o.name for m in meant for o in m.component.signature.options})
    whose = f"the method {values.method!r}" if values.method else "any method of this run"
    return (
        f"{values.option}: it is no option of {whose}.{nearest(values.option, options)} "
        f"Options: {', '.join(options) or 'none'}; and those of the recipe, as recipe.lr."
    )


def _each_value(text: str, method: Bound, given: Sequence[Values]) -> list[str]:
    """References with every combination of the values of the options that the method has."""
    turned = [values for values in given if values.are_of(method)]
    return [
        _with(Reference.parse(text), dict(zip([v.option for v in turned], chosen, strict=True)))
        for chosen in product(*(values.values for values in turned))
    ]


def _with(reference: Reference, options: Mapping[str, str]) -> str:
    """The reference with options that replace its own."""
    spelled = ",".join(f"{k}={v}" for k, v in {**reference.options, **options}.items())
    return f"{reference.name}:{spelled}" if spelled else reference.name
