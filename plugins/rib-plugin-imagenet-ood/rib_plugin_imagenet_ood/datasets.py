"""The sets: where each lies below the data root, and which classes it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rib_harness import DataError, ImageSet
from rib_plugin_imagenet_ood.classes import imagenet_classes
from rib_plugin_imagenet_ood.folders import image_set

Name = Literal[
    "imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet",
    "imagenet-cartoon", "imagenet-drawing", "imagenet-c",
]  # fmt: skip

#: The 15 corruptions of ImageNet-C, by family: noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "frost", "snow", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a set is laid out.

    Args:
        folders: where it may lie below the data root; the first that is there is taken.
        get: how a person gets it.
        subset: letter of its classes in `classes.tsv`; empty for all 1000.
        numbered: whether the class folders are ids instead of WNIDs.
        from_val: whether its images are versions of ImageNet's validation photographs.
        cropped: side of its pictures, where they are crops already.
        images: how many the published set holds.
    """

    folders: tuple[str, ...]
    get: str
    subset: str = ""
    numbered: bool = False
    from_val: bool = False
    groups: tuple[str, ...] = ()
    cropped: int | None = None
    images: int = 0


LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(
        ("imagenet/val", "imagenet-val", "ILSVRC2012_img_val"),
        "ILSVRC2012_img_val.tar from image-net.org (login), sorted into WNID folders",
        from_val=True,
        images=50_000,
    ),
    "imagenet-v2": Layout(
        (
            "imagenet-v2/imagenetv2-matched-frequency-format-val",
            "imagenetv2-matched-frequency-format-val",
            "imagenet-v2",
        ),
        "imagenetv2-matched-frequency.tar.gz from the Hub dataset vaishaal/ImageNetV2",
        numbered=True,
        images=10_000,
    ),
    "imagenet-a": Layout(
        ("imagenet-a",),
        "imagenet-a.tar from people.eecs.berkeley.edu/~hendrycks",
        subset="a",
        images=7_500,
    ),
    "imagenet-r": Layout(
        ("imagenet-r",),
        "imagenet-r.tar from people.eecs.berkeley.edu/~hendrycks",
        subset="r",
        images=30_000,
    ),
    "imagenet-sketch": Layout(
        ("imagenet-sketch/sketch", "sketch", "imagenet-sketch"),
        "ImageNet-Sketch.zip from the Hub dataset songweig/imagenet_sketch",
        images=50_889,
    ),
    "imagenet-cartoon": Layout(
        ("imagenet-cartoon",),
        "imagenet-cartoon.tar.gz from zenodo.org, record 6801109",
        from_val=True,
        images=50_000,
    ),
    "imagenet-drawing": Layout(
        ("imagenet-drawing",),
        "imagenet-drawing.tar.gz from zenodo.org, record 6801109",
        from_val=True,
        images=50_000,
    ),
    "imagenet-c": Layout(
        ("imagenet-c",),
        "blur, digital, noise and weather.tar from zenodo.org, record 2235448",
        from_val=True,
        groups=tuple(f"{c}/{severity}" for c in CORRUPTIONS for severity in range(1, 6)),
        cropped=224,
        images=3_750_000,
    ),
}


OBJECTNET = Layout(
    ("objectnet-1.0", "objectnet"),
    "objectnet-1.0.zip from objectnet.dev, with the password of its download page",
    images=18_574,
)


def _objectnet(root: Path) -> ImageSet:
    """The 113 classes that overlap with ImageNet's, by ids and never by names.

    `imagenet_id_to_objectnet_id.json` counts ObjectNet's labels in alphabetical order. Nine
    classes have two or three ImageNet ids.
    """
    label_of = _mapping(root, "folder_to_objectnet_label.json")
    number_of = _mapping(root, "imagenet_id_to_objectnet_id.json")
    number = {label: i for i, label in enumerate(sorted(label_of.values()))}
    ids: dict[int, list[int]] = {}
    for imagenet_id, objectnet_id in number_of.items():
        ids.setdefault(int(objectnet_id), []).append(int(imagenet_id))
    folders = sorted(folder for folder, label in label_of.items() if number[label] in ids)
    return image_set(
        root / "images",
        groups=(),
        folders=folders,
        ids=[sorted(ids[number[label_of[folder]]]) for folder in folders],
        classes=[label_of[folder] for folder in folders],
        source="objectnet",
        expected=OBJECTNET.images,
        others=frozenset(label_of) - frozenset(folders),
        red_border=True,
    )


def _mapping(root: Path, name: str) -> dict[str, Any]:
    path = root / "mappings" / name
    try:
        mapping: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"{path} is missing: it says which classes are ImageNet's. It comes with ObjectNet, or "
            "with its template repository (abarbu/objectnet-template)."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    return mapping


@dataclass(frozen=True)
class ImageNetFolder:
    """One of the sets, from its extracted official layout.

    Args:
        name: which one.
    """

    name: Name

    def open(self, root: Path | None) -> ImageSet:
        """Index the set below the data root."""
        if self.name == "objectnet":
            return _objectnet(_find(OBJECTNET, root))
        layout = LAYOUTS[self.name]
        classes = [c for c in imagenet_classes() if layout.subset in c.sets]
        return image_set(
            _find(layout, root),
            groups=layout.groups,
            folders=[str(c.id) if layout.numbered else c.wnid for c in classes],
            ids=[(c.id,) for c in classes],
            classes=[f"{c.wnid} {c.words}" for c in classes],
            source="imagenet-val" if layout.from_val else self.name,
            expected=layout.images,
            cropped=layout.cropped,
        )


def _find(layout: Layout, root: Path | None) -> Path:
    if root is None:
        raise DataError(
            f"no data folder was given: use --data-root DIR (or RIB_DATA_ROOT), with the set in "
            f"DIR/{layout.folders[0]}. Get it: {layout.get}."
        )
    for folder in layout.folders:
        if (root / folder).is_dir():
            return root / folder
    looked = " and ".join(str(root / folder) for folder in layout.folders)
    raise DataError(f"no such folder: looked for {looked}. Get it: {layout.get}.")
