"""What every plugin promises: the harness's conformance kit, on the development data."""

import os
from collections.abc import Callable
from pathlib import Path

from rib_harness.testing import parametrize_with_checks

SHARED = Path(os.environ.get("RIB_SHARED", Path(__file__).parents[3] / "../shared"))


@parametrize_with_checks("imagenet-ood", data_root=SHARED / "data" / "imagenet-small")
def test_conformance(check: Callable[[], None]) -> None:
    check()
