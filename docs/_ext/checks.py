"""Makes the list of all checks of the conformance kit from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from made import MADE
from sphinx.application import Sphinx

from rib_harness.testing import (
    backbone_checks,
    dataset_checks,
    method_checks,
    metric_checks,
    plugin_checks,
    suite_checks,
)

Function = Callable[..., None]

#: Heading → ids of its checks, as `checks_of` names them, and the checks.
GROUPS: dict[str, tuple[str, tuple[Function, ...]]] = {
    "The plugin as a whole": ("plugin/", plugin_checks.PLUGIN_CHECKS),
    "What a component says of itself": (
        "KIND/NAME/",
        plugin_checks.COMPONENT_CHECKS["backbone"],
    ),
    "Backbones": ("backbone/NAME/", backbone_checks.BACKBONE_CHECKS),
    "Datasets": ("dataset/NAME/", dataset_checks.DATASET_CHECKS),
    "Methods": (
        "method/NAME/",
        (*method_checks.METHOD_CHECKS, method_checks.check_method_neutral),
    ),
    "Metrics": (
        "metric/NAME/",
        (*metric_checks.METRIC_CHECKS, metric_checks.check_metric_golden),
    ),
    "Suites": ("suite/NAME/", suite_checks.SUITE_CHECKS),
}


def one(where: str, check: Function) -> str:
    """A check's id and docstring; its arguments are those of the kit."""
    name = "-".join(check.__name__.split("_")[2:])
    doc = (inspect.getdoc(check) or "").partition("\nArgs:")[0].strip()
    return f"### `{where}{name}`\n\n{doc}\n"


def page() -> str:
    """Every check, by what it looks at."""
    parts = []
    for heading, (where, checks) in GROUPS.items():
        parts += [f"## {heading}\n", *(one(where, check) for check in checks)]
    return "\n".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    MADE["checks"] = page
    return {"parallel_read_safe": True}
