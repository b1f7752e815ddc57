"""What the plugin says of its metrics."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

from rib_harness import load_catalog
from rib_harness.options import load_target

#: Level → metric → (what it is given, higher is better, range, unit).
INFINITY = float("inf")
POINTS, PERCENT = ((-100.0, 100.0), "points"), ((0.0, 100.0), "%")
OFFERED: dict[str, dict[str, tuple[bool, tuple[float, float], str]]] = {
    "scores": {
        "top-1": (True, *PERCENT),
        "top-5": (True, *PERCENT),
        "ece": (False, (0, 1), ""),
        "nll": (False, (0, INFINITY), ""),
        "brier": (False, (0, 2), ""),
        "mce": (False, (0, INFINITY), "%"),
    },
    "matrix": {
        "ri": (True, *POINTS),
        "mri": (True, *POINTS),
        "mri-unshared": (True, *POINTS),
        "mean-ood-accuracy": (True, *PERCENT),
        "gain": (True, *POINTS),
        "forgetting": (False, *POINTS),
        "forgetting-unshared": (False, *POINTS),
        "relative-robustness": (True, *POINTS),
        "effective-robustness": (True, *POINTS),
        "effective-robustness-multi-id": (True, *POINTS),
        "relative-mce": (False, (-INFINITY, INFINITY), "%"),
    },
    "drift": {
        "cka": (True, (-1, 1), ""),
        "feature-drift": (False, (0, 2), ""),
        "logit-kl": (False, (0, INFINITY), ""),
        "weight-drift": (False, (0, INFINITY), ""),
    },
    "distance": {
        "otdd": (False, (-INFINITY, INFINITY), ""),
        "frechet": (False, (0, INFINITY), ""),
        "nearest-class-mean": (True, *PERCENT),
        "mmd": (False, (-2, 2), ""),
    },
}
GIVEN = {
    "scores": ["scores"],
    "matrix": ["matrix"],
    "drift": ["before", "after"],
    "distance": ["a", "b"],
}


def specs() -> dict[str, Any]:
    found = [c for c in load_catalog().list("metric") if c.plugin.name == "metrics"]
    return {c.spec.name: c.spec for c in found}


def test_every_metric_and_its_level() -> None:
    """Source: the list in this file."""
    assert {name: spec.level for name, spec in specs().items()} == {
        name: level for level, names in OFFERED.items() for name in names
    }


@pytest.mark.parametrize("name", [name for names in OFFERED.values() for name in names])
def test_a_spec_is_whole_and_its_target_is_a_function_of_what_its_level_gives(name: str) -> None:
    """Source: the list in this file; parameters beyond what the level gives have defaults."""
    spec = specs()[name]
    assert (spec.higher_is_better, spec.range, spec.unit) == OFFERED[spec.level][name]
    assert spec.citation and spec.summary.endswith(".") and spec.license == "Apache-2.0"
    target = load_target(spec.target, name)
    parameters = list(inspect.signature(target).parameters.values())
    given = GIVEN[spec.level]
    assert [p.name for p in parameters if p.default is p.empty] == given
    assert [p.name for p in parameters][: len(given)] == given


def test_listing_imports_none_of_the_heavy_packages() -> None:
    """Source: `sys.modules` of a fresh interpreter."""
    heavy = ["ot", "scipy", "torch"]
    code = (
        "import sys, rib_plugin_metrics.plugin as p; assert len(p.register_metrics()) == 25; "
        f"print([m for m in {heavy} + ['numpy'] if m in sys.modules]); "
        "import rib_plugin_metrics.otdd, rib_plugin_metrics.effective, rib_plugin_metrics.drift, "
        "rib_plugin_metrics.distance, rib_plugin_metrics.cka, rib_plugin_metrics.corruptions; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "[]"]
