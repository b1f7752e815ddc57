"""ImageNet's own archives: flat photographs with the development kit, and the nested training set.

Expected values: torchvision's reader of the kit, and the class that each synthetic picture shows.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import shutil
import tarfile
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rib_plugin_imagenet_ood.datasets import ImageNet, ShiftedImageNet
from rib_plugin_imagenet_ood.devkit import ground_truth

from rib_harness import DataError, ImageSet

KIT = "ILSVRC2012_devkit_t12"
SYNSET = [
    ("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"),
    ("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O"),
]  # fmt: skip


def synsets() -> list[str]:
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data/_info/imagenet_synsets.txt").read_text().split()


def kit_order() -> list[str]:
    """WNIDs in an order of the kit's own: that of its ILSVRC2012_IDs, from 1."""
    wnids = synsets()
    random.Random(12).shuffle(wnids)
    return wnids


def write_kit(folder: Path, truth: list[str]) -> Path:
    """The kit as published: 1000 leaves and some inner nodes, in `meta.mat`, and a text of ids."""
    scipy_io = pytest.importorskip("scipy.io")
    order = kit_order()
    rows = [
        (i, wnid, f"word {i}, other word", "a gloss", 0, np.zeros((1, 0)), 0, 1300)
        for i, wnid in enumerate(order, start=1)
    ]
    # Inner nodes have ids beyond 1000, and WNIDs that are no class.
    rows += [
        (1001 + i, f"n0000{i:04d}", "entity", "of many kinds", 2, np.array([[1, 2]]), 3, 0)
        for i in range(7)
    ]
    table = np.empty((len(rows), 1), dtype=SYNSET)
    for i, row in enumerate(rows):
        table[i, 0] = row
    data = folder / KIT / "data"
    data.mkdir(parents=True)
    scipy_io.savemat(data / "meta.mat", {"synsets": table}, do_compression=True)
    numbers = [order.index(wnid) + 1 for wnid in truth]
    text = "".join(f"{number}\n" for number in numbers)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(text)
    (folder / KIT / "readme.txt").write_text("for people")
    return folder / KIT


def packed(kit: Path) -> Path:
    """The kit as its tar.gz."""
    archive = kit.parent / f"{KIT}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(kit, KIT)
    shutil.rmtree(kit)
    return archive


def truth_of(n: int) -> list[str]:
    wnids = synsets()
    return random.Random(3).choices(wnids, k=n)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (number % 256, number // 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 256 * int(green)


def flat(n: int) -> list[tuple[str, bytes]]:
    """Files 1 … n under ImageNet's names; their bytes are PNG, which no reader minds."""
    return [(f"ILSVRC2012_val_{i:08d}.JPEG", picture(i)) for i in range(1, n + 1)]


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_folder(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- the kit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_the_ground_truth_is_torchvisions(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("torchvision.datasets.imagenet")
    truth = truth_of(500)
    kit = write_kit(tmp_path / "one", truth)
    if form == "tar.gz":
        kit = packed(kit)
    came = ground_truth(tmp_path / "one")

    archive = packed(write_kit(tmp_path / "two", truth))
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(module.ARCHIVE_META, "devkit", (archive.name, digest))
    module.parse_devkit_archive(str(tmp_path / "two"))
    _, expected = module.load_meta_file(str(tmp_path / "two"))
    assert came == list(expected) == truth


PLACES = {
    "beside the files": ("imagenet/val", "imagenet/val"),
    "above the folder": ("imagenet/val", "imagenet"),
    "at the root": ("imagenet/val", ""),
    "in imagenet itself": ("imagenet", "imagenet"),
}


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
@pytest.mark.parametrize("place", PLACES)
def test_flat_files_have_the_classes_of_the_kit(place: str, form: str, tmp_path: Path) -> None:
    images_at, kit_at = PLACES[place]
    truth = truth_of(300)
    write_folder(tmp_path / images_at, flat(300))
    kit = write_kit(tmp_path / kit_at, truth)
    if form == "tar.gz":
        packed(kit)
    images = ImageNet().open(tmp_path)
    has_classes(images, truth)
    assert images.fingerprint == sorted_into_classes(tmp_path / "sorted", truth).fingerprint


def has_classes(images: ImageSet, truth: list[str]) -> None:
    """Each picture's class is that of the number that it shows; the trap-free way to know."""
    assert len(images) == len(truth)
    wnids = synsets()
    for i in range(len(images)):
        number = number_of(images.image(i))
        assert images.class_map[images.labels[i]] == (wnids.index(truth[number - 1]),)
        assert images.source[i] == f"imagenet-val/ILSVRC2012_val_{number:08d}"


def sorted_into_classes(folder: Path, truth: list[str]) -> ImageSet:
    files = flat(len(truth))
    write_folder(
        folder, [(f"{w}/{name}", data) for w, (name, data) in zip(truth, files, strict=True)]
    )
    return ImageNet(at=str(folder)).open(None)


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
@pytest.mark.parametrize("place", ["imagenet", ""])
def test_the_official_tar_is_read_in_place_with_the_kit_beside_it(
    place: str, form: str, tmp_path: Path
) -> None:
    truth = truth_of(300)
    archive = write_tar(tmp_path / place / "ILSVRC2012_img_val.tar", flat(300))
    kit = write_kit(tmp_path / place, truth)
    if form == "tar.gz":
        packed(kit)
    expected = sorted_into_classes(tmp_path / "sorted", truth)
    for images in (ImageNet().open(tmp_path), ImageNet(at=str(archive)).open(None)):
        has_classes(images, truth)
        assert images.fingerprint == expected.fingerprint


def test_the_training_sets_tar_beside_it_is_left_alone(tmp_path: Path) -> None:
    truth = truth_of(20)
    write_tar(tmp_path / "imagenet/ILSVRC2012_img_val.tar", flat(20))
    write_tar(tmp_path / "imagenet/ILSVRC2012_img_train.tar", train_tar(train_files()))
    packed(write_kit(tmp_path / "imagenet", truth))
    has_classes(ImageNet().open(tmp_path), truth)
    assert len(ImageNet(split="train", per_class=2).open(tmp_path)) == 6


def test_the_development_photographs_are_the_same_flat_and_in_classes(
    shared: Path, tmp_path: Path
) -> None:
    root = shared / "data/imagenet-small/imagenet/val"
    files = sorted(root.glob("*/*"), key=lambda path: path.name)
    assert files[0].name == "ILSVRC2012_val_00000001.JPEG"
    assert files[-1].name == "ILSVRC2012_val_00000400.JPEG"
    packed(write_kit(tmp_path, [path.parent.name for path in files]))
    flat_files = [(path.name, path.read_bytes()) for path in files]
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", flat_files)
    write_folder(tmp_path / "flat/imagenet/val", flat_files)
    shutil.copy(tmp_path / f"{KIT}.tar.gz", tmp_path / "flat")
    expected = ImageNet(at=str(root)).open(None)
    for place in (tmp_path, tmp_path / "flat"):
        images = ImageNet().open(place)
        assert images.fingerprint == expected.fingerprint
        np.testing.assert_array_equal(images.labels, expected.labels)
        np.testing.assert_array_equal(images.source, expected.source)


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_without_the_kit_flat_files_say_what_to_put_where(form: str, tmp_path: Path) -> None:
    if form == "tar":
        write_tar(tmp_path / "imagenet/ILSVRC2012_img_val.tar", flat(3))
    else:
        write_folder(tmp_path / "imagenet/val", flat(3))
    match = rf"not sorted into classes\. Put {KIT}\.tar\.gz beside them.*image-net\.org"
    with pytest.raises(DataError, match=match):
        ImageNet().open(tmp_path)


def test_flat_files_with_other_names_or_of_another_set_are_refused(tmp_path: Path) -> None:
    packed(write_kit(tmp_path, truth_of(5)))
    write_folder(tmp_path / "imagenet/val", [*flat(2), ("another.JPEG", picture(3))])
    with pytest.raises(DataError, match="do not lie in folders of classes"):
        ImageNet().open(tmp_path)
    write_folder(tmp_path / "imagenet-cartoon", flat(3))
    with pytest.raises(DataError, match="do not lie in folders of classes"):
        ShiftedImageNet(name="imagenet-cartoon").open(tmp_path)


def test_flat_files_beside_folders_of_classes_are_refused(tmp_path: Path) -> None:
    """Half of them moved into classes, as a script that was interrupted leaves them."""
    packed(write_kit(tmp_path, truth_of(5)))
    files = flat(4)
    write_folder(tmp_path / "imagenet/val", [*files[:2], (f"n01440764/{files[3][0]}", files[3][1])])
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001\.JPEG: '' is not a class"):
        ImageNet().open(tmp_path)


@pytest.mark.parametrize("number", [6, 0])
def test_a_photograph_that_the_kit_does_not_know_is_named(number: int, tmp_path: Path) -> None:
    packed(write_kit(tmp_path, truth_of(5)))
    name = f"ILSVRC2012_val_{number:08d}.JPEG"
    write_folder(tmp_path / "imagenet/val", [*flat(5), (name, picture(9))])
    with pytest.raises(DataError, match=f"{name}|{KIT}"):
        ImageNet().open(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Any] = {
    "no meta.mat": lambda data: (data / "meta.mat").unlink(),
    "no ground truth": lambda data: (data / "ILSVRC2012_validation_ground_truth.txt").unlink(),
    "another mat": lambda data: (data / "meta.mat").write_bytes(b"MATLAB 5.0 " + bytes(400)),
    "garbage mat": lambda data: (data / "meta.mat").write_bytes(b"garbage" * 100),
    "empty mat": lambda data: (data / "meta.mat").write_bytes(b""),
    "half a mat": lambda data: (data / "meta.mat").write_bytes(
        (data / "meta.mat").read_bytes()[:2000]
    ),
    "a flipped byte": lambda data: flip(data / "meta.mat"),
    "words": lambda data: (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\nx\n"),
    "no class": lambda data: (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1001\n"),
    "no text": lambda data: (data / "ILSVRC2012_validation_ground_truth.txt").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kit_is_named(damage: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "imagenet/val", flat(3))
    kit = write_kit(tmp_path, truth_of(3))
    DAMAGES[damage](kit / "data")
    with pytest.raises(DataError, match=f"{KIT} is damaged"):
        ImageNet().open(tmp_path)


@pytest.mark.parametrize("content", ["empty", "garbage", "half"])
def test_a_damaged_archive_of_the_kit_is_named(content: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "imagenet/val", flat(3))
    archive = packed(write_kit(tmp_path, truth_of(3)))
    data = archive.read_bytes()
    archive.write_bytes(
        {"empty": b"", "garbage": b"garbage" * 99, "half": data[: len(data) // 2]}[content]
    )
    with pytest.raises(DataError, match=rf"{KIT}\.tar\.gz is damaged"):
        ImageNet().open(tmp_path)


def test_what_reading_the_kit_needs_is_installed_with_the_distributions() -> None:
    asked = [*(requires("rib-harness") or ()), *(requires("rib-plugin-imagenet-ood") or ())]
    plain = [one for one in asked if "extra ==" not in one]
    assert any(re.match(r"scipy\b", one) for one in plain)


# --- the training set --------------------------------------------------------------------------


def train_files() -> dict[str, list[tuple[str, bytes]]]:
    """WNID → its files, under ImageNet's names; the numbers are not in order."""
    made = {}
    for k, wnid in enumerate(("n01440764", "n02012849", "n15075141")):
        numbers = random.Random(k).sample(range(10_000), 12 + k)
        made[wnid] = [(f"{wnid}_{n}.JPEG", picture(1000 * k + i)) for i, n in enumerate(numbers)]
    return made


def train_tar(files: dict[str, list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
    """The inner tars, one a class."""
    inner = []
    for wnid, some in files.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, data in some:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        inner.append((f"{wnid}.tar", buffer.getvalue()))
    return inner


def write_train(root: Path, form: str) -> Path:
    files = train_files()
    if form == "tar":
        return write_tar(root / "imagenet/ILSVRC2012_img_train.tar", train_tar(files))
    everything = [(f"{w}/{name}", data) for w, some in files.items() for name, data in some]
    random.Random(5).shuffle(everything)
    if form == "tar of folders":
        return write_tar(root / "imagenet/ILSVRC2012_img_train.tar", everything)
    return write_folder(root / "imagenet/train", everything)


@pytest.mark.parametrize("form", ["tar", "tar of folders"])
def test_the_training_set_and_its_sample_are_the_same_from_tar_and_folder(
    form: str, tmp_path: Path
) -> None:
    at = write_train(tmp_path / "tar", form)
    write_train(tmp_path / "folder", "folder")
    wnids = synsets()
    for per_class in (1, 5, 12, 13, 99):
        dataset = ImageNet(split="train", per_class=per_class)
        folder = dataset.open(tmp_path / "folder")
        tar = dataset.open(tmp_path / "tar")
        named = ImageNet(split="train", per_class=per_class, at=str(at)).open(None)
        assert len(folder) == sum(min(per_class, 12 + k) for k in range(3))
        assert tar.fingerprint == folder.fingerprint == named.fingerprint
        for i in range(len(folder)):
            number = number_of(folder.image(i))
            assert number_of(tar.image(i)) == number
            wnid = ("n01440764", "n02012849", "n15075141")[number // 1000]
            assert folder.class_map[folder.labels[i]] == (wnids.index(wnid),)
        assert folder.expected == 1000 * per_class
        assert folder.expected_per_class == per_class


def test_the_sample_is_a_choice_and_not_the_first_files(tmp_path: Path) -> None:
    """In the order of names they would be alike: the files of one search follow each other."""
    write_train(tmp_path, "folder")
    images = ImageNet(split="train", per_class=4).open(tmp_path)
    assert len(set(images.source.tolist())) == 12
    some = {number_of(images.image(i)) for i in range(12)}
    first = {
        1000 * k + i
        for k, files in enumerate(train_files().values())
        for i, _ in sorted(enumerate(files), key=lambda one: one[1][0])[:4]
    }
    assert some != first
    larger = ImageNet(split="train", per_class=6).open(tmp_path)
    assert some < {number_of(larger.image(i)) for i in range(18)}


def test_a_truncated_training_tar_is_named(tmp_path: Path) -> None:
    path = write_train(tmp_path, "tar")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 512 * 512])
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar is (truncated|damaged)"):
        ImageNet(split="train").open(tmp_path)


def test_without_a_training_set_the_validation_set_is_not_taken_for_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "imagenet/val", [("n01440764/" + n, d) for n, d in flat(3)])
    with pytest.raises(DataError, match="prepare imagenet:split=train --from "):
        ImageNet(split="train").open(tmp_path)
