"""What every plugin promises: the harness's conformance kit, on one of the small models."""

from collections.abc import Callable

from rib_harness.testing import parametrize_with_checks


@parametrize_with_checks(
    "torchvision", references=["torchvision:mobilenet_v3_small.IMAGENET1K_V1,pretrained=false"]
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
