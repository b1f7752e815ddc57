"""For tests, ours and a plugin author's: the conformance kit, and small pieces to test with.

    from rib_harness.testing import parametrize_with_checks

    @parametrize_with_checks("my-plugin")
    def test_conformance(check):
        check()

The same checks from the command line: `rib-harness check-plugin my-plugin`. The pieces are made
from seeds and need no files and no network. Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rib_harness.testing.arrays import matrix_of, scores_of, tiny_features, tiny_scores
    from rib_harness.testing.backbone_checks import BackboneTrial
    from rib_harness.testing.checks import Golden, checks_of, parametrize_with_checks
    from rib_harness.testing.cli import CliResult, run_cli
    from rib_harness.testing.dataset_checks import DatasetTrial
    from rib_harness.testing.method_trial import MethodTrial
    from rib_harness.testing.metric_checks import MetricTrial
    from rib_harness.testing.network import no_network
    from rib_harness.testing.outcome import Check, CheckError, CheckSkipped
    from rib_harness.testing.plugin_checks import PluginTrial
    from rib_harness.testing.plugins import FakeSite, catalog_with, plugin_in_memory
    from rib_harness.testing.suite_checks import SuiteTrial
    from rib_harness.testing.tiny import (
        TINY,
        TinyTextTower,
        tiny_classifier,
        tiny_clip,
        tiny_images,
        tiny_task,
        tiny_vit,
    )

#: Name → module of this package, imported when the name is first used.
_ON_FIRST_USE = {
    "BackboneTrial": "backbone_checks",
    "Check": "outcome",
    "CheckError": "outcome",
    "CheckSkipped": "outcome",
    "CliResult": "cli",
    "DatasetTrial": "dataset_checks",
    "FakeSite": "plugins",
    "Golden": "checks",
    "MethodTrial": "method_trial",
    "MetricTrial": "metric_checks",
    "PluginTrial": "plugin_checks",
    "SuiteTrial": "suite_checks",
    "TINY": "tiny",
    "TinyTextTower": "tiny",
    "catalog_with": "plugins",
    "checks_of": "checks",
    "matrix_of": "arrays",
    "no_network": "network",
    "parametrize_with_checks": "checks",
    "plugin_in_memory": "plugins",
    "run_cli": "cli",
    "scores_of": "arrays",
    "tiny_classifier": "tiny",
    "tiny_clip": "tiny",
    "tiny_features": "arrays",
    "tiny_images": "tiny",
    "tiny_scores": "arrays",
    "tiny_task": "tiny",
    "tiny_vit": "tiny",
}

__all__ = [
    "TINY",
    "BackboneTrial",
    "Check",
    "CheckError",
    "CheckSkipped",
    "CliResult",
    "DatasetTrial",
    "FakeSite",
    "Golden",
    "MethodTrial",
    "MetricTrial",
    "PluginTrial",
    "SuiteTrial",
    "TinyTextTower",
    "catalog_with",
    "checks_of",
    "matrix_of",
    "no_network",
    "parametrize_with_checks",
    "plugin_in_memory",
    "run_cli",
    "scores_of",
    "tiny_classifier",
    "tiny_clip",
    "tiny_features",
    "tiny_images",
    "tiny_scores",
    "tiny_task",
    "tiny_vit",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
