"""Known traps of the published sets: each with a layout that has it.

Expected values: torchvision's loader and transforms, timm's lists, ObjectNet's own mapping files,
and colours that say what a picture is.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from rib_plugin_imagenet_ood.datasets import (
    ImageNet,
    ImageNetC,
    ImageNetV2,
    ShiftedImageNet,
    image_set,
)
from rib_plugin_imagenet_ood.forms import Rows
from rib_plugin_imagenet_ood.published import BY_NAME, CORRUPTIONS, V2_VARIANTS

from rib_harness import DataError, ImageSet, Preprocess
from rib_harness.engine.evaluate import score
from rib_harness.engine.labels import ClassMap

Files = list[tuple[str, bytes]]

#: Images of each set in the development data's root: its README.
DEVELOPMENT = {
    "imagenet": 400, "imagenet-v2": 200, "imagenet-a": 140, "imagenet-r": 100,
    "imagenet-sketch": 150, "objectnet": 90, "imagenet-cartoon": 130, "imagenet-drawing": 130,
    "imagenet-c": 675,
}  # fmt: skip


def timm_list(name: str) -> list[str]:
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text().split()


def opened(name: str, root: Path | None, **options: Any) -> ImageSet:
    kinds: dict[str, Any] = {
        "imagenet": ImageNet,
        "imagenet-v2": ImageNetV2,
        "imagenet-c": ImageNetC,
    }
    if "at" in options:
        options["at"] = str(options["at"])
    dataset = kinds[name](**options) if name in kinds else ShiftedImageNet(name=name, **options)
    images: ImageSet = dataset.open(root)
    return images


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def coloured(number: int) -> bytes:
    """A picture that says its number."""
    return encoded(Image.new("RGB", (12, 10), (number % 256, number // 256, 7)))


def number_of(picture: Image.Image) -> int:
    red, green, _ = picture.getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 256 * int(green)


def stored(file: str) -> Image.Image:
    """A file's picture, with the file closed."""
    return Image.open(io.BytesIO(Path(file).read_bytes()))


def photograph(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Smooth noise, so that JPEG keeps its orientation."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(folder: Path, files: Files) -> Path:
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def write_hub(folder: Path, files: Files, labels: list[int], names: list[str] | None) -> Path:
    """A saved dataset of (file name, bytes) with labels, numbers or with names for them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = [{"bytes": data, "path": Path(name).name} for name, data in files]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    rows.save_to_disk(str(folder))
    return folder


def write_wds(path: Path, files: Files, labels: list[int]) -> Path:
    members: Files = []
    for i, ((name, data), label) in enumerate(zip(files, labels, strict=True)):
        suffix = Path(name).suffix
        members += [(f"{i:06d}{suffix}", data), (f"{i:06d}.cls", str(label).encode())]
    return write_tar(path, members)


def torchvisions(data: bytes, folder: Path) -> Image.Image:
    """What torchvision's ImageFolder hands to the transform."""
    loader = pytest.importorskip("torchvision.datasets.folder").default_loader
    file = folder / f"{hashlib.sha256(data).hexdigest()}.bin"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    picture: Image.Image = loader(str(file))
    return picture


FORMS = ("folder", "tar", "zip", "webdataset", "hub")


def in_form(form: str, name: str, files: Files, to: Path) -> ImageSet:
    """Files `CLASS/FILE` of a set whose folders are WNIDs, in any form."""
    if form in ("folder", "tar", "zip"):
        write: Callable[[Path, Files], Path] = {
            "folder": write_folder, "tar": write_tar, "zip": write_zip
        }[form]  # fmt: skip
        return opened(name, None, at=write(to / f"set.{form}", files))
    subset = "imagenet_a_synsets.txt" if name == "imagenet-a" else "imagenet_synsets.txt"
    in_order = sorted(timm_list(subset))
    labels = [in_order.index(file.split("/")[0]) for file, _ in files]
    if form == "webdataset":
        return opened(name, None, at=write_wds(to / "set.tar", files, labels))
    return opened(name, None, at=write_hub(to / "set.hub", files, labels, None))


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "tar", "hub", "hub by text", "webdataset"])
def test_imagenet_v2s_numbers_are_numbers_in_every_form(form: str, tmp_path: Path) -> None:
    """Sorted as text '10' comes before '2': 12 of 1000 labels would be right.

    `datasets` itself sorts the names of an image folder that way ("hub by text").
    """
    files = [(f"v2/{i}/x.png", coloured(i)) for i in range(1000)]
    numbers = list(range(1000))
    as_text = sorted(map(str, numbers))
    assert sum(int(one) == i for i, one in enumerate(as_text)) == 12
    at = {
        "folder": lambda: write_folder(tmp_path / "f", files) / "v2",
        "tar": lambda: write_tar(tmp_path / "x.tar", files),
        "hub": lambda: write_hub(tmp_path / "h", files, numbers, None),
        "hub by text": lambda: write_hub(
            tmp_path / "h", files, [as_text.index(str(i)) for i in numbers], as_text
        ),
        "webdataset": lambda: write_wds(tmp_path / "x.tar", files, numbers),
    }[form]()
    images = opened("imagenet-v2", None, at=at)
    assert len(images) == 1000
    for i in range(1000):
        assert images.class_map[images.labels[i]] == (number_of(images.image(i)),)


def test_ten_or_more_shards_are_all_read(tmp_path: Path) -> None:
    """clip-benchmark's shards are 0.tar … 10.tar, without zeros before."""
    for part in range(12):
        files = [(f"{i}.png", coloured(i)) for i in range(part * 5, part * 5 + 5)]
        write_wds(tmp_path / f"test/{part}.tar", files, [int(n.split(".")[0]) for n, _ in files])
    images = opened("imagenet-v2", None, at=tmp_path)
    assert sorted(number_of(images.image(i)) for i in range(len(images))) == list(range(60))
    assert all(
        images.class_map[images.labels[i]] == (number_of(images.image(i)),) for i in range(60)
    )


@pytest.mark.parametrize(("name", "ids"), [("imagenet-a", (6, 11)), ("imagenet-r", (1, 2, 4))])
@pytest.mark.parametrize("form", ["hub", "webdataset"])
def test_numbers_that_may_be_ranks_or_ids_are_refused(
    form: str, name: str, ids: tuple[int, ...], tmp_path: Path
) -> None:
    files = [(f"{i}.png", coloured(i)) for i in ids]
    if form == "hub":
        at = write_hub(tmp_path / "h", files, list(ids), None)
    else:
        at = write_wds(tmp_path / "x.tar", files, list(ids))
    with pytest.raises(DataError):
        opened(name, None, at=at)


# --- counts ------------------------------------------------------------------------------------


class NoBytes:
    """Images that are named and never read."""

    where = staticmethod(str)

    def read(self, index: int) -> bytes:
        raise AssertionError(index)

    def digests(self, indices: Sequence[int]) -> list[str]:
        return [f"{i:064d}" for i in indices]


def test_the_published_counts() -> None:
    """shared/spec/datasets.md, from the authors' pages: ImageNet-Sketch has not 50,000."""
    counts = {
        "imagenet": (50_000, 1000), "imagenet-v2": (10_000, 1000), "imagenet-a": (7_500, 200),
        "imagenet-r": (30_000, 200), "imagenet-sketch": (50_889, 1000),
        "objectnet": (18_574, 113), "imagenet-cartoon": (50_000, 1000),
        "imagenet-drawing": (50_000, 1000), "imagenet-c": (50_000 * 15 * 5, 1000),
    }  # fmt: skip
    assert {name: (BY_NAME[name].images, BY_NAME[name].classes) for name in counts} == counts


@pytest.mark.parametrize(("n", "notes"), [(50_889, ()), (50_000, ("images, expected 50,889",))])
def test_imagenet_sketch_is_whole_with_50889_images(n: int, notes: tuple[str, ...]) -> None:
    synsets = timm_list("imagenet_synsets.txt")
    rows = Rows(
        form="folder",
        location="sketch",
        classes=[synsets[i % 1000] for i in range(n)],
        groups=[""] * n,
        files=[f"sketch_{i}.JPEG" for i in range(n)],
        source=NoBytes(),
    )
    images = image_set(BY_NAME["imagenet-sketch"], rows)
    assert images.expected == 50_889
    assert len(images.notes) == len(notes)
    for came, expected in zip(images.notes, notes, strict=True):
        assert expected in came


def test_black_sketches_decode_and_count_each(tmp_path: Path) -> None:
    """ImageNet-Sketch has some that are all black: equal files, in one class and in two."""
    black = encoded(Image.new("L", (30, 20)), "JPEG")
    names = ["n01440764/sketch_0", "n01440764/sketch_1", "n01443537/sketch_0"]
    write_folder(tmp_path / "imagenet-sketch/sketch", [(f"{n}.JPEG", black) for n in names])
    images = opened("imagenet-sketch", tmp_path)
    assert [images.class_map[k] for k in images.labels] == [(0,), (0,), (1,)]
    for i in range(3):
        assert np.asarray(images.image(i)).shape == (20, 30, 3)
        assert not np.asarray(images.image(i)).any()


# --- ObjectNet ---------------------------------------------------------------------------------


def mapping(shared: Path) -> dict[str, tuple[int, ...]]:
    """Folder → ids, from ObjectNet's own files: labels are counted in the alphabet's order."""
    folder = shared / "data/imagenet-small/objectnet-1.0/mappings"
    label_of = json.loads((folder / "folder_to_objectnet_label.json").read_text())
    in_order = sorted(label_of.values())
    assert json.loads((shared / "data/objectnet_label_ids.json").read_text()) == {
        label: i for i, label in enumerate(in_order)
    }
    pairs = json.loads((folder / "imagenet_id_to_objectnet_id.json").read_text())
    made = {
        name: tuple(sorted(int(i) for i, k in pairs.items() if in_order[k] == label))
        for name, label in label_of.items()
    }
    return {name: ids for name, ids in made.items() if ids}


def ids_of_classes() -> dict[str, tuple[int, ...]]:
    """Folder → ids, of an opened set."""
    rows = Rows(
        form="folder", location="x", classes=["banana"], groups=[""], files=["a.png"],
        source=NoBytes(),
    )  # fmt: skip
    images = image_set(BY_NAME["objectnet"], rows)
    names = [name.split(" ")[0] for name in images.classes]
    return {name: tuple(sorted(ids)) for name, ids in zip(names, images.class_map, strict=True)}


def test_objectnets_113_classes_have_the_ids_of_its_own_mapping(shared: Path) -> None:
    expected = mapping(shared)
    assert len(expected) == 113
    assert sum(map(len, expected.values())) == 125
    assert ids_of_classes() == expected
    assert list(ids_of_classes()) == sorted(expected)


@pytest.mark.parametrize(
    "folder",
    ["chair", "jeans", "trash_bin", "weight_scale", "swimming_trunks", "skirt", "binder_closed",
     "iron_for_clothes"],
)  # fmt: skip
def test_the_eight_classes_that_the_reference_code_mislabels_are_right(
    folder: str, shared: Path
) -> None:
    assert ids_of_classes()[folder] == mapping(shared)[folder]


def test_the_classes_with_several_ids() -> None:
    """The list of shared/spec/datasets.md."""
    several = {folder: ids for folder, ids in ids_of_classes().items() if len(ids) > 1}
    assert several == {
        "alarm_clock": (409, 530), "bicycle": (444, 671), "chair": (423, 559, 765),
        "helmet": (518, 560), "pen": (418, 563, 749), "skirt": (601, 655, 689),
        "still_camera": (732, 759), "tie": (457, 906), "wheel": (479, 694),
    }  # fmt: skip


def test_any_id_of_a_class_wins_for_it_and_no_other_id_takes_part(shared: Path) -> None:
    """The maximum over the 113: a sum or mean, the first id only, or 125 classes would all fail."""
    images = opened("objectnet", shared / "data/imagenet-small")
    to_classes = ClassMap(images.class_map)
    folders = [name.split(" ")[0] for name in images.classes]
    used = {i for ids in mapping(shared).values() for i in ids}
    for folder, ids in mapping(shared).items():
        for winner in ids:
            logits = torch.full((1, 1000), 3.0)
            logits[:, list(ids)] = -9.0
            logits[0, winner] = 3.5
            logits[0, [i for i in range(1000) if i not in used]] = 50.0
            label = torch.tensor([folders.index(folder)])
            row = score(to_classes(logits, "max"), label)
            assert folders[int(row["prediction"])] == folder
    assert to_classes(torch.zeros(1, 1000), "max").shape == (1, 113)


def bordered(inner: np.ndarray, width: int, mode: str = "RGBA") -> bytes:
    height, breadth = inner.shape[:2]
    pixels = np.zeros((height + 2 * width, breadth + 2 * width, 4), np.uint8)
    pixels[...] = (255, 0, 0, 255)
    pixels[width : width + height, width : width + breadth, :3] = inner
    picture = Image.fromarray(pixels)
    if mode == "P":  # of few colours, so that none changes
        return encoded(picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE))
    return encoded(picture.convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P"])
@pytest.mark.parametrize("width", [0, 1, 2, 3, 7])
def test_a_border_of_any_width_is_off(width: int, mode: str, tmp_path: Path) -> None:
    """2 pixels as published, other copies have others; no border, no crop."""
    inner = np.zeros((21, 34, 3), np.uint8)
    inner[:, :17] = (250, 10, 0)
    inner[[0, 5, 6, 7]] = (255, 0, 0)  # the picture's own red reaches its edges
    inner[:, 20] = (255, 0, 0)
    write_folder(
        tmp_path / "objectnet-1.0/images", [("banana/x.png", bordered(inner, width, mode))]
    )
    images = opened("objectnet", tmp_path)
    np.testing.assert_array_equal(np.asarray(images.image(0)), inner)
    # Its licence: wherever a picture is shown, the border is on. In part of a set, too.
    published = (21 + 2 * width, 34 + 2 * width, 3)
    assert np.asarray(images.shown(0)).shape == published
    assert np.asarray(images.limited(1).shown(0)).shape == published


def test_objectnets_border_is_off_before_the_resize(shared: Path) -> None:
    """Every development picture: cut by 2 pixels a side, then torchvision's own transform."""
    transforms = pytest.importorskip("torchvision.transforms")
    images = opened("objectnet", shared / "data/imagenet-small")
    preprocess = Preprocess(size=64, resize=73)
    oracle = transforms.Compose(
        [
            transforms.Resize(73, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
        ]
    )
    for i in range(len(images)):
        picture = stored(images.names[i])
        assert picture.mode == "RGBA"
        assert picture.getpixel((1, 1)) == (255, 0, 0, 255)
        rgb = np.asarray(picture)[2:-2, 2:-2, :3]
        np.testing.assert_array_equal(np.asarray(images.image(i)), rgb)
        if i % 9 == 0:
            expected = np.asarray(oracle(Image.fromarray(rgb)))
            came = preprocess.pixels(images.image(i)).transpose(1, 2, 0)
            np.testing.assert_array_equal(came, expected)


@pytest.mark.parametrize("form", ["zip", "webdataset", "hub"])
def test_the_border_is_off_in_every_form_that_keeps_it(form: str, tmp_path: Path) -> None:
    """clip-benchmark's WebDataset keeps the border, in lossless WebP."""
    inner = np.asarray(photograph(30, 20))
    bytes_ = bordered(inner, 2)
    webp = encoded(Image.open(io.BytesIO(bytes_)).convert("RGB"), "WEBP", lossless=True)
    banana = sorted(ids_of_classes()).index("banana")
    at = {
        "zip": lambda: write_zip(tmp_path / "x.zip", [("images/banana/x.png", bytes_)]),
        "webdataset": lambda: write_wds(tmp_path / "x.tar", [("x.webp", webp)], [banana]),
        "hub": lambda: write_hub(tmp_path / "h", [("x.png", bytes_)], [banana], None),
    }[form]()
    images = opened("objectnet", None, at=at)
    assert images.class_map[images.labels[0]] == (954,)
    np.testing.assert_array_equal(np.asarray(images.image(0)), inner)


def test_a_border_that_jpeg_has_smeared_is_off(shared: Path, tmp_path: Path) -> None:
    source = opened("objectnet", shared / "data/imagenet-small")
    files = []
    for i in range(0, 90, 9):
        picture = stored(source.names[i])
        data = encoded(picture.convert("RGB"), "JPEG", quality=95)
        files.append((f"{Path(source.names[i]).parent.name}/{i}.jpg", data))
    images = opened("objectnet", None, at=write_folder(tmp_path / "images", files))
    for i in range(len(images)):
        with stored(images.names[i]) as whole:
            assert images.image(i).size == (whole.width - 4, whole.height - 4)


def test_the_200_other_classes_of_objectnet_are_left_out(shared: Path, tmp_path: Path) -> None:
    labels = shared / "data/imagenet-small/objectnet-1.0/mappings/folder_to_objectnet_label.json"
    folders = sorted(json.loads(labels.read_text()))
    assert len(folders) == 313
    files = [(f"images/{folder}/x y.png", coloured(i)) for i, folder in enumerate(folders)]
    expected = [i for i, folder in enumerate(folders) if folder in mapping(shared)]
    for at in (write_folder(tmp_path / "f", files), write_zip(tmp_path / "x.zip", files)):
        images = opened("objectnet", None, at=at)
        assert [number_of(images.image(i)) for i in range(113)] == expected
        assert images.labels.tolist() == list(range(113))


# --- subsets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["a", "r"])
def test_a_and_r_score_over_their_200_classes_or_over_all_if_asked(
    letter: str, tmp_path: Path
) -> None:
    synsets = timm_list("imagenet_synsets.txt")
    subset = [synsets.index(wnid) for wnid in timm_list(f"imagenet_{letter}_synsets.txt")]
    indices = [int(one) for one in timm_list(f"imagenet_{letter}_indices.txt")]
    assert subset == indices
    at = write_folder(tmp_path / "set", [(f"{synsets[i]}/a b.png", coloured(i)) for i in subset])
    own = opened(f"imagenet-{letter}", None, at=at)
    everything = opened(f"imagenet-{letter}", None, at=at, over="all")
    assert own.class_map == tuple((i,) for i in subset)
    assert own.labels.tolist() == everything.labels.tolist() == list(range(200))
    assert everything.class_map[:200] == own.class_map
    others = sorted(set(range(1000)) - set(subset))
    assert len(others) == 800
    assert sorted(everything.class_map[200]) == others
    assert own.fingerprint == everything.fingerprint
    assert any("all 1000" in note for note in everything.notes)

    # A class outside the set has the highest logit: no competitor, or a mistake.
    logits = torch.zeros(1, 1000)
    logits[0, subset[7]], logits[0, others[3]] = 1.0, 2.0
    label = torch.tensor([7])
    assert int(score(ClassMap(own.class_map)(logits, "max"), label)["prediction"]) == 7
    assert int(score(ClassMap(everything.class_map)(logits, "max"), label)["prediction"]) == 200


# --- ImageNet-C --------------------------------------------------------------------------------


def test_imagenet_cs_pictures_are_not_resized_again(shared: Path) -> None:
    """A second resize cost 4 points (shared/spec/datasets.md); the others are no crops."""
    root = shared / "data/imagenet-small"
    images = opened("imagenet-c", root)
    assert images.cropped == 224
    preprocess = Preprocess(size=224, resize=256).for_crops(images.cropped)
    for i in range(0, len(images), 60):
        pixels = np.asarray(stored(images.names[i]).convert("RGB"))
        assert pixels.shape == (224, 224, 3)
        np.testing.assert_array_equal(preprocess.pixels(images.image(i)).transpose(1, 2, 0), pixels)
    for name in set(DEVELOPMENT) - {"imagenet-c"}:
        assert opened(name, root).cropped is None


def test_one_file_name_in_all_groups_of_c_is_75_images(tmp_path: Path) -> None:
    groups = [f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in range(1, 6)]
    files = [
        (f"{group}/n01440764/ILSVRC2012_val_00000293.JPEG", coloured(i))
        for i, group in enumerate(groups)
    ]
    images = opened("imagenet-c", None, at=write_folder(tmp_path / "c", files))
    came = {str(images.group[i]): number_of(images.image(i)) for i in range(len(images))}
    assert came == {group: i for i, group in enumerate(groups)}
    assert set(images.source) == {"imagenet-val/ILSVRC2012_val_00000293"}


# --- files -------------------------------------------------------------------------------------


def palette(transparent: bool) -> bytes:
    picture = photograph(40, 30).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return (
        encoded(picture, transparency=bytes(range(0, 256, 16))) if transparent else encoded(picture)
    )


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encoded(photograph(40, 30), "JPEG", exif=tags)


FILES: dict[str, Callable[[], bytes]] = {
    "grey.jpg": lambda: encoded(photograph().convert("L"), "JPEG"),
    "cmyk.jpg": lambda: encoded(photograph().convert("CMYK"), "JPEG"),
    "progressive.jpg": lambda: encoded(photograph(), "JPEG", progressive=True),
    "a png called.jpg": lambda: encoded(photograph()),
    "palette.png": lambda: palette(False),
    "transparent palette.png": lambda: palette(True),
    "alpha.png": lambda: encoded(Image.merge("RGBA", (*photograph().split(),
                                                      photograph(seed=1).convert("L")))),
    "grey alpha.png": lambda: encoded(photograph().convert("LA")),
    "one bit.png": lambda: encoded(photograph().convert("1")),
    "lossless.webp": lambda: encoded(photograph(), "WEBP", lossless=True),
    "UPPER.JPG": lambda: encoded(photograph(), "JPEG"),
    "CASE.Jpeg": lambda: encoded(photograph(), "JPEG"),
    **{f"exif {k}.jpg": (lambda k=k: exif(k)) for k in range(1, 9)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "form"),
    [
        # Every kind of file in a folder, and one in every form, on each run.
        pytest.param(
            name, form, marks=() if form == "folder" or name == "exif 6.jpg" else pytest.mark.slow
        )
        for name in FILES
        for form in FORMS
    ],
)
def test_every_kind_of_file_gives_the_pixels_of_torchvisions_loader(
    name: str, form: str, tmp_path: Path
) -> None:
    """An EXIF rotation is not applied: no published number does (`datasets` itself would).

    16 bits, which that loader cuts off, are in the core's `test_pictures.py`.
    """
    data = FILES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Pillow, on transparent palettes
        expected = torchvisions(data, tmp_path / "oracle")
        images = in_form(form, "imagenet-a", [(f"n01498041/{name}", data)], tmp_path)
        came = images.image(0)
    assert came.mode == expected.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(came), np.asarray(expected))
    if name.startswith("exif") and name != "exif 1.jpg":
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert not np.array_equal(np.asarray(turned).ravel(), np.asarray(came).ravel())


NAMES = (
    "0.000119 wrong guess _ 0.00119.jpg",  # as ImageNet-A's
    "ä ö – 象.jpg",
    "100% #1 (copy) [x].jpg",
    "a,b;c'd.jpg",
    "x" * 140 + ".jpg",  # longer than a tar's own field for names
    "no_suffix_before.tar.jpg",
    "-rf.jpg",
)


@pytest.mark.parametrize("form", FORMS)
def test_no_name_of_a_file_is_in_the_way(form: str, tmp_path: Path) -> None:
    files = [
        (f"{wnid}/{name}", encoded(Image.new("RGB", (9, 9), (i, k, 7))))
        for k, wnid in enumerate(("n01498041", "n01531178"))
        for i, name in enumerate(NAMES)
    ]
    images = in_form(form, "imagenet-a", files, tmp_path)
    came = {(images.image(i).getpixel((0, 0)), int(images.labels[i])) for i in range(len(images))}
    subset = sorted(timm_list("imagenet_a_synsets.txt"))
    assert came == {
        ((i, k, 7), subset.index(wnid))
        for k, wnid in enumerate(("n01498041", "n01531178"))
        for i in range(len(NAMES))
    }
    if form != "webdataset":
        sources = images.source.tolist()
        assert len(set(sources)) == len(images)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", ["empty", "text", "truncated", "truncated png", "web page"])
def test_a_file_that_does_not_decode_is_named_in_every_form(
    bad: str, form: str, tmp_path: Path
) -> None:
    whole = encoded(photograph(300, 200), "JPEG", quality=95)
    png = encoded(photograph(300, 200))
    content = {
        "empty": b"", "text": b"this is a text\n", "truncated": whole[: len(whole) * 2 // 3],
        "truncated png": png[: len(png) * 2 // 3], "web page": b"<!doctype html><title>403",
    }[bad]  # fmt: skip
    files = [("n01498041/a good one.jpg", whole), ("n01531178/bad.jpg", content)]
    images = in_form(form, "imagenet-a", files, tmp_path)
    assert images.image(0).size == (300, 200)
    named = {
        "folder": r"n01531178/bad\.jpg", "tar": r"set\.tar/n01531178/bad\.jpg",
        "zip": r"set\.zip/n01531178/bad\.jpg", "webdataset": r"set\.tar/000001\.jpg",
        "hub": r"set\.hub row 1",
    }[form]  # fmt: skip
    with pytest.raises(DataError, match=rf"{named}: this image cannot be decoded .*whole copy"):
        images.image(1)


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_the_litter_of_macos_and_others_is_left_out(form: str, tmp_path: Path) -> None:
    name = "ILSVRC2012_val_00000001.JPEG"
    files = [
        (f"val/n01440764/{name}", coloured(1)),
        (f"val/n01440764/._{name}", b"\x00\x05\x16\x07 Mac OS X"),
        ("val/n01440764/.DS_Store", b"Bud1"),
        ("val/.DS_Store", b"Bud1"),
        ("val/Thumbs.db", b"x"),
        ("val/n01440764/desktop.ini", b"x"),
        ("val/n01440764/checksums.txt", b"x"),
        (f"__MACOSX/val/n01440764/._{name}", b"\x00\x05\x16\x07 Mac OS X"),
        ("__MACOSX/val/._n01440764", b"\x00\x05\x16\x07 Mac OS X"),
    ]
    images = in_form(form, "imagenet", files, tmp_path)
    assert len(images) == 1
    assert number_of(images.image(0)) == 1


LITTER = b"\x00\x05\x16\x07 Mac OS X"  # macOS leaves a ._NAME beside each file


def test_a_folder_with_litter_and_an_archive_is_the_archive(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "imagenet-a", [("n01498041/._x.jpg", LITTER), ("._imagenet-a.tar", LITTER)]
    )
    write_tar(tmp_path / "imagenet-a/imagenet-a.tar", [("n01498041/x.png", coloured(1))])
    assert numbers(opened("imagenet-a", tmp_path)) == [1]


@pytest.mark.parametrize("folder", ["", "test/"])
def test_litter_beside_shards_is_no_shard(folder: str, tmp_path: Path) -> None:
    at = write_folder(tmp_path / "imagenet-r", [(f"{folder}._0.tar", LITTER)])
    write_tar(at / f"{folder}0.tar", [("x.png", coloured(1)), ("x.cls", b"0")])
    assert numbers(opened("imagenet-r", tmp_path)) == [1]


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints", ".Trash-1000/n01440764", "__MACOSX/n01440764"]
)
def test_hidden_folders_are_left_out_in_every_form(form: str, hidden: str, tmp_path: Path) -> None:
    files = [("n01440764/a.JPEG", coloured(1)), (f"{hidden}/a-checkpoint.JPEG", coloured(2))]
    images = in_form(form, "imagenet", files, tmp_path)
    assert [number_of(images.image(i)) for i in range(len(images))] == [1]


@pytest.mark.parametrize("form", ["folder", "tar", "zip", "hub", "webdataset"])
def test_one_file_name_in_two_classes_is_two_images(form: str, tmp_path: Path) -> None:
    files = [("n01440764/x.png", coloured(0)), ("n01443537/x.png", coloured(1))]
    images = in_form(form, "imagenet-sketch", files, tmp_path)
    assert [number_of(images.image(i)) for i in range(2)] == [0, 1]
    assert images.labels.tolist() == [0, 1]
    assert len(set(images.source)) == 2


def test_one_key_in_two_shards_is_two_images(tmp_path: Path) -> None:
    """Each shard may count from zero; a class is taken from its own shard."""
    for part in range(3):
        path = tmp_path / f"shard-{part}.tar"
        write_wds(path, [("a.png", coloured(part)), ("b.png", coloured(part + 10))],
                  [part, part + 10])  # fmt: skip
    images = opened("imagenet-sketch", None, at=tmp_path)
    assert images.labels.tolist() == [0, 1, 2, 10, 11, 12]
    assert [number_of(images.image(i)) for i in range(6)] == [0, 1, 2, 10, 11, 12]


def test_a_key_of_a_webdataset_ends_at_the_first_dot(tmp_path: Path) -> None:
    """webdataset's own rule: `x.input.png` and `x.cls` are one sample."""
    files = [("a/x.input.png", coloured(1)), ("a/x.cls", b"3"), ("b/x.input.png", coloured(2)),
             ("b/x.cls", b"5\n")]  # fmt: skip
    images = opened("imagenet", None, at=write_tar(tmp_path / "0.tar", files))
    assert images.labels.tolist() == [3, 5]
    assert numbers(images) == [1, 2]


# --- names of classes --------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "ids"), [("crane", (134, 517)), ("maillot", (638, 639)),
                                           ("cardigan", (264, 474)), ("missile", (657, 744)),
                                           ("sunglass", (836, 837))])  # fmt: skip
@pytest.mark.parametrize("form", [*FORMS, "hub with words"])
def test_two_classes_of_one_name_stay_two(
    word: str, ids: tuple[int, int], form: str, tmp_path: Path
) -> None:
    """shared/spec/datasets.md: a class name is no key. The hub's ClassLabel needs unique names."""
    synsets = timm_list("imagenet_synsets.txt")
    files = [(f"{synsets[i]}/{i}.png", coloured(i)) for i in ids]
    if form == "hub with words":
        meta = pytest.importorskip("torchvision.models._meta")
        names: list[str] = []
        for name in meta._IMAGENET_CATEGORIES:
            names.append(f"{name}2" if name in names else name)
        images = opened("imagenet", None, at=write_hub(tmp_path / "h", files, list(ids), names))
    else:
        images = in_form(form, "imagenet", files, tmp_path)
    for i in range(2):
        label = images.labels[i]
        assert images.class_map[label] == (number_of(images.image(i)),) == (ids[i],)
        assert word in images.classes[label].lower()
    assert len(set(images.classes)) == 1000


# --- neighbours --------------------------------------------------------------------------------

VARIANTS = {variant: f"imagenetv2-{variant}-format-val" for variant in V2_VARIANTS}


@pytest.mark.parametrize("variant", V2_VARIANTS)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_imagenet_v2s_three_samples_side_by_side_are_kept_apart(
    form: str, variant: str, tmp_path: Path
) -> None:
    for k, (other, folder) in enumerate(VARIANTS.items()):
        files = [(f"{folder}/{i}/x.png", coloured(1000 * k + i)) for i in range(5)]
        if form == "folder":
            write_folder(tmp_path / "imagenet-v2", files)
        else:
            write_tar(tmp_path / f"imagenet-v2/imagenetv2-{other}.tar.gz", files)
    k = list(VARIANTS).index(variant)
    for options in ({}, {"at": tmp_path / "imagenet-v2"}):
        images = opened("imagenet-v2", tmp_path, variant=variant, **options)
        assert [number_of(images.image(i)) for i in range(len(images))] == [
            1000 * k + i for i in range(5)
        ]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_another_sample_of_imagenet_v2_is_not_taken_for_the_one_asked_for(
    form: str, tmp_path: Path
) -> None:
    files = [("imagenetv2-top-images-format-val/3/x.png", coloured(3))]
    if form == "folder":
        write_folder(tmp_path / "imagenet-v2", files)
    else:
        write_tar(tmp_path / "imagenet-v2/imagenetv2-top-images.tar.gz", files)
    with pytest.raises(DataError, match="matched-frequency"):
        opened("imagenet-v2", tmp_path)
    assert len(opened("imagenet-v2", tmp_path, variant="top-images")) == 1


def test_imagenet_v2s_samples_have_archives_of_their_own() -> None:
    """SHA-256 of the matched-frequency archive: shared/spec/datasets.md, from the Hub."""
    (first,) = ImageNetV2().archives()
    assert first.sha256 == "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c"
    assert first.size == 1_264_079_360
    found = {variant: ImageNetV2(variant=variant).archives() for variant in V2_VARIANTS}  # type: ignore[arg-type]
    assert {v: [a.name for a in some] for v, some in found.items()} == {
        variant: [f"imagenetv2-{variant}.tar.gz"] for variant in V2_VARIANTS
    }
    assert len({some[0].sha256 for some in found.values()}) == 3
    for variant, (archive,) in found.items():
        assert all(url.endswith(f"/imagenetv2-{variant}.tar.gz") for url in archive.urls)


def write_imagenet(folder: Path) -> Path:
    """val of one image; train and test with others, train also of another class."""
    return write_folder(
        folder,
        [
            ("train/n01440764/n01440764_1.JPEG", coloured(100)),
            ("train/n01443537/n01443537_1.JPEG", coloured(101)),
            ("val/n01440764/ILSVRC2012_val_00000001.JPEG", coloured(1)),
            ("test/n01440764/ILSVRC2012_test_00000001.JPEG", coloured(200)),
        ],
    )


def numbers(images: ImageSet) -> list[int]:
    return [number_of(images.image(i)) for i in range(len(images))]


def test_train_beside_val_is_not_read_as_val(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet")
    for options in ({}, {"at": tmp_path / "imagenet"}, {"at": tmp_path / "imagenet/val"}):
        assert numbers(opened("imagenet", tmp_path, **options)) == [1]
    for options in ({}, {"at": tmp_path / "imagenet"}, {"at": tmp_path / "imagenet/train"}):
        assert numbers(opened("imagenet", tmp_path, split="train", **options)) == [100, 101]
    shutil.rmtree(tmp_path / "imagenet/val")
    with pytest.raises(DataError, match="none with images: looked for"):
        opened("imagenet", tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        opened("imagenet", None, at=tmp_path / "imagenet")


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize("split", ["val", "train"])
def test_train_beside_val_in_an_archive_is_not_read_as_val(
    split: str, form: str, tmp_path: Path
) -> None:
    folder = write_imagenet(tmp_path / "imagenet")
    files = [(str(p.relative_to(tmp_path)), p.read_bytes()) for p in sorted(folder.rglob("*.JPEG"))]
    at = (write_tar if form == "tar" else write_zip)(tmp_path / f"all.{form}", files)
    expected = [1] if split == "val" else [100, 101]
    assert numbers(opened("imagenet", None, at=at, split=split)) == expected


def test_imagenet_v2s_three_samples_in_one_archive_are_kept_apart(tmp_path: Path) -> None:
    files = [
        (f"imagenet-v2/{folder}/{i}/x.png", coloured(1000 * k + i))
        for k, folder in enumerate(VARIANTS.values())
        for i in range(3)
    ]
    at = write_tar(tmp_path / "v2.tar", files)
    for k, variant in enumerate(VARIANTS):
        images = opened("imagenet-v2", None, at=at, variant=variant)
        assert numbers(images) == [1000 * k + i for i in range(3)]


def test_sets_below_one_root_do_not_touch_each_other(shared: Path) -> None:
    root = shared / "data/imagenet-small"
    assert {name: len(opened(name, root)) for name in DEVELOPMENT} == DEVELOPMENT


def test_a_copy_of_part_of_a_set_says_so(tmp_path: Path) -> None:
    """A real copy of ObjectNet in a published paper held half: count (shared/spec/datasets.md)."""
    synsets = timm_list("imagenet_synsets.txt")
    some = replace(BY_NAME["imagenet-sketch"], images=2000)
    for n, expected in ((2000, 0), (1999, 1), (2001, 1), (500, 1)):
        rows = Rows(
            form="tar", location="x", classes=[synsets[i % 1000] for i in range(n)],
            groups=[""] * n, files=[f"{i}.png" for i in range(n)],
            source=NoBytes(),
        )  # fmt: skip
        assert len(image_set(some, rows).notes) == expected
