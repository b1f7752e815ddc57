"""What every plugin promises: the harness's conformance kit."""

from collections.abc import Callable

from rib_harness.testing import parametrize_with_checks


@parametrize_with_checks("runlog")
def test_conformance(check: Callable[[], None]) -> None:
    check()
