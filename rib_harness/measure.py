"""Metrics of finished runs, from what the store keeps: no model is run."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

from rib_harness.catalog import Component, guarded
from rib_harness.errors import InapplicableError, PluginError, RibError
from rib_harness.features import Features
from rib_harness.matrix import IncompleteError
from rib_harness.options import load_target
from rib_harness.results import RunResult
from rib_harness.scores import Scores
from rib_harness.specs import MetricSpec
from rib_harness.store import FEATURES, SCORES, Store

#: Relative; what a value may lie outside its range by, since sums are rounded.
ROUNDING = 1e-6


class MissingFeaturesError(RibError):
    """The run has no features, or not of all of its cells."""


@dataclass(frozen=True)
class Value:
    """A metric of one cell, row or matrix.

    Args:
        source: what was fine-tuned on; None before fine-tuning, or of a whole matrix.
        dataset: what it is measured on; None of a row or a whole matrix.
        value: the number.
    """

    source: str | None
    dataset: str | None
    value: float


def measure(run: RunResult, store: Store, metric: Component) -> list[Value]:
    """One metric of one run.

    Args:
        run: of the store.
        store: where its scores and features are.
        metric: of the catalog, e.g. `catalog.get("metric", "ece")`.

    Raises:
        InapplicableError: it applies to nothing here.
        IncompleteError: a cell that it needs is missing.
        MissingFeaturesError: it needs features that were not kept.
        PluginError: it gave something else than numbers, or one outside its range.
    """
    spec = metric.spec
    if not isinstance(spec, MetricSpec):
        raise TypeError(spec)
    metric.check_arguments()
    compute = partial(load_target(spec.target, metric.what), **spec.arguments)
    with guarded(metric.what):
        if spec.level == "matrix":
            values = list(_flat(compute(copy.deepcopy(run.matrix))))
        elif spec.level == "scores":
            values = _of_scores(run, store, compute)
        else:
            values = _of_features(run, store, compute, distance=spec.level == "distance")
    for one in values:
        if (
            isinstance(one.value, bool)
            or not isinstance(one.value, Real)
            or not math.isfinite(one.value)
        ):
            raise PluginError(f"{metric.what} gave {shown(one.value)}; expected a number.")
        low, high = spec.range
        slack = ROUNDING * max(1.0, abs(one.value))
        if not low - slack <= one.value <= high + slack:
            raise PluginError(
                f"{metric.what} gave {one.value:.6g}; its spec says range {low:g} … {high:g}. "
                "One of the two is wrong."
            )
    return [replace(one, value=float(one.value)) for one in values]


def shown(value: object) -> str:
    """What a metric gave: of an array type and shape, of anything else the beginning."""
    shape = getattr(value, "shape", ())
    kind = type(value).__name__
    return f"{kind} of shape {tuple(shape)}" if shape else reprlib.repr(value)


def _flat(found: Any) -> Iterator[Value]:
    """A number, source → number, or source → dataset → number."""
    if not isinstance(found, Mapping):
        yield Value(None, None, found)
        return
    for source, row in found.items():
        if isinstance(row, Mapping):
            for dataset, value in row.items():
                yield Value(source, dataset, value)
        else:
            yield Value(source, None, row)


def _of_scores(run: RunResult, store: Store, compute: Callable[[Scores], float]) -> list[Value]:
    """Of each cell to which it applies."""
    values, reason = [], None
    for source, dataset, key in _keys(run.record["cells"]):
        if store.done(key) is None:
            continue  # the table says that the matrix is incomplete
        try:
            scores = Scores.read(store.file(key, SCORES))
            values.append(Value(source, dataset, compute(scores)))
        except InapplicableError as error:
            reason = error
    if not values:
        raise reason or IncompleteError("No cell has scores yet: run the same command again.")
    return values


def _of_features(
    run: RunResult, store: Store, compute: Callable[[Features, Features], float], *, distance: bool
) -> list[Value]:
    """Of a dataset before and after, or of a fine-tuning set and a scored one before."""
    known = run.record.get("features")
    if known is None:
        raise MissingFeaturesError(
            "It needs features, which this run did not keep: give its command again with "
            "--features 1000; only they are computed."
        )

    kept: dict[str, Features] = {}

    def read(key: str) -> Features:
        if key not in kept:  # a distance is taken from each set several times
            if store.done(key) is None:
                raise MissingFeaturesError(
                    "Some features are missing: give the command with --features again."
                )
            kept[key] = Features.read(store.file(key, FEATURES))
            for column in ("features", "logits", "labels", "index"):
                getattr(kept[key], column).flags.writeable = False
        return kept[key]

    values, reason = [], None
    for source, dataset, key in _keys(known):
        if source is None or (distance and source == dataset):
            continue
        before = read(known["pre"][dataset])
        pair = (read(known["pre"][source]), before) if distance else (before, read(key))
        try:
            values.append(Value(source, dataset, compute(*pair)))
        except InapplicableError as error:
            reason = error
    if not values:
        raise reason or InapplicableError("Nothing was fine-tuned here.")
    return values


def _keys(cells: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """Source (None: before), dataset and key of each cell."""
    for dataset, key in cells["pre"].items():
        yield None, dataset, key
    for source, row in cells["post"].items():
        for dataset, key in row.items():
            yield source, dataset, key
