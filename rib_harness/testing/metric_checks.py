"""What a metric promises: a number that does not depend on order, and none from nonsense."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from rib_harness.catalog import Component
from rib_harness.errors import InapplicableError, RibError
from rib_harness.measure import _flat, shown
from rib_harness.options import load_target
from rib_harness.specs import MetricSpec
from rib_harness.testing.metric_inputs import (
    Inputs,
    empty,
    extremes,
    inputs,
    permuted,
    pieces,
    spoiled,
    tied,
)
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect
from rib_harness.testing.traces import traced

Values = dict[tuple[str | None, str | None], float]

#: Rounding: sums in another order differ by so much, relative to the value.
ROUNDING = 1e-6

#: Inputs from so many seeds.
SEEDS = range(4)

#: Level → what a metric of it is given.
GIVEN = {
    "scores": "one Scores",
    "matrix": "one Matrix",
    "drift": "two Features, of one dataset before and after",
    "distance": "two Features, of two datasets",
}


@dataclass
class MetricTrial:
    """One metric under test.

    Args:
        component: the metric.
    """

    component: Component

    @property
    def spec(self) -> MetricSpec:
        """What it says."""
        spec = self.component.spec
        if not isinstance(spec, MetricSpec):
            raise TypeError(spec)
        return spec

    def __call__(self, *inputs: Any) -> Values:
        """Its numbers, by source and dataset; both None for a single number.

        Raises:
            CheckSkipped: it does not apply to these inputs.
        """
        compute = partial(load_target(self.spec.target, self.component.what), **self.spec.arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of what the checks look for
            try:
                found = list(_flat(compute(*inputs)))
            except InapplicableError as error:
                raise CheckSkipped(f"it does not apply to the kit's inputs: {error}") from error
        for one in found:
            if isinstance(one.value, bool) or not isinstance(one.value, Real):
                raise CheckError(
                    f"it gave {shown(one.value)}: return a float, or a dict of floats."
                )
        return {(one.source, one.dataset): float(one.value) for one in found}


def check_metric_signature(trial: MetricTrial) -> None:
    """It takes what its level gives, and returns numbers, under names that there are.

    The two datasets of a distance have different numbers of images. The global random states are
    left alone.
    """
    level = trial.spec.level
    given = inputs(level)
    try:
        found = trial(*given)
    except (CheckError, CheckSkipped):
        raise
    except Exception as error:
        raise CheckError(
            f"it raises {type(error).__name__}: {error}. {_given(level, given)}"
        ) from error
    with traced() as left:
        trial(*given)  # once more: some libraries draw when they are imported
    expect(
        not left.random,
        f"it changes the global random state of {', '.join(left.random)}, on which others rely: "
        "draw from a generator of your own, numpy.random.default_rng(0).",
    )
    if level != "matrix":
        named = [key for key in found if key != (None, None)]
        expect(not named, f"it gave a dict: of level {level!r} return one float.")
        return
    (matrix,) = given
    for source, dataset in found:
        expect(
            source is None or source in matrix.sources,
            f"it gives a number for the source {source!r}: expected one of matrix.sources, here "
            f"{', '.join(matrix.sources)}.",
        )
        expect(
            dataset is None or dataset in matrix.pre,
            f"it gives a number for the dataset {dataset!r}: expected one of matrix.members or "
            f"matrix.references, here {', '.join(matrix.pre)}.",
        )


def _given(level: str, given: Inputs) -> str:
    """What a metric of a level is given, and of the others."""
    pairs = ""
    if level == "distance":
        pairs = (
            f" Here they have {len(given[0])} and {len(given[1])} images: rows of two datasets are "
            "no pairs, so compare means, covariances, or every row with every other."
        )
    others = "; ".join(f"level={name!r}: {what}" for name, what in GIVEN.items() if name != level)
    return f"Of level {level!r} it is given {GIVEN[level]}.{pairs} Its spec decides; {others}."


def check_metric_permutation(trial: MetricTrial) -> None:
    """The order of images, equally sure ones among them, or of datasets does not change it."""
    given = tied(trial.spec.level, inputs(trial.spec.level, 1))
    one, two = trial(*given), trial(*permuted(trial.spec.level, given))
    order = "datasets" if trial.spec.level == "matrix" else "images"
    for key, value in one.items():
        other = two.get(key, math.nan)
        expect(
            math.isclose(value, other, rel_tol=ROUNDING, abs_tol=ROUNDING),
            f"with its {order} in another order it gives {other:g} instead of {value:g}: a "
            "metric is of a set, and must not look at positions; what is sorted by a value that "
            "several share is in no order among these.",
        )


def check_metric_split(trial: MetricTrial) -> None:
    """Images that are read in several pieces give what they give in one."""
    given = inputs(trial.spec.level, 3)
    one, two = trial(*given), trial(*pieces(given))
    for key, value in one.items():
        other = two.get(key, math.nan)
        expect(
            math.isclose(value, other, rel_tol=ROUNDING, abs_tol=ROUNDING),
            f"of the same images in three pieces it gives {other:g} instead of {value:g}: read "
            "columns with scores.column(name), which joins the pieces.",
        )


def check_metric_range(trial: MetricTrial) -> None:
    """Its numbers are finite and within the range of its spec.

    Where all accuracies are equal it may be undefined, and give NaN, as a correlation is.
    """
    low, high = trial.spec.range
    slack = ROUNDING * max(1.0, *(abs(v) for v in (low, high) if math.isfinite(v)), 1.0)
    level = trial.spec.level
    usual = [v for seed in SEEDS for v in trial(*inputs(level, seed)).values()]
    extreme = [v for one in extremes(level) for v in trial(*one).values()]
    for value in [*usual, *(value for value in extreme if not math.isnan(value))]:
        expect(
            math.isfinite(value) and low - slack <= value <= high + slack,
            f"it gave {value:g}; its spec says range={trial.spec.range}: mend one of the two "
            "(accuracies are in %, 0 … 100).",
        )


def check_metric_direction(trial: MetricTrial) -> None:
    """A perfect case is better than a bad one, as its spec says.

    Skipped where the two are alike to it: a spread is 0 in both.
    """
    perfect, bad = (_mean(trial(*one)) for one in extremes(trial.spec.level))
    if math.isnan(perfect) or math.isnan(bad) or perfect == bad:
        raise CheckSkipped(
            f"it gives {perfect:g} where nothing is wrong and {bad:g} where all is: this does not "
            "tell its direction. Give a known value of a better and a worse case (Golden)"
        )
    better = perfect > bad if trial.spec.higher_is_better else perfect < bad
    expect(
        better,
        f"it gives {perfect:g} where nothing is wrong and {bad:g} where all is, and its spec "
        f"says higher_is_better={trial.spec.higher_is_better}: change the sign or the spec.",
    )


def check_metric_nan(trial: MetricTrial) -> None:
    """A NaN in what it reads ends in an error or a NaN, not in a number."""
    given = inputs(trial.spec.level, 2)
    clean = trial(*given)
    for where, changed in spoiled(trial.spec.level, given):
        try:
            found = trial(*changed)
        except CheckError:
            raise
        except Exception:  # CheckSkipped, too: an InapplicableError
            continue
        for key, value in found.items():
            expect(
                not math.isfinite(value) or value == clean.get(key),
                f"with a NaN in {where} it gives {value:g}: leave nothing out in silence. Let the "
                "NaN through, or `if np.isnan(values).any(): raise InapplicableError(…)`; a "
                "comparison with NaN is False.",
            )


def check_metric_empty(trial: MetricTrial) -> None:
    """Nothing at all ends in an error that says so, or in a NaN, not in a number or a crash."""
    try:
        found = trial(*empty(trial.spec.level))
    except (CheckSkipped, ValueError, RibError):
        return
    except CheckError:
        raise
    except Exception as error:
        raise CheckError(
            f"of nothing it raises {type(error).__name__}: {error}. Raise an InapplicableError "
            "that says what it needs."
        ) from error
    numbers = [value for value in found.values() if math.isfinite(value)]
    expect(not numbers, f"of nothing it gives {numbers[:1]}: raise an InapplicableError.")


def check_metric_golden(
    trial: MetricTrial, given: Inputs, value: float | Mapping[str, Any], tolerance: float
) -> None:
    """It gives a value that its author knows.

    Args:
        trial: of the metric.
        given: its inputs.
        value: what it should give.
        tolerance: absolute and relative.
    """
    known = {(one.source, one.dataset): float(one.value) for one in _flat(value)}
    found = trial(*given)
    same = known.keys() == found.keys() and all(
        math.isclose(found[key], known[key], rel_tol=tolerance, abs_tol=tolerance) for key in known
    )
    expect(same, f"it gives {_shown(found)}; its author says {_shown(known)}.")


def _shown(values: Values) -> str:
    return ", ".join(
        f"{' → '.join(filter(None, key))} {value:.9g}".strip() for key, value in values.items()
    )


def _mean(values: Values) -> float:
    expect(bool(values), "it gave no number.")
    return sum(values.values()) / len(values)


METRIC_CHECKS: tuple[Callable[[MetricTrial], None], ...] = (
    check_metric_signature,
    check_metric_permutation,
    check_metric_split,
    check_metric_range,
    check_metric_direction,
    check_metric_nan,
    check_metric_empty,
)


def metric_checks(spec: MetricSpec) -> tuple[Callable[[MetricTrial], None], ...]:
    """Those that apply: only images come in pieces, a matrix and features are whole."""
    whole = spec.level != "scores"
    return tuple(one for one in METRIC_CHECKS if not (whole and one is check_metric_split))
