"""What every plugin promises: the harness's conformance kit.

`test_every_method.py` has the same promises, on each of the tiny nets.
"""

from collections.abc import Callable

from rib_harness.testing import parametrize_with_checks

REFERENCES = ["si:old=old", "best-of:members=ft+lwf", "lora:layers=q-v,rank=2"]

NEUTRAL = {
    "l2-sp:alpha=0": "ft",
    "l1-sp:alpha=0": "ft",
    "ewc:lambda=0,images=2": "ft",
    "mas:lambda=0,images=2": "ft",
    "si:old=old,c=0": "ft",
    "lwf:alpha=0": "ft",
    "feature-distill:lambda=0": "ft",
    "ema:horizon=0": "ft",
    "wise-ft:alpha=1": "ft",
    "wise-ft:alpha=0": "pretrained",
    "tpgm:iterations=0,start=0": "pretrained",
    "soup:members=ft": "ft",
    "soup:members=pretrained": "pretrained",
    "best-of:members=lwf": "lwf",
}


@parametrize_with_checks(
    "cl-methods",
    references=REFERENCES,
    neutral=NEUTRAL,
    slow=["method/*/same-seed", "method/*/resumes", "method/*/saves-and-loads"],
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
