"""What every plugin promises: the harness's conformance kit, on timm's own small test models."""

from collections.abc import Callable

from rib_harness.testing import parametrize_with_checks


@parametrize_with_checks(
    "timm",
    references=[
        "timm:test_vit.r160_in1k,pretrained=false",
        "timm:test_resnet.r160_in1k,pretrained=false",
    ],
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
