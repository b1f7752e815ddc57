"""Studies: a question, the runs that answer it, and the figure that shows the answer. No torch.

A study is a TOML file; those of the paper ship with the harness (`rib-harness study list`). For
each suite it has the settings of a run, and recipes that are varied one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rib_harness.config import RunConfig, make_config, make_recipe
from rib_harness.errors import ConfigError, RibError, nearest
from rib_harness.given import parse_toml, read_toml, user_path
from rib_harness.specs import MetricSpec

if TYPE_CHECKING:
    from rib_harness.catalog import Catalog
    from rib_harness.plan import Plan
    from rib_harness.progress import Progress
    from rib_harness.results import Results

Figure = Literal["before-after", "radar", "dots", "learning", "curves", "scatter", "equal-gain"]

#: Those that ship with the harness, in the order of the paper.
NAMES = ("pretraining", "radar", "methods", "learning-curves", "hyperparameters", "sizes",
         "distance", "equal-effort", "pretraining-steps")  # fmt: skip

#: What each figure shows.
FIGURES: dict[str, str] = {
    "before-after": "bars of the mean accuracy before and after",
    "radar": "accuracy on each dataset before and after",
    "dots": "mRI of each method and backbone",
    "learning": "accuracy along the way",
    "curves": "mRI over a setting",
    "scatter": "change of accuracy against distances",
    "equal-gain": "gain against mRI of every trial of each method",
}


class SuiteSettings(BaseModel):
    """What a study runs on one suite: keys of `RunConfig`, and these.

    Args:
        vary: name of a panel → recipes, each in place of the base; none runs the base only.
        show: fine-tuning sets that a radar or learning curves show; none is all.
        metrics: of level `distance`, which a scatter sets against the change of accuracy.
        settings: the keys of `RunConfig`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vary: dict[str, Annotated[list[dict[str, Any]], Field(min_length=1)]] = {}
    show: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _settings_apart(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        own = {key: values[key] for key in ("vary", "show", "metrics") if key in values}
        rest = {k.replace("-", "_"): v for k, v in values.items() if k not in own}
        return {**own, "settings": rest}


class Study(BaseModel):
    """One study.

    Args:
        name: what it is called by.
        title: of its table and page.
        question: that it answers.
        paper: what the paper or its page shows of it.
        figure: one of `FIGURES`.
        suites: name of a suite → what is run there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    question: str
    paper: str = ""
    figure: Figure
    suites: Annotated[dict[str, SuiteSettings], Field(min_length=1)]

    def on(self, suite: str) -> SuiteSettings:
        """What it runs on a suite.

        Raises:
            ConfigError: it says nothing of that suite.
        """
        if suite not in self.suites:
            raise ConfigError(
                [
                    f"The study {self.name} has no settings for the suite {suite!r}."
                    f"{nearest(suite, self.suites)} It has: {', '.join(self.suites)}."
                ]
            )
        return self.suites[suite]


@dataclass(frozen=True)
class Variation:
    """One configuration of a study.

    Args:
        panel: what is varied; empty for the base.
        x: its value there, a number or a text; None for the base.
        config: what is run.
        recipe: what is other in it than in the base.
        results: what came of it; None until it ran, and where it could not.
    """

    panel: str
    x: float | str | None
    config: RunConfig
    recipe: Mapping[str, Any] = field(default_factory=dict)
    results: Results | None = None

    @property
    def label(self) -> str:
        """`optimizer adam, lr 0.001`."""
        return _spelled(self.recipe) if self.recipe else "the base"


class StudyFailedError(RibError):
    """Some configurations of a study failed; the others are done, and in its table.

    Args:
        failures: which configuration → what went wrong.
    """

    def __init__(self, failures: Mapping[str, str]):
        self.failures = dict(failures)
        lines = "\n".join(f"  - {label}: {told}" for label, told in failures.items())
        super().__init__(f"{len(failures)} configuration(s) are not whole:\n{lines}")


def load_studies() -> dict[str, Study]:
    """The studies that ship with the harness, by name, in the order of the paper."""
    folder = files("rib_harness").joinpath("studies")
    texts = {name: folder.joinpath(f"{name}.toml").read_text(encoding="utf-8") for name in NAMES}
    return {name: parse_study(name, text) for name, text in texts.items()}


def find_study(reference: str) -> Study:
    """A study by its name, or by the path of a TOML file.

    Raises:
        ConfigError: there is none, or it is not valid: all problems at once.
    """
    if reference.endswith(".toml") or "/" in reference:
        path = user_path(reference)
        return make_study(path.stem, read_toml(path, "The study"))
    studies = load_studies()
    if reference not in studies:
        raise ConfigError(
            [
                f"No study is called {reference!r}.{nearest(reference, studies)} Studies: "
                f"{', '.join(studies)}; or name a file, e.g. ./mine.toml"
            ]
        )
    return studies[reference]


def parse_study(name: str, text: str) -> Study:
    """A study from its TOML.

    Raises:
        ConfigError: every problem at once.
    """
    return make_study(name, parse_toml(text, f"The study {name}"))


def make_study(name: str, tables: Mapping[str, Any]) -> Study:
    """A study from TOML's tables.

    Raises:
        ConfigError: every problem at once.
    """
    try:
        study = Study.model_validate({"name": name, **tables})
    except ValidationError as error:
        told = [f"study {name}: {_told(dict(item))}" for item in error.errors()]
        raise ConfigError(told) from None
    problems: list[str] = []
    for suite, given in study.suites.items():
        where = f"study {name}: suites.{suite}"
        checks: list[tuple[str, Callable[[], object]]] = [
            (where, partial(make_config, {**given.settings, "suite": suite}))
        ]
        for panel, recipes in given.vary.items():
            checks += [(f"{where}.vary.{panel}", partial(make_recipe, one)) for one in recipes]
        for place, check in checks:
            try:
                check()
            except ConfigError as error:
                problems += [f"{place}: {one}" for one in error.problems]
    if problems:
        raise ConfigError(problems)
    return study


def _told(item: dict[str, Any]) -> str:
    """One of pydantic's errors in our words."""
    where, given = ".".join(str(part) for part in item["loc"]), item["input"]
    if item["type"] == "extra_forbidden":
        known = [field for field in Study.model_fields if field != "name"]
        return f"{where} is no key of a study.{nearest(where, known)} Keys: {', '.join(known)}."
    if where == "figure" and item["type"] == "literal_error":
        return (
            f"no figure is called {given!r}.{nearest(str(given), FIGURES)} "
            f"Figures: {', '.join(FIGURES)}."
        )
    if item["type"] == "missing":
        return f"{where} is missing."
    return f"{where}: {item['msg']}, got {given!r}."


def variations(study: Study, suite: str, given: Mapping[str, Any] = {}) -> list[Variation]:
    """The configurations of a study: the base, or one for each recipe that is varied.

    Args:
        given: fields of `RunConfig` that win over the study's own; of `recipe`, not over those
            that a variation sets.

    Raises:
        ConfigError: what a panel varies is given.
    """
    own = study.on(suite)

    def config(recipe: Mapping[str, Any]) -> RunConfig:
        tables = {
            name: {**own.settings.get(name, {}), **given.get(name, {})}
            for name in ("recipe", "expect")
        }
        tables["recipe"] |= recipe
        return make_config({**own.settings, **given, **tables, "suite": suite})

    fixed = {key.replace("-", "_") for key in given.get("recipe", {})}
    if both := sorted(set(own.vary) & fixed):
        raise ConfigError(
            [
                f"recipe.{key} is what the study {study.name} varies; it cannot be set."
                for key in both
            ]
        )
    if not own.vary:
        return [Variation("", None, config({}))]
    return [
        Variation(panel, _x(panel, recipe), config(recipe), recipe)
        for panel, recipes in own.vary.items()
        for recipe in recipes
    ]


def _x(panel: str, recipe: Mapping[str, Any]) -> float | str:
    """`0.01`, `sgd`, or all of the recipe where the panel is named after no key of it."""
    value = recipe.get(panel)
    return value if isinstance(value, int | float | str) else _spelled(recipe)


def _spelled(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items())


def plan_study(
    study: Study,
    suite: str,
    parts: list[Variation],
    catalog: Catalog,
    progress: Progress | None = None,
) -> list[Plan]:
    """A plan for each configuration; nothing is computed.

    Raises:
        RibError: a mistake in one of them, or in what is to be shown, found before any work.
    """
    from rib_harness.runner import open_session

    own, plans = study.on(suite), []
    for name in own.metrics:
        metric = catalog.get("metric", name)
        if not isinstance(metric.spec, MetricSpec) or metric.spec.level != "distance":
            raise ConfigError([f"metrics: {name!r} is no distance between datasets."])
    config = parts[0].config
    if study.figure == "scatter" and not (own.metrics and config.features):
        raise ConfigError(
            [f"The study {study.name} draws a scatter, which needs `metrics` and `features`."]
        )
    if study.figure == "equal-gain" and not config.trials:
        raise ConfigError([f"The study {study.name} compares trials: it needs `trials`."])
    if study.figure == "learning" and not config.probe_every:
        raise ConfigError([f"The study {study.name} draws learning curves: it needs probe_every."])
    for part in parts:
        try:
            plans.append(open_session(part.config, progress, catalog).plan)
        except RibError as error:
            raise RibError(f"{part.label}: {error}" if part.panel else str(error)) from None
    sources = [name for plan in plans[:1] for name in plan.records[0]["sources"]]
    unknown = [name for name in own.show if name not in sources]
    if unknown:
        raise ConfigError(
            [
                f"show: {one!r} is no fine-tuning set of this run.{nearest(one, sources)} "
                f"It has: {', '.join(sources)}."
                for one in unknown
            ]
        )
    return plans


def totals(plans: list[Plan]) -> dict[str, int]:
    """Steps of all plans together, each counted once: as `Plan.totals`."""
    steps = {step.key: step for plan in plans for step in plan.steps}
    missing = [step for step in steps.values() if not step.done]
    return {
        "steps": len(steps),
        "done": len(steps) - len(missing),
        "updates": sum(step.updates for step in missing),
        "images": sum(step.images for step in missing),
    }


def run_study(
    parts: list[Variation], catalog: Catalog, progress: Progress | None = None
) -> tuple[list[Variation], dict[str, str]]:
    """Do what is missing of each configuration; one that fails does not lose the others.

    Returns:
        the configurations with their results, and what went wrong in which of them.

    Raises:
        KeyboardInterrupt: stopped; finished steps are kept, and the same call goes on later.
    """
    from rib_harness.runner import MismatchError, PartialFailureError, execute, open_session

    ran, failures = [], {}
    for part in parts:
        results: Results | None = None
        try:
            # Planned again: an earlier configuration may have done a part of this one.
            results = execute(open_session(part.config, progress, catalog))
        except (PartialFailureError, MismatchError) as error:
            results, failures[part.label] = error.results, str(error)
        except RibError as error:
            failures[part.label] = str(error)
        ran.append(replace(part, results=results))
    return ran, failures
