"""What this distribution offers. Light: nothing here imports torch or NumPy."""

from rib_harness import DatasetSpec, LabelSpace, SuiteSpec, hookimpl
from rib_plugin_imagenet_ood.published import SETS

RIB_PLUGIN_API = 1

SPACE = LabelSpace("imagenet-1k", 1000)

#: Sets with options of their own; the others share one class.
_TARGETS = {"imagenet": "ImageNet", "imagenet-v2": "ImageNetV2", "imagenet-c": "ImageNetC"}

#: The reference code's recipe.
_RECIPE = {
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "batch_size": 64,
    "epochs": 10,
    "warmup_steps": 196,
}


@hookimpl
def register_datasets() -> list[DatasetSpec]:
    """ImageNet val and the eight members."""
    return [
        DatasetSpec(
            name=one.name,
            target=f"rib_plugin_imagenet_ood.datasets:{_TARGETS.get(one.name, 'ShiftedImageNet')}",
            arguments={} if one.name in _TARGETS else {"name": one.name},
            summary=one.summary,
            citation=one.citation,
            license=one.license,
            version=2,  # 2: rows are ordered by content, so that every form gives the same
            label_space=SPACE,
            role="reference" if one.name == "imagenet" else "shifted",
            images=one.images,
            classes=one.classes,
            may_train=one.may_train,
            homepage=one.homepage,
            archives=one.archives,
        )
        for one in SETS
    ]


@hookimpl
def register_suites() -> list[SuiteSpec]:
    """The paper's suite, with the recipe of its reference code."""
    return [
        SuiteSpec(
            name="imagenet-rib",
            summary="ImageNet-RIB: fine-tune on one of eight shifts, measure on the others.",
            citation="arXiv:2410.21582",
            license="each dataset has its own",
            label_space=SPACE,
            members=tuple(one.name for one in SETS if one.name != "imagenet"),
            references=("imagenet",),
            shares=(("imagenet-c", "imagenet-cartoon", "imagenet-drawing", "imagenet"),),
            backbone="timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
            recipe=_RECIPE,
        )
    ]
