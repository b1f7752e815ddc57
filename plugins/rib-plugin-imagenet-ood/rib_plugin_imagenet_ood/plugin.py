"""What this distribution offers. Light: nothing here imports torch or NumPy."""

from rib_harness import DatasetSpec, LabelSpace, SuiteSpec, hookimpl

RIB_PLUGIN_API = 1

SPACE = LabelSpace("imagenet-1k", 1000)

_SETS = [
    ("imagenet", "ImageNet-1k validation set; the reference.", "arXiv:1409.0575",
     "ImageNet terms (non-commercial research)", 50_000, 1000, "https://image-net.org"),
    ("imagenet-v2", "A fresh sample (matched frequency).", "arXiv:1902.10811",
     "MIT (code); photographs: Flickr", 10_000, 1000, "https://imagenetv2.org"),
    ("imagenet-a", "Natural adversarial examples; 200 classes.", "arXiv:1907.07174",
     "MIT (repository)", 7_500, 200, "https://github.com/hendrycks/natural-adv-examples"),
    ("imagenet-r", "Renditions; 200 classes.", "arXiv:2006.16241",
     "MIT (repository)", 30_000, 200, "https://github.com/hendrycks/imagenet-r"),
    ("imagenet-sketch", "Black-and-white sketches.", "arXiv:1905.13549",
     "MIT (repository)", 50_889, 1000, "https://github.com/HaohanWang/ImageNet-Sketch"),
    ("objectnet", "Objects in odd places and poses; 113 classes, 125 ids.",
     "Barbu et al., NeurIPS 2019", "CC BY-like; no tuning of any model on it", 18_574, 113,
     "https://objectnet.dev"),
    ("imagenet-cartoon", "Cartoons made from ImageNet val.", "Salvador & Oberman, 2022",
     "CC BY 4.0; source ImageNet", 50_000, 1000, "https://zenodo.org/records/6801109"),
    ("imagenet-drawing", "Pencil drawings made from ImageNet val.", "Salvador & Oberman, 2022",
     "CC BY 4.0; source ImageNet", 50_000, 1000, "https://zenodo.org/records/6801109"),
    ("imagenet-c", "15 corruptions × 5 severities of ImageNet val.", "arXiv:1903.12261",
     "Apache-2.0 (code)", 3_750_000, 1000, "https://zenodo.org/records/2235448"),
]  # fmt: skip


@hookimpl
def register_datasets() -> list[DatasetSpec]:
    """ImageNet val and the eight members."""
    return [
        DatasetSpec(
            name=name,
            target="rib_plugin_imagenet_ood.datasets:ImageNetFolder",
            arguments={"name": name},
            summary=summary,
            citation=citation,
            license=license_,
            label_space=SPACE,
            role="reference" if name == "imagenet" else "shifted",
            images=images,
            classes=classes,
            may_train=name != "objectnet",
            homepage=homepage,
        )
        for name, summary, citation, license_, images, classes, homepage in _SETS
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
            members=tuple(name for name, *_ in _SETS if name != "imagenet"),
            references=("imagenet",),
            shares=(("imagenet-c", "imagenet-cartoon", "imagenet-drawing", "imagenet"),),
            backbone="timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
            recipe={
                "optimizer": "sgd",
                "lr": 1e-3,
                "momentum": 0.9,
                "batch_size": 64,
                "epochs": 10,
                "warmup_steps": 196,
            },
        )
    ]
