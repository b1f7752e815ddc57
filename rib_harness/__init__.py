"""rib-harness: does fine-tuning keep the robustness that a pretrained vision model came with?

What plugins and scripts use is named here. Names that need torch are imported on first use, so
`import rib_harness` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rib_harness.errors import (
    ConfigError,
    DataError,
    DivergedError,
    InapplicableError,
    PluginError,
    RibError,
    StoreError,
)
from rib_harness.hookspecs import PLUGIN_API, hookimpl
from rib_harness.specs import (
    Archive,
    BackboneSpec,
    DatasetSpec,
    Event,
    Knob,
    LabelSpace,
    MethodSpec,
    MetricSpec,
    SuiteSpec,
    Variant,
)

if TYPE_CHECKING:
    from rib_harness.arms import Arm, arms_of
    from rib_harness.cache import cache_dir, read_checked, write_checked
    from rib_harness.catalog import Catalog, load_catalog
    from rib_harness.engine.classifier import Classifier
    from rib_harness.engine.data import Batch
    from rib_harness.engine.parts import parts_of, transformer_of
    from rib_harness.engine.task import Task
    from rib_harness.engine.text import TextTower
    from rib_harness.engine.weights import hub_file, load_weights, read_weights
    from rib_harness.features import Features
    from rib_harness.files.digest import file_digest
    from rib_harness.images import ImageSet, Preprocess, fingerprint_of
    from rib_harness.matrix import Cell, IncompleteError, Matrix
    from rib_harness.options import Column, Location, members_of
    from rib_harness.protocols import Identity
    from rib_harness.results import Results, RunResult
    from rib_harness.runner import MismatchError, PartialFailureError, evaluate, run
    from rib_harness.scores import Scores
    from rib_harness.statistics import Interval
    from rib_harness.uncertainty import Uncertainty

__version__ = "0.1.0"

#: Name → module, imported when the name is first used.
_ON_FIRST_USE = {
    "Arm": "rib_harness.arms",
    "Batch": "rib_harness.engine.data",
    "Catalog": "rib_harness.catalog",
    "Cell": "rib_harness.matrix",
    "Classifier": "rib_harness.engine.classifier",
    "Column": "rib_harness.options",
    "Features": "rib_harness.features",
    "Identity": "rib_harness.protocols",
    "ImageSet": "rib_harness.images",
    "IncompleteError": "rib_harness.matrix",
    "Interval": "rib_harness.statistics",
    "Location": "rib_harness.options",
    "Matrix": "rib_harness.matrix",
    "MismatchError": "rib_harness.runner",
    "PartialFailureError": "rib_harness.runner",
    "Preprocess": "rib_harness.images",
    "Results": "rib_harness.results",
    "RunResult": "rib_harness.results",
    "Scores": "rib_harness.scores",
    "Task": "rib_harness.engine.task",
    "TextTower": "rib_harness.engine.text",
    "Uncertainty": "rib_harness.uncertainty",
    "arms_of": "rib_harness.arms",
    "cache_dir": "rib_harness.cache",
    "evaluate": "rib_harness.runner",
    "file_digest": "rib_harness.files.digest",
    "fingerprint_of": "rib_harness.images",
    "hub_file": "rib_harness.engine.weights",
    "load_catalog": "rib_harness.catalog",
    "load_weights": "rib_harness.engine.weights",
    "members_of": "rib_harness.options",
    "parts_of": "rib_harness.engine.parts",
    "read_checked": "rib_harness.cache",
    "read_weights": "rib_harness.engine.weights",
    "run": "rib_harness.runner",
    "transformer_of": "rib_harness.engine.parts",
    "write_checked": "rib_harness.cache",
}

__all__ = [
    "PLUGIN_API",
    "Archive",
    "Arm",
    "BackboneSpec",
    "Batch",
    "Catalog",
    "Cell",
    "Classifier",
    "Column",
    "ConfigError",
    "DataError",
    "DatasetSpec",
    "DivergedError",
    "Event",
    "Features",
    "Identity",
    "ImageSet",
    "InapplicableError",
    "IncompleteError",
    "Interval",
    "Knob",
    "LabelSpace",
    "Location",
    "Matrix",
    "MethodSpec",
    "MetricSpec",
    "MismatchError",
    "PartialFailureError",
    "PluginError",
    "Preprocess",
    "Results",
    "RibError",
    "RunResult",
    "Scores",
    "StoreError",
    "SuiteSpec",
    "Task",
    "TextTower",
    "Uncertainty",
    "Variant",
    "arms_of",
    "cache_dir",
    "evaluate",
    "file_digest",
    "fingerprint_of",
    "hookimpl",
    "hub_file",
    "load_catalog",
    "load_weights",
    "members_of",
    "parts_of",
    "read_checked",
    "read_weights",
    "run",
    "transformer_of",
    "write_checked",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
