"""What every plugin promises: the harness's conformance kit, on each of the tiny nets."""

from collections.abc import Callable

from rib_harness.testing import parametrize_with_checks, tiny_classifier, tiny_vit

#: Methods that need an option, and others with one that changes much, or suits nets this small.
REFERENCES = [
    "si:old=old,c=0.001",
    "pretraining-data:data=old",
    "dp-transfer:teacher=another",
    "twins",
    "twins:eps=0.1",
    "ensemble",
    "ensemble:members=ft+ft@1,average=logits",
    "dawin",
    "dawin:levels=0",
    "dawin:space=outputs",
    "sparse-lowrank:lr_scale=1,rank=2,sparse=3",
    "best-of:members=ft+lwf",
    "lora:lr_scale=1,rank=2,alpha=2",
    "lora:lr_scale=1,layers=q-v,rank=2,train_head=false",
    "dora:lr_scale=1,rank=2,alpha=2",
    "vera:lr_scale=1,rank=4",
    "vpt:lr_scale=1,tokens=3",
    "vpt:lr_scale=1,tokens=3,depth=deep",
    "moa:lr_scale=1,ranks=1+2",
    "adapter:lr_scale=1,reduction=2",
    "levi:lr_scale=1,width=4",
]

NEUTRAL = {
    "l2-sp:alpha=0": "ft",
    "l1-sp:alpha=0": "ft",
    "ewc:lambda=0,images=2": "ft",
    "mas:lambda=0,images=2": "ft",
    "si:old=old,c=0": "ft",
    "pretraining-data:data=old,weight=0": "ft",
    "lwf:alpha=0": "ft",
    "dp-transfer:teacher=another,lambda=0": "ft",
    "feature-distill:lambda=0": "ft",
    "car-ft:lambda=0": "ft",
    "fsr:lambda=0,consistency=0": "ft",
    "self-distillation:epochs=0": "ft",
    "self-distillation:epochs=0,second=lwf": "lwf",
    "layer-decay:decay=1": "ft",
    "lines:alpha=1": "ft",
    "ldifs:lambda=0": "ft",
    "spd:lambda=0": "ft",
    "mixout:p=0": "ft",
    "ema:horizon=0": "ft",
    "lp-ft:lr_scale=1,lp=pretrained": "ft",
    "wise-ft:alpha=1": "ft",
    "wise-ft:alpha=0": "pretrained",
    "tpgm:iterations=0,start=1": "ft",
    "tpgm:iterations=0,start=0": "pretrained",
    "soup:members=ft": "ft",
    "soup:members=pretrained": "pretrained",
    "greedy-soup:members=ft": "ft",
    "best-of:members=lwf": "lwf",
}


@parametrize_with_checks(
    "cl-methods",
    references=REFERENCES,
    neutral=NEUTRAL,
    nets={"conv": tiny_classifier, "vit": tiny_vit},
    slow=["method/*/same-seed", "method/*/resumes", "method/*/saves-and-loads"],
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
