"""What is known of each published set: files, counts, layout, terms. Light: no NumPy, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rib_harness import Archive

#: The 15 corruptions of ImageNet-C, by family: noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "frost", "snow", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip

#: The four that its authors keep for validation; not part of the 15.
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

SEVERITIES = range(1, 6)

#: ImageNet-V2's three samples; the suite takes the first.
V2_VARIANTS = ("matched-frequency", "threshold0.7", "top-images")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One set.

    Args:
        folders: where it may lie below the data root; the first that is there is taken.
        archives: the files in which it is published.
        images: how many it holds (of the classes that are used).
        per_class: likewise in each class (and group), where these are equal.
        classes: how many classes.
        subset: letter of its classes in `classes.tsv`; empty for all 1000.
        numbered: whether the class folders are ids; WNIDs are taken too.
        from_val: whether its images are versions of ImageNet's validation photographs.
        groups: subfolders `corruption/severity`.
        cropped: side of its pictures, where they are crops already.
        skip: folders of other sets that may lie in one of its own.
        reference: what to ask for, with the options; empty for the name.
        splits: names that its split has in copies on the Hugging Face Hub.
    """

    name: str
    summary: str
    citation: str
    license: str
    homepage: str
    folders: tuple[str, ...]
    archives: tuple[Archive, ...]
    images: int
    per_class: int | None = None
    classes: int = 1000
    subset: str = ""
    numbered: bool = False
    from_val: bool = False
    groups: tuple[str, ...] = ()
    cropped: int | None = None
    may_train: bool = True
    skip: tuple[str, ...] = ()
    reference: str = ""
    splits: tuple[str, ...] = field(default=("validation", "val", "test", "train"))


def groups_of(corruptions: tuple[str, ...]) -> tuple[str, ...]:
    """`corruption/severity` for each."""
    return tuple(f"{c}/{severity}" for c in corruptions for severity in SEVERITIES)


_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
_V2 = (
    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main",
    "https://imagenetv2public.s3-us-west-2.amazonaws.com",
)
#: Variant → size and SHA-256 of its archive; plain tars in spite of their name. An older release
#: has other bytes under the same names.
_V2_FILES = {
    "matched-frequency": (
        1_264_079_360,
        "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
    ),
    "threshold0.7": (
        1_249_906_176,
        "32142bfe998f9cfa4141be691f6a80eeb1e27b24bd532a668eb08c26d98897a2",
    ),
    "top-images": (
        1_245_927_936,
        "85e4ace30f3f0d660152062254b8759dda66267b27f7ec0fd8d5768f1073a04b",
    ),
}
_ZENODO_C = "https://zenodo.org/records/2235448/files"
_ZENODO_CD = "https://zenodo.org/records/6801109/files"

DEVKIT = Archive(
    name="ILSVRC2012_devkit_t12.tar.gz",
    md5="fa75699e90414af021442c21a62c3abf",
    get="It is on https://image-net.org (login), beside the images.",
    unpack=False,
    images=False,
)
#: Kaggle's table of the validation set's classes, which lies beside its folder `ILSVRC`.
SOLUTION = "LOC_val_solution.csv"

_LOGIN = "Log in on https://image-net.org and fetch it from the ILSVRC 2012 page."


def v2(variant: str) -> Published:
    """ImageNet-V2's sample `variant`."""
    size, digest = _V2_FILES[variant]
    stem = f"imagenetv2-{variant}"
    return Published(
        name="imagenet-v2",
        summary="A fresh sample of photographs (matched frequency; two more as an option).",
        citation="arXiv:1902.10811",
        license="MIT (code); photographs: Flickr",
        homepage="https://imagenetv2.org",
        # Numbered folders that say no sample are taken for the suite's, never for another.
        folders=(f"imagenet-v2/{stem}-format-val", f"{stem}-format-val")
        + (("imagenet-v2",) if variant == V2_VARIANTS[0] else ()),
        archives=(
            Archive(
                name=f"{stem}.tar.gz",
                urls=tuple(f"{place}/{stem}.tar.gz" for place in _V2),
                size=size,
                sha256=digest,
            ),
        ),
        images=10_000,
        per_class=10,
        numbered=True,
        reference=f"imagenet-v2:variant={variant}" if variant != V2_VARIANTS[0] else "",
        skip=tuple(
            f"{name}-{v}-format-val"
            for v in V2_VARIANTS
            if v != variant
            for name in ("imagenetv2", "imagenet")
        ),
        splits=("test", "validation", "train"),
    )


def imagenet(split: str) -> Published:
    """ImageNet-1k's validation or training set."""
    val = split == "val"
    return Published(
        name="imagenet",
        summary="ImageNet-1k validation set; the reference.",
        citation="arXiv:1409.0575",
        license="ImageNet terms (non-commercial research)",
        homepage="https://image-net.org",
        folders=("imagenet/val", "imagenet-val", "ILSVRC2012_img_val", "imagenet")
        if val
        else ("imagenet/train", "imagenet-train", "ILSVRC2012_img_train"),
        archives=(
            Archive(
                name="ILSVRC2012_img_val.tar",
                size=6_744_924_160,
                md5="29b22e2961454d5413ddabcf34fc5622",
                get=_LOGIN,
                unpack=False,
            ),
            DEVKIT,
        )
        if val
        else (
            Archive(
                name="ILSVRC2012_img_train.tar",
                size=147_897_477_120,
                md5="1d675b47d978889d74fa0da5fadfb00e",
                get=_LOGIN,
                unpack=False,
            ),
        ),
        images=50_000 if val else 1_281_167,
        per_class=50 if val else None,
        from_val=val,
        reference="" if val else "imagenet:split=train",
        skip=("train", "test") if val else ("val", "test"),
        splits=("validation", "val", "test") if val else ("train",),
    )


def imagenet_c(*, extra: bool) -> Published:
    """ImageNet-C with its 15 corruptions, and the four extra ones if asked for."""
    archives = [("blur", "2d8e81fdd8e07fef67b9334fa635e45c"),
                ("digital", "89157860d7b10d5797849337ca2e5c03"),
                ("noise", "e80562d7f6c3f8834afb1ecf27252745"),
                ("weather", "33ffea4db4d93fe4a428c40a6ce0c25d")]  # fmt: skip
    if extra:
        archives.append(("extra", "d492dfba5fc162d8ec2c3cd8ee672984"))
    groups = groups_of(CORRUPTIONS + (EXTRA_CORRUPTIONS if extra else ()))
    return Published(
        name="imagenet-c",
        summary="15 corruptions × 5 severities of ImageNet val.",
        citation="arXiv:1903.12261",
        license="Apache-2.0 (code)",
        homepage="https://zenodo.org/records/2235448",
        folders=("imagenet-c",),
        archives=tuple(
            Archive(name=f"{name}.tar", urls=(f"{_ZENODO_C}/{name}.tar",), md5=md5, unpack=False)
            for name, md5 in archives
        ),
        images=50_000 * len(groups),
        per_class=50,
        from_val=True,
        groups=groups,
        skip=() if extra else EXTRA_CORRUPTIONS,
        cropped=224,
    )


def imagenet_c_made(*, extra: bool) -> Published:
    """ImageNet-C as `data make imagenet-c` makes it from the validation set."""
    return replace(
        imagenet_c(extra=extra),
        name="imagenet-c-made",
        summary="ImageNet-C made from ImageNet val on this machine; not the published JPEGs.",
        license="ImageNet terms (made from val)",
        homepage="https://github.com/imaug/imagecorruptions",
        folders=("imagenet-c-made",),
        archives=(),
    )


def _styled(name: str, what: str, md5: str) -> Published:
    return Published(
        name=f"imagenet-{name}",
        summary=f"{what} made from ImageNet val.",
        citation="Salvador & Oberman, 2022",
        license="CC BY 4.0; source ImageNet",
        homepage="https://zenodo.org/records/6801109",
        folders=(f"imagenet-{name}",),
        archives=(
            Archive(
                name=f"imagenet-{name}.tar.gz",
                urls=(f"{_ZENODO_CD}/imagenet-{name}.tar.gz",),
                md5=md5,
            ),
        ),
        images=50_000,
        per_class=50,
        from_val=True,
    )


OBJECTNET = Published(
    name="objectnet",
    summary="Objects in odd places and poses; 113 classes with 125 ids, by their maximum.",
    citation="Barbu et al., NeurIPS 2019",
    license="CC BY-like; no tuning of any model on it",
    homepage="https://objectnet.dev",
    folders=("objectnet/objectnet-1.0", "objectnet-1.0", "objectnet"),
    archives=(
        Archive(
            name="objectnet-1.0.zip",
            urls=("https://objectnet.dev/downloads/objectnet-1.0.zip",),
            md5="522aa986a604c41ea641411c1d0a292e",
            get="Fetch it from https://objectnet.dev; its password is on the download page.",
        ),
    ),
    images=18_574,
    classes=113,
    may_train=False,
    splits=("test", "validation", "train"),
)

#: In the order of the paper's tables, after the reference.
SETS = (
    imagenet("val"),
    v2("matched-frequency"),
    Published(
        name="imagenet-a",
        summary="Natural adversarial examples; 200 classes.",
        citation="arXiv:1907.07174",
        license="MIT (repository)",
        homepage="https://github.com/hendrycks/natural-adv-examples",
        folders=("imagenet-a",),
        archives=(
            Archive(
                name="imagenet-a.tar",
                urls=(f"{_BERKELEY}/imagenet-a.tar",),
                size=687_552_512,
                md5="c3e55429088dc681f30d81f4726b6595",
            ),
        ),
        images=7_500,
        classes=200,
        subset="a",
    ),
    Published(
        name="imagenet-r",
        summary="Renditions; 200 classes.",
        citation="arXiv:2006.16241",
        license="MIT (repository)",
        homepage="https://github.com/hendrycks/imagenet-r",
        folders=("imagenet-r",),
        archives=(
            Archive(
                name="imagenet-r.tar",
                urls=(f"{_BERKELEY}/imagenet-r.tar",),
                size=2_191_079_936,
                md5="a61312130a589d0ca1a8fca1f2bd3337",
            ),
        ),
        images=30_000,
        classes=200,
        subset="r",
    ),
    Published(
        name="imagenet-sketch",
        summary="Black-and-white sketches; 50,889 of them.",
        citation="arXiv:1905.13549",
        license="MIT (repository)",
        homepage="https://github.com/HaohanWang/ImageNet-Sketch",
        folders=("imagenet-sketch/sketch", "sketch", "imagenet-sketch"),
        archives=(
            Archive(
                name="ImageNet-Sketch.zip",
                urls=(
                    "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/"
                    "ImageNet-Sketch.zip",
                ),
                size=7_593_573_012,
                sha256="4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
            ),
        ),
        images=50_889,
    ),
    OBJECTNET,
    _styled("cartoon", "Cartoons", "a4987ee6efda553299419f47e59a7274"),
    _styled("drawing", "Pencil drawings", "3fb1206b6e3190d0159e5dc01c0f97ab"),
    imagenet_c(extra=False),
    imagenet_c_made(extra=False),
)

BY_NAME = {one.name: one for one in SETS}

#: Of all sets and variants: a tar of this name is no shard of another set.
ALL_ARCHIVES = tuple(
    archive
    for one in (
        *SETS,
        imagenet("train"),
        imagenet_c(extra=True),
        *(v2(variant) for variant in V2_VARIANTS),
    )
    for archive in one.archives
)
