"""What a run would refuse when it starts, said when it is planned; with torch only if needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rib_harness.config import Recipe, RunConfig
from rib_harness.errors import ConfigError
from rib_harness.plan import Plan
from rib_harness.provenance import code_of

#: Those of torch and of this harness that need no trial, so that most plans load no torch.
_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = ("cosine", "linear", "constant")
_DEVICES = (None, "cpu")


def check_work(config: RunConfig, plan: Plan) -> None:
    """Try what the steps that are left would begin with.

    Raises:
        ConfigError: an optimizer or a schedule that does not exist, a device that is not there or
            cannot do the precision, a tracker that is not installed; all at once.
        RibError: a method that refuses its options.
    """
    left = plan.missing
    recipes = {step.recipe for step in left if step.recipe}
    checks = [check for recipe in recipes for check in _of_recipe(recipe)]
    precisions = {recipe.precision for recipe in recipes} or {"fp32"}
    if left and (config.device not in _DEVICES or precisions != {"fp32"}):
        checks += [partial(_device, config.device, one) for one in sorted(precisions)]
    if left and config.tracker:
        checks.append(partial(_trackers, config))
    methods = {m.id: m for s in left for m in (s.method, *s.calls.values()) if m and m.explicit}
    for method in methods.values():
        code_of(method.spec)  # before it is imported
        checks.append(method.build)
    problems: dict[str, None] = {}  # once each, in this order
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


def _of_recipe(recipe: Recipe) -> list[Callable[[], object]]:
    """Trials of what is not known to work: each beside what is, then together."""
    trials = []
    if recipe.optimizer.lower() not in _OPTIMIZERS:
        trials.append(recipe.model_copy(update={"schedule": _SCHEDULES[0]}))
    if recipe.schedule not in _SCHEDULES:
        trials.append(recipe.model_copy(update={"optimizer": _OPTIMIZERS[0]}))
    if len(trials) == 2:
        trials.append(recipe)
    return [partial(_recipe, one) for one in trials]


def _recipe(recipe: Recipe) -> None:
    from rib_harness.engine.fit import check_recipe

    check_recipe(recipe)


def _device(device: str | None, precision: str) -> None:
    from rib_harness.engine.device import make_accelerator

    make_accelerator(device)
    make_accelerator(device, precision)


def _trackers(config: RunConfig) -> None:
    from rib_harness.engine.track import Trackers

    Trackers(config.tracker, Path(tempfile.gettempdir()))  # nothing is written there
