"""What every plugin promises: the harness's conformance kit."""

from collections.abc import Callable

from rib_harness.testing import Golden, matrix_of, parametrize_with_checks, scores_of

TWO = matrix_of({"a": 50, "b": 60}, {"a": {"a": 90, "b": 55}, "b": {"a": 60, "b": 90}})

#: By hand.
GOLDEN = [
    Golden("mri", (TWO,), 2.5),
    Golden("ri", (TWO,), {"a": -5, "b": 10}),
    Golden("gain", (TWO,), 35),
    Golden("top-1", (scores_of(label=[0, 1, 2, 3], prediction=[0, 1, 2, 0]),), 75),
]


@parametrize_with_checks("metrics", golden=GOLDEN)
def test_conformance(check: Callable[[], None]) -> None:
    check()
