"""What this distribution offers. Light: nothing here imports torch or NumPy."""

from rib_harness import DatasetSpec, LabelSpace, SuiteSpec, hookimpl
from rib_plugin_imagenet_ood.published import SETS, imagenet

RIB_PLUGIN_API = 1

SPACE = LabelSpace("imagenet-1k", 1000)

#: Sets with options of their own; the others share one class.
_TARGETS = {
    "imagenet": "ImageNet",
    "imagenet-v2": "ImageNetV2",
    "imagenet-c": "ImageNetC",
    "imagenet-c-made": "ImageNetCMade",
}

#: Members of the suite beside C, in the order of the paper's tables.
_MEMBERS = tuple(
    one.name for one in SETS if one.name not in ("imagenet", "imagenet-c", "imagenet-c-made")
)

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
    """ImageNet val and its variants, and a part of its training set."""
    train = imagenet("train")
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
    ] + [
        DatasetSpec(
            name="imagenet-train",
            target="rib_plugin_imagenet_ood.datasets:ImageNet",
            arguments={"split": "train"},
            summary="ImageNet-1k training images, 50 a class; for methods that read old data.",
            citation=train.citation,
            license=train.license,
            label_space=SPACE,
            role="train",
            classes=1000,
            homepage=train.homepage,
            archives=train.archives,
        )
    ]


@hookimpl
def register_suites() -> list[SuiteSpec]:
    """The paper's suite with the recipe of its reference code, and one that needs no C."""
    return [
        SuiteSpec(
            name=name,
            summary=summary,
            citation="arXiv:2410.21582",
            license="each dataset has its own",
            label_space=SPACE,
            members=(*_MEMBERS, c),
            references=("imagenet",),
            shares=((c, "imagenet-cartoon", "imagenet-drawing", "imagenet"),),
            backbone="timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
            recipe=_RECIPE,
        )
        for name, c, summary in (
            (
                "imagenet-rib",
                "imagenet-c",
                "ImageNet-RIB: fine-tune on one of eight shifts, measure on the others.",
            ),
            (
                "imagenet-rib-made-c",
                "imagenet-c-made",
                "The same with C made on this machine; its numbers on C are not the published.",
            ),
        )
    ]
