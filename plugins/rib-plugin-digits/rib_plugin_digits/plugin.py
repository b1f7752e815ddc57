"""What this distribution offers. Light: nothing here imports torch, NumPy or scikit-learn."""

from rib_harness import BackboneSpec, DatasetSpec, LabelSpace, SuiteSpec, hookimpl

RIB_PLUGIN_API = 1

SPACE = LabelSpace("digits-11", 11)

LICENSE = "CC-BY-4.0"  # of the UCI digits, which scikit-learn bundles
CITATION = "UCI ML repository, Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)"

_PARTS = {
    "train": ("train", 760, 11, "Clean digits that the backbones were pretrained on."),
    "test": ("reference", 300, 11, "Clean digits that nobody trained on; in-distribution."),
    "v2": ("shifted", 180, 11, "Fresh digits, written and lit a little differently."),
    "a": ("shifted", None, 5, "Hard digits of 5 classes, filtered against a nearest-mean model."),
    "r": ("shifted", None, 7, "Renditions of 7 classes: neon, stencils, mosaics."),
    "sketch": ("shifted", 150, 11, "Contours in pencil on white paper."),
    "object": ("shifted", 140, 10, "Turned, on clutter, with a border to crop; two ids for the 1."),
    "cartoon": ("shifted", 200, 11, "Flat colours and contours; made from digits-test."),
    "drawing": ("shifted", 200, 11, "Hatched coloured pencil; made from digits-test."),
    "c": ("shifted", 2000, 11, "8 corruptions × 5 severities of 50 digits of digits-test."),
}


@hookimpl
def register_datasets() -> list[DatasetSpec]:
    """One for each part."""
    return [
        DatasetSpec(
            name=f"digits-{part}",
            target="rib_plugin_digits.data:Digits",
            arguments={"part": part},
            summary=summary,
            citation=CITATION,
            license=LICENSE,
            label_space=SPACE,
            role=role,  # type: ignore[arg-type]
            images=images,
            classes=classes,
        )
        for part, (role, images, classes, summary) in _PARTS.items()
    ]


_VIT = "ViT of 3 blocks with a class token, 158 k parameters"
_BACKBONES = {
    "conv": ("Convolutional net with batch-norm, 72 k parameters.", "760 digits + augment", 760),
    "vit": (f"{_VIT}.", "760 digits + augment", 760),
    "vit-380": (f"{_VIT}; half the pretraining.", "380 digits + augment", 380),
    "vit-190": (f"{_VIT}; a quarter of the pretraining.", "190 digits + augment", 190),
    "vit-95": (f"{_VIT}; an eighth of the pretraining.", "95 digits + augment", 95),
    "vit-plain": (f"{_VIT}; not augmented.", "760 digits", 760),
    **{
        f"vit-at-{updates}": (
            f"{_VIT}; after {updates:,} of 1,800 updates.",
            "760 digits + augment",
            760,
        )
        for updates in (300, 600, 1200)
    },
}


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """A convolutional net, and a ViT in several pretrainings."""
    return [
        BackboneSpec(
            name=f"digits-{kind}",
            target="rib_plugin_digits.backbones:DigitsBackbone",
            arguments={"kind": kind},
            summary=summary,
            license="Apache-2.0",
            label_space=SPACE,
            pretraining=pretraining,
            pretraining_images=images,
            input_size=32,
            light=True,
            has=("batch-norm",) if kind == "conv" else ("blocks", "qkv"),
        )
        for kind, (summary, pretraining, images) in _BACKBONES.items()
    ]


@hookimpl
def register_suites() -> list[SuiteSpec]:
    """The embedded suite."""
    shifts = ("v2", "a", "r", "sketch", "object", "cartoon", "drawing", "c")
    return [
        SuiteSpec(
            name="digits-rib",
            summary="The protocol of ImageNet-RIB on handwritten digits: offline, in a minute.",
            citation="arXiv:2410.21582 for the protocol",
            license=LICENSE,
            label_space=SPACE,
            members=tuple(f"digits-{shift}" for shift in shifts),
            references=("digits-test",),
            shares=(("digits-cartoon", "digits-drawing", "digits-c", "digits-test"),),
            backbone="digits-vit",
            recipe={"lr": 0.01, "batch_size": 32, "warmup_steps": 10, "epochs": 10},
        )
    ]
